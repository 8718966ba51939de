"""How far a calibration carries: schedules at other guidance scales and sizes than they were calibrated for.

Only the distance to the reference endpoints is measured: on the tiny model with the seeds and captions of the bench,
and on the exact problems, which have one size each.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hpsampler.calibration.profile import Fitted, Profile
from hpsampler.recipes import AUTO, recipe_for
from tiny_model.model import LATENT, TinyModel, seeded_noise
from tiny_model.pictures import captioned

from . import exact
from .calibrated import profile_of
from .grid import BATCH
from .methods import Plan, of_recipe
from .metrics import Estimate, relative_rmse
from .pool import processes
from .problems import PROBLEMS
from .problems import reference_endpoint as exact_endpoint
from .runs import reference_endpoint
from .schedules import stable_diffusion_noise
from .tiny import FIRST_SEED, CachedDenoiser

__all__ = [
    "CFG_SCALES", "INTERPOLATED", "NFE", "SIZES", "ExactReach", "Reach", "interpolate", "measure_exact_reach",
    "measure_reach",
]  # fmt: skip

CFG_SCALES = (2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.5)
NFE = (5, 8)
OWN_SIZE = LATENT[1:]
SIZES = ((8, 12), (12, 16), (16, 16))
SIZES_CFG = 5.0
MAX_RATIO = 2.0
"""Largest ratio between a guidance scale and the one a schedule was calibrated for."""

INTERPOLATED = "interpolated"
CALIBRATED = "calibrated"
"""A schedule that was fitted for a range of guidance scales."""

EXACT_ANCHORS = (3.0, 5.0, 7.5)
"""Guidance scales at which the exact problems are calibrated."""


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
        schedule: "Auto", "calibrated" for a range of guidance scales, "interpolated" between two that were calibrated
            for one each, or as "CFG 5" the one that it was calibrated for.
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


def interpolate(low: Fitted, high: Fitted, cfg_scale: float) -> Fitted:
    """Interpolate two schedules with equally many steps, linearly in guidance scale, the sigmas in logarithms."""
    share = (cfg_scale - low.cfg_scale) / (high.cfg_scale - low.cfg_scale)

    def mixed(one: float, other: float) -> float:
        return (1 - share) * one + share * other

    # the last may be 0
    points = [math.exp(mixed(math.log(a), math.log(b))) for a, b in zip(low.sigmas[:-1], high.sigmas[:-1])]
    last = mixed(low.sigmas[-1], high.sigmas[-1])
    factors = tuple(mixed(a, b) for a, b in zip(low.factors, high.factors))
    return replace(low, cfg_scale=cfg_scale, sigmas=(*points, last), factors=factors)


def plans(profile: Profile, place: Place) -> Iterator[tuple[str, int, Plan]]:
    """The plans that are tried at a place, with the schedule's name and NFE."""
    table = stable_diffusion_noise()
    for nfe in NFE:
        auto = recipe_for(profile.family, nfe, place.cfg_scale)
        recipes = {AUTO: auto}
        for joint in profile.joint:
            if joint.steps == nfe and not joint.misfit(place.cfg_scale):
                recipes[CALIBRATED] = profile.recipe(joint, auto, place.cfg_scale)
        by_scale = sorted((each for each in profile.fitted if each.steps == nfe), key=lambda each: each.cfg_scale)
        for fitted in by_scale:
            ratio = max(fitted.cfg_scale / place.cfg_scale, place.cfg_scale / fitted.cfg_scale)
            if ratio <= MAX_RATIO and (place.size == OWN_SIZE or ratio == 1):
                recipes[f"CFG {fitted.cfg_scale:g}"] = profile.recipe(fitted, auto, place.cfg_scale)
        for low, high in pairwise(by_scale):
            if low.cfg_scale < place.cfg_scale < high.cfg_scale:
                recipes[INTERPOLATED] = profile.recipe(interpolate(low, high, place.cfg_scale), auto, place.cfg_scale)
        for name, recipe in recipes.items():
            yield name, nfe, of_recipe(recipe, table, nfe)


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
    """Measure the exact problems' schedules at other guidance scales than they were calibrated for."""
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
    fitted = {anchor: exact.calibrated(problem, anchor, table, NFE)[0] for anchor in EXACT_ANCHORS}
    scores = []
    for cfg_scale in CFG_SCALES:
        reference = exact_endpoint(problem, noise, cfg_scale, table.sigma_max)
        size = reference.square().sum(1).numpy()
        model = problem.model(problem.labels(count), cfg_scale)
        for nfe in NFE:
            plans_by_name = {AUTO: of_recipe(recipe_for(exact.FAMILY, nfe, cfg_scale), table, nfe)}
            for anchor, method in fitted.items():
                plan = method.plan(table, nfe, cfg_scale)
                if plan is not None and max(anchor / cfg_scale, cfg_scale / anchor) <= MAX_RATIO:
                    plans_by_name[f"CFG {anchor:g}"] = plan
            for schedule, plan in plans_by_name.items():
                error = (plan.run(model, noise, range(count)) - reference).square().sum(1).nan_to_num(np.inf).numpy()
                estimate = relative_rmse(error.clip(max=exact.MAX_ERROR**2 * size), size)
                scores.append(exact.ExactScore(name, "", schedule, "", nfe, cfg_scale, estimate))
    return scores
