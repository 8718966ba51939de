"""Calibrations as people keep them: for which model they were made, what they hold, when one fits, where they lie.

A :class:`Profile` is one small JSON file with one :class:`Fitted` schedule for each number of steps and guidance scale
that was calibrated. A picture names the schedule it was drawn with by the hash of its numbers, so it can be made again
after the profile was renamed, or has grown.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import reprlib
import threading
import time
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Optional

from .noise import NoiseModel
from .recipes import FAMILIES, MAX_STEPS, Recipe

__all__ = ["Fitted", "Library", "Profile", "ProfileError", "Refused", "Target"]

FORMAT, VERSION = "hpsampler calibration", 1

MAX_SIGMA = 1e4
MAX_FACTOR = 10.0
MAX_FILE = 4 * 2**20
MAX_NAME = 60
SIDES = (64, 8192)

LEAST_SIGMA = 1e-6
LEAST_FALL = 1e-6
"""Relative: pictures are drawn in single precision, where two points may not become one, nor any become 0."""

ERRORS = (1e-12, 1e12)
"""What an error may be; the last stands for that of a schedule that blew up, as a file holds no infinity."""

CFG_REACH = 1.15
"""A schedule is used at guidance scales up to this factor from its own, see docs/calibration.md."""

AREA_REACH = 1.35
"""And for pictures of up to this many times its own area, or as many times less."""


class ProfileError(ValueError):
    """A calibration that cannot be read or used; the message is for people."""


@dataclass(frozen=True)
class Target:
    """What a schedule is wanted for: a model, a picture's size in pixels, a guidance scale."""

    hashes: frozenset[str]
    family: str
    noise: NoiseModel
    width: int
    height: int
    cfg_scale: float


@dataclass(frozen=True)
class Fitted:
    """A schedule for one number of steps and one guidance scale.

    Invariant: ``len(sigmas) == steps + 1``, decreasing, last 0 or above; ``len(factors) == steps``, the first 0.

    Attributes:
        start: name of the schedule that the fit began from.
        held_out: errors on trajectories the fit has not seen, by name of schedule; ``"calibrated"`` is this one's.
        yardstick: the error of 20 steps of DPM++ 2M Karras there.
        calls: UNet calls on the calibration set that the fit took, the reference included.
    """

    steps: int
    cfg_scale: float
    sigmas: tuple[float, ...]
    factors: tuple[float, ...]
    start: str
    held_out: Mapping[str, float]
    yardstick: float
    calls: int

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits of the numbers that make the picture."""
        numbers = json.dumps([[float(value) for value in row] for row in (self.sigmas, self.factors)]).encode()
        return hashlib.sha256(numbers).hexdigest()[:8]

    @property
    def gain(self) -> float:
        """Held-out error of the best schedule there was over that of this one."""
        others = [error for name, error in self.held_out.items() if name != "calibrated"]
        return min(others) / self.held_out["calibrated"]


@dataclass(frozen=True)
class Refused:
    """A fit that gave nothing, and why."""

    steps: int
    cfg_scale: float
    reason: str


@dataclass(frozen=True)
class Profile:
    """All that was calibrated to one model.

    Attributes:
        name: shown to people, and part of the file's name.
        model: the checkpoint's name.
        hashes: by any of which the checkpoint is known.
        width, height: pixels of the pictures it was calibrated on.
        sigma_min, sigma_max: ends of the model's noise table.
        trajectories, held_out: how many it was fitted to and judged on.
        decoder: (sigma, RMS change of the decoded pictures from 0 to 1) as the loaded VAE gave it; may be empty.
    """

    name: str
    model: str
    hashes: tuple[str, ...]
    family: str
    width: int
    height: int
    sigma_min: float
    sigma_max: float
    trajectories: int
    held_out: int
    seed: int
    fitted: tuple[Fitted, ...] = ()
    refused: tuple[Refused, ...] = ()
    decoder: tuple[tuple[float, float], ...] = ()

    def misfit(self, target: Target) -> str:
        """Why nothing of this profile can be used for ``target``; empty where something may be."""
        if not set(self.hashes) & target.hashes:
            return f"it was made for the model {self.model}"
        ends = ((self.sigma_min, target.noise.sigma_min), (self.sigma_max, target.noise.sigma_max))
        if any(not math.isclose(own, there, rel_tol=1e-3) for own, there in ends):
            return "the model's noise table has changed since"
        ratio = (target.width * target.height) / (self.width * self.height)
        if not 1 / AREA_REACH - 1e-9 <= ratio <= AREA_REACH + 1e-9:
            return f"it was made at {self.width}x{self.height}, the picture is {target.width}x{target.height}"
        return ""

    def find(self, steps: int, target: Target) -> Optional[Fitted]:
        """The schedule of that many steps nearest in guidance scale, if this profile has a near one for ``target``."""
        if self.misfit(target) or not 0 < target.cfg_scale < math.inf:
            return None
        near = [
            (abs(math.log(each.cfg_scale / target.cfg_scale)), index)
            for index, each in enumerate(self.fitted)
            if each.steps == steps
        ]
        distance, index = min(near, default=(math.inf, 0))
        return self.fitted[index] if distance <= math.log(CFG_REACH) + 1e-9 else None

    def label(self, fitted: Fitted) -> str:
        """By which a picture names one schedule: ``my model 1a2b3c4d``."""
        return f"{self.name} {fitted.hash}"

    def recipe(self, fitted: Fitted, base: Recipe) -> Recipe:
        """``base`` with its schedule, solver and ending replaced by a calibrated one."""
        return replace(
            base,
            steps=fitted.steps,
            solver="dpmpp_2m",
            ending="keep" if fitted.sigmas[-1] > 0 else "zero",
            levels=fitted.sigmas,
            factors=fitted.factors,
            calibration=self.label(fitted),
        )

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """Read and check every number.

        Raises:
            ProfileError: naming the field, its value and what is allowed.
        """
        if not isinstance(text, str) or len(text) > MAX_FILE:
            raise ProfileError(f"not a JSON file: it must be a text of at most {MAX_FILE >> 20} MB")
        try:
            # some editors begin a file with a byte order mark
            data = json.loads(text.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise ProfileError(f"not a JSON file: {str(error)[:80]}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ProfileError(f"not a calibration of HP Sampler: format must be {FORMAT!r}")
        version = data.get("version")
        if type(version) is not int or version != VERSION:
            raise ProfileError(f"version must be {VERSION}, got {shown(version)}; update HP Sampler to read it")
        read = _Reader(data)
        profile = cls(
            name=clean_name(read.text("name")),
            model=read.text("model"),
            hashes=tuple(read.items("hashes", lambda row: row.text())),
            family=_family(read.text("family")),
            width=read.whole("width", *SIDES),
            height=read.whole("height", *SIDES),
            sigma_min=read.number("sigma_min", 0, MAX_SIGMA),
            sigma_max=read.number("sigma_max", 0, MAX_SIGMA),
            trajectories=read.whole("trajectories", 1, 10**6),
            held_out=read.whole("held_out", 1, 10**6),
            seed=read.whole("seed", 0, 2**63),
            fitted=tuple(read.items("fitted", _fitted)),
            refused=tuple(read.items("refused", _refused)),
            decoder=tuple(read.items("decoder", _pair)),
        )
        if not profile.hashes:
            raise ProfileError("hashes must hold at least one hash of the model, got none")
        if not profile.sigma_min < profile.sigma_max:
            raise ProfileError(f"sigma_max must be above sigma_min ({profile.sigma_min:g}), got {profile.sigma_max:g}")
        return profile


def shown(value: Any) -> str:
    """A value as messages show it, cut short whatever it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    try:
        text = short.repr(value)
    except ValueError:  # Python refuses to write out huge whole numbers
        text = "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."


class _Reader:
    """Typed access to parsed JSON, with the path of each field in the messages."""

    def __init__(self, data: Any, path: str = "") -> None:
        self.data, self.path = data, path

    def at(self, name: str) -> _Reader:
        path = f"{self.path}.{name}" if self.path else name
        if not isinstance(self.data, dict):
            raise self.error(f"an object that has {name}")
        if name not in self.data:
            raise ProfileError(f"{path} is missing")
        return _Reader(self.data[name], path)

    def error(self, allowed: str) -> ProfileError:
        return ProfileError(f"{self.path} must be {allowed}, got {shown(self.data)}")

    def text(self, name: str = "") -> str:
        here = self.at(name) if name else self
        if not isinstance(here.data, str) or not here.data.strip() or len(here.data) > 4096 or _halves(here.data):
            raise here.error("a text of 1 to 4096 characters")
        return here.data

    def number(self, name: str, low: float, high: float) -> float:
        return (self.at(name) if name else self).as_number(low, high)

    def as_number(self, low: float, high: float) -> float:
        right = isinstance(self.data, (int, float)) and not isinstance(self.data, bool)
        if not right or not low <= self.data <= high:
            raise self.error(f"a number from {low:g} to {high:g}")
        return float(self.data)

    def whole(self, name: str, low: int, high: int) -> int:
        here = self.at(name)
        if not isinstance(here.data, int) or isinstance(here.data, bool) or not low <= here.data <= high:
            raise here.error(f"a whole number from {low} to {high}")
        return here.data

    def items(self, name: str, read: Callable[[_Reader], Any], most: int = 4096) -> list[Any]:
        here = self.at(name)
        if not isinstance(here.data, list) or len(here.data) > most:
            raise here.error(f"a list of at most {most}")
        return [read(_Reader(value, f"{here.path}[{index}]")) for index, value in enumerate(here.data)]

    def numbers(self, name: str, low: float, high: float) -> tuple[float, ...]:
        return tuple(self.items(name, lambda row: row.as_number(low, high)))


def _halves(text: str) -> bool:
    """Whether a text holds halves of surrogate pairs, which JSON can say and no page can show."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _family(name: str) -> str:
    if name not in FAMILIES:
        raise ProfileError(f"family must be one of {', '.join(FAMILIES)}, got {shown(name)}")
    return name


def _fitted(row: _Reader) -> Fitted:
    errors = row.at("held_out")
    if not isinstance(errors.data, dict) or "calibrated" not in errors.data or not 2 <= len(errors.data) <= 64:
        raise errors.error("2 to 64 errors by name, of what there was and of what is calibrated")
    if any(not name.strip() or len(name) > 100 or _halves(name) for name in errors.data):
        raise errors.error("errors by names of 1 to 100 characters")
    found = Fitted(
        steps=row.whole("steps", 2, MAX_STEPS),
        cfg_scale=row.number("cfg_scale", 0.01, 1000),
        sigmas=row.numbers("sigmas", 0, MAX_SIGMA),
        factors=row.numbers("factors", -MAX_FACTOR, MAX_FACTOR),
        start=row.text("start"),
        held_out={name: errors.number(name, *ERRORS) for name in errors.data},
        yardstick=row.number("yardstick", 0, ERRORS[1]),
        calls=row.whole("calls", 0, 10**12),
    )
    falling = all(low < high * (1 - LEAST_FALL) for high, low in pairwise(found.sigmas))
    above = all(sigma >= LEAST_SIGMA for sigma in found.sigmas if sigma != 0) and all(found.sigmas[:-1])
    if len(found.sigmas) != found.steps + 1 or not falling or not above:
        raise row.at("sigmas").error(
            f"{found.steps + 1} numbers from {LEAST_SIGMA:g}, each below the one before; only the last may be 0"
        )
    if len(found.factors) != found.steps or found.factors[0] != 0:
        raise row.at("factors").error(f"{found.steps} numbers, the first 0")
    return found


def _refused(row: _Reader) -> Refused:
    return Refused(row.whole("steps", 2, MAX_STEPS), row.number("cfg_scale", 0.01, 1000), row.text("reason"))


def _pair(row: _Reader) -> tuple[float, float]:
    if not isinstance(row.data, list) or len(row.data) != 2:
        raise row.error("a pair of numbers")
    first, second = (_Reader(value, row.path).as_number(0, MAX_SIGMA) for value in row.data)
    return first, second


def clean_name(name: str) -> str:
    """A name as it may be kept.

    Raises:
        ProfileError: empty, too long, with characters that a picture's text does not carry, or one of a menu's words.
    """
    given = name
    # one spelling of what looks the same
    name = unicodedata.normalize("NFC", " ".join(name.split())) if isinstance(name, str) else ""
    # marks are vowels in some scripts
    allowed = all(each.isalnum() or each in "_ .()+-" or unicodedata.category(each)[0] == "M" for each in name)
    if not allowed or not 1 <= len(name) <= MAX_NAME or not name[0].isalnum():
        raise ProfileError(
            f"name must be 1 to {MAX_NAME} letters, digits, blanks or . ( ) + - _, and begin with a letter or digit; "
            f"got {shown(given)}"
        )
    if name.lower() in ("auto", "off"):
        raise ProfileError(f"name must not be Auto or Off, which mean something else; got {name!r}")
    return name


class Library:
    """The profiles in a folder, one file each, and no other state: what another process changed is seen at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> tuple[list[Profile], list[str]]:
        """All profiles by name, and a sentence for every file that cannot be read; such a file is left as it is."""
        found: dict[str, Profile] = {}
        problems = []
        for path, profile in self._files():
            if isinstance(profile, ProfileError):
                problems.append(f"{path.name}: {profile}")
            elif profile.name in found:
                problems.append(f"{path.name}: another file holds a calibration named {profile.name!r}")
            else:
                found[profile.name] = profile
        return sorted(found.values(), key=lambda each: each.name.lower()), problems

    def names(self) -> list[str]:
        return [profile.name for profile in self.read()[0]]

    def get(self, name: str) -> Profile:
        """The profile of that name.

        Raises:
            ProfileError: there is none.
        """
        profiles = self.read()[0]
        for profile in profiles:
            if profile.name == name:
                return profile
        listed = ", ".join(profile.name for profile in profiles) or "none yet"
        raise ProfileError(f"there is no calibration named {name!r}; there are: {listed}")

    def best(self, steps: int, target: Target) -> Optional[tuple[Profile, Fitted]]:
        """The schedule that fits best: nearest in guidance scale, then with the greatest gain."""
        found = [(profile, each) for profile in self.read()[0] if (each := profile.find(steps, target))]
        return min(
            found,
            key=lambda pair: (abs(math.log(pair[1].cfg_scale / target.cfg_scale)), -pair[1].gain),
            default=None,
        )

    def by_label(self, label: str) -> Optional[tuple[Profile, Fitted]]:
        """The schedule that a picture names, by the hash at the end of its label; the rest may have been renamed."""
        name, _, wanted = label.strip().rpartition(" ")
        found = [(profile, each) for profile in self.read()[0] for each in profile.fitted if each.hash == wanted]
        # copies of one schedule draw the same, so the name only says which is spoken of
        return min(found, key=lambda pair: pair[0].name != name, default=None)

    def pick(self, wanted: str, steps: int, target: Target) -> tuple[Optional[tuple[Profile, Fitted]], str]:
        """What a person named: a profile, or schedules by their labels (``"; "`` between several, as a picture has it).

        Returns:
            The schedule of that many steps, or None and the reason why there is none.

        Raises:
            ProfileError: nothing here has that name or label.
        """
        named = self.named(wanted)
        if isinstance(named, Profile):
            fitted = named.find(steps, target)
            if fitted is not None:
                return (named, fitted), ""
            return None, named.misfit(target) or f"it has no {steps} steps near CFG {target.cfg_scale:g}"
        for pair in named:
            if pair[1].steps == steps:
                return pair, ""
        return None, f"it is for {named[0][1].steps} steps, not {steps}"

    def named(self, wanted: str) -> Profile | list[tuple[Profile, Fitted]]:
        """The profile of a name, or the schedules of labels.

        Raises:
            ProfileError: there is none.
        """
        profiles = self.read()[0]
        for profile in profiles:
            if profile.name == wanted:
                return profile
        found = [pair for label in wanted.split("; ") if (pair := self.by_label(label))]
        if not found:
            listed = ", ".join(profile.name for profile in profiles) or "none yet"
            raise ProfileError(f"there is no calibration {wanted!r} here; there are: {listed}")
        return found

    def save(self, profile: Profile, replacing: bool = False) -> Profile:
        """Write a profile; where its name is taken (and not ``replacing``) under the next free one, which it returns.

        Raises:
            ProfileError: a name or a number that could not be read again.
            OSError: the folder cannot be written.
        """
        with _WRITING:
            name = clean_name(profile.name)
            if not replacing:
                name = self.free_name(name, self.names())
            profile = replace(profile, name=name)
            text = profile.to_json()
            Profile.from_json(text)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path_of(name) or self._new_path(name), text)
        return profile

    def rename(self, name: str, new_name: str) -> Profile:
        """Raises ProfileError: no such profile, or the new name is taken or cannot be kept."""
        with _WRITING:
            profile, new_name = self.get(name), clean_name(new_name)
            if new_name != name and new_name in self.names():
                raise ProfileError(f"name must be a new one; there is a calibration named {new_name!r} already")
            profile = replace(profile, name=new_name)
            write_atomically(self._path_of(name) or self._new_path(new_name), profile.to_json())
        return profile

    def delete(self, name: str) -> None:
        """Raises ProfileError: no such profile."""
        with _WRITING:
            self.get(name)
            path = self._path_of(name)
            if path is not None:
                path.unlink(missing_ok=True)

    def take(self, text: str) -> Profile:
        """Import a profile from the text of another one's file. Raises ProfileError: see :meth:`Profile.from_json`."""
        return self.save(Profile.from_json(text))

    def _files(self) -> Iterator[tuple[Path, Profile | ProfileError]]:
        """Every file with what it holds, or why it cannot be read."""
        for path in sorted(self.folder.glob("*.json")):
            try:
                yield path, _opened(path)
            except FileNotFoundError:
                continue  # deleted since the folder was listed
            except (OSError, UnicodeError) as error:
                yield path, ProfileError(f"cannot be read: {getattr(error, 'strerror', None) or error}")
            except ProfileError as error:
                yield path, error

    def _path_of(self, name: str) -> Optional[Path]:
        return next((path for path, each in self._files() if isinstance(each, Profile) and each.name == name), None)

    def _new_path(self, name: str) -> Path:
        stem = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "calibration"
        if re.fullmatch(r"con|prn|aux|nul|(com|lpt)\d", stem):
            stem = f"calibration-{stem}"  # Windows takes these for devices
        # on some systems two names that differ in case are one file
        taken = {path.stem.lower() for path in self.folder.glob("*.[jJ][sS][oO][nN]")}
        return self.folder / f"{self.free_name(stem, taken, '-')}.json"

    @staticmethod
    def free_name(name: str, taken: Collection[str], joint: str = " ") -> str:
        """``name``, or with the first number that is not taken, no longer than a name may be."""
        numbered = (f"{joint}{number}" for number in range(2, len(taken) + 3))
        names = (name[: MAX_NAME - len(end)].rstrip() + end for end in numbered)
        return name if name not in taken else next(each for each in names if each not in taken)


def _opened(path: Path) -> Profile:
    if not path.is_file() and path.exists():
        raise ProfileError("not a file")
    if path.stat().st_size > MAX_FILE:
        raise ProfileError(f"the file must be at most {MAX_FILE >> 20} MB")
    return Profile.from_json(path.read_text(encoding="utf-8"))


_WRITING = threading.RLock()
"""One at a time, so that two threads never choose the same free name."""


def write_atomically(path: Path, text: str) -> None:
    """So that an interrupted write leaves the file as it was."""
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        _replaced(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _replaced(part: Path, path: Path, patience: int = 10) -> None:
    for left in reversed(range(patience)):
        try:
            return os.replace(part, path)
        except PermissionError:
            # Windows refuses while somebody reads the file
            if not left:
                raise
            time.sleep(0.02)


def sigmas_of(values: Sequence[float]) -> tuple[float, ...]:
    """Numbers as a file keeps them: rounded to eight digits, single precision's, so a file gives the same picture."""
    return tuple(float(f"{value:.8g}") for value in values)
