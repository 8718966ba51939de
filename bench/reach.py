"""How far a calibration carries: between and beyond the guidance scales it was fitted to, and at other sizes.

Only the distance to the reference endpoints is measured: on the tiny model with the seeds and captions of the bench,
and on the exact problems, which have one size each.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from tqdm import tqdm

from hpsampler.calibration.config import CalibrationConfig
from hpsampler.calibration.fit import Calibration, CalibrationRefused, calibrate
from hpsampler.calibration.initial import initial_schedules
from hpsampler.calibration.profile import Profile
from hpsampler.calibration.trajectories import Trajectories
from hpsampler.noise import NoiseModel
from hpsampler.recipes import AUTO, recipe_for
from tiny_model.model import LATENT, TinyModel, seeded_noise
from tiny_model.pictures import captioned

from . import exact
from .calibrated import profile_of
from .grid import BATCH
from .methods import Plan, of_recipe
from .metrics import Estimate, relative_rmse
from .pool import processes
from .problems import PROBLEMS, Problem
from .problems import reference_endpoint as exact_endpoint
from .runs import reference_endpoint
from .schedules import stable_diffusion_noise
from .tiny import FIRST_SEED, CachedDenoiser

__all__ = [
    "CALIBRATED", "CFG_SCALES", "EXACT_SCALES", "FITTED_SCALES", "NFE", "SIZES", "ExactReach", "Reach",
    "measure_exact_reach", "measure_reach",
]  # fmt: skip

CFG_SCALES = (2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.5, 9.0, 10.0)
NFE = (5, 8)
OWN_SIZE = LATENT[1:]
SIZES = ((8, 12), (12, 16), (16, 16))
SIZES_CFG = 5.0

CALIBRATED = "calibrated"

FITTED_SCALES = CalibrationConfig.cfg_scales
"""Guidance scales that one fit to an exact problem is for, as the WebUI's tab chooses them."""

EXACT_SCALES = (2.5, 4.0, 5.0, 6.0, 9.0)
"""Where such a fit is tried: between its scales, and at the middle one."""


@dataclass(frozen=True)
class Place:
    """A guidance scale and size at which schedules are tried; ``size`` is the latents' height and width."""

    cfg_scale: float
    size: tuple[int, int]
    samples: int


PLACES = (
    *(Place(cfg_scale, OWN_SIZE, BATCH) for cfg_scale in CFG_SCALES),
    *(Place(SIZES_CFG, size, BATCH) for size in SIZES),
)


@dataclass(frozen=True)
class Reach:
    """Distance of one schedule at one place.

    Attributes:
        schedule: "Auto", or "calibrated" where the calibration is used.
        height, width: size of the latents.
    """

    schedule: str
    nfe: int
    cfg_scale: float
    height: int
    width: int
    samples: int
    distance: Estimate


@dataclass(frozen=True)
class ExactReach:
    """Geometric mean over the exact problems of one schedule's error at one guidance scale, named as in ``Reach``."""

    schedule: str
    nfe: int
    cfg_scale: float
    error: Estimate


def plans(profile: Profile, place: Place) -> Iterator[tuple[str, int, Plan]]:
    """The plans that are tried at a place, with the schedule's name and NFE."""
    table = stable_diffusion_noise()
    for nfe in NFE:
        auto = recipe_for(profile.family, nfe, place.cfg_scale)
        yield AUTO, nfe, of_recipe(auto, table, nfe)
        for joint in profile.joint:
            if joint.steps == nfe and not joint.misfit(place.cfg_scale):
                yield CALIBRATED, nfe, of_recipe(profile.recipe(joint, auto, place.cfg_scale), table, nfe)


def measure_reach(calibration: Path, folder: Path, weights: Path, device: str, workers: int) -> list[Reach]:
    """Try all schedules at all places, except for results that an earlier run with the same calibration stored."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(place, first) for place in PLACES for first in range(0, place.samples, BATCH)]
    paths = [_path(folder, calibration, place, first) for place, first in jobs]
    # large jobs first, so that no worker is left with one at the end
    missing = sorted((item for item in zip(jobs, paths) if not item[1].exists()), key=lambda item: -_cost(item[0][0]))
    if missing:
        with processes(workers) as pool:
            running = [pool.submit(_job, calibration, *job, path, weights, device) for job, path in missing]
            for done in tqdm(running, desc="reach", unit=" batches"):
                done.result()
    profile = profile_of(calibration)
    rows = []
    for place in PLACES:
        files = [np.load(path) for job, path in zip(jobs, paths) if job[0] == place]
        sizes = np.concatenate([file["size"] for file in files])
        for name, nfe, _ in plans(profile, place):
            errors = np.concatenate([file[f"{name}|{nfe}"] for file in files])
            distance = relative_rmse(errors, sizes)
            rows.append(Reach(name, nfe, place.cfg_scale, *place.size, len(errors), distance))
    return rows


def _cost(place: Place) -> int:
    return place.size[0] * place.size[1]


def _path(folder: Path, calibration: Path, place: Place, first: int) -> Path:
    digest = hashlib.blake2b(repr((calibration.read_bytes(), place, first)).encode(), digest_size=6).hexdigest()
    return folder / f"reach-{digest}.npz"


def _job(calibration: Path, place: Place, first: int, path: Path, weights: Path, device: str) -> None:
    """One batch at one place."""
    if device == "cpu":
        torch.set_num_threads(1)
    model = TinyModel.load(weights, device)
    descriptions = captioned(first + BATCH)[first:]
    seeds = range(FIRST_SEED + first, FIRST_SEED + first + BATCH)
    noise = seeded_noise(seeds, (LATENT[0], *place.size)).to(device)
    denoiser = partial(model.denoiser, [picture.caption() for picture in descriptions], place.cfg_scale)
    reference = reference_endpoint(model, denoiser(), noise)
    results: dict[str, Any] = {"size": _squares(reference)}
    memory: dict[Any, torch.Tensor] = {}
    for name, nfe, plan in plans(profile_of(calibration), place):
        latents = plan.run(CachedDenoiser(denoiser(), memory), noise, seeds)
        results[f"{name}|{nfe}"] = _squares(latents - reference)
    part = path.with_suffix(".part.npz")
    np.savez(part, **results)
    part.replace(path)


def _squares(rows: torch.Tensor) -> np.ndarray:
    return rows.square().sum((1, 2, 3)).cpu().numpy()


def measure_exact_reach(workers: int) -> list[ExactReach]:
    """One fit for a range of guidance scales to each of the exact problems, between these and at one of them."""
    with processes(workers) as pool:
        running = [pool.submit(_exact_job, name) for name in PROBLEMS]
        scores = [score for job in tqdm(running, desc="reach, exact", unit=" problems") for score in job.result()]
    groups: dict[tuple[str, int, float], list[exact.ExactScore]] = {}
    for score in scores:
        groups.setdefault((score.schedule, score.nfe, score.cfg_scale), []).append(score)
    return [ExactReach(*key, exact.geometric_mean(group)) for key, group in groups.items()]


def _exact_job(name: str) -> list[exact.ExactScore]:
    """One problem; where its fit was refused, the schedule is Auto's, which is used then."""
    torch.set_num_threads(1)
    problem, table = PROBLEMS[name](), stable_diffusion_noise()
    count = exact.TRAJECTORIES.get(name, 96)
    noise = problem.noise(count, exact.SEED)
    fits = {nfe: _joint_fit(problem, nfe, table) for nfe in NFE}
    scores = []
    for cfg_scale in EXACT_SCALES:
        reference = exact_endpoint(problem, noise, cfg_scale, table.sigma_max)
        size = reference.square().sum(1).numpy()
        model = problem.model(problem.labels(count), cfg_scale)
        for nfe in NFE:
            auto = of_recipe(recipe_for(exact.FAMILY, nfe, cfg_scale), table, nfe)
            for schedule, plan in ((AUTO, auto), (CALIBRATED, _fitted_plan(fits[nfe], nfe, cfg_scale, table) or auto)):
                error = (plan.run(model, noise, range(count)) - reference).square().sum(1).nan_to_num(np.inf).numpy()
                estimate = relative_rmse(error.clip(max=exact.MAX_ERROR**2 * size), size)
                scores.append(exact.ExactScore(name, "", schedule, "", nfe, cfg_scale, estimate))
    return scores


def _joint_fit(problem: Problem, nfe: int, table: NoiseModel) -> Optional[Calibration]:
    """One fit for all of ``FITTED_SCALES``, which share the trajectories; None if it was refused everywhere."""
    count = exact.FITTED_TO // len(FITTED_SCALES)
    labels = problem.labels(count)
    fit, held_out = (
        [
            Trajectories.of(problem.model(labels, scale), problem.noise(count, seed + 2 * index), table, scale)
            for index, scale in enumerate(FITTED_SCALES)
        ]
        for seed in (exact.FIT_SEED, exact.HELD_OUT_SEED)
    )
    try:
        return calibrate(fit, held_out, initial_schedules(exact.FAMILY, nfe, FITTED_SCALES, table), exact.RUNS)
    except CalibrationRefused:
        return None


def _fitted_plan(fit: Optional[Calibration], nfe: int, cfg_scale: float, table: NoiseModel) -> Optional[Plan]:
    """None beyond its range and where the nearest guidance scale of the fit was refused, as in a profile."""
    if fit is None or not fit.schedule.covers(cfg_scale):
        return None
    if min(fit.held_out, key=lambda scale: abs(math.log(scale / cfg_scale))) in fit.refused:
        return None
    return exact.fitted_plan(fit.schedule.at(cfg_scale), nfe, cfg_scale, table)
