"""The schedules of a calibration profile: what a row of its file holds, checked as it is read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Union

import numpy as np

from ..recipes import AUTO, MAX_STEPS
from ..store import Reader, has_lone_surrogate
from .joint import JointSchedule

__all__ = [
    "CALIBRATED", "ERRORS", "MAX_SIGMA", "Fitted", "Joint", "Measured", "Refused", "Row", "read_fitted", "read_joint",
    "read_refused",
]  # fmt: skip

CALIBRATED = "calibrated"
"""The name of a fit among other ways to draw."""

MAX_SIGMA = 1e4
MAX_FACTOR = 10.0
MAX_PARAMETER = 100.0
CFG_SCALES = (0.01, 1000.0)

MIN_SIGMA = 1e-6
MIN_DECREASE = 1e-6
"""Smallest relative decrease: in single precision two sigmas must not become equal, and none may become 0."""

ERRORS = (1e-12, 1e12)
"""Smallest and largest error in a file; the largest stands for infinity, which JSON cannot express."""


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
        return _gain(self.held_out)


@dataclass(frozen=True)
class Measured:
    """How good a joint schedule is at one guidance scale.

    Attributes:
        held_out: errors on held-out trajectories by name of schedule; ``"calibrated"`` is that of the fit.
        baseline: held-out error of 20 steps of DPM++ 2M Karras; files and the API call it ``yardstick``.
    """

    cfg_scale: float
    held_out: Mapping[str, float]
    baseline: float

    @property
    def refused(self) -> bool:
        """Whether the fit is no better than the recipe there, and is not used."""
        return not self.held_out[CALIBRATED] < self.held_out.get(AUTO, math.inf)

    @property
    def gain(self) -> float:
        """Held-out error of the best other schedule divided by that of the fit."""
        return _gain(self.held_out)


@dataclass(frozen=True)
class Joint:
    """A schedule with its guidance for one number of steps, which serves a range of guidance scales.

    Attributes:
        schedule: the schedule as a function of the guidance scale.
        start: name of the initial schedule that the fit started from.
        measured: how good it is, at every guidance scale that it was fitted to; they rise.
        calls: UNet calls of the fit on the calibration set, including the reference.
    """

    schedule: JointSchedule
    start: str
    measured: tuple[Measured, ...]
    calls: int

    @property
    def steps(self) -> int:
        return self.schedule.steps

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits of a hash of the numbers that determine the picture at every guidance scale."""
        numbers = json.dumps(asdict(self.schedule), sort_keys=True).encode()
        return hashlib.sha256(numbers).hexdigest()[:8]

    def nearest(self, cfg_scale: float) -> Measured:
        """What was measured nearest to a guidance scale, by ratio."""
        return min(self.measured, key=lambda each: abs(math.log(each.cfg_scale / cfg_scale)))

    def misfit(self, cfg_scale: float) -> str:
        """Why it is not used at a guidance scale; empty if it is."""
        low, high = self.schedule.low, self.schedule.high
        if not self.schedule.covers(cfg_scale):
            covered = f"CFG {low:g}" if low == high else f"CFG {low:g} to {high:g}"
            return f"it is for {covered}, not {cfg_scale:g}"
        nearest = self.nearest(cfg_scale)
        if nearest.refused:
            return f"at CFG {nearest.cfg_scale:g} it is no better than Auto"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """The form in files and in the API."""
        return {
            "steps": self.steps,
            **asdict(self.schedule),
            "start": self.start,
            "measured": [
                {"cfg_scale": each.cfg_scale, "held_out": dict(each.held_out), "yardstick": each.baseline}
                for each in self.measured
            ],
            "calls": self.calls,
        }


Row = Union[Joint, Fitted]
"""What a picture can be drawn with."""


@dataclass(frozen=True)
class Refused:
    """A fit that was refused, and why; a joint fit is refused as a whole where it is at every guidance scale."""

    steps: int
    cfg_scale: float
    reason: str


def _held_out(row: Reader) -> dict[str, float]:
    errors = row.at("held_out")
    if not isinstance(errors.data, dict) or CALIBRATED not in errors.data or not 2 <= len(errors.data) <= 64:
        raise errors.error("2 to 64 errors by name of schedule, among them calibrated")
    if any(not name.strip() or len(name) > 100 or has_lone_surrogate(name) for name in errors.data):
        raise errors.error("errors by name, with names of 1 to 100 characters")
    return {name: errors.number(name, *ERRORS) for name in errors.data}


def _gain(held_out: Mapping[str, float]) -> float:
    return min(error for name, error in held_out.items() if name != CALIBRATED) / held_out[CALIBRATED]


def read_fitted(row: Reader) -> Fitted:
    fitted = Fitted(
        steps=row.whole("steps", 2, MAX_STEPS),
        cfg_scale=row.number("cfg_scale", 0.01, 1000),
        sigmas=row.numbers("sigmas", 0, MAX_SIGMA),
        factors=row.numbers("factors", -MAX_FACTOR, MAX_FACTOR),
        start=row.text("start"),
        held_out=_held_out(row),
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


def read_joint(row: Reader) -> Joint:
    steps, low = row.whole("steps", 2, MAX_STEPS), row.number("low", *CFG_SCALES)
    end = row.numbers("end", -MAX_FACTOR, MAX_SIGMA)
    if len(end) != 2 or not (end[0] == 0 or end[0] >= MIN_SIGMA) or end[1] > MAX_FACTOR:
        raise row.at("end").error(f"the last sigma, 0 or above {MIN_SIGMA:g}, and a factor up to {MAX_FACTOR:g}")
    schedule = JointSchedule(
        low=low,
        high=row.number("high", low, CFG_SCALES[1]),
        start_sigma=row.number("start_sigma", MIN_SIGMA, MAX_SIGMA),
        constant=row.numbers("constant", -MAX_PARAMETER, MAX_PARAMETER),
        slope=row.numbers("slope", -MAX_PARAMETER, MAX_PARAMETER),
        center=row.number("center", *CFG_SCALES),
        end=(end[0], end[1]),
    )
    for name in ("constant", "slope"):
        if len(getattr(schedule, name)) != 3 * steps - 2:
            raise row.at(name).error(f"{3 * steps - 2} numbers for {steps} steps")
    for cfg_scale in (low, schedule.high):
        # the parameters are monotonous in the guidance scale, so what holds at both ends holds between them
        _check_end(row, schedule, cfg_scale)
    measured = tuple(row.items("measured", _measured))
    scales = [each.cfg_scale for each in measured]
    if not scales or scales != sorted(set(scales)) or not all(map(schedule.covers, scales)):
        raise row.at("measured").error(f"rising guidance scales from {low:g} to {schedule.high:g}")
    return Joint(schedule, row.text("start"), measured, row.whole("calls", 0, 10**12))


def _check_end(row: Reader, schedule: JointSchedule, cfg_scale: float) -> None:
    parameters = schedule.parameters(cfg_scale)
    log_steps, factors, log_shares = np.split(parameters, [schedule.steps - 1, 2 * schedule.steps - 2])
    last = schedule.start_sigma * math.exp(-float(np.exp(np.minimum(log_steps, 10)).sum()))
    smallest = max(MIN_SIGMA, schedule.end[0] * (1 + 2 * MIN_DECREASE))
    if (
        log_steps.min() < math.log(2 * MIN_DECREASE)
        or last <= smallest
        or np.abs(factors).max() > MAX_FACTOR
        or np.abs(log_shares).max() > math.log(MAX_FACTOR)
    ):
        raise row.at("constant").error(
            f"such that at CFG {cfg_scale:g} the sigmas fall and stay above {smallest:g}, factors are within "
            f"{MAX_FACTOR:g}, and guidance is within a factor of {MAX_FACTOR:g}"
        )


def _measured(row: Reader) -> Measured:
    return Measured(row.number("cfg_scale", *CFG_SCALES), _held_out(row), row.number("yardstick", 0, ERRORS[1]))


def read_refused(row: Reader) -> Refused:
    return Refused(row.whole("steps", 2, MAX_STEPS), row.number("cfg_scale", 0.01, 1000), row.text("reason"))
