"""The bench of DPM-Solver-v3 with statistics, and of golden noise.

The tiny model draws the bench's seeds and captions; its statistics are measured on others, as the WebUI's tab does it.
The exact problems have statistics of every element, from trajectories of other noise. With statistics the guidance
scale is less than the one that is set, as the extension draws with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hpsampler.golden.search import CALLS, GoldenForm, golden_latent, sigma_below
from hpsampler.guidance import STATISTICS_SHARE, effective_guidance, with_guidance
from hpsampler.noise import NoiseModel
from hpsampler.recipes import recipe_for
from hpsampler.solvers import sample_dpm_v3
from hpsampler.statistics.coefficients import Statistics
from hpsampler.statistics.config import StatisticsConfig
from hpsampler.statistics.estimator import Estimator
from tiny_model.model import TinyModel, seeded_noise
from tiny_model.networks import TINY
from tiny_model.pictures import captioned

from . import exact
from .calibrate import small_statistics
from .calibrated import FAMILY
from .grid import BATCH, MANY
from .methods import KARRAS, Model, of_recipe
from .metrics import Estimate, frechet, relative_rmse, share
from .pool import processes
from .problems import PROBLEMS, Problem
from .problems import reference_endpoint as exact_endpoint
from .runs import reference_endpoint
from .schedules import stable_diffusion_noise
from .tiny import FIRST_SEED, CachedDenoiser, Reference, caption_read, figures_of

__all__ = [
    "AUTO", "BASELINE", "DECIDING", "GOLDEN", "MORE", "STATISTICS_SCALES", "V3", "Further", "measure_exact_v3",
    "measure_further",
]  # fmt: skip

STEPS = (5, 6, 8)
CFG_SCALES = (3.0, 5.0, 7.5)
STATISTICS_SCALES = (3.0, 5.0)
"""Of the statistics, as the WebUI's tab measures them; those nearest to the scale that is drawn at are used."""

COMMON_SAMPLES = 2 * BATCH

BASELINE, BASELINE_STEPS = "DPM++ 2M Karras", 20
AUTO, MORE = "Auto", "Auto, two steps more"

V3 = {
    "DPM-v3 without statistics": (2, False, False),
    "DPM-v3 of order 1": (1, True, True),
    "DPM-v3 of order 1, no corrector": (1, False, True),
    "DPM-v3 of order 2": (2, True, True),
    "DPM-v3 of order 2, no corrector": (2, False, True),
    "DPM-v3 of order 3": (3, True, True),
}
"""Order, whether the corrector is on, whether there are statistics."""

DECIDING = (AUTO, "DPM-v3 of order 1, no corrector", "DPM-v3 of order 2, no corrector", BASELINE)
"""Drawn on many samples, as they decide what the extension does with statistics."""

GOLDEN = {"golden noise A": GoldenForm.A, "golden noise B": GoldenForm.B}


@dataclass(frozen=True)
class Trial:
    """``run(guided, plain, noise)`` makes ``nfe`` calls of the two models, from unit noise."""

    name: str
    nfe: int
    run: Callable[[Model, Model, torch.Tensor], torch.Tensor]


def auto(name: str, steps: int, cfg_scale: float, table: NoiseModel) -> Trial:
    plan = of_recipe(recipe_for(FAMILY, steps, cfg_scale), table, steps)
    return Trial(name, steps, lambda guided, plain, noise: plan.run(guided, noise, ()))


def dpm_v3(name: str, steps: int, cfg_scale: float, table: NoiseModel, statistics: Mapping[float, Statistics]) -> Trial:
    """DPM-Solver-v3 on Auto's schedule with a last sigma of 0, as the extension runs it."""
    order, corrector, measured = V3[name]
    recipe = replace(recipe_for(FAMILY, steps, cfg_scale), ending="zero")
    sigmas, guidance, found = recipe.sigmas(table), recipe.guidance, None
    if measured:
        drawn_at = effective_guidance(cfg_scale, steps, STATISTICS_SHARE)
        guidance = (drawn_at,) * steps
        found = statistics[min(statistics, key=lambda scale: abs(math.log(scale / drawn_at)))]

    def run(guided: Model, plain: Model, noise: torch.Tensor) -> torch.Tensor:
        model = with_guidance(guided, guidance)
        return sample_dpm_v3(
            model, noise * float(sigmas[0]), sigmas, order=order, statistics=found, corrector=corrector
        )

    return Trial(name, steps, run)


def golden(name: str, steps: int, cfg_scale: float, table: NoiseModel) -> Trial:
    plan = of_recipe(recipe_for(FAMILY, steps, cfg_scale), table, steps)
    first = float(plan.sigmas[0])

    def run(guided: Model, plain: Model, noise: torch.Tensor) -> torch.Tensor:
        x = golden_latent(GOLDEN[name], noise * first, first, sigma_below(first), guided, plain)
        return plan.sample(guided, x, ())

    return Trial(name, steps + CALLS, run)


def trials(steps: int, cfg_scale: float, table: NoiseModel, statistics: Mapping[float, Statistics]) -> Iterable[Trial]:
    """The trials of the tiny model with a number of steps."""
    if steps == BASELINE_STEPS:
        plan = KARRAS.plan(table, steps, cfg_scale)
        assert plan is not None
        yield Trial(BASELINE, steps, lambda guided, plain, noise: plan.run(guided, noise, ()))
        return
    yield auto(AUTO, steps, cfg_scale, table)
    yield from (dpm_v3(name, steps, cfg_scale, table, statistics) for name in V3)
    yield from (golden(name, steps, cfg_scale, table) for name in GOLDEN)
    yield auto(MORE, steps + CALLS, cfg_scale, table)


# ---- the tiny model --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Further:
    """One row of the table; ``steps`` is the number at which trials are compared, ``nfe`` the calls of this one."""

    method: str
    steps: int
    nfe: int
    cfg_scale: float
    samples: int
    distance: Estimate
    frechet: Estimate
    accuracy: Estimate


def measure_further(real: Reference, weights: Path, device: str, workers: int) -> list[Further]:
    """Measure the statistics, then run all trials with them."""
    with processes(workers) as pool:
        measuring = [pool.submit(small_statistics, TINY.name, cfg, weights, device) for cfg in STATISTICS_SCALES]
        statistics = {cfg: job.result() for cfg, job in zip(STATISTICS_SCALES, tqdm(measuring, desc="statistics"))}
        # the jobs with all trials first, so that no worker is left with one at the end
        jobs = [(cfg, first) for first in range(0, MANY, BATCH) for cfg in CFG_SCALES]
        running = [pool.submit(_job, cfg, first, statistics, weights, device) for cfg, first in jobs]
        done = [job.result() for job in tqdm(running, desc="DPM-v3, golden noise", unit=" batches")]
    rows = []
    for cfg in CFG_SCALES:
        batches = [batch for (scale, _), batch in zip(jobs, done) if scale == cfg]
        sizes = np.concatenate([batch["size"] for batch in batches if "size" in batch])
        for steps, trial in _all_trials(cfg, statistics):
            key = f"{trial.name}|{steps}"
            figures = {
                name: np.concatenate([batch[f"{key}|{name}"] for batch in batches if f"{key}|{name}" in batch])
                for name in ("features", "right", "error")
            }
            distance = relative_rmse(figures["error"], sizes)
            for samples in sorted({COMMON_SAMPLES, len(figures["right"])}):
                score = frechet(figures["features"][:samples], real.features)
                read = share(caption_read(figures["right"][:samples]))
                rows.append(Further(trial.name, steps, trial.nfe, cfg, samples, distance, score, read))
    return rows


def _all_trials(cfg_scale: float, statistics: Mapping[float, Statistics]) -> Iterable[tuple[int, Trial]]:
    for steps in (*STEPS, BASELINE_STEPS):
        for trial in trials(steps, cfg_scale, stable_diffusion_noise(), statistics):
            yield steps, trial


def _job(
    cfg_scale: float, first: int, statistics: Mapping[float, Statistics], weights: Path, device: str
) -> dict[str, np.ndarray]:
    """One batch: the first ones with all trials and distances, the others with the trials in ``DECIDING``."""
    _one_thread(device)
    model = TinyModel.load(weights, device)
    descriptions = captioned(first + BATCH)[first:]
    noise = seeded_noise(range(FIRST_SEED + first, FIRST_SEED + first + BATCH)).to(device)
    denoiser = partial(model.denoiser, [picture.caption() for picture in descriptions])
    results: dict[str, np.ndarray] = {}
    reference = None
    if first < COMMON_SAMPLES:
        reference = reference_endpoint(model, denoiser(cfg_scale), noise)
        results["size"] = reference.square().sum((1, 2, 3)).cpu().numpy()
    memories: tuple[dict[Any, torch.Tensor], dict[Any, torch.Tensor]] = ({}, {})
    for steps, trial in _all_trials(cfg_scale, statistics):
        if first >= COMMON_SAMPLES and trial.name not in DECIDING:
            continue
        guided, plain = (CachedDenoiser(denoiser(cfg), memory) for cfg, memory in zip((cfg_scale, 1.0), memories))
        latents = trial.run(guided, plain, noise)
        if guided.calls + plain.calls != trial.nfe:
            raise RuntimeError(f"{trial.name}: {guided.calls + plain.calls} calls instead of {trial.nfe}")
        figures = figures_of(model, latents, descriptions, reference)
        results.update({f"{trial.name}|{steps}|{name}": values for name, values in figures.items()})
    return results


def _one_thread(device: str) -> None:
    if device == "cpu":
        torch.set_num_threads(1)


# ---- the exact problems ----------------------------------------------------------------------------------------------


def measure_exact_v3(workers: int) -> list[exact.ExactScore]:
    """Measure Auto and DPM-Solver-v3 on every problem."""
    with processes(workers) as pool:
        measuring = {
            (name, cfg): pool.submit(_exact_statistics, name, cfg) for name, cfg in product(PROBLEMS, STATISTICS_SCALES)
        }
        found = {key: job.result() for key, job in tqdm(measuring.items(), desc="statistics, exact problems")}
        running = [
            pool.submit(_exact_job, name, cfg, {scale: found[name, scale] for scale in STATISTICS_SCALES})
            for name, cfg in product(PROBLEMS, CFG_SCALES)
        ]
        bar = tqdm(running, desc="DPM-v3, exact problems", unit=" jobs")
        return [score for job in bar for score in job.result()]


def _exact_model(problem: Problem, count: int, cfg_scale: float) -> Model:
    """A problem's denoiser on latents (n, 1, dims, 1): a problem's elements are no channels."""
    model = problem.model(problem.labels(count), cfg_scale)
    return lambda x, sigma, **own: model(x.flatten(1), sigma, **own).reshape(x.shape)


def _latents(noise: torch.Tensor) -> torch.Tensor:
    return noise.reshape(len(noise), 1, -1, 1)


def _exact_statistics(name: str, cfg_scale: float) -> Statistics:
    """Statistics of every element, with the defaults of the WebUI's tab."""
    torch.set_num_threads(1)
    problem, table, defaults = PROBLEMS[name](), stable_diffusion_noise(), StatisticsConfig("defaults")
    points = np.linspace(-math.log(table.sigma_max), -math.log(table.sigma_min), defaults.points)
    estimator = Estimator(points, (1, problem.dims, 1))
    start = _latents(problem.noise(defaults.samples, exact.FIT_SEED)) * estimator.sigmas[0]
    estimator.add(_exact_model(problem, defaults.samples, cfg_scale), start)
    return estimator.statistics()


def _exact_job(name: str, cfg_scale: float, statistics: Mapping[float, Statistics]) -> list[exact.ExactScore]:
    torch.set_num_threads(1)
    problem, table = PROBLEMS[name](), stable_diffusion_noise()
    count = exact.TRAJECTORIES.get(name, 96)
    noise = problem.noise(count, exact.SEED)
    reference = _latents(exact_endpoint(problem, noise, cfg_scale, table.sigma_max))
    size = _squares(reference)
    model = _exact_model(problem, count, cfg_scale)
    scores = []
    for steps in STEPS:
        v3_trials = (dpm_v3(v3, steps, cfg_scale, table, statistics) for v3 in V3)
        for trial in (auto(AUTO, steps, cfg_scale, table), *v3_trials):
            error = _squares(trial.run(model, model, _latents(noise)) - reference)
            estimate = relative_rmse(np.nan_to_num(error, nan=np.inf).clip(max=exact.MAX_ERROR**2 * size), size)
            scores.append(exact.ExactScore(name, trial.name, "", "", steps, cfg_scale, estimate))
    return scores


def _squares(rows: torch.Tensor) -> np.ndarray:
    return rows.square().sum((1, 2, 3)).numpy()
