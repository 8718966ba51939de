"""Calibrations as people keep them: for which model they were made, what they hold, when one fits, where they lie.

A :class:`Profile` is one small JSON file with one :class:`Fitted` schedule for each number of steps and guidance scale
that was calibrated. A picture names the schedule it was drawn with by the hash of its numbers, so it can be made again
after the profile was renamed, or has grown.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Optional

from ..noise import NoiseModel
from ..recipes import FAMILIES, MAX_STEPS, Recipe
from ..store import RESERVED, Reader, Store, StoreError, abbreviated, clean_name, has_lone_surrogate, parse_json

__all__ = ["Fitted", "Profile", "ProfileStore", "Refused", "Target", "noise_tolerance"]

FORMAT, VERSION = "hpsampler calibration", 1

MAX_SIGMA = 1e4
MAX_FACTOR = 10.0
SIDES = (64, 8192)

LEAST_SIGMA = 1e-6
LEAST_FALL = 1e-6
"""Relative: pictures are drawn in single precision, where two points may not become one, nor any become 0."""

ERRORS = (1e-12, 1e12)
"""What an error may be; the last stands for that of a schedule that blew up, as a file holds no infinity."""

CFG_REACH = 1.5
"""A schedule is used at guidance scales up to this factor from its own, see docs/calibration.md."""

AREA_REACH = 1.8
"""And for pictures of up to this many times its own area, or as many times less."""

TOLERATED_CHANGE = 0.02
"""RMS change of pixels (0 to 1) below which residual noise is lost on the eye: 5 of 255."""


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
        baseline: the error of 20 steps of DPM++ 2M Karras there; files and the API call it ``yardstick``.
        calls: UNet calls on the calibration set that the fit took, the reference included.
    """

    steps: int
    cfg_scale: float
    sigmas: tuple[float, ...]
    factors: tuple[float, ...]
    start: str
    held_out: Mapping[str, float]
    baseline: float
    calls: int

    def to_dict(self) -> dict[str, Any]:
        """As files and the API have it."""
        found = asdict(self)
        return {("yardstick" if name == "baseline" else name): value for name, value in found.items()}

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

    def unlike(self, hashes: Collection[str], noise: NoiseModel) -> str:
        """Why it is not of the model with one of these hashes and this noise table; empty where it is."""
        if not set(self.hashes) & set(hashes):
            return f"it was made for the model {self.model}"
        ends = ((self.sigma_min, noise.sigma_min), (self.sigma_max, noise.sigma_max))
        if any(not math.isclose(own, there, rel_tol=1e-3) for own, there in ends):
            return "the model's noise table has changed since"
        return ""

    def misfit(self, target: Target) -> str:
        """Why nothing of this profile can be used for ``target``; empty where something may be."""
        other = self.unlike(target.hashes, target.noise)
        if other:
            return other
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

    def to_dict(self) -> dict[str, Any]:
        """As files and the API have it."""
        return {**asdict(self), "fitted": [each.to_dict() for each in self.fitted]}

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": VERSION, **self.to_dict()}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """Read and check every number.

        Raises:
            StoreError: naming the field, its value and what is allowed.
        """
        read = Reader(parse_json(text, "calibration", FORMAT, VERSION))
        profile = cls(
            name=clean_name(read.text("name"), ProfileStore.reserved),
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
            raise StoreError("hashes must hold at least one hash of the model, got none")
        if not profile.sigma_min < profile.sigma_max:
            raise StoreError(f"sigma_max must be above sigma_min ({profile.sigma_min:g}), got {profile.sigma_max:g}")
        return profile


def _family(name: str) -> str:
    if name not in FAMILIES:
        raise StoreError(f"family must be one of {', '.join(FAMILIES)}, got {abbreviated(name)}")
    return name


def _fitted(row: Reader) -> Fitted:
    errors = row.at("held_out")
    if not isinstance(errors.data, dict) or "calibrated" not in errors.data or not 2 <= len(errors.data) <= 64:
        raise errors.error("2 to 64 errors by name, of what there was and of what is calibrated")
    if any(not name.strip() or len(name) > 100 or has_lone_surrogate(name) for name in errors.data):
        raise errors.error("errors by names of 1 to 100 characters")
    found = Fitted(
        steps=row.whole("steps", 2, MAX_STEPS),
        cfg_scale=row.number("cfg_scale", 0.01, 1000),
        sigmas=row.numbers("sigmas", 0, MAX_SIGMA),
        factors=row.numbers("factors", -MAX_FACTOR, MAX_FACTOR),
        start=row.text("start"),
        held_out={name: errors.number(name, *ERRORS) for name in errors.data},
        baseline=row.number("yardstick", 0, ERRORS[1]),
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


def _refused(row: Reader) -> Refused:
    return Refused(row.whole("steps", 2, MAX_STEPS), row.number("cfg_scale", 0.01, 1000), row.text("reason"))


def _pair(row: Reader) -> tuple[float, float]:
    if not isinstance(row.data, list) or len(row.data) != 2:
        raise row.error("a pair of numbers")
    first, second = (Reader(value, row.path).as_number(0, MAX_SIGMA) for value in row.data)
    return first, second


def noise_tolerance(curve: Sequence[tuple[float, float]]) -> float:
    """The largest sigma of a decoder's curve up to which pictures change by at most ``TOLERATED_CHANGE``, or 0."""
    found = 0.0
    for sigma, change in curve:
        if not change <= TOLERATED_CHANGE:
            break
        found = sigma
    return found


class ProfileStore(Store[Profile]):
    """The profiles in a folder."""

    kind = "calibration"
    reserved = RESERVED

    @staticmethod
    def parse(text: str) -> Profile:
        return Profile.from_json(text)

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
            StoreError: nothing here has that name or label.
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
            StoreError: there is none.
        """
        profiles = self.read()[0]
        for profile in profiles:
            if profile.name == wanted:
                return profile
        found = [pair for label in wanted.split("; ") if (pair := self.by_label(label))]
        if not found:
            listed = ", ".join(profile.name for profile in profiles) or "none yet"
            raise StoreError(f"there is no calibration {wanted!r} here; there are: {listed}")
        return found


def sigmas_of(values: Sequence[float]) -> tuple[float, ...]:
    """Numbers as a file keeps them: rounded to eight digits, single precision's, so a file gives the same picture."""
    return tuple(float(f"{value:.8g}") for value in values)
