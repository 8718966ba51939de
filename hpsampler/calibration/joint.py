"""A schedule, its factors and its guidance as a function of the CFG scale.

For n steps the parameters theta are, in this order,

* the logs of the n - 1 steps in log sigma that come before the last one, which goes to 0,
* the n - 1 factors of the second-order corrections, the first step having none,
* the logs of w_i / w, with w_i the guidance scale of call i and w the one that a person sets; n of them.

They depend on the guidance scale by ``theta(w) = constant + slope * log(w / CENTER)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .trajectories import MultistepSchedule

__all__ = [
    "CENTER", "FACTOR_RANGE", "MIN_STEP", "SHARE_RANGE", "JointSchedule", "bounds", "parameters_of", "rounded",
    "schedule_of",
]  # fmt: skip

CENTER = 5.0

MIN_STEP = 0.02
"""Smallest step in log sigma of a fitted schedule."""

FACTOR_RANGE = (-1.0, 2.5)
"""Lowest and highest factor of a fitted schedule."""

SHARE_RANGE = (0.2, 1.6)
"""Lowest and highest w_i / w of a fitted schedule: without bounds a fit can end in useless places."""


def bounds(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest parameters of a fit, (3 steps - 2,) each."""
    points = steps - 1
    low, high = (
        [first] * points + [factor] * points + [math.log(share)] * steps
        for first, factor, share in zip((math.log(MIN_STEP), math.log(math.log(1e4))), FACTOR_RANGE, SHARE_RANGE)
    )
    return np.array(low), np.array(high)


def schedule_of(parameters: np.ndarray, start_sigma: float, cfg_scale: float) -> MultistepSchedule:
    """The schedule of parameters at a guidance scale; at 1 and below, where there is no guidance, w_i is w."""
    steps = (len(parameters) + 2) // 3
    log_steps, factors, log_shares = np.split(parameters, [steps - 1, 2 * steps - 2])
    sigmas = start_sigma * np.exp(-np.cumsum(np.exp(log_steps)))
    guidance = tuple((cfg_scale * np.exp(log_shares)).tolist()) if cfg_scale > 1 else ()
    return MultistepSchedule((start_sigma, *sigmas.tolist(), 0.0), (0.0, *factors.tolist()), guidance)


def parameters_of(schedule: MultistepSchedule, cfg_scale: float) -> np.ndarray:
    """The parameters of a schedule whose last sigma is taken to be 0."""
    log_steps = np.log(np.maximum(-np.diff(np.log(schedule.sigmas[:-1])), MIN_STEP))
    guidance = schedule.guidance or (cfg_scale,) * schedule.steps
    return np.concatenate([log_steps, schedule.factors[1:], np.log(np.array(guidance) / cfg_scale)])


@dataclass(frozen=True)
class JointSchedule:
    """One schedule for every guidance scale from ``low`` to ``high``.

    Invariant: ``len(constant) == len(slope) == 3 * steps - 2``.

    Attributes:
        start_sigma: the first sigma.
        constant, slope: of the parameters, see this module's docstring.
        center: the guidance scale at which the parameters are ``constant``.
        end: the last sigma, and the factor of the last step where that sigma is above 0.
    """

    low: float
    high: float
    start_sigma: float
    constant: tuple[float, ...]
    slope: tuple[float, ...]
    center: float = CENTER
    end: tuple[float, float] = (0.0, 0.0)

    @property
    def steps(self) -> int:
        return (len(self.constant) + 2) // 3

    def covers(self, cfg_scale: float) -> bool:
        """Whether it was fitted for a guidance scale."""
        return self.low * (1 - 1e-9) <= cfg_scale <= self.high * (1 + 1e-9)

    def parameters(self, cfg_scale: float) -> np.ndarray:
        return np.array(self.constant) + np.array(self.slope) * math.log(cfg_scale / self.center)

    def at(self, cfg_scale: float) -> MultistepSchedule:
        """The schedule at a guidance scale that it covers. Sigmas and factors have eight digits, as in files."""
        found = schedule_of(self.parameters(cfg_scale), self.start_sigma, cfg_scale)
        sigmas, factors = found.sigmas, found.factors
        if self.end[0] > 0:
            sigmas, factors = (*sigmas[:-1], self.end[0]), (*factors[:-1], self.end[1])
        return MultistepSchedule(rounded(sigmas), rounded(factors), rounded(found.guidance))


def rounded(values: Sequence[float]) -> tuple[float, ...]:
    """Numbers as a file stores them: eight digits are enough for single precision, so pictures are equal."""
    return tuple(float(f"{value:.8g}") for value in values)
