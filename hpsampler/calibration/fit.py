"""Fitting a schedule to a model, so that a few steps end where many steps would.

For DPM++ 2M with n steps this fits the noise levels between the first and the last, one factor f per step that scales
the second-order correction (0 is first order, 1 the unscaled solver), and the guidance scale w_i of each call::

    D = D_u + w_i (D_c - D_u)
    x' = (sigma'/sigma) x - expm1(-h) (D + f (D - D_prev)/(2r)),    and to sigma 0:  x' = D + f (D - D_prev)/2

All of them are functions of the guidance scale w that a person sets (:mod:`~hpsampler.calibration.joint`), so one fit
serves a range of it. The fit minimises the distance of the sampler's endpoints to those of the same guided ODE, solved
with many steps from the same noise (:class:`~hpsampler.calibration.trajectories.Trajectories`), at several guidance
scales at once, by damped least squares (:mod:`~hpsampler.calibration.least_squares`). It begins from the best of
several schedules and, while its budget lasts, again from the next best. Where it is not better than the recipe on
held-out trajectories it is refused, at each guidance scale by itself.

The result is valid for the model, range of guidance scales and number of steps it was fitted to, and for no others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Optional

from .config import MAX_RUNS, least_fit_calls
from .joint import JointSchedule, parameters_of
from .least_squares import Descent, Target
from .rows import CALIBRATED
from .trajectories import MultistepSchedule, Trajectories

__all__ = ["Calibration", "CalibrationRefused", "FitState", "InitialSchedules", "calibrate"]

ATTEMPTS = 2
"""Initial schedules that a descent begins from: the nearest, on the calibration set, after Auto's own."""

COMPARED_AFTER = 3
"""Runs after the first Jacobian at which the descents are compared; the better one then goes on."""

InitialSchedules = Mapping[str, Sequence[MultistepSchedule]]
"""Schedules by name, each of them one for every guidance scale of the fit."""


class CalibrationRefused(ValueError):
    """The fit is nowhere better than the recipe on held-out trajectories; the message gives the errors."""


@dataclass(frozen=True)
class Calibration:
    """A fit and its errors.

    Attributes:
        schedule: the fitted schedule.
        start: name of the initial schedule that the fit started from.
        fitted_error: error on the trajectories it was fitted to, the geometric mean over the guidance scales.
        held_out: for every guidance scale, errors on held-out trajectories by name of initial schedule;
            ``"calibrated"`` is the fit's.
        calls: UNet calls on the calibration set, each for one picture, including the reference.
        recipe: the name in ``held_out`` of the schedule that the fit must beat.
    """

    schedule: JointSchedule
    start: str
    fitted_error: float
    held_out: Mapping[float, Mapping[str, float]]
    calls: int
    recipe: str

    def gain(self, cfg_scale: float) -> float:
        """Held-out error of the recipe divided by that of the fit; above 1 the fit is better."""
        return self.held_out[cfg_scale][self.recipe] / self.held_out[cfg_scale][CALIBRATED]

    @property
    def refused(self) -> tuple[float, ...]:
        """The guidance scales at which the fit is no better than the recipe."""
        return tuple(cfg_scale for cfg_scale in self.held_out if not self.gain(cfg_scale) > 1)


@dataclass
class Attempt:
    """One descent from an initial schedule.

    Attributes:
        start: the schedule's name.
        descent: how far it has come.
        error: the error there, the geometric mean over the guidance scales.
        limit: the number of calls at which it is compared with the others.
        compared: whether it has come so far.
        ended: whether nothing more is to be gained from it.
    """

    start: str
    descent: Descent
    error: float
    limit: int
    compared: bool = False
    ended: bool = False


@dataclass
class FitState:
    """Where a fit stands, so that it can go on later.

    Attributes:
        calls: of the model on the calibration set, each for one picture; 0 before the first.
        errors: of the initial schedules that were tried, by name; the geometric mean over the guidance scales.
        tolerances: see :class:`~hpsampler.calibration.least_squares.Target`.
        attempts: the descents, the first ones first.
        recorded: whether the run at the point of the descent under way was paid for.
    """

    calls: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    tolerances: list[float] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    recorded: bool = False


def calibrate(
    fit: Sequence[Trajectories],
    held_out: Sequence[Trajectories],
    initial_schedules: InitialSchedules,
    runs: float = MAX_RUNS,
    progress: Optional[Callable[[int, float, str], object]] = None,
    state: Optional[FitState] = None,
    save: Callable[[FitState], object] = lambda state: None,
) -> Calibration:
    """Fit a schedule to ``fit`` and judge it on ``held_out``.

    Args:
        fit, held_out: trajectories of one model at the same guidance scales, with different noise and conditions; at
            least two guidance scales make a fit for all between them.
        initial_schedules: with the same number of steps, by name, the recipe's first.
        runs: budget in runs of the sampler over the calibration set, including the reference.
        progress: called after every full run of the sampler with the number of calls so far, the error of that run, and
            the initial schedule's name if the run is of one.
        state: of an earlier, interrupted fit of the same trajectories.
        save: called with the state whenever it is worth going on from.

    Raises:
        ValueError: there is no initial schedule, their steps differ or are fewer than 2, none stays finite, or the
            guidance scales of the two sets differ or do not rise.
        CalibrationRefused: the fit is nowhere better than the recipe on the held-out trajectories.
    """
    found = _Fit(fit, initial_schedules, runs, progress, state or FitState(), save)
    scales = [each.cfg_scale for each in fit]
    if scales != sorted(set(scales)) or scales != [each.cfg_scale for each in held_out]:
        raise ValueError(f"both sets must be of the same rising guidance scales, got {scales}")
    best = found.best()
    schedule = found.target.joint(best.descent.point)
    errors: dict[float, dict[str, float]] = {}
    for index, each in enumerate(held_out):
        errors[each.cfg_scale] = {name: each.error(rows[index]) for name, rows in initial_schedules.items()}
        errors[each.cfg_scale][CALIBRATED] = each.error(schedule.at(each.cfg_scale))
    result = Calibration(
        schedule, best.start, best.error, errors, found.target.calls, recipe=next(iter(initial_schedules))
    )
    if len(result.refused) == len(errors):
        listed = "; ".join(
            f"at CFG {cfg_scale:g} {', '.join(f'{name} {value:.4f}' for name, value in row.items())}"
            for cfg_scale, row in errors.items()
        )
        raise CalibrationRefused(
            f"calibrating {schedule.steps} steps gave nothing: on held-out trajectories the errors are {listed}"
        )
    return result


class _Fit:
    """The descents from several initial schedules within one budget."""

    def __init__(
        self,
        sets: Sequence[Trajectories],
        initial_schedules: InitialSchedules,
        runs: float,
        progress: Optional[Callable[[int, float, str], object]],
        state: FitState,
        save: Callable[[FitState], object],
    ) -> None:
        steps = {schedule.steps for rows in initial_schedules.values() for schedule in rows}
        if len(steps) != 1 or min(steps) < 2:
            raise ValueError(
                f"initial schedules must all have the same number of steps, at least 2; got {sorted(steps)}"
            )
        start_sigma = next(iter(initial_schedules.values()))[0].sigmas[0]
        self.state, self.save, self.progress = state, save, progress
        references = sum(each.calls * len(each.noise) for each in sets)
        self.target = Target(sets, min(steps), start_sigma, state.tolerances, state.calls or references)
        self.initial = {
            name: self.target.unknowns([parameters_of(schedule, each.cfg_scale) for schedule, each in zip(rows, sets)])
            for name, rows in initial_schedules.items()
        }
        least = references + (least_fit_calls(min(steps)) - min(steps)) * self.target.pictures
        self.most_calls = max(int(runs * self.target.run_calls), least)

    def best(self) -> Attempt:
        """The best that the budget allowed to find."""
        state, target = self.state, self.target
        for name, unknowns in self.initial.items():
            if name not in state.errors:
                state.errors[name] = _mean(target.errors(unknowns))
                self._report(state.errors[name], name)
                self._save()
        finite = [name for name, error in state.errors.items() if math.isfinite(error)]
        if not finite:
            raise ValueError(f"no initial schedule stays finite on this model: {', '.join(self.initial)}")
        for name in sorted(finite, key=lambda name: state.errors[name])[:ATTEMPTS]:
            attempt = self._attempt(name)
            if not attempt.compared:
                self._go_on(attempt, attempt.limit)
                attempt.compared = True
        while going := [attempt for attempt in state.attempts if not attempt.ended]:
            attempt = min(going, key=lambda attempt: attempt.descent.cost)
            for other in going:
                if other is not attempt:
                    # they are large, and a descent that is taken up again is better off with new ones
                    other.descent.jacobians = []
            self._go_on(attempt, self.most_calls)
            attempt.ended = True
        return min(state.attempts, key=lambda attempt: attempt.descent.cost)

    def _attempt(self, name: str) -> Attempt:
        state, target, unknowns = self.state, self.target, self.initial[name]
        for attempt in state.attempts:
            if attempt.start == name:
                return attempt
        target.runs(unknowns)
        if not state.tolerances:
            target.set_tolerances(unknowns)
            state.tolerances = list(target.tolerances)
        limit = min(target.calls + target.jacobian_calls + COMPARED_AFTER * target.run_calls, self.most_calls)
        state.attempts.append(Attempt(name, Descent(unknowns, target.residuals(unknowns)), state.errors[name], limit))
        return state.attempts[-1]

    def _go_on(self, attempt: Attempt, most_calls: int) -> None:
        target, descent = self.target, attempt.descent
        if self.state.recorded:
            # an interrupted fit had this run, and counted it
            calls = target.calls
            target.runs(descent.point)
            target.calls, self.state.recorded = calls, False

        def on_step(errors: Sequence[float]) -> None:
            self._report(_mean(errors), "")
            attempt.error = _mean(target.errors(descent.point))
            self._save(recorded=True)

        descent.go_on(target, most_calls, on_step)

    def _report(self, error: float, name: str) -> None:
        if self.progress is not None:
            self.progress(self.target.calls, error, name)

    def _save(self, recorded: bool = False) -> None:
        self.state.calls = self.target.calls
        self.save(replace(self.state, recorded=recorded))


def _mean(errors: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(math.log(max(error, 1e-300)) for error in errors) / len(errors)) if errors else math.nan
