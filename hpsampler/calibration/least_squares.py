"""Least squares for schedules: few calls of the model, no back-propagation, several guidance scales at once.

The unknowns are the parameters (:mod:`~hpsampler.calibration.joint`) at the lowest and at the highest guidance scale;
in between they are interpolated in log w. So bounds at both ends hold everywhere. A perturbed point, factor or guidance
scale changes nothing before it, so a column of the Jacobian costs only the calls after it, and one Jacobian at a
guidance scale gives the derivatives by the parameters at both ends. Between complete Jacobians, which cost several
runs, Broyden's rank-one update corrects the last one by what every run has shown (Nocedal and Wright, Numerical
Optimization, section 11.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import torch

from .config import jacobian_calls
from .joint import CENTER, JointSchedule, bounds, rounded, schedule_of
from .recorded import RecordedRun
from .trajectories import MultistepSchedule, Trajectories

__all__ = ["Descent", "Target"]

FINITE_DIFFERENCE = 1e-2
"""Step of the finite differences: far above the rounding errors of half precision, far below the parameters' scale."""

OUTLIER = 2.0
"""A trajectory with an error this many times the median counts less. Of 1, 2, 3 and 6 it was best on the testbeds."""

LEAST_SHARE = 0.25
"""A step that lowers the sum of squares by less than this share of what was promised has failed."""

PATIENCE = 2
"""Failed steps in a row after which the Jacobians are computed again: a Jacobian costs as much as many steps."""

LEAST_GAIN = 5e-3
"""A step that promises to lower the sum of squares by less than this share ends the descent."""


@dataclass
class Target:
    """The residuals of the unknowns on trajectories at several guidance scales, and their derivatives.

    Attributes:
        sets: trajectories, one set for each guidance scale, which rise.
        tolerances: the error from which a trajectory counts less, for each set.
        calls: calls of the model so far, each for one picture; the references are counted from the beginning.
    """

    sets: Sequence[Trajectories]
    steps: int
    start_sigma: float
    tolerances: Sequence[float] = ()
    calls: int = 0
    latest: dict[bytes, list[RecordedRun]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.pictures = sum(len(each.noise) for each in self.sets)
        scales = [each.cfg_scale for each in self.sets]
        self.low, self.high = scales[0], scales[-1]
        span = math.log(self.high / self.low)
        self.places = [math.log(scale / self.low) / span if span else 0.0 for scale in scales]
        low, high = bounds(self.steps)
        ends = 2 if span else 1
        self.lowest, self.highest = np.tile(low, ends), np.tile(high, ends)

    @property
    def run_calls(self) -> int:
        return self.pictures * self.steps

    @property
    def jacobian_calls(self) -> int:
        """Calls of a complete Jacobian."""
        return self.pictures * jacobian_calls(self.steps)

    # ---- unknowns ----

    def parameters(self, unknowns: np.ndarray, index: int) -> np.ndarray:
        """Those of one set."""
        size = len(unknowns) // self._ends
        place = self.places[index]
        return (1 - place) * unknowns[:size] + place * unknowns[-size:]

    @property
    def _ends(self) -> int:
        return 2 if self.high > self.low else 1

    def unknowns(self, parameters: Sequence[np.ndarray]) -> np.ndarray:
        """The unknowns that give the parameters of every set as nearly as possible, within the bounds."""
        rows = np.stack(parameters)
        if self._ends == 1:
            found = rows[0]
        else:
            at = np.stack([1 - np.array(self.places), self.places], 1)
            found = np.linalg.lstsq(at, rows, rcond=None)[0].reshape(-1)
        # a little inside, where derivatives show both sides
        return np.asarray(found.clip(self.lowest + 1e-6, self.highest - 1e-6))

    def joint(self, unknowns: np.ndarray) -> JointSchedule:
        """What the unknowns mean for every guidance scale, rounded as in a file."""
        low, high = np.split(unknowns, 2) if self._ends == 2 else (unknowns, unknowns)
        span = math.log(self.high / self.low)
        slope = (high - low) / span if span else np.zeros_like(low)
        constant = low + slope * math.log(CENTER / self.low)
        return JointSchedule(
            self.low, self.high, rounded([self.start_sigma])[0], rounded(constant.tolist()), rounded(slope.tolist())
        )

    # ---- runs ----

    def schedule(self, unknowns: np.ndarray, index: int) -> MultistepSchedule:
        return schedule_of(self.parameters(unknowns, index), self.start_sigma, self.sets[index].cfg_scale)

    def runs(self, unknowns: np.ndarray) -> list[RecordedRun]:
        """A run on every set; the latest two are kept."""
        key = unknowns.tobytes()
        found = self.latest.pop(key, None)
        if found is None:
            found = [
                RecordedRun.of(each.model, each.noise, self.schedule(unknowns, index))
                for index, each in enumerate(self.sets)
            ]
            self.calls += self.run_calls
        # derivatives are needed only at the current point and at the one on trial, which were asked for last
        self.latest = dict([*self.latest.items(), (key, found)][-2:])
        return found

    def errors(self, unknowns: np.ndarray) -> list[float]:
        """The plain error on each set."""
        return [each.error_of(run.end) for each, run in zip(self.sets, self.runs(unknowns))]

    def residuals(self, unknowns: np.ndarray) -> list[np.ndarray]:
        """Of each set, (trajectories * elements,)."""
        return [self._residual(index, run.end) for index, run in enumerate(self.runs(unknowns))]

    def set_tolerances(self, unknowns: np.ndarray) -> None:
        """Take ``OUTLIER`` times the median error of the trajectories at these unknowns."""
        self.tolerances = [
            OUTLIER * float(each.differences(run.end).norm(dim=1).median())
            for each, run in zip(self.sets, self.runs(unknowns))
        ]

    def _residual(self, index: int, end: torch.Tensor) -> np.ndarray:
        """The endpoints' differences, scaled per trajectory so that its square is Cauchy's c^2 log(1 + e^2/c^2).

        Where a distribution has separate modes, some trajectories end in another mode than their reference. No small
        change of the schedule moves them back, and their squared errors would outweigh all others.
        """
        difference, tolerance = self.sets[index].differences(end), self.tolerances[index]
        errors = difference.norm(dim=1, keepdim=True).clamp(min=1e-12)
        weight = (tolerance / errors) * (errors / tolerance).square().log1p().sqrt()
        return np.asarray((difference * weight).flatten().numpy()) / len(difference) ** 0.5

    def jacobians(self, unknowns: np.ndarray) -> list[np.ndarray]:
        """Derivatives of each set's residuals by its parameters, single precision."""
        found = []
        for index, (each, run) in enumerate(zip(self.sets, self.runs(unknowns))):
            parameters = self.parameters(unknowns, index)
            residual = self._residual(index, run.end)
            columns = np.zeros((len(residual), len(parameters)), dtype=np.float32)
            for column in range(len(parameters)):
                first, again = self._changes(column)
                if again and each.cfg_scale <= 1:
                    continue
                changed = parameters.copy()
                changed[column] += FINITE_DIFFERENCE
                schedule = schedule_of(changed, self.start_sigma, each.cfg_scale)
                end = run.rerun(each.model, schedule, first, again)
                self.calls += (self.steps - 1 - first + again) * len(each.noise)
                columns[:, column] = (self._residual(index, end) - residual) / FINITE_DIFFERENCE
            # where the perturbed run blows up, the derivative is unknown and taken to be 0
            found.append(np.nan_to_num(columns, nan=0.0, posinf=0.0, neginf=0.0))
        return found

    def _changes(self, column: int) -> tuple[int, bool]:
        """The step from which on a parameter changes a run, and whether it changes that step's output."""
        points = self.steps - 1
        if column < points:
            return column, False
        # factor i belongs to step i + 1
        return (column - points + 1, False) if column < 2 * points else (column - 2 * points, True)


@dataclass
class Descent:
    """The Levenberg-Marquardt method under way: everything that it needs to go on.

    Attributes:
        point: the unknowns.
        residuals, jacobians: of each set at ``point``; without Jacobians they are computed next.
        damping: Marquardt's, relative to the diagonal.
        fresh: whether the Jacobians are complete, without an update since.
        failures: steps in a row that lowered nothing since they were updated.
        done: whether no step promises a gain any more.
    """

    point: np.ndarray
    residuals: list[np.ndarray]
    jacobians: list[np.ndarray] = field(default_factory=list)
    damping: float = 0.05
    fresh: bool = False
    failures: int = 0
    done: bool = False

    @property
    def cost(self) -> float:
        return sum(float(each @ each) for each in self.residuals)

    def go_on(self, target: Target, most_calls: int, on_step: Callable[[Sequence[float]], object]) -> None:
        """Descend until it is done, or the next step would exceed ``most_calls``.

        Args:
            on_step: called after every step with the plain errors of its run on each set.
        """
        while not self.done:
            if target.calls + target.run_calls > most_calls:
                return
            wanted = not self.jacobians or self.failures >= PATIENCE
            if wanted and target.calls + target.jacobian_calls + target.run_calls <= most_calls:
                self.jacobians, self.fresh, self.failures = target.jacobians(self.point), True, 0
            elif not self.jacobians:
                return
            tried = self._step(target)
            if tried is not None:
                on_step(target.errors(tried))

    def _step(self, target: Target) -> Optional[np.ndarray]:
        """One step, or the discovery that there is none; the unknowns that were tried."""
        change, promised = self._proposal(target)
        if promised < LEAST_GAIN * self.cost:
            # an updated Jacobian may be wrong about that
            self.done, self.jacobians = self.fresh, []
            return None
        point = (self.point + change).clip(target.lowest, target.highest)
        target.runs(self.point)
        residuals = target.residuals(point)
        cost = sum(float(each @ each) for each in residuals)
        gain = (self.cost - cost) / promised if math.isfinite(cost) else -math.inf
        if math.isfinite(cost):
            self._update(target, point, residuals)
        if gain > 1e-3:
            self.point, self.residuals = point, residuals
        self.failures = 0 if gain > LEAST_SHARE else self.failures + (not self.fresh)
        if gain > 0.6:
            self.damping = max(0.3 * self.damping, 1e-4)
        elif gain < LEAST_SHARE:
            self.damping = min((3 if gain > 0 else 5) * self.damping, 1e4)
        self.fresh = False
        return point

    def _proposal(self, target: Target) -> tuple[np.ndarray, float]:
        """The step of the damped linear problem within the bounds, and by how much it lowers the sum of squares."""
        from scipy.optimize import lsq_linear

        curvature, slope = self._normal_equations(target)
        diagonal = np.diag(curvature)
        scale = diagonal.clip(1e-12 * max(float(diagonal.max()), 1e-300))
        factor = np.linalg.cholesky(curvature + np.diag((self.damping + 1e-9) * scale))
        room = target.lowest - self.point - 1e-12, target.highest - self.point + 1e-12
        change = lsq_linear(factor.T, -np.linalg.solve(factor, slope), room).x
        return change, -float(2 * slope @ change + change @ curvature @ change)

    def _normal_equations(self, target: Target) -> tuple[np.ndarray, np.ndarray]:
        size = len(self.point)
        curvature, slope = np.zeros((size, size)), np.zeros(size)
        for place, jacobian, residual in zip(target.places, self.jacobians, self.residuals):
            rows = jacobian.astype(np.float64)
            share = np.array([1 - place, place]) if size > rows.shape[1] else np.ones(1)
            curvature += np.kron(np.outer(share, share), rows.T @ rows)
            slope += np.kron(share, rows.T @ residual)
        return curvature, slope

    def _update(self, target: Target, point: np.ndarray, residuals: list[np.ndarray]) -> None:
        """Broyden's: the Jacobians then agree with the difference between this run and the last."""
        for index, jacobian in enumerate(self.jacobians):
            change = target.parameters(point, index) - target.parameters(self.point, index)
            length = float(change @ change)
            if length > 1e-12:
                missed = residuals[index] - self.residuals[index] - jacobian @ change
                jacobian += np.outer(missed, change / length).astype(np.float32)
