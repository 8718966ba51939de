"""What a WebUI's folder holds, as far as starting it and reading its answers needs it.

Everything is found in the folder's own files, by what is there and never by a fork's name, and without the extension's
own adapter: whatever that gets wrong must show.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tiny_model.pictures import SIDE as TRAINED_SIDE

ARGUMENTS = ("modules/cmd_args.py", "backend/args.py", "ldm_patched/modules/args_parser.py")
"""Where command line options are declared, by the WebUI itself and by the backends that forks put under it."""

ALWAYS = ["--skip-torch-cuda-test", "--skip-version-check", "--no-hashing"]
IF_KNOWN = ["--no-download-sd-model", "--do-not-download-clip", "--disable-safe-unpickle"]
ON_THE_CPU = [["--always-cpu"], ["--cpu"], ["--use-cpu", "all"]]
IN_FLOAT32 = [["--all-in-fp32"], ["--force-fp32"], ["--no-half", "--precision", "full"]]
"""Of each, the first that the host knows: forks keep A1111's options, but their backends do not follow them."""


@dataclass(frozen=True)
class Host:
    """A WebUI in ``folder``, with its environment in ``venv/`` inside."""

    folder: Path

    def text(self, *names: str) -> str:
        """The files' text, one after the other; one that is missing has none."""
        found = (self.folder / name for name in names)
        return "\n".join(path.read_text(encoding="utf-8") for path in found if path.is_file())

    @cached_property
    def options(self) -> frozenset[str]:
        """The command line options it knows."""
        return frozenset(re.findall(r"""["'](--[a-z0-9-]+)["']""", self.text(*ARGUMENTS)))

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    @property
    def has_layouts(self) -> bool:
        """Whether the original code of Stable Diffusion lies beside it, with which the tiny checkpoints are written."""
        return (self.folder / "repositories" / "generative-models").is_dir()

    @property
    def loads_late(self) -> bool:
        """Whether the model is loaded with the first picture, and not at the start."""
        return "class FakeInitialModel" in self.text("modules/sd_models.py")

    @property
    def has_backend(self) -> bool:
        """Whether the networks are run by a backend that patches clones of them (``forge_objects``)."""
        return "forge_objects" in self.text("modules/processing.py")

    @property
    def said_wrong(self) -> str:
        """Where the page says why a request was refused: some forks drop exceptions, so it stands with the comments."""
        worker = self.text("modules_forge/main_thread.py")
        return ".comments" if worker and "last_exception" not in worker else ".error"

    @property
    def gradio(self) -> int:
        """The first number of gradio's version."""
        (found,) = self.folder.glob("venv/lib/python3*/site-packages/gradio-*.dist-info")
        return int(found.name.split("-")[1].split(".")[0])

    @property
    def settings(self) -> dict[str, Any]:
        """What config.json must hold: without its version a fork asks whether to go on."""
        found = re.search(r'^VERSION_UID[^=]*= "(.+)"', self.text("modules/launch_utils.py"), re.M)
        # where the refiner would begin at a sigma, it begins after a part of the steps as elsewhere
        steps = {"refiner_use_steps": True} if '"refiner_use_steps"' in self.text("modules/shared_options.py") else {}
        return {**({"VERSION_UID": found[1]} if found else {}), **steps}

    @property
    def defaults(self) -> dict[str, str]:
        """What ui-config.json must hold, as after a first start: without it a text box of gradio 4 takes no paste."""
        names = ("Prompt", "Negative prompt", "Negative Prompt")
        return {f"{tab}/{name}/value": "" for tab in ("txt2img", "img2img") for name in names if self.gradio >= 4}

    @property
    def size_step(self) -> int:
        """Sizes of pictures become multiples of it."""
        return 64 if "// 64) * 64" in self.text("modules/processing.py") else 8

    @property
    def upscaler(self) -> str:
        """Of hires. fix; a fork has none that works on the latent, and then this one is the host's plain resize."""
        return "Latent" if '"Latent"' in self.text("modules/shared.py") else "None"

    @property
    def payload(self) -> dict[str, Any]:
        """What a request says where it says nothing else; without the modules the second pass of some forks fails."""
        named = "hr_additional_modules" in self.text("modules/processing.py")
        modules = {"hr_additional_modules": ["Use same choices"]} if named else {}
        return {"hr_upscaler": self.upscaler, **modules}

    @property
    def has_other_unets(self) -> bool:
        """Whether an extension can put a UNet of its own in the model's place (``sd_unet``)."""
        return "sd_unet" in self.text("modules/sd_models.py") and not self.has_backend

    @property
    def asks_no_schedule(self) -> set[str]:
        """Samplers of a fork that make their schedule themselves, whatever schedule type is chosen."""
        text = self.text("modules_forge/forge_alter_samplers.py")
        return set(re.findall(r"SamplerData\(\s*['\"]([^'\"]+)", text)) if "def get_sigmas(self, p" in text else set()

    def command(self, data: Path, checkpoints: Path, checkpoint: str, port: int) -> list[str]:
        """What starts it.

        A1111's webui.py is started itself, because its launch.py checks and installs, which needs git folders and the
        network. Forks can be told not to do that, and some refuse to be started in another way.
        """
        known = self.options
        skip = "--skip-prepare-environment"
        start = ["launch.py", skip] if self.has_backend and skip in known else ["webui.py"]
        command = [str(self.python), *start, *ALWAYS, *(flag for flag in IF_KNOWN if flag in known)]
        for choices in (ON_THE_CPU, IN_FLOAT32):
            command += next(choice for choice in choices if choice[0] in known)
        command += ["--port", str(port), "--data-dir", str(data)]
        command += ["--ckpt-dir" if "--ckpt-dir" in known else "--ckpt-dirs", str(checkpoints)]
        if "--ckpt" in known:
            command += ["--ckpt", str(checkpoints / f"{checkpoint}.safetensors")]
        if self.gradio >= 4:
            # its files lie outside the data folder then, and gradio 4 serves only what it is told
            command += ["--gradio-allowed-path", str(self.folder)]
        return command


def _side() -> int:
    folder = os.environ.get("HPS_WEBUI")
    step = Host(Path(folder)).size_step if folder else 1
    return -(-TRAINED_SIDE // step) * step


SIDE = _side()
"""Of the trained tiny model's pictures, as the WebUI under test draws them; what is calibrated is for this size."""


def refusal(answer: Any) -> str:
    """The sentence in the answer to a request that was refused: hosts put it under different names."""
    return str(answer.get("errors") or answer.get("message") or answer.get("detail") or answer)


def extra_extensions() -> list[Path]:
    """Folders of extensions that every server gets, from HPS_WEBUI_EXTENSIONS.

    A fork's loader finds out a checkpoint's widths by comparing it with models it knows; one of these can teach it the
    tiny checkpoints' widths.
    """
    name = os.environ.get("HPS_WEBUI_EXTENSIONS")
    return sorted(path for path in Path(name).iterdir() if path.is_dir()) if name else []
