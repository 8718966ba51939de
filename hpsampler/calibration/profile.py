"""Calibration profiles: their content, their files, and the choice of a schedule for a picture.

A :class:`Profile` is a small JSON file with one :class:`Fitted` schedule for each number of steps and guidance scale
that was calibrated. A picture names its schedule by a hash of the numbers, so it can be drawn again after the profile
was renamed or extended.
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

MIN_SIGMA = 1e-6
MIN_DECREASE = 1e-6
"""Smallest relative decrease: in single precision two sigmas must not become equal, and none may become 0."""

ERRORS = (1e-12, 1e12)
"""Smallest and largest error in a file; the largest stands for infinity, which JSON cannot express."""

CFG_REACH = 1.5
"""Largest ratio between a picture's guidance scale and the schedule's, see docs/calibration.md."""

AREA_REACH = 1.8
"""Largest ratio between a picture's area and the profile's."""

TOLERATED_CHANGE = 0.02
"""RMS change of pixels (0 to 1) below which residual noise is lost on the eye: 5 of 255."""


@dataclass(frozen=True)
class Target:
    """What a schedule is needed for: a model, a picture's size in pixels, and a guidance scale."""

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
        start: name of the initial schedule that the fit started from.
        held_out: errors on held-out trajectories by name of schedule; ``"calibrated"`` is this schedule's.
        baseline: held-out error of 20 steps of DPM++ 2M Karras; files and the API call it ``yardstick``.
        calls: UNet calls of the fit on the calibration set, including the reference.
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
        """The form in files and in the API."""
        return {("yardstick" if name == "baseline" else name): value for name, value in asdict(self).items()}

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits of a hash of the numbers that determine the picture."""
        numbers = json.dumps([[float(value) for value in row] for row in (self.sigmas, self.factors)]).encode()
        return hashlib.sha256(numbers).hexdigest()[:8]

    @property
    def gain(self) -> float:
        """Held-out error of the best other schedule divided by that of this one."""
        others = [error for name, error in self.held_out.items() if name != "calibrated"]
        return min(others) / self.held_out["calibrated"]


@dataclass(frozen=True)
class Refused:
    """A fit that was refused, and why."""

    steps: int
    cfg_scale: float
    reason: str


@dataclass(frozen=True)
class Profile:
    """The calibrations of one model.

    Attributes:
        name: the name that users see; the file's name is derived from it.
        model: the checkpoint's name.
        hashes: the checkpoint's hashes; any of them identifies it.
        width, height: size in pixels of the pictures it was calibrated on.
        sigma_min, sigma_max: ends of the model's noise table.
        trajectories, held_out: numbers of trajectories for fitting and for the held-out errors.
        decoder: pairs of sigma and RMS change of the decoded pictures (0 to 1) with the loaded VAE; may be empty.
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

    def model_mismatch(self, hashes: Collection[str], noise: NoiseModel) -> str:
        """Why it was not made for the model with these hashes and this noise table; empty if it was."""
        if not set(self.hashes) & set(hashes):
            return f"it was made for the model {self.model}"
        ends = ((self.sigma_min, noise.sigma_min), (self.sigma_max, noise.sigma_max))
        if any(not math.isclose(stored, current, rel_tol=1e-3) for stored, current in ends):
            return "the model's noise table has changed since"
        return ""

    def mismatch(self, target: Target) -> str:
        """Why no schedule of this profile can be used for ``target``; empty if one may be."""
        reason = self.model_mismatch(target.hashes, target.noise)
        if reason:
            return reason
        ratio = (target.width * target.height) / (self.width * self.height)
        if not 1 / AREA_REACH - 1e-9 <= ratio <= AREA_REACH + 1e-9:
            return f"it was made at {self.width}x{self.height}, the picture is {target.width}x{target.height}"
        return ""

    def find(self, steps: int, target: Target) -> Optional[Fitted]:
        """The schedule with that many steps nearest in guidance scale, if there is one near enough for ``target``."""
        if self.mismatch(target) or not 0 < target.cfg_scale < math.inf:
            return None
        candidates = [
            (abs(math.log(fitted.cfg_scale / target.cfg_scale)), index)
            for index, fitted in enumerate(self.fitted)
            if fitted.steps == steps
        ]
        distance, index = min(candidates, default=(math.inf, 0))
        return self.fitted[index] if distance <= math.log(CFG_REACH) + 1e-9 else None

    def label(self, fitted: Fitted) -> str:
        """The label by which a picture names a schedule: ``my model 1a2b3c4d``."""
        return f"{self.name} {fitted.hash}"

    def recipe(self, fitted: Fitted, base: Recipe) -> Recipe:
        """``base`` with its schedule, solver and ending replaced by the calibrated ones."""
        return replace(
            base,
            steps=fitted.steps,
            solver="dpmpp_2m",
            ending="keep" if fitted.sigmas[-1] > 0 else "zero",
            levels=fitted.sigmas,
            factors=fitted.factors,
            # it was fitted with guidance as set, and says every point itself
            guidance=(),
            bend=0.0,
            calibration=self.label(fitted),
        )

    def to_dict(self) -> dict[str, Any]:
        """The form in files and in the API."""
        return {**asdict(self), "fitted": [fitted.to_dict() for fitted in self.fitted]}

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": VERSION, **self.to_dict()}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """From the text of a file, with every value checked.

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
        raise errors.error("2 to 64 errors by name of schedule, among them calibrated")
    if any(not name.strip() or len(name) > 100 or has_lone_surrogate(name) for name in errors.data):
        raise errors.error("errors by name, with names of 1 to 100 characters")
    fitted = Fitted(
        steps=row.whole("steps", 2, MAX_STEPS),
        cfg_scale=row.number("cfg_scale", 0.01, 1000),
        sigmas=row.numbers("sigmas", 0, MAX_SIGMA),
        factors=row.numbers("factors", -MAX_FACTOR, MAX_FACTOR),
        start=row.text("start"),
        held_out={name: errors.number(name, *ERRORS) for name in errors.data},
        baseline=row.number("yardstick", 0, ERRORS[1]),
        calls=row.whole("calls", 0, 10**12),
    )
    decreasing = all(low < high * (1 - MIN_DECREASE) for high, low in pairwise(fitted.sigmas))
    positive = all(sigma >= MIN_SIGMA for sigma in fitted.sigmas if sigma != 0) and all(fitted.sigmas[:-1])
    if len(fitted.sigmas) != fitted.steps + 1 or not decreasing or not positive:
        raise row.at("sigmas").error(
            f"{fitted.steps + 1} numbers from {MIN_SIGMA:g}, each below the one before; only the last may be 0"
        )
    if len(fitted.factors) != fitted.steps or fitted.factors[0] != 0:
        raise row.at("factors").error(f"{fitted.steps} numbers, the first 0")
    return fitted


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
        """The best schedule for ``target``: the nearest in guidance scale, then the one with the greatest gain."""
        candidates = [(profile, fitted) for profile in self.read()[0] if (fitted := profile.find(steps, target))]
        return min(
            candidates,
            key=lambda pair: (abs(math.log(pair[1].cfg_scale / target.cfg_scale)), -pair[1].gain),
            default=None,
        )

    def by_label(self, label: str) -> Optional[tuple[Profile, Fitted]]:
        """The schedule with a picture's label, by the hash at its end, as the profile may have been renamed."""
        name, _, digest = label.strip().rpartition(" ")
        candidates = [
            (profile, fitted) for profile in self.read()[0] for fitted in profile.fitted if fitted.hash == digest
        ]
        # equal hashes draw equal pictures, so the name only decides which profile is named
        return min(candidates, key=lambda pair: pair[0].name != name, default=None)

    def pick(self, name_or_labels: str, steps: int, target: Target) -> tuple[Optional[tuple[Profile, Fitted]], str]:
        """The schedule that a user chose by a profile's name, or by labels as in a picture, separated by ``"; "``.

        Returns:
            The profile and its schedule with that many steps and an empty text, or None and the reason.

        Raises:
            StoreError: no profile has that name, and no schedule that label.
        """
        named = self.named(name_or_labels)
        if isinstance(named, Profile):
            fitted = named.find(steps, target)
            if fitted is not None:
                return (named, fitted), ""
            return None, named.mismatch(target) or f"it has no {steps} steps near CFG {target.cfg_scale:g}"
        for pair in named:
            if pair[1].steps == steps:
                return pair, ""
        return None, f"it is for {named[0][1].steps} steps, not {steps}"

    def named(self, name_or_labels: str) -> Profile | list[tuple[Profile, Fitted]]:
        """The profile with a name, or the schedules with labels that are separated by ``"; "``.

        Raises:
            StoreError: there is none.
        """
        profiles = self.read()[0]
        for profile in profiles:
            if profile.name == name_or_labels:
                return profile
        schedules = [pair for label in name_or_labels.split("; ") if (pair := self.by_label(label))]
        if not schedules:
            listed = ", ".join(profile.name for profile in profiles) or "none yet"
            raise StoreError(f"there is no calibration {name_or_labels!r} here; there are: {listed}")
        return schedules


def rounded(values: Sequence[float]) -> tuple[float, ...]:
    """Sigmas or factors as a file stores them: eight digits are enough for single precision, so pictures are equal."""
    return tuple(float(f"{value:.8g}") for value in values)
