"""Calibration profiles: their content, their files, and the choice of a schedule for a picture.

A :class:`Profile` is a small JSON file with one :class:`Joint` schedule for each number of steps, which serves a range
of guidance scales. Files of version 1 have one :class:`Fitted` schedule, without guidance, for each number of steps and
guidance scale instead. A picture names its schedule by a hash of the numbers, so it can be drawn again after the
profile was renamed or extended.

Where a profile has compared ways to draw, Auto draws with the best of them (:mod:`~hpsampler.calibration.choice`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Optional, Union

from ..guidance import STATISTICS_SHARE, effective_guidance
from ..noise import NoiseModel
from ..recipes import FAMILIES, Recipe
from ..store import RESERVED, Reader, Store, StoreError, abbreviated, clean_name, parse_json
from .choice import Comparison, WithStatistics, read_comparison
from .rows import MAX_SIGMA, Fitted, Joint, Measured, Refused, Row, read_fitted, read_joint, read_refused
from .trajectories import MultistepSchedule

__all__ = [
    "Drawing", "Fitted", "Joint", "Measured", "Profile", "ProfileStore", "Refused", "Row", "Target", "noise_tolerance",
]  # fmt: skip

FORMAT, VERSION = "hpsampler calibration", 3
"""Version 2 has joint schedules, version 3 comparisons; files without them are as earlier releases read them."""

SIDES = (64, 8192)

CFG_REACH = 1.5
"""Largest ratio between a picture's guidance scale and that of a :class:`Fitted` or of a comparison, see
docs/calibration.md."""

AREA_REACH = 1.8
"""Largest ratio between a picture's area and the profile's."""

TOLERATED_CHANGE = 0.02
"""RMS change of pixels (0 to 1) below which residual noise is lost on the eye: 5 of 255."""


Drawing = Union[Row, WithStatistics]
"""What stands in place of Auto's own recipe."""


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
class Profile:
    """The calibrations of one model.

    Attributes:
        joint: schedules for a range of guidance scales each.
        fitted: those of version 1, for one guidance scale each.
        name: the name that users see; the file's name is derived from it.
        model: the checkpoint's name.
        hashes: the checkpoint's hashes; any of them identifies it.
        width, height: size in pixels of the pictures it was calibrated on.
        sigma_min, sigma_max: ends of the model's noise table.
        trajectories, held_out: numbers of trajectories for fitting and for the held-out errors.
        compared: ways to draw, each with a few calls at one guidance scale.
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
    joint: tuple[Joint, ...] = ()
    compared: tuple[Comparison, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """All schedules."""
        return (*self.joint, *self.fitted)

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

    def find(self, steps: int, target: Target) -> Optional[Row]:
        """The schedule with that many steps for ``target``, if there is one.

        A joint one that covers the guidance scale comes first, then the nearest of the others, if it is near enough.
        """
        if self.mismatch(target) or not 0 < target.cfg_scale < math.inf:
            return None
        joint = [each for each in self.joint if each.steps == steps and not each.misfit(target.cfg_scale)]
        if joint:
            return max(joint, key=lambda each: each.nearest(target.cfg_scale).gain)
        candidates = [
            (abs(math.log(fitted.cfg_scale / target.cfg_scale)), index)
            for index, fitted in enumerate(self.fitted)
            if fitted.steps == steps
        ]
        distance, index = min(candidates, default=(math.inf, 0))
        return self.fitted[index] if distance <= math.log(CFG_REACH) + 1e-9 else None

    def comparison(self, steps: int, target: Target) -> Optional[Comparison]:
        """The comparison with that many steps nearest to ``target`` in guidance scale, if it is near enough."""
        if self.mismatch(target) or not 0 < target.cfg_scale < math.inf:
            return None
        candidates = [
            (abs(math.log(each.cfg_scale / target.cfg_scale)), index)
            for index, each in enumerate(self.compared)
            if each.steps == steps
        ]
        distance, index = min(candidates, default=(math.inf, 0))
        return self.compared[index] if distance <= math.log(CFG_REACH) + 1e-9 else None

    def label(self, drawing: Drawing) -> str:
        """The label by which a picture names what it was drawn with: ``my model 1a2b3c4d``."""
        return f"{self.name} {drawing.hash}"

    def recipe(self, drawing: Drawing, base: Recipe, cfg_scale: float) -> Recipe:
        """``base`` with its schedule, solver, ending and guidance replaced by what was found on the model.

        Args:
            cfg_scale: the guidance scale of the picture, which a joint schedule depends on.
        """
        if isinstance(drawing, WithStatistics):
            return replace(
                base,
                solver="dpm_v3",
                order=drawing.order,
                ending="zero",
                guidance=(effective_guidance(cfg_scale, drawing.steps, STATISTICS_SHARE),) * drawing.steps,
                calibration=self.label(drawing),
            )
        schedule = (
            # those of version 1 were fitted with guidance as set
            MultistepSchedule(drawing.sigmas, drawing.factors)
            if isinstance(drawing, Fitted)
            else drawing.schedule.at(cfg_scale)
        )
        return replace(
            base,
            steps=drawing.steps,
            solver="dpmpp_2m",
            ending="keep" if schedule.sigmas[-1] > 0 else "zero",
            levels=schedule.sigmas,
            factors=schedule.factors,
            guidance=schedule.guidance,
            bend=0.0,
            calibration=self.label(drawing),
        )

    def to_dict(self) -> dict[str, Any]:
        """The form in files and in the API."""
        found = {**asdict(self), "fitted": [fitted.to_dict() for fitted in self.fitted]}
        for name, rows in (("joint", self.joint), ("compared", self.compared)):
            found[name] = [each.to_dict() for each in rows]
            if not rows:
                del found[name]
        return found

    def to_json(self) -> str:
        version = VERSION if self.compared else 2 if self.joint else 1
        return json.dumps({"format": FORMAT, "version": version, **self.to_dict()}, indent=1) + "\n"

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
            fitted=tuple(read.items("fitted", read_fitted)),
            refused=tuple(read.items("refused", read_refused)),
            decoder=tuple(read.items("decoder", _pair)),
            joint=_rows(read, "joint", read_joint, since=2),
            compared=_rows(read, "compared", read_comparison, since=3),
        )
        if not profile.hashes:
            raise StoreError("hashes must hold at least one hash of the model, got none")
        if not profile.sigma_min < profile.sigma_max:
            raise StoreError(f"sigma_max must be above sigma_min ({profile.sigma_min:g}), got {profile.sigma_max:g}")
        return profile


def _rows(read: Reader, name: str, read_row: Callable[[Reader], Any], since: int) -> tuple[Any, ...]:
    """The rows that files of one version must have, and those of later ones may."""
    version = read.data["version"]
    return tuple(read.items(name, read_row)) if version == since or (version > since and name in read.data) else ()


def _family(name: str) -> str:
    if name not in FAMILIES:
        raise StoreError(f"family must be one of {', '.join(FAMILIES)}, got {abbreviated(name)}")
    return name


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

    def best(self, steps: int, target: Target) -> Optional[tuple[Profile, Row]]:
        """The best schedule for ``target``: a joint one with the greatest gain where it was measured nearest.

        Without any, the nearest in guidance scale of the others, then the one with the greatest gain.
        """
        candidates = [(profile, row) for profile in self.read()[0] if (row := profile.find(steps, target))]

        def order(pair: tuple[Profile, Row]) -> tuple[bool, float, float]:
            row = pair[1]
            if isinstance(row, Joint):
                return False, 0.0, -row.nearest(target.cfg_scale).gain
            return True, abs(math.log(row.cfg_scale / target.cfg_scale)), -row.gain

        return min(candidates, key=order, default=None)

    def comparison(self, steps: int, target: Target) -> Optional[tuple[Profile, Comparison]]:
        """The comparison for ``target`` that is the nearest in guidance scale; of equals that with the most ways."""
        candidates = [(profile, found) for profile in self.read()[0] if (found := profile.comparison(steps, target))]

        def order(pair: tuple[Profile, Comparison]) -> tuple[float, int]:
            return abs(math.log(pair[1].cfg_scale / target.cfg_scale)), -len(pair[1].figures)

        return min(candidates, key=order, default=None)

    def by_label(self, label: str) -> Optional[tuple[Profile, Drawing]]:
        """What a picture's label names, by the hash at its end, as the profile may have been renamed."""
        name, _, digest = label.strip().rpartition(" ")
        candidates = [
            (profile, each)
            for profile in self.read()[0]
            for each in (*profile.rows, *(row for found in profile.compared for row in found.rows))
            if each.hash == digest
        ]
        # equal hashes draw equal pictures, so the name only decides which profile is named
        return min(candidates, key=lambda pair: pair[0].name != name, default=None)

    def pick(self, name_or_labels: str, steps: int, target: Target) -> tuple[Optional[tuple[Profile, Drawing]], str]:
        """What a user chose by a profile's name, or by labels as in a picture, separated by ``"; "``.

        A profile's name stands for its fitted schedules.

        Returns:
            The profile and what it has for that many steps and an empty text, or None and the reason.

        Raises:
            StoreError: no profile has that name, and no schedule that label.
        """
        named = self.named(name_or_labels)
        cfg_scale = target.cfg_scale
        if isinstance(named, Profile):
            row = named.find(steps, target)
            if row is not None:
                return (named, row), ""
            misfits = [each.misfit(cfg_scale) for each in named.joint if each.steps == steps and cfg_scale > 0]
            nothing = misfits[0] if misfits else f"it has no {steps} steps near CFG {cfg_scale:g}"
            return None, named.mismatch(target) or nothing
        for pair in named:
            if pair[1].steps == steps:
                # a picture is drawn again as it was; at another guidance scale a joint schedule may mean nothing
                misfit = pair[1].misfit(cfg_scale) if isinstance(pair[1], Joint) else ""
                return (None, misfit) if misfit else (pair, "")
        return None, f"it is for {named[0][1].steps} steps, not {steps}"

    def named(self, name_or_labels: str) -> Profile | list[tuple[Profile, Drawing]]:
        """The profile with a name, or what has the labels that are separated by ``"; "``.

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
