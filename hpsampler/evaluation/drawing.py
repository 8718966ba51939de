"""``python -m hpsampler.evaluate``: draw many pictures through a WebUI that was started with ``--api``, and score them.

It is how the paper's tables are measured anew on a machine with a GPU: the same prompts and seeds for every
configuration, a folder for each, FID against real pictures and CLIP score against the prompts (:mod:`.scores`).
An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import http.client
import importlib
import json
import math
import os
import re
import struct
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import torch

from . import scores
from .recipes import AUTO, MAX_STEPS, PRESETS
from .scores import Estimate, Reference, Row, ScoreError
from .settings import ENABLED, Settings, SettingsError
from .shelf import write_atomically

__all__ = [
    "NAMED", "Configuration", "Refused", "Stop", "WebUI", "captions_of_coco", "is_whole_png", "literal", "main",
    "prompts_of",
]  # fmt: skip

FORMAT, VERSION = "hpsampler-evaluation", 1
MANIFEST, SECONDS = "manifest.json", "seconds.csv"
SCRIPT = "HP Sampler"
OWN_SCHEDULES = ("HP", "HP calibrated")

DRAWS_OTHERWISE = (
    "sd_model_checkpoint", "sd_vae", "CLIP_stop_at_last_layers", "randn_source",
    "eta_noise_seed_delta", "token_merging_ratio", "upcast_attn", "emphasis", "sdxl_crop_top", "sdxl_crop_left",
    "hpsampler_follow",
)  # fmt: skip
"""The WebUI's own settings that change a picture and that no request says; a change of one is another folder."""


class Stop(Exception):
    """Nothing more can be drawn; the message is for people."""


class Refused(Exception):
    """This configuration cannot be drawn; the message is for people."""


# --- configurations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Configuration:
    """What is drawn with: a line of the table.

    Attributes:
        settings: HP Sampler's, by name, in the order of their names.
    """

    sampler: str
    scheduler: str
    steps: int
    cfg_scale: float
    settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Configuration:
        """From ``sampler/schedule/steps/cfg`` and, after a question mark, settings: ``HP Auto/HP/6/5.5?freeu=Off``.

        Raises:
            ValueError: what is wrong with it.
        """
        head, _, tail = text.partition("?")
        # a sampler's name may hold a slash, the other three cannot
        parts = [part.strip() for part in head.rsplit("/", 3)]
        if len(parts) != 4 or not all(parts):
            raise ValueError(f"a configuration must be sampler/schedule/steps/cfg?name=value&..., got {text!r}")
        sampler, scheduler, steps, cfg_scale = parts
        if not steps.isascii() or not steps.isdigit() or not 1 <= int(steps) <= MAX_STEPS:
            raise ValueError(f"{text}: steps must be a whole number from 1 to {MAX_STEPS}, got {steps!r}")
        try:
            scale = float(cfg_scale)
        except ValueError:
            scale = math.nan
        if not 1 <= scale <= 30:
            raise ValueError(f"{text}: cfg must be a number from 1 to 30, got {cfg_scale!r}")
        return cls(sampler, scheduler, int(steps), scale, _settings_of(text, tail))

    def __str__(self) -> str:
        head = f"{self.sampler}/{self.scheduler}/{self.steps}/{self.cfg_scale:g}"
        tail = "&".join(f"{name}={value}" for name, value in self.settings)
        return f"{head}?{tail}" if tail else head

    @property
    def own(self) -> bool:
        """Whether it needs HP Sampler in the WebUI."""
        return self.sampler.startswith("HP ") or self.scheduler in OWN_SCHEDULES or bool(self.settings)


def _settings_of(text: str, tail: str) -> tuple[tuple[str, Any], ...]:
    given: dict[str, Any] = {}
    for pair in filter(None, tail.split("&")):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name or name in given or name == ENABLED.name:
            raise ValueError(f"{text}: settings must be name=value, each once, got {pair!r}")
        given[name] = value
    try:
        settings = Settings.of([given])
    except SettingsError as error:
        raise ValueError(f"{text}: {error}") from None
    return tuple((name, getattr(settings, name)) for name in sorted(given))


def _preset(name: str, cfg_scale: float, more: str = "") -> str:
    return f"HP Auto/HP/{PRESETS[name].steps}/{cfg_scale:g}?recipe={name}{more}"


def _presets(*names: str) -> tuple[str, ...]:
    return tuple(_preset(name, 5.5) for name in names)


_KARRAS_20 = "DPM++ 2M/Karras/20/5.5"
_FREEU_ALWAYS = "&freeu=On&freeu_first=1&b1=1.2&b2=1.2&s1=0.9&s2=0.2"

NAMED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "paper-sd15": (
            *_presets("SD1.5 5 steps UniPC", "SD1.5 6 steps UniPC", "SD1.5 8 steps UniPC"),
            *_presets("SD1.5 5 steps", "SD1.5 6 steps", "SD1.5 8 steps"),
            _KARRAS_20,
        ),
        "paper-sdxl": (
            *_presets("SDXL 6 steps UniPC", "SDXL 8 steps UniPC"),
            _preset("SDXL 6 steps UniPC", 7.5),
            *_presets("SDXL 6 steps", "SDXL 8 steps"),
            _KARRAS_20,
        ),
        "paper-sdxl-freeu": tuple(
            _preset(name, 5.5, more)
            for name in ("SDXL 6 steps UniPC", "SDXL 8 steps UniPC")
            for more in ("", "&freeu=Off", _FREEU_ALWAYS)
        ),
        "karras-20": (_KARRAS_20,),
        "compare": (
            *(f"HP Auto/HP/{steps}/5.5?calibration=Off" for steps in (5, 6, 8)),
            *(f"DPM++ 2M/{schedule}/{steps}/5.5" for schedule in ("Karras", "SGM Uniform") for steps in (5, 6, 8)),
            _KARRAS_20,
        ),
    }
)
"""Configurations by name: the paper's table settings (its NFE and CFG), its Free-U ablation, what to compare with."""


# --- prompts ----------------------------------------------------------------------------------------------------------


def captions_of_coco(text: str) -> list[str]:
    """Of COCO's ``captions_*.json``: one caption for each picture, the first by its id, in the order of the pictures'.

    Raises:
        ValueError: not such a file.
    """
    try:
        chosen: dict[int, tuple[int, str]] = {}
        for each in json.loads(text)["annotations"]:
            image, caption = each["image_id"], (each["id"], " ".join(each["caption"].split()))
            chosen[image] = min(chosen.get(image, caption), caption)
        return [chosen[image][1] for image in sorted(chosen)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("not COCO captions: annotations of image_id, id and caption are wanted") from None


def literal(caption: str) -> str:
    """A caption with the WebUI's prompt syntax taken out: a bracket or a capital AND in it is part of the sentence."""
    escaped = re.sub(r"([\\()\[\]])", r"\\\1", caption)
    return re.sub(r"\b(?:AND|BREAK)\b", lambda found: found[0].lower(), escaped).replace("<", " ").replace(">", " ")


def prompts_of(path: Path) -> tuple[list[str], bool]:
    """The prompts in a file, and whether they are sentences rather than the WebUI's prompt syntax (COCO's are).

    Raises:
        Stop: it cannot be read, or holds none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        coco = path.suffix.lower() == ".json"
        found = captions_of_coco(text) if coco else [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise Stop(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not found:
        raise Stop(f"{path}: no prompts in it")
    return found, coco


# --- the WebUI --------------------------------------------------------------------------------------------------------


class WebUI:
    """A running WebUI.

    Args:
        url: such as ``http://127.0.0.1:7860``.
        auth: ``user:password`` where it was started with ``--api-auth``.
        timeout: seconds that one request may take.
    """

    def __init__(self, url: str, auth: Optional[str] = None, timeout: float = 600) -> None:
        self.url, self.auth, self.timeout = url.rstrip("/"), auth, timeout

    def ask(self, path: str, body: Any = None) -> Any:
        """The answer to GET, or to POST where there is a body.

        Raises:
            Refused: the WebUI's words.
            Stop: it cannot be reached, or does not let us in.
        """
        try:
            request = Request(f"{self.url}/sdapi/v1/{path}")
            if self.auth:
                request.add_header("Authorization", "Basic " + base64.b64encode(self.auth.encode()).decode())
            data = None
            if body is not None:
                request.add_header("Content-Type", "application/json")
                data = json.dumps(body).encode()
            with urlopen(request, data, timeout=self.timeout) as answer:
                return json.load(answer)
        except HTTPError as error:
            if error.code in (401, 403):
                raise Stop(f"{self.url} wants another user and password: --auth user:password") from None
            if error.code == 404 and body is None:
                raise Stop(f"{self.url} has no /sdapi/v1/{path}; start the WebUI with --api") from None
            raise Refused(_words_of(error)) from None
        except (URLError, OSError, ValueError, http.client.HTTPException) as error:
            raise Stop(f"no answer from {self.url}: {getattr(error, 'reason', None) or error}") from None

    def look(self) -> Host:
        """What the WebUI has, and how it is set. Raises as :meth:`ask`."""
        samplers = tuple(each["name"] for each in self.ask("samplers"))
        schedulers = tuple(name for each in self.ask("schedulers") for name in (each["label"], each["name"]))
        options = self.ask("options")
        form = str(options.get("samples_format", "png"))
        if form.lower() != "png":
            raise Stop(f"the WebUI answers with {form} files; set Settings, Saving images, File format to png")
        found = {name: options[name] for name in DRAWS_OTHERWISE if name in options}
        # its hash stands there only once the model was loaded; the pictures themselves are held to theirs
        title = str(found.get("sd_model_checkpoint") or "")
        found["sd_model_checkpoint"] = re.sub(r" \[[0-9a-f]+\]$", "", title)
        return Host(samplers, schedulers, found)

    def interrupted(self) -> bool:
        """Whether the last request was cut short; the WebUI then answers with an unfinished picture all the same."""
        state = self.ask("progress?skip_current_image=true").get("state", {})
        return any(state.get(name) for name in ("interrupted", "skipped", "stopping_generation"))


def _words_of(error: HTTPError) -> str:
    """What an error's body says."""
    try:
        found = json.load(error)
    except (ValueError, OSError, http.client.HTTPException):
        return f"the WebUI answered {error}"
    detail = found.get("detail") if isinstance(found, dict) else None
    if isinstance(detail, list):
        detail = "; ".join(f"{'.'.join(map(str, each.get('loc', ())))}: {each.get('msg')}" for each in detail)
    words = (found.get("errors") or detail or found.get("error")) if isinstance(found, dict) else None
    return f"the WebUI answered {error.code}: {words or found}"


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


# --- drawing ----------------------------------------------------------------------------------------------------------


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
class Order:
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
        Stop: the folder holds something else.
    """

    def __init__(self, out: Path, order: Order, each: Configuration, host: Host) -> None:
        self.order, self.each = order, each
        self.request = order.request(each, host.has_hp)
        asked = {
            "request": self.request,
            "seed": order.seed,
            "prompts": order.digest,
            "literal": order.literal,
            "webui": host.options,
        }
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
        label = re.sub(r"[^A-Za-z0-9.]+", "-", str(each)).strip("-.")[:60]
        self.folder = out / f"{label}-{digest}"
        self.manifest = {
            "format": FORMAT, "version": VERSION, "configuration": str(each), "count": order.count, "asked": asked,
            "drawn": None,
        }  # fmt: skip
        self._open()

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / MANIFEST
        if path.exists():
            found = read_manifest(self.folder)
            if found["asked"] != self.manifest["asked"]:
                raise Stop(f"{path} is of another order than its folder's name says; delete the folder or move it")
            self.manifest["drawn"] = found.get("drawn")
        elif any(self.folder.glob("*.png")):
            raise Stop(f"{self.folder} holds pictures and no {MANIFEST}, so nobody knows of what; delete it or move it")
        self._keep_manifest()

    def _keep_manifest(self) -> None:
        write_atomically(self.folder / MANIFEST, json.dumps(self.manifest, indent=1, ensure_ascii=False) + "\n")

    def path(self, index: int) -> Path:
        return picture_path(self.folder, index)

    def missing(self) -> list[int]:
        """Pictures that are not there, or not whole."""
        return [index for index in range(self.order.count) if not _whole(self.path(index))]

    def draw(self, webui: WebUI, bar: Progress) -> None:
        """Draw what is missing.

        Raises:
            Refused, Stop: as :meth:`WebUI.ask`; what was drawn before stays.
        """
        missing, batch = self.missing(), self.order.batch
        bar.begin(str(self.each), self.order.count, self.order.count - len(missing))
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
        prompt = self.order.prompt(first)
        body = {
            **self.request,
            "prompt": literal(prompt) if self.order.literal else prompt,
            "seed": self.order.seed + first,
        }
        begun = time.perf_counter()
        answer = webui.ask("txt2img", body)
        seconds = time.perf_counter() - begun
        if webui.interrupted():
            raise Stop("somebody pressed Interrupt or Skip in the WebUI")
        try:
            info = json.loads(answer["info"])
            # a grid of the batch may stand before its pictures
            start = int(info.get("index_of_first_image", 0))
            pictures = [base64.b64decode(image) for image in answer["images"][start : start + self.order.batch]]
        except (KeyError, TypeError, ValueError):
            raise Refused("the WebUI's answer holds no pictures") from None
        if len(pictures) != self.order.batch or not all(map(is_whole_png, pictures)):
            raise Refused(f"the WebUI's answer must hold {self.order.batch} PNG files")
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
            raise Refused(f"the WebUI draws otherwise than for the pictures already there: {'; '.join(changed)}")


def _drawn_with(info: Mapping[str, Any]) -> dict[str, Any]:
    """What the WebUI says of a picture that must be one for all of a configuration."""
    extra = info.get("extra_generation_params") or {}
    found = {name: info.get(name) for name in ("sd_model_hash", "sd_model_name", "sd_vae_hash", "version")}
    found.update({name: extra[name] for name in extra if name.startswith("HP ") or name == "Schedule type"})
    return {name: value for name, value in found.items() if value is not None}


def picture_path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises Stop: it cannot be read."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] == FORMAT and found["version"] == VERSION and isinstance(found["asked"]["request"], dict):
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise Stop(f"{path} cannot be read; delete the folder or move it")


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


class Progress:
    """A bar where tqdm is there, else a line now and then; on standard error."""

    EVERY_SECONDS = 10.0

    def __init__(self, quiet: bool, unit: str = "pictures") -> None:
        self.quiet, self.unit = quiet, unit
        self._bar: Any = None
        self._name, self._total, self._done, self._told = "", 0, 0, 0.0
        try:
            self._tqdm: Any = importlib.import_module("tqdm").tqdm
        except ImportError:
            self._tqdm = None

    def begin(self, name: str, total: int, done: int = 0) -> None:
        self.end()
        self._name, self._total, self._done, self._told = name, total, done, time.monotonic()
        if not self.quiet and self._tqdm is not None:
            self._bar = self._tqdm(desc=name, total=total, initial=done, unit=f" {self.unit}", file=sys.stderr)

    def add(self, count: int) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif not self.quiet and (self._done >= self._total or time.monotonic() - self._told > self.EVERY_SECONDS):
            self._told = time.monotonic()
            print(f"{self._name}: {self._done} of {self._total} {self.unit}", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _draw_all(args: argparse.Namespace, chosen: Sequence[Configuration], bar: Progress) -> tuple[list[Path], list[str]]:
    """The finished folders, and what failed. Raises Stop: nothing more can be drawn."""
    order = _order_of(args)
    webui = WebUI(args.url, args.auth, args.timeout)
    try:
        host = webui.look()
    except Refused as error:
        raise Stop(str(error)) from None
    complaints = [complaint for complaint in map(host.complaint, chosen) if complaint]
    if complaints:
        raise Stop("\n".join(complaints))
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(_prompts_path(args.out, order.digest), json.dumps(order.prompts, ensure_ascii=False, indent=0))
    print(f"{len(chosen)} configurations, {order.count} pictures of {order.width}x{order.height} each")
    finished, failed = [], []
    for each in chosen:
        drawing = Drawing(args.out, order, each, host)
        try:
            drawing.draw(webui, bar)
        except Refused as error:
            failed.append(f"{each}: {error}")
            print(failed[-1], file=sys.stderr)
        else:
            finished.append(drawing.folder)
        finally:
            bar.end()
    return finished, failed


def _order_of(args: argparse.Namespace) -> Order:
    if args.prompts is None:
        raise Stop("no prompts: --prompts file.txt, or COCO's captions_val2014.json")
    prompts, sentences = prompts_of(args.prompts)
    count = args.count or len(prompts) * args.batch
    wanted = -(-count // args.batch)
    if wanted > len(prompts):
        raise Stop(f"--count {count} needs {wanted} prompts, {args.prompts} holds {len(prompts)}")
    side = 1024 if any("sdxl" in name for name in args.named) else 512
    return Order(
        tuple(prompts), sentences, count, args.width or side, args.height or side, args.seed, args.batch, args.negative
    )


def _prompts_path(out: Path, digest: str) -> Path:
    return out / f"prompts-{digest[:12]}.json"


# --- scoring ----------------------------------------------------------------------------------------------------------


class Scorer:
    """What is measured, with its networks loaded once.

    Raises:
        ScoreError: a library is missing, or there is nothing to compare with.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if args.references is not None:
            scores.images_in(args.references)
        self._features = scores.features_named(args.features, device) if args.references is not None else None
        self._clip = None if args.no_clip else scores.clip_scorer(args.clip, device)
        self._reference: Optional[Reference] = None

    @property
    def notes(self) -> list[str]:
        found = [
            "±: one standard error over the pictures (FID: jackknife; seconds: of the median, over requests). "
            "Seconds are those of a request: model, decoder, PNG and transfer.",
        ]
        if self._reference is not None:
            side, kind = self.args.reference_size, self.args.features or "FID's Inception network, 2048 features"
            found.append(
                f"FID against {self._reference.count} pictures in {self.args.references}, resized to {side}x{side}; "
                f"{kind}. FID falls with the number of pictures: compare rows of equal numbers alone."
            )
        if self._clip is not None:
            found.append(f"CLIP score: {self.args.clip}.")
        return found

    def row(self, folder: Path, bar: Progress) -> Row:
        """Raises ScoreError, Stop: the pictures are not all there, or cannot be measured."""
        manifest = read_manifest(folder)
        asked, request = manifest["asked"], manifest["asked"]["request"]
        count = self.args.count or manifest["count"]
        files = [picture_path(folder, index) for index in range(count)]
        there = sum(file.is_file() for file in files)
        if there < count:
            raise ScoreError(f"unfinished: {there} of {count} pictures; draw them first, or score fewer with --count")
        figures: dict[str, Estimate] = {}
        if self._features is not None:
            if self._reference is None:
                self._reference = self._read_reference(bar)
            bar.begin(f"FID of {manifest['configuration']}", count)
            figures["fid"] = scores.frechet(scores.features_of(files, self._features, None, bar.add), self._reference)
        if self._clip is not None:
            prompts = _read_prompts(folder.parent, asked["prompts"])
            bar.begin(f"CLIP score of {manifest['configuration']}", count)
            values = []
            for first in range(0, count, scores.BATCH):
                part = files[first : first + scores.BATCH]
                told = [prompts[index // request["batch_size"]] for index in range(first, first + len(part))]
                values.append(self._clip([scores.read_image(file) for file in part], told))
                bar.add(len(part))
            figures["clip"] = scores.average(np.concatenate(values))
        seconds = seconds_per_picture(folder)
        if seconds is not None:
            figures["seconds"] = seconds
        about = {
            "steps": request["steps"],
            "CFG": request["cfg_scale"],
            "size": f"{request['width']}x{request['height']}",
            "pictures": count,
            "first seed": asked["seed"],
            "prompts": asked["prompts"][:8],
            "checkpoint": asked["webui"].get("sd_model_checkpoint", ""),
        }
        return Row(manifest["configuration"], folder.name, about, figures)

    def _read_reference(self, bar: Progress) -> Reference:
        assert self._features is not None
        side, folder = self.args.reference_size, self.args.references
        bar.begin("references", len(scores.images_in(folder)))
        kept = None if self.args.features else self.args.out
        return scores.reference_of(folder, self._features, (side, side), kept, bar.add)


def seconds_per_picture(folder: Path) -> Optional[Estimate]:
    """The median over requests, with its standard error; None where no time was kept.

    The median, as the first request of a configuration may load a model, and other work may hold one up.
    """
    try:
        with (folder / SECONDS).open(encoding="ascii") as file:
            # an interrupted run may have left half a line
            rows = [row for row in csv.reader(file) if len(row) == 3]
            times = np.array([float(row[2]) / int(row[1]) for row in rows])
    except (OSError, ValueError):
        return None
    if not len(times):
        return None
    rng = np.random.default_rng(0)
    few = times if len(times) <= 2000 else rng.choice(times, 2000, replace=False)
    medians = np.median(rng.choice(few, (100, len(few))), axis=1)
    return Estimate(float(np.median(times)), float(medians.std() * (len(few) / len(times)) ** 0.5))


def _read_prompts(out: Path, digest: str) -> list[str]:
    path = _prompts_path(out, digest)
    try:
        return [str(prompt) for prompt in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        raise ScoreError(f"{path}, which holds the prompts, cannot be read; leave CLIP out with --no-clip") from None


def _score_all(scorer: Scorer, folders: Sequence[Path], bar: Progress) -> tuple[list[Row], list[str]]:
    """What was measured, and what failed."""
    rows, failed = [], []
    for folder in folders:
        try:
            rows.append(scorer.row(folder, bar))
        except (ScoreError, Stop) as error:
            failed.append(f"{folder.name}: {error}")
            print(failed[-1], file=sys.stderr)
        finally:
            bar.end()
    return rows, failed


# --- command line -----------------------------------------------------------------------------------------------------


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Do what the command line says; returns the exit status: 0 all was done, 3 a part, 1 nothing, 130 interrupted."""
    args = _options(argv)
    bar = Progress(args.quiet)
    try:
        return _run(args, bar)
    except (Stop, ScoreError) as error:
        bar.end()
        print(error, file=sys.stderr)
    except OSError as error:
        bar.end()
        print(f"{error.filename or args.out}: {error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt:
        bar.end()
        print("Interrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    return 1


def _run(args: argparse.Namespace, bar: Progress) -> int:
    chosen = _chosen(args)
    # before hours of drawing, so that a library that is missing is known at once
    scorer = None if args.command == "draw" else Scorer(args)
    failed: list[str] = []
    if args.command == "score":
        folders = sorted(path.parent for path in args.out.glob(f"*/{MANIFEST}"))
        if not folders:
            raise Stop(f"{args.out} holds no drawn configurations")
    else:
        if not chosen:
            raise Stop(f"no configurations: --config sampler/schedule/steps/cfg, or --named {', '.join(NAMED)}")
        folders, failed = _draw_all(args, chosen, bar)
        for folder in folders:
            print(f"Drawn: {folder}")
    if scorer is None:
        return _status(bool(folders), failed)
    rows, unmeasured = _score_all(scorer, folders, bar)
    if not any({"fid", "clip"} & set(row.figures) for row in rows):
        raise Stop("nothing could be measured: " + ("; ".join([*failed, *unmeasured]) or "give --references"))
    notes = [*scorer.notes, *(f"Not measured: {each}" for each in [*failed, *unmeasured])]
    for path in scores.write_report(rows, notes, args.out):
        print(f"Written: {path}")
    return _status(True, [*failed, *unmeasured])


def _status(any_done: bool, failed: Sequence[str]) -> int:
    return 1 if not any_done else 3 if failed else 0


def _chosen(args: argparse.Namespace) -> list[Configuration]:
    """Every configuration that was asked for, once."""
    texts = [text for name in args.named for text in NAMED[name]] + args.config
    try:
        return list(dict.fromkeys(map(Configuration.parse, texts)))
    except ValueError as error:
        raise Stop(str(error)) from None


def _options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hpsampler.evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "command", nargs="?", choices=("run", "draw", "score"), default="run",
        help="draw and score, draw alone, or score all finished folders in --out (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures and of the table")
    draw = parser.add_argument_group("drawing")
    draw.add_argument("--url", default="http://127.0.0.1:7860", help="of the WebUI (default: %(default)s)")
    draw.add_argument("--auth", help="user:password, where the WebUI has --api-auth")
    draw.add_argument("--timeout", type=float, default=600, help="seconds for a request (default: %(default)g)")
    draw.add_argument("--prompts", type=Path, help="a text file, one prompt on each line, or COCO's captions as JSON")
    draw.add_argument("--count", type=_positive, help="pictures of each configuration (default: all prompts)")
    draw.add_argument(
        "--config", action="append", default=[], metavar="SAMPLER/SCHEDULE/STEPS/CFG?NAME=VALUE&...",
        help="a configuration; may be given again",
    )  # fmt: skip
    draw.add_argument(
        "--named", action="append", default=[], choices=tuple(NAMED), help="configurations; may be given again"
    )
    draw.add_argument("--negative", default="", help="negative prompt (default: none, as the paper)")
    for name in ("width", "height"):
        draw.add_argument(f"--{name}", type=_positive, help="in pixels (default: 512, with --named paper-sdxl 1024)")
    draw.add_argument("--seed", type=_seed, default=0, help="of the first picture; the next has the next (default: 0)")
    draw.add_argument("--batch", type=_positive, default=1, help="pictures of each prompt, in one request (default: 1)")
    score = parser.add_argument_group("scoring")
    score.add_argument("--references", type=Path, help="folder of real pictures; without it no FID")
    score.add_argument(
        "--reference-size", type=_positive, default=512, help="they are resized to it, as the paper's (default: 512)"
    )
    score.add_argument("--features", metavar="MODULE:FUNCTION", help="another extractor than FID's Inception network")
    score.add_argument("--clip", default=scores.CLIP, help="model of the CLIP score (default: %(default)s)")
    score.add_argument("--no-clip", action="store_true", help="no CLIP score")
    score.add_argument("--device", help="of the scoring networks (default: cuda where there is one)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser.parse_args(argv)


def _whole_number(text: str, least: int) -> int:
    value = int(text) if text.isascii() and text.isdigit() else -1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text}")
    return value


def _positive(text: str) -> int:
    return _whole_number(text, 1)


def _seed(text: str) -> int:
    return _whole_number(text, 0)  # the WebUI takes -1 for any seed


if __name__ == "__main__":
    raise SystemExit(main())
