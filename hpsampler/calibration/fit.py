"""Fitting a schedule to a model, so that a few steps end where many steps would.

For DPM++ 2M with n steps this fits the noise levels between the first and the last, and one factor per step that scales
the second-order correction (0 is first order, 1 the unscaled solver)::

    x' = (sigma'/sigma) x - expm1(-h) (D + f (D - D_prev)/(2r)),    and to sigma 0:  x' = D + f (D - D_prev)/2

The fit minimises the distance of the sampler's endpoints to those of the same guided ODE, solved with many steps from
the same noise (:class:`~hpsampler.calibration.trajectories.Trajectories`), by damped least squares without
back-propagation. A perturbed point changes nothing before it, so a column of the Jacobian costs only the calls after
it. A fit that is not better than the recipe on held-out trajectories is refused.

The result is valid for the model, guidance scale and number of steps it was fitted to, and for no others.
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

FINITE_DIFFERENCE = 1e-2
"""Step of the finite differences: far above the rounding errors of half precision, far below the parameters' scale."""

MIN_STEP = 0.02
"""Smallest step in log sigma of a fitted schedule."""

FACTOR_RANGE = (-1.0, 2.5)
"""Lowest and highest factor of a fitted schedule."""

OUTLIER = 2.0
"""A trajectory with an error this many times the median counts less. Of 1, 2, 3 and 6 it was best on the testbeds."""


class CalibrationRefused(ValueError):
    """The fit is no better than the recipe on held-out trajectories; the message gives the errors."""


@dataclass(frozen=True)
class Calibration:
    """A fit and its errors.

    Attributes:
        schedule: the fitted schedule.
        start: name of the initial schedule that the fit started from.
        fitted_error: error on the trajectories it was fitted to.
        held_out: errors on held-out trajectories, by name of initial schedule; ``"calibrated"`` is the fit's.
        calls: UNet calls on the calibration set, including the reference.
        recipe: the name in ``held_out`` of the schedule that the fit must beat.
    """

    schedule: MultistepSchedule
    start: str
    fitted_error: float
    held_out: Mapping[str, float]
    calls: int
    recipe: str

    @property
    def runs(self) -> float:
        """The calls in runs of the sampler over the calibration set."""
        return self.calls / self.schedule.steps

    @property
    def gain(self) -> float:
        """Held-out error of the recipe divided by that of the fit; above 1 the fit is better."""
        return self.held_out[self.recipe] / self.held_out["calibrated"]


def calibrate(
    fit: Trajectories,
    held_out: Trajectories,
    initial_schedules: Mapping[str, MultistepSchedule],
    runs: float = MAX_RUNS,
    progress: Optional[Callable[[int, float], object]] = None,
) -> Calibration:
    """Fit a schedule to ``fit`` and judge it on ``held_out``.

    Args:
        fit, held_out: trajectories of one model at one guidance scale, with different noise and conditions.
        initial_schedules: schedules with the same number of steps by name, the recipe's first; the fit starts from the
            best of them.
        runs: budget in runs of the sampler over the calibration set, including the reference.
        progress: called after every full run of the sampler with the number of calls so far and the error of that run.

    Raises:
        ValueError: there is no initial schedule, their steps differ or are fewer than 2, or none stays finite.
        CalibrationRefused: the fit is not better than the recipe on the held-out trajectories.
    """
    steps = {schedule.steps for schedule in initial_schedules.values()}
    if len(steps) != 1 or min(steps) < 2:
        raise ValueError(f"initial schedules must all have the same number of steps, at least 2; got {sorted(steps)}")
    budget = _Budget(fit.calls, int(runs * min(steps)), progress)
    errors = {}
    for name, schedule in initial_schedules.items():
        errors[name] = fit.error(schedule)
        budget.spend(schedule.steps, errors[name])
    best = min(errors, key=lambda name: errors[name])
    if not math.isfinite(errors[best]):
        raise ValueError(f"no initial schedule stays finite on this model: {', '.join(initial_schedules)}")

    schedule = _least_squares(fit, initial_schedules[best], budget)
    error = fit.error(schedule)
    budget.spend(schedule.steps, error)
    if error > errors[best]:
        # the robust sum may fall while the plain error rises
        schedule, error = initial_schedules[best], errors[best]
    held_out_errors = {name: held_out.error(initial) for name, initial in initial_schedules.items()}
    held_out_errors["calibrated"] = held_out.error(schedule)
    result = Calibration(schedule, best, error, held_out_errors, budget.calls, recipe=next(iter(initial_schedules)))
    if not result.gain > 1:
        listed = ", ".join(f"{name} {value:.4f}" for name, value in held_out_errors.items())
        raise CalibrationRefused(
            f"calibrating {min(steps)} steps gave nothing: on held-out trajectories the errors are {listed}"
        )
    return result


@dataclass
class _Budget:
    """The number of calls so far, and how many there may be."""

    calls: int
    most_calls: int
    progress: Optional[Callable[[int, float], object]]

    def spend(self, calls: int, error: Optional[float] = None) -> None:
        """Count calls; a full run has an error, which is reported."""
        self.calls += calls
        if self.progress is not None and error is not None:
            self.progress(self.calls, error)


@dataclass
class _Fit:
    """The residuals of a parameter vector, and their derivatives.

    The parameters are the logs of the steps in log sigma, without the last step, which goes to 0; then the factors
    without the first, which is 0.
    """

    target: Trajectories
    start_sigma: float
    steps: int
    tolerance: float
    budget: _Budget
    latest: dict[bytes, RecordedRun] = field(default_factory=dict)

    def schedule(self, parameters: np.ndarray) -> MultistepSchedule:
        log_steps, factors = np.split(parameters, [self.steps - 1])
        sigmas = self.start_sigma * np.exp(-np.cumsum(np.exp(log_steps)))
        return MultistepSchedule((self.start_sigma, *sigmas.tolist(), 0.0), (0.0, *factors.tolist()))

    def parameters(self, schedule: MultistepSchedule) -> np.ndarray:
        steps = -np.diff(np.log(schedule.sigmas[:-1]))
        return np.concatenate([np.log(np.maximum(steps, MIN_STEP)), schedule.factors[1:]])

    def residuals(self, parameters: np.ndarray) -> np.ndarray:
        return self._residual(self.run(parameters).end)

    def run(self, parameters: np.ndarray) -> RecordedRun:
        run = self.latest.get(parameters.tobytes())
        if run is None:
            run = RecordedRun.of(self.target.model, self.target.noise, self.schedule(parameters))
            self.budget.spend(self.steps, self.target.error_of(run.end))
            # derivatives are needed only at the current point and at the one on trial, which are the latest two
            self.latest = dict([*self.latest.items(), (parameters.tobytes(), run)][-2:])
        return run

    def _residual(self, end: torch.Tensor) -> np.ndarray:
        """The endpoints' differences, scaled per trajectory so that its square is Cauchy's c^2 log(1 + e^2/c^2).

        Where a distribution has separate modes, some trajectories end in another mode than their reference. No small
        change of the schedule moves them back, and their squared errors would outweigh all others.
        """
        difference = self.target.differences(end)
        errors = difference.norm(dim=1, keepdim=True).clamp(min=1e-12)
        weight = (self.tolerance / errors) * (errors / self.tolerance).square().log1p().sqrt()
        return (difference * weight).flatten().numpy() / len(difference) ** 0.5

    def jacobian(self, parameters: np.ndarray) -> np.ndarray:
        run = self.run(parameters)
        residual = self._residual(run.end)
        columns = []
        for index in range(len(parameters)):
            changed = parameters.copy()
            changed[index] += FINITE_DIFFERENCE
            # parameter i is the step that ends in point i + 1, and factor i belongs to step i + 1
            first = index if index < self.steps - 1 else index - (self.steps - 1) + 1
            end = run.rerun(self.target.model, self.schedule(changed), first)
            self.budget.spend(self.steps - 1 - first)
            columns.append((self._residual(end) - residual) / FINITE_DIFFERENCE)
        # where the perturbed run blows up, the derivative is unknown and taken to be 0
        return np.nan_to_num(np.stack(columns, 1), nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(frozen=True)
class RecordedRun:
    """One run of the sampler with its states and model outputs before every step."""

    states: list[torch.Tensor]
    outputs: list[torch.Tensor]
    end: torch.Tensor

    @classmethod
    def of(cls, model: Model, noise: torch.Tensor, schedule: MultistepSchedule) -> RecordedRun:
        """Run the sampler from unit noise, and record it."""
        states: list[torch.Tensor] = []
        outputs: list[torch.Tensor] = []

        def record(state: dict[str, Any]) -> None:
            states.append(state["x"])
            outputs.append(state["denoised"])

        sigmas = torch.tensor(schedule.sigmas, dtype=torch.float64)
        end = sample_dpmpp_2m(model, noise * schedule.sigmas[0], sigmas, callback=record, factors=schedule.factors)
        return cls(states, outputs, end)

    def rerun(self, model: Model, schedule: MultistepSchedule, first: int) -> torch.Tensor:
        """The end of the same run with a schedule that differs from step ``first`` on; later steps call the model."""
        run = Run.of(self.states[0], torch.tensor(schedule.sigmas, dtype=torch.float64), None)
        steps = dpmpp_2m_steps(run.sigmas, factors=schedule.factors)
        previous = self.outputs[first - 1 : first]
        denoised, x = self.outputs[first], self.states[first]
        for index in range(first, schedule.steps):
            if index > first:
                previous, denoised = [denoised], model(x, run.rows[index])
            x = steps[index](x, [denoised, *previous])
        return x


def _least_squares(target: Trajectories, start: MultistepSchedule, budget: _Budget) -> MultistepSchedule:
    """Fit with scipy's trust-region method from an initial schedule, within the remaining budget."""
    from scipy.optimize import least_squares

    fit = _Fit(target, start.sigmas[0], start.steps, math.inf, budget)
    initial = fit.parameters(start)
    points = start.steps - 1
    bounds = (
        [math.log(MIN_STEP)] * points + [FACTOR_RANGE[0]] * points,
        [math.log(math.log(1e4))] * points + [FACTOR_RANGE[1]] * points,
    )
    initial = initial.clip(np.array(bounds[0]) + 1e-6, np.array(bounds[1]) - 1e-6)
    fit.tolerance = OUTLIER * float(target.differences(fit.run(initial).end).norm(dim=1).median())
    # an evaluation is one run, and most are followed by a Jacobian
    calls = start.steps + sum(start.steps - 1 - k for k in range(points)) + sum(points - 1 - k for k in range(points))
    # one run is reserved for evaluating the result
    evaluations = max(1, (budget.most_calls - budget.calls - start.steps) // calls)
    result = least_squares(
        fit.residuals, initial, jac=fit.jacobian, bounds=bounds, x_scale="jac", ftol=1e-4, xtol=1e-4, gtol=1e-8,
        max_nfev=evaluations,
    )  # fmt: skip
    return fit.schedule(result.x)
