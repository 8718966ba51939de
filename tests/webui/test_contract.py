"""The stand-in host of the unit tests against a real A1111: names, arguments and order of what the adapter touches.

Read from the source with ast, so no WebUI has to run.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

STAND_IN = Path(__file__).resolve().parents[1] / "adapter" / "host" / "modules"


@pytest.fixture
def webui_folder(host):
    if host.has_backend:
        pytest.skip("a fork's modules are not A1111's, which the stand-in stands for")
    return host.folder


class Source:
    """Classes and functions of one module."""

    def __init__(self, file: Path) -> None:
        self.tree = ast.parse(file.read_text(encoding="utf-8"))

    def find(self, path: str) -> ast.AST:
        node: ast.AST = self.tree
        for name in path.split("."):
            node = next(
                child
                for child in ast.walk(node)
                if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and child.name == name
            )
        return node

    def arguments(self, path: str) -> list[str]:
        arguments = self.find(path).args
        names = [each.arg for each in arguments.args + arguments.kwonlyargs]
        return names + [each.arg for each in (arguments.vararg, arguments.kwarg) if each]

    def fields(self, path: str) -> list[str]:
        return [node.target.id for node in self.find(path).body if isinstance(node, ast.AnnAssign)]


def real(webui_folder: Path, module: str) -> Source:
    return Source(webui_folder / "modules" / f"{module}.py")


def pair(webui_folder: Path, module: str) -> tuple[Source, Source]:
    return Source(STAND_IN / f"{module}.py"), real(webui_folder, module)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("sd_samplers", "create_sampler"),
        ("sd_samplers", "set_samplers"),
        ("sd_samplers", "get_sampler_and_scheduler"),
        ("sd_samplers_common", "SamplerData.total_steps"),
        ("sd_samplers_kdiffusion", "KDiffusionSampler.__init__"),
        ("sd_samplers_kdiffusion", "KDiffusionSampler.get_sigmas"),
        ("sd_samplers_kdiffusion", "KDiffusionSampler.sample"),
        ("sd_samplers_kdiffusion", "KDiffusionSampler.sample_img2img"),
        ("script_callbacks", "on_cfg_denoiser"),
        ("script_callbacks", "on_cfg_after_cfg"),
        ("script_callbacks", "on_script_unloaded"),
        ("script_callbacks", "on_ui_tabs"),
        ("script_callbacks", "on_app_started"),
        ("script_callbacks", "clear_callbacks"),
        ("devices", "autocast"),
        ("devices", "without_autocast"),
        ("extra_networks", "parse_prompt"),
        ("extra_networks", "activate"),
        ("rng", "ImageRNG.__init__"),
        ("sd_models", "apply_alpha_schedule_override"),
        ("sd_samplers_common", "decode_first_stage"),
        ("processing", "StableDiffusionProcessing.setup_prompts"),
        ("processing", "StableDiffusionProcessing.setup_conds"),
        ("processing", "StableDiffusionProcessing.txt2img_image_conditioning"),
        ("scripts", "Script.title"),
        ("scripts", "Script.ui"),
        ("scripts", "Script.show"),
        ("scripts", "Script.process"),
        ("scripts", "Script.process_before_every_sampling"),
        ("ui_components", "InputAccordion.__init__"),
        ("infotext_utils", "PasteField.__init__"),
    ],
)
def test_arguments(webui_folder, module, function):
    ours, theirs = pair(webui_folder, module)
    assert ours.arguments(function) == theirs.arguments(function)


def test_a_scheduler_has_these_fields(webui_folder):
    ours, theirs = pair(webui_folder, "sd_schedulers")
    assert ours.fields("Scheduler") == theirs.fields("Scheduler")


@pytest.mark.parametrize("module", ["sd_samplers_common"])
def test_a_sampler_s_data(webui_folder, module):
    text = (webui_folder / "modules" / f"{module}.py").read_text()
    assert "['name', 'constructor', 'aliases', 'options']" in text
    assert "class InterruptedException(BaseException)" in text


def test_the_denoiser_has_what_free_u_and_the_solvers_read(webui_folder):
    theirs = real(webui_folder, "sd_samplers_cfg_denoiser")
    assigned = {
        node.attr
        for node in ast.walk(theirs.find("CFGDenoiser.__init__"))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    assert {"sampler", "step", "total_steps", "p", "model_wrap"} <= assigned


def test_the_order_of_calls_in_one_unet_evaluation(webui_folder):
    """Interrupt, refiner, our hook before the UNet, what others do after it, and our other hook."""
    theirs = real(webui_folder, "sd_samplers_cfg_denoiser")
    source = ast.unparse(theirs.find("CFGDenoiser.forward"))
    marks = ["InterruptedException", "apply_refiner", "cfg_denoiser_callback", "self.inner_model("]
    marks += ["cfg_denoised_callback(", "cfg_after_cfg_callback("]
    places = [source.index(mark) for mark in marks]
    assert places == sorted(places)


def test_callbacks_carry_what_we_read(webui_folder):
    theirs = real(webui_folder, "script_callbacks")
    assert theirs.arguments("CFGDenoiserParams.__init__")[-1] == "denoiser"


def test_hooks_come_before_the_schedule_is_asked_for(webui_folder):
    source = ast.unparse(real(webui_folder, "processing").find("StableDiffusionProcessingTxt2Img.sample"))
    marks = ["create_sampler", "process_before_every_sampling", "self.sampler.sample("]
    places = [source.index(mark) for mark in marks]
    assert places == sorted(places)


def test_exceptions_in_hooks_are_printed_and_not_raised(webui_folder):
    """Why a wrong setting stops the pass in the sampler and not in the hook that finds it."""
    runner = ast.unparse(real(webui_folder, "scripts").find("ScriptRunner.process_before_every_sampling"))
    assert "except Exception" in runner and "errors.report" in runner
