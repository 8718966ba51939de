"""Drawing the pictures of each configuration through a running WebUI, resumable at every picture."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import struct
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..client import Client, RequestRefused
from ..recipes import AUTO
from ..settings import ENABLED
from ..store import write_atomically
from .configurations import Configuration
from .progress import ProgressBar
from .prompts import EvaluationError, literal

__all__ = ["Drawing", "DrawingConfig", "Host", "WebUI"]

FORMAT, VERSION = "hpsampler-evaluation", 1
MANIFEST, SECONDS = "manifest.json", "seconds.csv"
SCRIPT = "HP Sampler"

DRAWS_OTHERWISE = (
    "sd_model_checkpoint", "sd_vae", "CLIP_stop_at_last_layers", "randn_source",
    "eta_noise_seed_delta", "token_merging_ratio", "upcast_attn", "emphasis", "sdxl_crop_top", "sdxl_crop_left",
    "hpsampler_follow",
)  # fmt: skip
"""The WebUI's own settings that change a picture and that no request says; a change of one is another folder."""


class WebUI(Client):
    """A running WebUI that draws."""

    def draw(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a txt2img request. Raises as :meth:`Client.ask`."""
        answer = self.ask("POST", "/sdapi/v1/txt2img", request)
        return answer if isinstance(answer, dict) else {}

    def inspect(self) -> Host:
        """What the WebUI has, and how it is set.

        Raises:
            EvaluationError: it does not answer with PNG files.
            ClientError: as :meth:`Client.ask`.
        """
        samplers = tuple(each["name"] for each in self.ask("GET", "/sdapi/v1/samplers"))
        schedulers = tuple(
            name for each in self.ask("GET", "/sdapi/v1/schedulers") for name in (each["label"], each["name"])
        )
        options = self.ask("GET", "/sdapi/v1/options")
        form = str(options.get("samples_format", "png"))
        if form.lower() != "png":
            raise EvaluationError(
                f"the WebUI answers with {form} files; set Settings, Saving images, File format to png"
            )
        found = {name: options[name] for name in DRAWS_OTHERWISE if name in options}
        # its hash stands there only once the model was loaded; the pictures themselves are held to theirs
        title = str(found.get("sd_model_checkpoint") or "")
        found["sd_model_checkpoint"] = re.sub(r" \[[0-9a-f]+\]$", "", title)
        return Host(samplers, schedulers, found)

    def interrupted(self) -> bool:
        """Whether the last request was cut short; the WebUI then answers with an unfinished picture all the same."""
        state = self.ask("GET", "/sdapi/v1/progress?skip_current_image=true").get("state", {})
        return any(state.get(name) for name in ("interrupted", "skipped", "stopping_generation"))


@dataclass(frozen=True)
class Host:
    """What a WebUI has.

    Attributes:
        options: those of its settings that change a picture.
    """

    samplers: tuple[str, ...]
    schedulers: tuple[str, ...]
    options: dict[str, Any]

    @property
    def has_hp(self) -> bool:
        return any(name.startswith("HP ") for name in self.samplers)

    def complaint(self, each: Configuration) -> str:
        """Why a configuration cannot be drawn here; empty where it can."""
        if each.sampler not in self.samplers:
            return f"{each}: the WebUI has no sampler {each.sampler!r}; it has: {', '.join(self.samplers)}"
        if each.scheduler not in self.schedulers:
            listed = ", ".join(dict.fromkeys(self.schedulers[::2]))
            return f"{each}: the WebUI has no schedule type {each.scheduler!r}; it has: {listed}"
        if each.own and not self.has_hp:
            return f"{each}: the WebUI has no HP Sampler"
        return ""


def is_whole_png(data: bytes) -> bool:
    """Whether it is a PNG file from its first byte to its last: every chunk there, and its checksum right."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return False
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 12 + length
        if end > len(data):
            return False
        if zlib.crc32(data[place + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            return False
        if data[place + 4 : place + 8] == b"IEND":
            return end == len(data)
        place = end
    return False


@dataclass(frozen=True)
class DrawingConfig:
    """What all configurations of a run have in common.

    Attributes:
        count: pictures of each configuration. Not part of what a folder is named for: more can be drawn later.
        batch: pictures per request, all of one prompt, as the WebUI's API takes one.
    """

    prompts: tuple[str, ...]
    literal: bool
    count: int
    width: int
    height: int
    seed: int
    batch: int
    negative: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()

    def prompt(self, index: int) -> str:
        """Of the picture of that index."""
        return self.prompts[index // self.batch]

    def request(self, each: Configuration, has_hp: bool) -> dict[str, Any]:
        """All of a request but its prompt and its seed."""
        found: dict[str, Any] = {
            "negative_prompt": self.negative,
            "width": self.width,
            "height": self.height,
            "sampler_name": each.sampler,
            "scheduler": each.scheduler,
            "steps": each.steps,
            "cfg_scale": each.cfg_scale,
            "batch_size": self.batch,
            "n_iter": 1,
            "enable_hr": False,
            "restore_faces": False,
            "tiling": False,
            "save_images": False,
            "send_images": True,
            "do_not_save_samples": True,
            "do_not_save_grid": True,
        }
        if has_hp:
            # said in full, as the WebUI's settings may name a preset for requests that say nothing
            args = {"recipe": AUTO, **dict(each.settings)} if each.own else {ENABLED.name: False}
            found["alwayson_scripts"] = {SCRIPT: {"args": [args]}}
        return found


class Drawing:
    """The pictures of one configuration, in a folder of their own that is named for all that was asked.

    Raises:
        EvaluationError: the folder holds something else.
    """

    def __init__(self, out: Path, config: DrawingConfig, each: Configuration, host: Host) -> None:
        self.config, self.each = config, each
        self.request = config.request(each, host.has_hp)
        asked = {
            "request": self.request,
            "seed": config.seed,
            "prompts": config.digest,
            "literal": config.literal,
            "webui": host.options,
        }
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
        label = re.sub(r"[^A-Za-z0-9.]+", "-", str(each)).strip("-.")[:60]
        self.folder = out / f"{label}-{digest}"
        self.manifest = {
            "format": FORMAT, "version": VERSION, "configuration": str(each), "count": config.count, "asked": asked,
            "drawn": None,
        }  # fmt: skip
        self._open()

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / MANIFEST
        if path.exists():
            found = read_manifest(self.folder)
            if found["asked"] != self.manifest["asked"]:
                raise EvaluationError(
                    f"{path} is of another run than its folder's name says; delete the folder or move it"
                )
            self.manifest["drawn"] = found.get("drawn")
        elif any(self.folder.glob("*.png")):
            raise EvaluationError(
                f"{self.folder} holds pictures and no {MANIFEST}, so nobody knows of what; delete it or move it"
            )
        self._keep_manifest()

    def _keep_manifest(self) -> None:
        write_atomically(self.folder / MANIFEST, json.dumps(self.manifest, indent=1, ensure_ascii=False) + "\n")

    def path(self, index: int) -> Path:
        return picture_path(self.folder, index)

    def missing(self) -> list[int]:
        """Pictures that are not there, or not whole."""
        return [index for index in range(self.config.count) if not _whole(self.path(index))]

    def draw(self, webui: WebUI, bar: ProgressBar) -> None:
        """Draw what is missing.

        Raises:
            RequestRefused, EvaluationError: as :meth:`WebUI.ask`; what was drawn before stays.
        """
        missing, batch = self.missing(), self.config.batch
        bar.begin(str(self.each), self.config.count, self.config.count - len(missing))
        by_request: dict[int, list[int]] = {}
        for index in missing:
            by_request.setdefault(index // batch * batch, []).append(index)
        for first, wanted in by_request.items():
            pictures, seconds = self._ask(webui, first)
            for index in wanted:
                _write_bytes(self.path(index), pictures[index - first])
            with (self.folder / SECONDS).open("a", encoding="ascii") as file:
                file.write(f"{first},{batch},{seconds:.4f}\n")
            bar.add(len(wanted))

    def _ask(self, webui: WebUI, first: int) -> tuple[list[bytes], float]:
        prompt = self.config.prompt(first)
        body = {
            **self.request,
            "prompt": literal(prompt) if self.config.literal else prompt,
            "seed": self.config.seed + first,
        }
        begun = time.perf_counter()
        answer = webui.draw(body)
        seconds = time.perf_counter() - begun
        if webui.interrupted():
            raise EvaluationError("somebody pressed Interrupt or Skip in the WebUI")
        try:
            info = json.loads(answer["info"])
            # a grid of the batch may stand before its pictures
            start = int(info.get("index_of_first_image", 0))
            pictures = [base64.b64decode(image) for image in answer["images"][start : start + self.config.batch]]
        except (KeyError, TypeError, ValueError):
            raise RequestRefused("the WebUI's answer holds no pictures") from None
        if len(pictures) != self.config.batch or not all(map(is_whole_png, pictures)):
            raise RequestRefused(f"the WebUI's answer must hold {self.config.batch} PNG files")
        self._same(_drawn_with(info))
        return pictures, seconds

    def _same(self, drawn: dict[str, Any]) -> None:
        """The model, the calibration and so on must be those of the pictures already there."""
        before = self.manifest["drawn"]
        if before is None:
            self.manifest["drawn"] = drawn
            return self._keep_manifest()
        assert isinstance(before, dict)
        changed = [
            f"{name} was {before.get(name)!r} and is {drawn.get(name)!r}"
            for name in sorted({*before, *drawn})
            if before.get(name) != drawn.get(name)
        ]
        if changed:
            raise RequestRefused(f"the WebUI draws otherwise than for the pictures already there: {'; '.join(changed)}")


def _drawn_with(info: Mapping[str, Any]) -> dict[str, Any]:
    """What the WebUI says of a picture that must be one for all of a configuration."""
    extra = info.get("extra_generation_params") or {}
    found = {name: info.get(name) for name in ("sd_model_hash", "sd_model_name", "sd_vae_hash", "version")}
    found.update({name: extra[name] for name in extra if name.startswith("HP ") or name == "Schedule type"})
    return {name: value for name, value in found.items() if value is not None}


def picture_path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises EvaluationError: it cannot be read."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] == FORMAT and found["version"] == VERSION and isinstance(found["asked"]["request"], dict):
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise EvaluationError(f"{path} cannot be read; delete the folder or move it")


def _whole(path: Path) -> bool:
    try:
        return is_whole_png(path.read_bytes())
    except OSError:
        return False


def _write_bytes(path: Path, data: bytes) -> None:
    """Atomically, as an interrupted run must not leave half a picture."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
