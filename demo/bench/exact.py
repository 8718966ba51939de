"""The bench on the six problems whose denoiser is known: relative error to the guided ODE's endpoint, in full.

Their geometric mean is the figure of merit; its error is the bootstrap errors of the six, in logarithms.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..methods import Method
from ..problems import PROBLEMS, reference_endpoint
from ..schedules import stable_diffusion_noise
from .grid import all_methods
from .metrics import Estimate, relative_rmse
from .pool import processes

__all__ = ["ExactScore", "geometric_mean", "measure_exact"]

NFE = (4, 5, 6, 7, 8, 10, 20)
CFG_SCALES = (1.0, 3.0, 5.0, 7.5)
TRAJECTORIES = {"mix64": 576, "toy2d": 576}
SEED = 500

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


def methods() -> list[Method]:
    """Those without Free-U, which needs a UNet."""
    return [method for method in all_methods() if method.freeu in ("off", "as coupled")]


def measure_exact(workers: int) -> list[ExactScore]:
    """All methods, NFE and guidance scales on all problems."""
    jobs = list(itertools.product(PROBLEMS, CFG_SCALES))
    with processes(workers) as pool:
        running = [pool.submit(_job, *job) for job in jobs]
        return [score for done in tqdm(running, desc="exact problems", unit=" jobs") for score in done.result()]


def _job(name: str, cfg_scale: float) -> list[ExactScore]:
    torch.set_num_threads(1)
    problem = PROBLEMS[name]()
    count = TRAJECTORIES.get(name, 96)
    table = stable_diffusion_noise()
    noise = torch.from_numpy(np.random.default_rng(SEED).standard_normal((count, problem.dims)))
    aim = reference_endpoint(problem, noise, cfg_scale, table.sigma_max)
    size = aim.square().sum(1).numpy()
    model = problem.model(problem.labels(count), cfg_scale)
    found = []
    for method in methods():
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
    return found


class _Counted:
    def __init__(self, model: Callable[..., torch.Tensor]) -> None:
        self.model, self.calls = model, 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **own: Any) -> torch.Tensor:
        self.calls += 1
        return self.model(x, sigma, **own)


def geometric_mean(scores: Sequence[ExactScore]) -> Estimate:
    """Over the problems of one method, NFE and guidance scale."""
    values = np.array([score.error.value for score in scores])
    relative = np.array([score.error.error / score.error.value for score in scores])
    mean = float(np.exp(np.log(values).mean()))
    return Estimate(mean, mean * float(np.sqrt((relative**2).sum())) / len(scores))
