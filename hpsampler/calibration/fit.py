"""Fitting a schedule to a model, so that few steps end where many would.

Of DPM++ 2M on n steps this fits the noise levels between the first and the last and one factor per step, which scales
the second-order correction (0 is first order, 1 the solver's own)::

    x' = (sigma'/sigma) x - expm1(-h) (D + f (D - D_prev)/(2r)),    and to sigma 0:  x' = D + f (D - D_prev)/2

Minimised is the distance of the sampler's endpoints to those of the same guided ODE solved with many steps from the
same noise (:class:`~hpsampler.calibration.trajectories.Trajectories`), by damped least squares, without
back-propagation. A perturbed point changes nothing before it, so a column of the Jacobian costs only the calls after
it. Held-out trajectories decide whether it was worth it: a fit that does not beat the recipe there is refused.

What is fitted belongs to the model, the guidance scale and the number of steps it was fitted for: none carries over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import torch

from ..solvers import sample_dpmpp_2m
from ..solvers._core import Model, Run
from ..solvers.dpmpp import dpmpp_2m_steps
from .config import MAX_RUNS
from .trajectories import MultistepSchedule, Trajectories

__all__ = ["Calibration", "CalibrationRefused", "calibrate"]

DIFFERENCE = 1e-2
"""Step of the finite differences: far above the rounding of half precision's sums, far below the fit's own scale."""

LEAST_STEP = 0.02
"""Smallest step in log sigma that a fit may take."""

FACTORS = (-1.0, 2.5)

OUTLIER = 2.0
"""From this many times the median error on a trajectory counts less. Of 1, 2, 3 and 6 the best over the testbeds."""


class CalibrationRefused(ValueError):
    """A fit that is no better than what there was; the message holds the numbers."""


@dataclass(frozen=True)
class Calibration:
    """A fit and what it is worth.

    Attributes:
        schedule: what was fitted.
        start: name of the schedule it began from.
        fitted_error: on the trajectories it was fitted to.
        held_out: name to error on unseen trajectories, of every start and of ``"calibrated"``.
        calls: UNet calls on the calibration set, the reference included; ``runs`` is that in runs of the sampler.
        recipe: the name among ``held_out`` that it had to beat.
    """

    schedule: MultistepSchedule
    start: str
    fitted_error: float
    held_out: Mapping[str, float]
    calls: int
    recipe: str

    @property
    def runs(self) -> float:
        return self.calls / self.schedule.steps

    @property
    def gain(self) -> float:
        """Held-out error of the recipe over that of the fit; above 1 the fit is better."""
        return self.held_out[self.recipe] / self.held_out["calibrated"]


def calibrate(
    fit: Trajectories,
    held_out: Trajectories,
    starts: Mapping[str, MultistepSchedule],
    runs: float = MAX_RUNS,
    progress: Optional[Callable[[int, float], object]] = None,
) -> Calibration:
    """Fit a schedule to ``fit`` and judge it on ``held_out``.

    Args:
        fit, held_out: trajectories of other noise and other conditions, on one model at one guidance scale.
        starts: schedules of one number of steps by name, the recipe's first; the fit begins from the best.
        runs: budget: calls on the calibration set over the steps of one run, the reference included.
        progress: called after every whole run of the sampler with the calls made so far and that run's error.

    Raises:
        ValueError: no start, starts of different steps, fewer than 2 steps, or none that stays finite.
        CalibrationRefused: the fit does not beat the recipe on the held-out trajectories.
    """
    steps = {start.steps for start in starts.values()}
    if len(steps) != 1 or min(steps) < 2:
        raise ValueError(f"starts must all have one number of steps, at least 2; got {sorted(steps)}")
    spent = _Spent(fit.calls, int(runs * min(steps)), progress)
    errors = {}
    for name, start in starts.items():
        errors[name] = fit.error(start)
        spent.add(start.steps, errors[name])
    best = min(errors, key=lambda name: errors[name])
    if not math.isfinite(errors[best]):
        raise ValueError(f"no start stays finite on this model: {', '.join(starts)}")

    schedule = _least_squares(fit, starts[best], spent)
    error = fit.error(schedule)
    spent.add(schedule.steps, error)
    if error > errors[best]:
        # what the robust sum gained, the plain one lost
        schedule, error = starts[best], errors[best]
    judged = {name: held_out.error(start) for name, start in starts.items()}
    judged["calibrated"] = held_out.error(schedule)
    result = Calibration(schedule, best, error, judged, spent.calls, recipe=next(iter(starts)))
    if not result.gain > 1:
        listed = ", ".join(f"{name} {value:.4f}" for name, value in judged.items())
        raise CalibrationRefused(
            f"calibrating {min(steps)} steps gave nothing: on held-out trajectories the errors are {listed}"
        )
    return result


@dataclass
class _Spent:
    """Calls made so far, and how many there may be."""

    calls: int
    budget: int
    progress: Optional[Callable[[int, float], object]]

    def add(self, calls: int, error: Optional[float] = None) -> None:
        """Count; a whole run has an error, and is reported."""
        self.calls += calls
        if self.progress is not None and error is not None:
            self.progress(self.calls, error)


@dataclass
class _Fit:
    """The residuals of a parameter vector, and their derivatives.

    Parameters: log of each step in log sigma (one less than steps: the last goes to 0), then the factors but the first.
    """

    target: Trajectories
    start_sigma: float
    steps: int
    tolerance: float
    spent: _Spent
    latest: dict[bytes, _Path] = field(default_factory=dict)

    def schedule(self, parameters: np.ndarray) -> MultistepSchedule:
        points, factors = np.split(parameters, [self.steps - 1])
        sigmas = self.start_sigma * np.exp(-np.cumsum(np.exp(points)))
        return MultistepSchedule((self.start_sigma, *sigmas.tolist(), 0.0), (0.0, *factors.tolist()))

    def parameters(self, schedule: MultistepSchedule) -> np.ndarray:
        falls = -np.diff(np.log(schedule.sigmas[:-1]))
        return np.concatenate([np.log(np.maximum(falls, LEAST_STEP)), schedule.factors[1:]])

    def residuals(self, parameters: np.ndarray) -> np.ndarray:
        return self._residual(self.path(parameters).end)

    def path(self, parameters: np.ndarray) -> _Path:
        path = self.latest.get(parameters.tobytes())
        if path is None:
            path = _Path.along(self.target.model, self.target.noise, self.schedule(parameters))
            self.spent.add(self.steps, self.target.error_of(path.end))
            # only the latest two are ever asked for their derivatives: the present point and the one on trial
            self.latest = dict([*self.latest.items(), (parameters.tobytes(), path)][-2:])
        return path

    def _residual(self, end: torch.Tensor) -> np.ndarray:
        """Differences of the endpoints, each trajectory's scaled so that its square is Cauchy's c^2 log(1 + e^2/c^2).

        Where a distribution has modes apart, few trajectories end in another one than their reference; no small change
        of a schedule turns them, and as plain squares they would outweigh all others.
        """
        difference = self.target.differences(end)
        errors = difference.norm(dim=1, keepdim=True).clamp(min=1e-12)
        weight = (self.tolerance / errors) * (errors / self.tolerance).square().log1p().sqrt()
        return (difference * weight).flatten().numpy() / len(difference) ** 0.5

    def jacobian(self, parameters: np.ndarray) -> np.ndarray:
        path = self.path(parameters)
        here = self._residual(path.end)
        columns = []
        for index in range(len(parameters)):
            moved = parameters.copy()
            moved[index] += DIFFERENCE
            # parameter i is the step that ends in point i + 1; factor i belongs to step i + 1: both keep what is before
            first = index if index < self.steps - 1 else index - (self.steps - 1) + 1
            there = path.again(self.target.model, self.schedule(moved), first)
            self.spent.add(self.steps - 1 - first)
            columns.append((self._residual(there) - here) / DIFFERENCE)
        # a neighbour that blows up says nothing about its parameter
        return np.nan_to_num(np.stack(columns, 1), nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(frozen=True)
class _Path:
    """One run of the sampler with what it passed: states and model outputs before every step."""

    states: list[torch.Tensor]
    outputs: list[torch.Tensor]
    end: torch.Tensor

    @classmethod
    def along(cls, model: Model, noise: torch.Tensor, schedule: MultistepSchedule) -> _Path:
        states: list[torch.Tensor] = []
        outputs: list[torch.Tensor] = []

        def keep(passed: dict[str, Any]) -> None:
            states.append(passed["x"])
            outputs.append(passed["denoised"])

        sigmas = torch.tensor(schedule.sigmas, dtype=torch.float64)
        end = sample_dpmpp_2m(model, noise * schedule.sigmas[0], sigmas, callback=keep, factors=schedule.factors)
        return cls(states, outputs, end)

    def again(self, model: Model, schedule: MultistepSchedule, first: int) -> torch.Tensor:
        """The end of the same run under a schedule that differs from step ``first`` on; calls what comes after it."""
        run = Run.of(self.states[0], torch.tensor(schedule.sigmas, dtype=torch.float64), None)
        steps = dpmpp_2m_steps(run.sigmas, factors=schedule.factors)
        previous = self.outputs[first - 1 : first]
        denoised, x = self.outputs[first], self.states[first]
        for index in range(first, schedule.steps):
            if index > first:
                previous, denoised = [denoised], model(x, run.rows[index])
            x = steps[index](x, [denoised, *previous])
        return x


def _least_squares(target: Trajectories, start: MultistepSchedule, spent: _Spent) -> MultistepSchedule:
    """scipy's trust-region fit from a start, within what is left of the budget."""
    from scipy.optimize import least_squares

    fit = _Fit(target, start.sigmas[0], start.steps, math.inf, spent)
    begin = fit.parameters(start)
    points = start.steps - 1
    bounds = (
        [math.log(LEAST_STEP)] * points + [FACTORS[0]] * points,
        [math.log(math.log(1e4))] * points + [FACTORS[1]] * points,
    )
    begin = begin.clip(np.array(bounds[0]) + 1e-6, np.array(bounds[1]) - 1e-6)
    fit.tolerance = OUTLIER * float(target.differences(fit.path(begin).end).norm(dim=1).median())
    # an evaluation is one run; most are followed by a Jacobian
    each = start.steps + sum(start.steps - 1 - k for k in range(points)) + sum(points - 1 - k for k in range(points))
    # one run is kept for the look at the result
    evaluations = max(1, (spent.budget - spent.calls - start.steps) // each)
    found = least_squares(
        fit.residuals, begin, jac=fit.jacobian, bounds=bounds, x_scale="jac", ftol=1e-4, xtol=1e-4, gtol=1e-8,
        max_nfev=evaluations,
    )  # fmt: skip
    return fit.schedule(found.x)
