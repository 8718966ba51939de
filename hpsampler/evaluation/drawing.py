"""Draws the pictures of each configuration through a running WebUI, and resumes at any picture."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..client import Client, ClientError, RequestRefused, line_in
from ..files import write_atomically
from ..recipes import AUTO
from ..settings import ENABLED
from ..store import Reader, StoreError
from .configurations import Configuration
from .progress import ProgressBar
from .prompts import EvaluationError, literal

__all__ = ["Drawing", "DrawingConfig", "Host", "WebUI"]

FORMAT, VERSION = "hpsampler-evaluation", 1
MANIFEST, SECONDS = "manifest.json", "seconds.csv"
SCRIPT = "HP Sampler"

PICTURE_OPTIONS = (
    "sd_model_checkpoint", "sd_vae", "CLIP_stop_at_last_layers", "randn_source",
    "eta_noise_seed_delta", "token_merging_ratio", "upcast_attn", "emphasis", "sdxl_crop_top", "sdxl_crop_left",
    "hpsampler_follow",
)  # fmt: skip
"""The WebUI's settings that change a picture but are not part of a request; a different value means another folder."""


class WebUI(Client):
    """A running WebUI that draws."""

    def draw(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The response to a txt2img request. Raises as :meth:`Client.ask`."""
        answer = self.ask("POST", "/sdapi/v1/txt2img", request)
        return answer if isinstance(answer, dict) else {}

    def inspect(self) -> Host:
        """The WebUI's samplers, schedule types and settings.

        Raises:
            EvaluationError: it does not answer with PNG files.
            ClientError: as :meth:`Client.ask`.
        """
        samplers = tuple(self._rows("samplers", lambda row: line_in(row.at("name"))))
        pairs = self._rows("schedulers", lambda row: (line_in(row.at("label")), line_in(row.at("name"))))
        schedulers = tuple(name for pair in pairs for name in pair)
        all_options = self.ask("GET", "/sdapi/v1/options")
        if not isinstance(all_options, dict):
            raise ClientError(f"{self.url} answered with no settings; is it a WebUI?")
        form = str(all_options.get("samples_format", "png"))
        if form.lower() != "png":
            raise EvaluationError(
                f"the WebUI answers with {form} files; set Settings, Saving images, File format to png"
            )
        options = {name: all_options[name] for name in PICTURE_OPTIONS if name in all_options}
        # the title has a hash only after the model was loaded; the hash itself is checked in every response
        title = str(options.get("sd_model_checkpoint") or "")
        options["sd_model_checkpoint"] = re.sub(r" \[[0-9a-f]+\]$", "", title)
        return Host(samplers, schedulers, options)

    def interrupted(self) -> bool:
        """Whether the last request was interrupted; the WebUI answers with an unfinished picture then."""
        progress = self.ask("GET", "/sdapi/v1/progress?skip_current_image=true")
        state = progress.get("state") if isinstance(progress, dict) else None
        if not isinstance(state, dict):
            raise ClientError(f"{self.url} does not say whether the request was interrupted")
        return any(state.get(name) for name in ("interrupted", "skipped", "stopping_generation"))

    def _rows(self, name: str, read: Callable[[Reader], Any]) -> list[Any]:
        """The rows of one of the WebUI's lists. Raises ClientError: it is none."""
        try:
            return Reader({name: self.ask("GET", f"/sdapi/v1/{name}")}).items(name, read)
        except StoreError as error:
            raise ClientError(f"{self.url} answered what no WebUI does: {error}") from None


@dataclass(frozen=True)
class Host:
    """The relevant properties of a WebUI.

    Attributes:
        samplers: names of the samplers.
        schedulers: labels and internal names of the schedule types, in turn.
        options: the settings in ``PICTURE_OPTIONS``.
    """

    samplers: tuple[str, ...]
    schedulers: tuple[str, ...]
    options: dict[str, Any]

    @property
    def has_hp_sampler(self) -> bool:
        return any(name.startswith("HP ") for name in self.samplers)

    def problem_with(self, configuration: Configuration) -> str:
        """Why a configuration cannot be drawn with this WebUI; empty if it can."""
        sampler, scheduler = configuration.sampler, configuration.scheduler
        if sampler not in self.samplers:
            return f"{configuration}: the WebUI has no sampler {sampler!r}; it has: {', '.join(self.samplers)}"
        if scheduler not in self.schedulers:
            listed = ", ".join(dict.fromkeys(self.schedulers[::2]))
            return f"{configuration}: the WebUI has no schedule type {scheduler!r}; it has: {listed}"
        if configuration.needs_hp_sampler and not self.has_hp_sampler:
            return f"{configuration}: the WebUI has no HP Sampler"
        return ""


def is_whole_png(data: bytes) -> bool:
    """Whether it is a complete PNG file, with all chunks and correct checksums."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return False
    start = 8
    while start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        end = start + 12 + length
        if end > len(data):
            return False
        if zlib.crc32(data[start + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            return False
        if data[start + 4 : start + 8] == b"IEND":
            return end == len(data)
        start = end
    return False


@dataclass(frozen=True)
class DrawingConfig:
    """The settings that all configurations of a run share.

    Attributes:
        literal: whether prompts are sentences, in which the WebUI's prompt syntax must be escaped.
        count: number of pictures of each configuration. Folder names do not depend on it, so more can be drawn later.
        seed: seed of the first picture; each further picture has the next.
        batch: pictures per request, all with the same prompt, as the WebUI's API allows only one.
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
        """A hash of the prompts."""
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()

    def prompt(self, index: int) -> str:
        """The prompt of the picture with that index."""
        return self.prompts[index // self.batch]

    def request(self, configuration: Configuration, has_hp_sampler: bool) -> dict[str, Any]:
        """A request without its prompt and seed."""
        request: dict[str, Any] = {
            "negative_prompt": self.negative,
            "width": self.width,
            "height": self.height,
            "sampler_name": configuration.sampler,
            "scheduler": configuration.scheduler,
            "steps": configuration.steps,
            "cfg_scale": configuration.cfg_scale,
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
        if has_hp_sampler:
            # explicit, as the WebUI's settings may name a preset for requests without settings
            uses_it = configuration.needs_hp_sampler
            args = {"recipe": AUTO, **dict(configuration.settings)} if uses_it else {ENABLED.name: False}
            request["alwayson_scripts"] = {SCRIPT: {"args": [args]}}
        return request


class Drawing:
    """The pictures of one configuration, in a folder whose name has a hash of all that determines them.

    Raises:
        EvaluationError: the folder has other content.
    """

    def __init__(self, out: Path, config: DrawingConfig, configuration: Configuration, host: Host) -> None:
        self.config, self.configuration = config, configuration
        self.request = config.request(configuration, host.has_hp_sampler)
        task = {
            "request": self.request,
            "seed": config.seed,
            "prompts": config.digest,
            "literal": config.literal,
            "webui": host.options,
        }
        digest = hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()[:12]
        label = re.sub(r"[^A-Za-z0-9.]+", "-", str(configuration)).strip("-.")[:60]
        self.folder = out / f"{label}-{digest}"
        self.manifest = {
            "format": FORMAT, "version": VERSION, "configuration": str(configuration), "count": config.count,
            "asked": task, "drawn": None,
        }  # fmt: skip
        self._open()

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / MANIFEST
        if path.exists():
            stored = read_manifest(self.folder)
            if stored["asked"] != self.manifest["asked"]:
                raise EvaluationError(
                    f"{path} is of another run than its folder's name says; delete the folder or move it"
                )
            self.manifest["drawn"] = stored.get("drawn")
        elif any(self.folder.glob("*.png")):
            raise EvaluationError(
                f"{self.folder} has pictures but no {MANIFEST}, so their settings are unknown; delete it or move it"
            )
        self._write_manifest()

    def _write_manifest(self) -> None:
        write_atomically(self.folder / MANIFEST, json.dumps(self.manifest, indent=1, ensure_ascii=False) + "\n")

    def path(self, index: int) -> Path:
        return picture_path(self.folder, index)

    def missing(self) -> list[int]:
        """Indices of the pictures that are missing or incomplete."""
        return [index for index in range(self.config.count) if not _is_whole(self.path(index))]

    def draw(self, webui: WebUI, bar: ProgressBar) -> None:
        """Draw the missing pictures.

        Raises:
            ClientError, RequestRefused: as :meth:`Client.ask`, or the response is not as expected.
            EvaluationError: the WebUI was interrupted. In all cases the pictures drawn so far stay.
        """
        missing, batch = self.missing(), self.config.batch
        bar.begin(str(self.configuration), self.config.count, self.config.count - len(missing))
        by_request: dict[int, list[int]] = {}
        for index in missing:
            by_request.setdefault(index // batch * batch, []).append(index)
        for first, indices in by_request.items():
            pictures, seconds = self._draw_batch(webui, first)
            for index in indices:
                write_atomically(self.path(index), pictures[index - first])
            with (self.folder / SECONDS).open("a", encoding="ascii") as file:
                file.write(f"{first},{batch},{seconds:.4f}\n")
            bar.add(len(indices))

    def _draw_batch(self, webui: WebUI, first: int) -> tuple[list[bytes], float]:
        prompt = self.config.prompt(first)
        body = {
            **self.request,
            "prompt": literal(prompt) if self.config.literal else prompt,
            "seed": self.config.seed + first,
        }
        started = time.perf_counter()
        answer = webui.draw(body)
        seconds = time.perf_counter() - started
        if webui.interrupted():
            raise EvaluationError("somebody pressed Interrupt or Skip in the WebUI")
        try:
            info = json.loads(answer["info"])
            # the pictures may be preceded by a grid of the batch
            start = int(info.get("index_of_first_image", 0))
            pictures = [base64.b64decode(image) for image in answer["images"][start : start + self.config.batch]]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            raise RequestRefused("the WebUI's answer holds no pictures") from None
        if len(pictures) != self.config.batch or not all(map(is_whole_png, pictures)):
            raise RequestRefused(f"the WebUI's answer must have {self.config.batch} PNG files")
        self._check_as_asked(pictures, info, body["seed"])
        self._check_unchanged(_identity_of(info))
        return pictures, seconds

    def _check_as_asked(self, pictures: Sequence[bytes], info: Mapping[str, Any], seed: int) -> None:
        """Pictures of another size or seed are none of this configuration's."""
        asked = (self.config.width, self.config.height)
        for picture in pictures:
            size = struct.unpack_from(">II", picture, 16)
            if size != asked:
                raise RequestRefused(
                    f"the WebUI drew {size[0]}x{size[1]} where {asked[0]}x{asked[1]} was asked for; "
                    "another extension may change the size, and sides must be multiples of 8, in some WebUIs of 64"
                )
        seeds = info.get("all_seeds", [info.get("seed", seed)])
        expected = list(range(seed, seed + len(pictures)))[: len(seeds) if "all_seeds" not in info else None]
        if seeds != expected:
            raise RequestRefused(f"the WebUI drew with the seeds {seeds} where {expected} were asked for")

    def _check_unchanged(self, drawn: dict[str, Any]) -> None:
        """The model, calibration and so on must be the same as for the pictures that already exist."""
        before = self.manifest["drawn"]
        if before is None:
            self.manifest["drawn"] = drawn
            return self._write_manifest()
        assert isinstance(before, dict)
        changed = [
            f"{name} was {before.get(name)!r} and is {drawn.get(name)!r}"
            for name in sorted({*before, *drawn})
            if before.get(name) != drawn.get(name)
        ]
        if changed:
            raise RequestRefused(
                f"the WebUI draws differently from the pictures that already exist: {'; '.join(changed)}"
            )


def _identity_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a picture's info that must be equal for all pictures of a configuration."""
    extra = info.get("extra_generation_params")
    extra = extra if isinstance(extra, dict) else {}
    identity = {name: info.get(name) for name in ("sd_model_hash", "sd_model_name", "sd_vae_hash", "version")}
    identity.update({name: extra[name] for name in extra if name.startswith("HP ") or name == "Schedule type"})
    return {name: value for name, value in identity.items() if value is not None}


def picture_path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder. Raises EvaluationError: it cannot be read."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT and manifest["version"] == VERSION
        if known and isinstance(manifest["asked"]["request"], dict):
            return dict(manifest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise EvaluationError(f"{path} cannot be read; delete the folder or move it")


def _is_whole(path: Path) -> bool:
    try:
        return is_whole_png(path.read_bytes())
    except OSError:
        return False
