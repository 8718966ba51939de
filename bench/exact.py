"""The bench on the six exact problems: relative errors to the guided ODE's endpoint.

The figure of merit is their geometric mean; its standard error combines the bootstrap errors of the six in logarithms.
Calibrated schedules are fitted to trajectories of other noise. Where a fit is refused, the row is Auto's, as Auto is
used then.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hpsampler.calibration.fit import CalibrationRefused, calibrate
from hpsampler.calibration.initial import initial_schedules
from hpsampler.calibration.trajectories import MultistepSchedule, Trajectories
from hpsampler.noise import NoiseModel
from hpsampler.recipes import recipe_for

from .calibrated import NAME
from .grid import all_methods
from .methods import Method, Plan, of_recipe
from .metrics import Estimate, relative_rmse
from .pool import processes
from .problems import PROBLEMS, Problem, reference_endpoint
from .schedules import stable_diffusion_noise

__all__ = ["ExactFit", "ExactScore", "fitted_plan", "geometric_mean", "measure_exact"]

NFE = (4, 5, 6, 7, 8, 10, 20)
CFG_SCALES = (1.0, 3.0, 5.0, 7.0, 7.5)
TRAJECTORIES = {"mix64": 576, "toy2d": 576}
SEED = 500

CALIBRATED_NFE = (4, 5, 6, 7, 8, 10)
FAMILY = "sd1"
FITTED_TO, RUNS = 64, 200
"""The most that the WebUI's tab lets people choose, as a call costs next to nothing here."""

FIT_SEED, HELD_OUT_SEED = 700, 701

MAX_ERROR = 1e3
"""Largest error that is counted, so that the mean stays finite when a run blows up."""


@dataclass(frozen=True)
class ExactScore:
    """Error of one method on one problem."""

    problem: str
    sampler: str
    schedule: str
    ending: str
    nfe: int
    cfg_scale: float
    error: Estimate


@dataclass(frozen=True)
class ExactFit:
    """The cost of a calibration to one problem.

    Attributes:
        start: name of the initial schedule; empty if the fit was refused.
        runs: cost in runs of the sampler over the calibration set, including the reference endpoints.
    """

    problem: str
    nfe: int
    cfg_scale: float
    start: str = field(metadata={"measured": True})
    runs: float = field(metadata={"measured": True})


def methods() -> list[Method]:
    """All methods without Free-U, which needs a UNet."""
    return [method for method in all_methods() if method.freeu in ("off", "as coupled")]


def measure_exact(workers: int, only: Collection[str] = ()) -> tuple[list[ExactScore], list[ExactFit]]:
    """Measure all methods, NFE and guidance scales on all problems, and schedules calibrated there.

    ``only`` are names of methods; without any it is all of them.
    """
    jobs = list(itertools.product(PROBLEMS, CFG_SCALES))
    with processes(workers) as pool:
        running = [pool.submit(_job, *job, only) for job in jobs]
        done = [future.result() for future in tqdm(running, desc="exact problems", unit=" jobs")]
    return [score for scores, _ in done for score in scores], [fit for _, fits in done for fit in fits]


def _job(name: str, cfg_scale: float, only: Collection[str]) -> tuple[list[ExactScore], list[ExactFit]]:
    torch.set_num_threads(1)
    problem = PROBLEMS[name]()
    count = TRAJECTORIES.get(name, 96)
    table = stable_diffusion_noise()
    noise = problem.noise(count, SEED)
    reference = reference_endpoint(problem, noise, cfg_scale, table.sigma_max)
    size = reference.square().sum(1).numpy()
    model = problem.model(problem.labels(count), cfg_scale)
    chosen = [method for method in methods() if not only or method.name in only]
    fits: list[ExactFit] = []
    if not only or NAME in only:
        calibrated_method, fits = calibrated(problem, cfg_scale, table)
        chosen.insert(0, calibrated_method)
    scores = []
    for method in chosen:
        for nfe in NFE:
            plan = method.plan(table, nfe, cfg_scale)
            if plan is None:
                continue
            counted = CountingModel(model)
            result = plan.run(counted, noise, range(count))
            if counted.calls != nfe:
                raise RuntimeError(f"{method.name}: {counted.calls} calls instead of {nfe}")
            error = (result - reference).square().sum(1).nan_to_num(np.inf).numpy().clip(max=MAX_ERROR**2 * size)
            estimate = relative_rmse(error, size)
            scores.append(ExactScore(name, method.sampler, method.schedule, method.ending, nfe, cfg_scale, estimate))
    return scores, fits


def calibrated(
    problem: Problem, cfg_scale: float, table: NoiseModel, budgets: Sequence[int] = CALIBRATED_NFE
) -> tuple[Method, list[ExactFit]]:
    """Schedules fitted to a problem at one guidance scale as a method, and the cost of each fit."""
    model = CountingModel(problem.model(problem.labels(FITTED_TO), cfg_scale))
    fit, held_out = (
        Trajectories.of(model, problem.noise(FITTED_TO, seed), table, cfg_scale) for seed in (FIT_SEED, HELD_OUT_SEED)
    )
    schedules: dict[int, MultistepSchedule] = {}
    fits = []
    for nfe in budgets:
        schedules_before = initial_schedules(FAMILY, nfe, [cfg_scale], table)
        # calls are counted here as well, as a refused fit does not report them
        model.calls = fit.calls
        try:
            result = calibrate([fit], [held_out], schedules_before, RUNS)
        except CalibrationRefused:
            held_out_calls = (1 + len(schedules_before)) * nfe
            fits.append(ExactFit(problem.name, nfe, cfg_scale, "", (model.calls - held_out_calls) / nfe))
        else:
            schedules[nfe] = result.schedule.at(cfg_scale)
            fits.append(ExactFit(problem.name, nfe, cfg_scale, result.start, result.calls / FITTED_TO / nfe))

    def make(noise: NoiseModel, nfe: int, cfg_scale: float) -> Plan | None:
        if nfe not in budgets:
            return None
        schedule = schedules.get(nfe)
        if schedule is None:
            return of_recipe(recipe_for(FAMILY, nfe, cfg_scale), noise, nfe)
        return fitted_plan(schedule, nfe, cfg_scale, noise)

    return Method(NAME, "", make, "as calibrated"), fits


def fitted_plan(schedule: MultistepSchedule, nfe: int, cfg_scale: float, noise: NoiseModel) -> Plan:
    """Auto's recipe with the schedule, factors and guidance of a fit."""
    recipe = recipe_for(FAMILY, nfe, cfg_scale)
    fitted = replace(recipe, levels=schedule.sigmas, factors=schedule.factors, guidance=schedule.guidance, bend=0.0)
    return of_recipe(fitted, noise, nfe)


class CountingModel:
    """A model that counts its calls."""

    def __init__(self, model: Callable[..., torch.Tensor]) -> None:
        self.model, self.calls = model, 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, /, **extra_args: Any) -> torch.Tensor:
        self.calls += 1
        return self.model(x, sigma, **extra_args)


def geometric_mean(scores: Sequence[ExactScore]) -> Estimate:
    """Geometric mean over the problems, for one method, NFE and guidance scale."""
    values = np.array([score.error.value for score in scores])
    relative = np.array([score.error.error / score.error.value for score in scores])
    mean = float(np.exp(np.log(values).mean()))
    return Estimate(mean, mean * float(np.sqrt((relative**2).sum())) / len(scores))
