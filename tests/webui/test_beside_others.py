"""The extension where much is against it: beside an extension that renames samplers, beside a copy of itself, with
settings that no page could have saved, and asked by programs that spell things in their own way."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from hpsampler.calibration.profile import Profile
from hpsampler.noise import NoiseModel
from hpsampler.statistics.files import save_statistics
from tests.accordion.page import AccordionPage, until
from tests.adapter.conftest import FIVE
from tests.adapter.test_statistics import statistics
from tests.webui.harness import DEFAULT_CHECKPOINT, answered, copy_extension, encode, open_ui, paste
from tests.webui.hosts import refusal
from tests.webui.test_accordion import TXT2IMG
from tests.webui.test_api import from_infotext
from tests.webui.test_page import generate, values_on_page

RENAMES = '''
from modules import scripts, sd_samplers, sd_samplers_common
import gradio as gr


class Script(scripts.Script):
    """Gives the sampler another name while it draws, as sd-dynamic-thresholding does."""

    def title(self):
        return "Dynamic Thresholding (CFG Scale Fix)"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Checkbox(False, label="Enable"), gr.Slider(1, 30, 7, label="Mimic")]

    def process_batch(self, p, enabled, mimic, **kwargs):
        if enabled:
            p.renamed = p.sampler_name
            was = sd_samplers.all_samplers_map[p.sampler_name]
            p.sampler_name += "_dynthres1"
            sd_samplers.all_samplers_map[p.sampler_name] = sd_samplers_common.SamplerData(
                p.sampler_name, lambda model: was.constructor(model), was.aliases, was.options
            )
            p.extra_generation_params["Sampler"] = p.renamed

    def postprocess_batch(self, p, enabled, mimic, **kwargs):
        if enabled and hasattr(p, "renamed"):
            del sd_samplers.all_samplers_map[p.sampler_name]
            p.sampler_name = p.renamed
'''
RENAMED = "Dynamic Thresholding (CFG Scale Fix)"
ALTERNATIVE = "img2img alternative test"
HP = {"sampler_name": "HP Auto", "steps": 5, "cfg_scale": 7}
KARRAS = {"sampler_name": "DPM++ 2M", "scheduler": "Karras", "steps": 5}
HIRES = {
    "enable_hr": True, "hr_scale": 2, "hr_second_pass_steps": 5, "denoising_strength": 0.6,
}  # fmt: skip


def renamed_by():
    """The real extension, where HPS_DYNTHRES names a folder with it; else one that renames in the same way."""
    folder = os.environ.get("HPS_DYNTHRES")
    if folder:
        return {"extensions/dynamic-thresholding": Path(folder)}
    return {"extensions/dynamic-thresholding/scripts/dynamic_thresholding.py": RENAMES}


@pytest.fixture(scope="module")
def crowded(serve, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    copy_extension(copy)
    wrong = {"hpsampler_hidden": None, "hpsampler_follow": "yes", "hpsampler_calibration_when_off": [1]}
    return serve(
        files={"extensions/hp-sampler-backup": copy, **renamed_by()},
        settings={"hires_fix_show_sampler": True, "randn_source": "CPU", **wrong},
    )


@pytest.fixture
def kept(crowded, checkpoints):
    """A calibration and statistics that fit the loaded checkpoint at CFG 7 and 64x64."""
    # the WebUI's old hash of a checkpoint, which looks at a part of it
    part = (checkpoints / f"{DEFAULT_CHECKPOINT}.safetensors").read_bytes()[0x100000:0x110000]
    hashes = (hashlib.sha256(part).hexdigest()[:8],)
    profile = Profile("mine", "tiny", hashes, "sd1", 64, 64, 0.0291671, 14.614641, 24, 24, 1, fitted=(FIVE,))
    folder = crowded.data / "models" / "hpsampler"
    (folder / "calibrations").mkdir(parents=True, exist_ok=True)
    (folder / "calibrations" / "mine.json").write_text(profile.to_json())
    (folder / "statistics").mkdir(exist_ok=True)
    made = statistics(NoiseModel.of_stable_diffusion(), 7.0, hashes[0])
    save_statistics(made, folder / "statistics" / "mine.safetensors")
    yield json.loads(profile.to_json())
    for path in (*folder.glob("calibrations/*.json"), *folder.glob("statistics/*.safetensors")):
        path.unlink()


def scripts(*args, **others):
    ours = {"HP Sampler": {"args": [*args]}} if args else {}
    return {"alwayson_scripts": {**ours, **{name: {"args": each} for name, each in others.items()}}}


def beside(*args):
    return scripts(*args, **{RENAMED: [True, 7]})


def text_of(info):
    return info["infotexts"][0]


def refused(server, path, payload):
    status, answer = server.post(path, {"width": 64, "height": 64, **payload})
    assert status == 500, answer
    return refusal(answer)


def test_a_second_copy_and_wrong_settings_are_told_and_all_of_it_works(crowded):
    log = crowded.log()
    assert "HP Sampler: there are two copies of this extension" in log
    for name in ("hpsampler_hidden is None", "hpsampler_follow is 'yes'", "hpsampler_calibration_when_off is [1]"):
        assert f"HP Sampler: the option {name}, which it cannot be; its default" in log
    assert crowded.get("/sdapi/v1/scripts")["txt2img"].count("hp sampler") == 1
    names = [each["name"] for each in crowded.get("/sdapi/v1/samplers")]
    assert names.count("HP Auto") == 1
    (one,), info = crowded.txt2img(**HP, **scripts({"rho": 4}))
    assert "HP Rho: 4.0" in text_of(info) and "the option hpsampler_hidden is None" in text_of(info)
    assert not np.array_equal(one, crowded.txt2img(**HP, **scripts({"rho": 9}))[0][0])
    for value in (None, "x", {"a": 1}):
        crowded.post("/sdapi/v1/options", {"hpsampler_hidden": value})
    crowded.restart_ui()
    assert crowded.get("/sdapi/v1/scripts")["txt2img"].count("hp sampler") == 1
    assert np.array_equal(one, crowded.txt2img(**HP, **scripts({"rho": 4}))[0][0])


class TestRenamed:
    def test_a_calibration_golden_noise_and_statistics_are_used(self, crowded, kept):
        (plain,), _ = crowded.txt2img(**HP)
        (image,), info = crowded.txt2img(**HP, **beside())
        assert f"HP Calibration: mine {FIVE.hash}" in text_of(info) and "Sampler: HP Auto," in text_of(info)
        assert np.abs(image.astype(int) - plain).mean() < 2, "with a mimic scale of the CFG scale nothing is changed"
        _, info = crowded.txt2img(**HP, **beside({"golden_noise": "A"}))
        assert "HP Golden noise: A" in text_of(info) and "needs an HP sampler" not in text_of(info)
        _, info = crowded.txt2img(**{**HP, "sampler_name": "HP DPM-v3"}, **beside())
        assert "HP Statistics: mine" in text_of(info)

    def test_notes_are_those_of_the_sampler(self, crowded):
        _, info = crowded.txt2img(**HP, scheduler="Karras", **beside({"rho": 4}))
        assert "Rho has no effect, as the schedule type is Karras and not HP" in text_of(info)


class TestScheduleTypes:
    def test_spellings_of_the_second_pass_s(self, crowded):
        (usual,), _ = crowded.txt2img(**HP, **HIRES, hr_scheduler="Automatic")
        for spelling in ("automatic", "hp", "HP", "Use same scheduler"):
            (image,), info = crowded.txt2img(**HP, **HIRES, hr_scheduler=spelling)
            assert np.array_equal(image, usual), spelling
            assert "there is no schedule type" not in text_of(info)
        (image,), info = crowded.txt2img(**HP, **HIRES, hr_scheduler="Karas")
        assert np.array_equal(image, usual) and "there is no schedule type 'Karas' here" in text_of(info)
        _, info = crowded.txt2img(**HP, scheduler="Karas")
        assert "there is no schedule type 'Karas' here, so Automatic is used" in text_of(info)

    def test_what_runs_in_a_second_pass_that_takes_over_karras(self, crowded):
        _, info = crowded.txt2img(**KARRAS, **HIRES, hr_sampler_name="HP Auto")
        assert "the second pass runs HP Auto on the schedule type Karras and not on HP" in text_of(info)
        _, info = crowded.txt2img(**HP, **HIRES)
        assert "the second pass runs" not in text_of(info)


class TestPrograms:
    def test_an_infotext_and_a_dict_are_merged_and_a_second_dict_is_refused(self, crowded):
        _, info = crowded.txt2img(**HP, **scripts({"rho": 6.5, "ending": "To zero"}))
        text = text_of(info)
        assert "one dict of names" in refused(crowded, "/sdapi/v1/txt2img", {**HP, **scripts({"rho": 6}, {"rho": 7})})
        assert "Recipe (recipe)" in refused(crowded, "/sdapi/v1/txt2img", {**HP, **scripts({"rho": 6}, 1, 2)})
        _, info = from_infotext(crowded, text, **scripts({"ending": "Keep noise"}))
        assert "HP Rho: 6.5" in text_of(info) and "HP Ending: Keep noise" in text_of(info)
        wrong = text.replace("HP Rho: 6.5", "HP Rho: abc")
        assert "Rho (rho) must be a number" in refused(crowded, "/sdapi/v1/txt2img", {"infotext": wrong})

    def test_a_script_that_draws_in_its_own_way(self, crowded):
        if not (crowded.host.folder / "scripts" / "img2imgalt.py").is_file():
            pytest.skip(f"this host has no script {ALTERNATIVE!r}")
        (image,), _ = crowded.txt2img(**HP)
        asked = {
            **HP, "init_images": [encode(image)], "script_name": ALTERNATIVE, "denoising_strength": 1,
            "script_args": ["", False, False, "a lighthouse", "", False, 5, False, 1.0, 0.0, False],
        }  # fmt: skip
        by_itself = {"width": 64, "height": 64, "seed": 1, **asked, "sampler_name": "Euler", "scheduler": "Automatic"}
        status, body = crowded.post("/sdapi/v1/img2img", by_itself)
        if status != 200:
            pytest.skip(
                f"this host's script {ALTERNATIVE!r} fails by itself: {body.get('message') or body.get('errors')}"
            )
        for sampler, scheduler in (("HP Auto", "HP"), ("Euler", "HP")):
            drawn = []
            for rho in (3, 9):
                payload = {"width": 64, "height": 64, "seed": 1, **asked, "sampler_name": sampler}
                status, body = crowded.post(
                    "/sdapi/v1/img2img", {**payload, "scheduler": scheduler, **scripts({"rho": rho})}
                )
                assert status == 200, body
                assert f"HP Rho: {rho}.0" in text_of(json.loads(body["info"]))
                drawn.append(body["images"][0])
            assert drawn[0] != drawn[1]
            wrong = {**asked, "sampler_name": sampler, "scheduler": scheduler, **scripts({"rho": 99})}
            assert "Rho (rho) must be" in refused(crowded, "/sdapi/v1/img2img", wrong)

    def test_settings_beside_a_sampler_and_a_schedule_of_the_webui(self, crowded):
        (image,), info = crowded.txt2img(**KARRAS, **scripts({"rho": 6}))
        said = "Rho has no effect, as DPM++ 2M on the schedule type Karras uses nothing of it"
        assert said in text_of(info)
        assert np.array_equal(image, crowded.txt2img(**KARRAS)[0][0])
        assert "HP" not in text_of(crowded.txt2img(**KARRAS)[1])
        args = crowded.xyz_args(("[HP] Rho", "4, 6"), csv=True, draw_legend=True)
        _, info = crowded.txt2img(**KARRAS, script_name="x/y/z plot", script_args=args)
        assert said in text_of(info)

    @pytest.mark.parametrize(
        ("path", "body", "words"),
        [
            ("calibrate", {"name": "a", "prompts": "a cat\n<lora:b:1> a dog"}, "must not call extra networks"),
            ("calibrate", {"name": "a", "prompts": "a cat"}, "prompts must be two at least that differ"),
            ("measure", {"name": "a", "prompts": "<lora:b:1>"}, "must not call extra networks"),
        ],
    )
    def test_a_job_that_could_only_fail_is_not_begun(self, crowded, path, body, words):
        status, answer = crowded.post(f"/hpsampler/{path}", body)
        assert status == 422 and words in answer["detail"]

    def test_a_calibration_that_is_here_is_not_taken_twice(self, crowded, kept):
        status, answer = crowded.post("/hpsampler/calibrations", {**kept, "name": "another name"})
        assert (status, answer["name"]) == (200, "mine") and "is here already, as 'mine'" in answer["note"]
        assert len(crowded.get("/hpsampler/calibrations")["calibrations"]) == 1

    @pytest.mark.parametrize("sampler", ["HP Auto", "HP DPM++ 1S", "HP UniPC", "HP DPM-v3", "DPM++ 2M"])
    def test_strength_0_leaves_the_picture_as_it_is(self, crowded, sampler):
        asked = {**HP, "sampler_name": sampler, "scheduler": "HP", "denoising_strength": 0}
        (image,), _ = crowded.txt2img(**{**HIRES, **asked})
        assert image.shape == (128, 128, 3) and np.isfinite(image).all()
        (first,), _ = crowded.txt2img(**{**asked})
        (again,), _ = crowded.img2img(first, **asked, override_settings={"img2img_fix_steps": True})
        assert np.abs(again.astype(int) - first).mean() < 40, "but for what the VAE changes"


@pytest.fixture
def ui(page, crowded):
    page.route(lambda url: not url.startswith(crowded.url), lambda route: route.abort())
    open_ui(page, crowded)
    return page


@pytest.fixture
def accordion(ui):
    opened = AccordionPage(ui, "txt2img_hpsampler", TXT2IMG)
    opened.open()
    return opened


class TestPage:
    def test_defaults_of_ours_are_not_frozen_and_a_person_s_hold(self, crowded, ui, accordion):
        def begin_with(preset):
            crowded.post("/sdapi/v1/options", {"hpsampler_preset": preset})
            crowded.restart_ui()
            open_ui(ui, crowded)
            return values_on_page(ui)

        plain = values_on_page(ui)
        seen = begin_with("SD1.5 6 steps UniPC")
        assert seen["enabled"] is True and seen["recipe"] == "SD1.5 6 steps UniPC"
        _, info = crowded.txt2img(**HP)
        assert "HP Recipe: SD1.5 6 steps UniPC" in text_of(info), "the API the same"
        seen = begin_with("None")
        assert seen["enabled"] is False and seen["recipe"] == "Auto"
        # a person's own, in a menu that is filled later too
        accordion.open()
        accordion.set("rho", 6.5)
        bend = ui.locator("#txt2img_hpsampler_bend input")
        bend.fill("0.45")
        bend.press("Enter")
        accordion.settle()
        ui.click("#tabs > div button:has-text('Settings')")
        ui.click("#tab_settings .tab-nav button:text-is('Defaults')")
        ui.click("#ui_defaults_view")
        answered(ui)
        shown = ui.locator("#tab_settings").inner_text()
        assert "txt2img/Rho/value" in shown and "txt2img/Bend/value" in shown and "Truncation" not in shown
        ui.click("#ui_defaults_apply")
        answered(ui)
        for preset in ("SD1.5 5 steps", "None", "None"):
            seen = begin_with(preset)
            assert float(seen["rho"]) == 6.5 and seen["bend"] == "0.45"
            assert seen["recipe"] == ("Auto" if preset == "None" else preset)
        config = crowded.data / "ui-config.json"
        data = {k: v for k, v in json.loads(config.read_text()).items() if "hpsampler" not in k}
        config.write_text(json.dumps(data))
        assert {k: v for k, v in begin_with("None").items() if k != "enabled"} == {
            k: v for k, v in plain.items() if k != "enabled"
        }

    @pytest.mark.parametrize("target", ["img2img", "inpaint"])
    def test_send_to_img2img_and_inpaint_carries_the_accordion(self, ui, accordion, target):
        accordion.set("rho", 6.5)
        accordion.set("ending", "To zero")
        accordion.set("guidance", "As set")
        for name, value in (("steps", 5), ("width", 64), ("height", 64)):
            ui.fill(f"#txt2img_{name} input[type=number]", str(value))
            ui.press(f"#txt2img_{name} input[type=number]", "Tab")
        generate(ui)
        ui.click(f"#txt2img_send_to_{target}")
        until(lambda: values_on_page(ui, "img2img")["rho"], "6.5")
        seen = values_on_page(ui, "img2img")
        assert seen["enabled"] is True and seen["ending"] == "To zero" and seen["guidance"] == "As set"

    def test_what_runs_is_said_before(self, ui, accordion):
        accordion.choose_at("#txt2img_scheduler", "Karras")
        ui.click("#txt2img_hr .input-accordion-checkbox")
        accordion.settle()
        assert "the second pass runs HP Auto on the schedule type Karras and not on HP" in accordion.words()
        assert "Hires. fix: HP Auto on the schedule type Karras" in accordion.panel.inner_text()

    def test_a_window_behind_the_last_call_and_a_past_that_is_none(self, ui, accordion):
        accordion.set("freeu", "On")
        accordion.set("freeu_first", 300)
        accordion.settle()
        assert "Free-U has no effect, as its first call is 300 and there are" in accordion.words()
        accordion.set("recipe", "SD1.5 5 steps")
        accordion.settle()
        assert "; it runs with" in accordion.words()

    def test_the_sentence_follows_what_says_where_the_schedule_ends(self, ui, accordion):
        sentences = set()
        for name, value in (("rho", 0), ("rho", 9), ("truncation_index", 4)):
            accordion.set(name, value)
            accordion.settle()
            sentences.add(accordion.panel.locator(".hps-summary").inner_text().partition("Changed")[0])
        accordion.set("rho", 0)
        accordion.set("truncation_index", 0)
        accordion.set("end_sigma", 0.3)
        accordion.settle()
        sentences.add(accordion.panel.locator(".hps-summary").inner_text().partition("Changed")[0])
        assert len(sentences) == 4

    def test_a_pasted_number_that_is_none_is_told_by_its_name(self, ui, accordion):
        accordion.set("rho", 5)
        paste(
            ui,
            "a moon\nSteps: 5, Sampler: HP Auto, Seed: 1, Size: 64x64, HP Recipe: Auto, HP Rho: abc, HP version: 0.7.0",
        )
        ui.locator("text=Rho (rho) must be a number from 0.1 to 50").first.wait_for()
        until(lambda: float(values_on_page(ui)["rho"]), 0.0)
