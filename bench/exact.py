"""The bench on the six problems whose denoiser is known: relative error to the guided ODE's endpoint, in full.

Their geometric mean is the figure of merit; its error is the bootstrap errors of the six, in logarithms. What is
calibrated was fitted to trajectories of other noise; where the fit is refused, the row is Auto's, which is then used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hpsampler.calibration.fit import CalibrationRefused, calibrate
from hpsampler.calibration.job import initial_schedules
from hpsampler.calibration.profile import rounded
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

__all__ = ["ExactFit", "ExactScore", "geometric_mean", "measure_exact"]

NFE = (4, 5, 6, 7, 8, 10, 20)
CFG_SCALES = (1.0, 3.0, 5.0, 7.5)
TRAJECTORIES = {"mix64": 576, "toy2d": 576}
SEED = 500

CALIBRATED_NFE = (4, 5, 6, 7, 8, 10)
FAMILY = "sd1"
FITTED_TO, FIT_SEED, HELD_OUT_SEED = 48, 700, 701

WORST = 1e3
"""A run that blew up counts as this error, so that a mean stays a number."""


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
    """What a calibration to one problem cost and gave.

    Attributes:
        start: name of the schedule it began from; empty where it was refused.
        runs: of the sampler over the calibration set, the reference endpoints included.
    """

    problem: str
    nfe: int
    cfg_scale: float
    start: str
    runs: float


def methods() -> list[Method]:
    """Those without Free-U, which needs a UNet."""
    return [method for method in all_methods() if method.freeu in ("off", "as coupled")]


def measure_exact(workers: int) -> tuple[list[ExactScore], list[ExactFit]]:
    """All methods, NFE and guidance scales on all problems, and what is calibrated there."""
    jobs = list(itertools.product(PROBLEMS, CFG_SCALES))
    with processes(workers) as pool:
        running = [pool.submit(_job, *job) for job in jobs]
        done = [each.result() for each in tqdm(running, desc="exact problems", unit=" jobs")]
    return [score for scores, _ in done for score in scores], [fit for _, fits in done for fit in fits]


def _job(name: str, cfg_scale: float) -> tuple[list[ExactScore], list[ExactFit]]:
    torch.set_num_threads(1)
    problem = PROBLEMS[name]()
    count = TRAJECTORIES.get(name, 96)
    table = stable_diffusion_noise()
    noise = problem.noise(count, SEED)
    aim = reference_endpoint(problem, noise, cfg_scale, table.sigma_max)
    size = aim.square().sum(1).numpy()
    model = problem.model(problem.labels(count), cfg_scale)
    own, fits = calibrated(problem, cfg_scale, table)
    found = []
    for method in [own, *methods()]:
        for nfe in NFE:
            plan = method.plan(table, nfe, cfg_scale)
            if plan is None:
                continue
            counted = _Counted(model)
            result = plan.run(counted, noise, range(count))
            if counted.calls != nfe:
                raise RuntimeError(f"{method.name}: {counted.calls} calls instead of {nfe}")
            error = (result - aim).square().sum(1).nan_to_num(np.inf).numpy().clip(max=WORST**2 * size)
            estimate = relative_rmse(error, size)
            found.append(ExactScore(name, method.sampler, method.schedule, method.ending, nfe, cfg_scale, estimate))
    return found, fits


def calibrated(
    problem: Problem, cfg_scale: float, table: NoiseModel, budgets: Sequence[int] = CALIBRATED_NFE
) -> tuple[Method, list[ExactFit]]:
    """Schedules fitted to a problem at one guidance scale, and what each took."""
    model = _Counted(problem.model(problem.labels(FITTED_TO), cfg_scale))
    fit, held_out = (
        Trajectories.of(model, problem.noise(FITTED_TO, seed), table) for seed in (FIT_SEED, HELD_OUT_SEED)
    )
    schedules: dict[int, MultistepSchedule] = {}
    fits = []
    for nfe in budgets:
        known = initial_schedules(FAMILY, nfe, cfg_scale, table)
        # the fit's calls are counted here too, as a refused one does not say them
        model.calls = fit.calls
        try:
            result = calibrate(fit, held_out, known)
        except CalibrationRefused:
            judged = (1 + len(known)) * nfe
            fits.append(ExactFit(problem.name, nfe, cfg_scale, "", (model.calls - judged) / nfe))
        else:
            schedules[nfe] = result.schedule
            fits.append(ExactFit(problem.name, nfe, cfg_scale, result.start, result.runs))

    def make(noise: NoiseModel, nfe: int, cfg_scale: float) -> Plan | None:
        if nfe not in budgets:
            return None
        recipe = recipe_for(FAMILY, nfe, cfg_scale)
        schedule = schedules.get(nfe)
        if schedule is not None:
            # as a profile keeps it
            recipe = replace(recipe, levels=rounded(schedule.sigmas), factors=rounded(schedule.factors))
        return of_recipe(recipe, noise, nfe)

    return Method(NAME, "", make, "as calibrated"), fits


class _Counted:
    def __init__(self, model: Callable[..., torch.Tensor]) -> None:
        self.model, self.calls = model, 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, /, **own: Any) -> torch.Tensor:
        self.calls += 1
        return self.model(x, sigma, **own)


def geometric_mean(scores: Sequence[ExactScore]) -> Estimate:
    """Over the problems of one method, NFE and guidance scale."""
    values = np.array([score.error.value for score in scores])
    relative = np.array([score.error.error / score.error.value for score in scores])
    mean = float(np.exp(np.log(values).mean()))
    return Estimate(mean, mean * float(np.sqrt((relative**2).sum())) / len(scores))
