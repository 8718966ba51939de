"""The runs that the demonstration compares: same noise, same captions, different schedules and solvers.

What is measured of a run: its calls of the denoiser (counted, not assumed), its time, and how far it ends from where
the guided ODE itself leads from the same noise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from hpsampler.noise import NoiseModel
from hpsampler.recipes import Recipe, recipe_for
from hpsampler.schedule import base_karras
from hpsampler.solvers import SOLVERS, sample_dpmpp_2m

from .gallery import Gallery
from .problems import reference_endpoint, relative_error

__all__ = ["HP", "KARRAS", "REFERENCE", "Comparison", "Plan", "Run", "compare", "plans", "stable_diffusion_noise"]

REFERENCE, KARRAS, HP = "Reference", "DPM++ 2M Karras", "HP Auto"

REPEATS = 5
"""A run is timed this many times; the median counts."""


@dataclass(frozen=True)
class Plan:
    """One way to sample: ``shown`` on the contact sheet, or only in the table."""

    name: str
    steps: int
    sigmas: torch.Tensor
    solver: Callable[..., torch.Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None
    shown: bool = True


@dataclass(frozen=True)
class Run:
    """What came of a plan; of the reference where ``plan`` is None."""

    plan: Plan | None
    states: torch.Tensor
    nfe: int
    ms_per_image: float
    error: float

    @property
    def name(self) -> str:
        return self.plan.name if self.plan else REFERENCE


@dataclass(frozen=True)
class Comparison:
    """All runs, the reference first, on image i of caption ``i % len(captions)`` with seed ``seed + i``."""

    gallery: Gallery
    runs: tuple[Run, ...]
    cfg_scale: float
    seed: int

    @property
    def images(self) -> int:
        return len(self.runs[0].states)

    @property
    def shown(self) -> list[Run]:
        return [run for run in self.runs if run.plan is None or run.plan.shown]


def stable_diffusion_noise() -> NoiseModel:
    """Stable Diffusion's own noise table: scaled-linear betas from 0.00085 to 0.012."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return NoiseModel.from_alphas_cumprod(np.cumprod(1 - betas))


def plans(noise: NoiseModel, cfg_scale: float) -> list[Plan]:
    """What is compared; 2M Karras at 6 and 8 steps too, so that every number of calls can be compared."""
    karras = [_karras(noise, steps, shown=steps in (20, 5)) for steps in (20, 5, 6, 8)]
    return karras + [_hp(noise, steps, cfg_scale) for steps in (5, 6, 8)]


def _karras(noise: NoiseModel, steps: int, shown: bool) -> Plan:
    sigmas = torch.tensor([*base_karras(steps, 7.0, noise.sigma_min, noise.sigma_max), 0.0], dtype=torch.float32)
    return Plan(KARRAS, steps, sigmas, sample_dpmpp_2m, shown=shown)


def _hp(noise: NoiseModel, steps: int, cfg_scale: float) -> Plan:
    recipe = recipe_for("sd1", steps, cfg_scale)
    options = {"extrapolate": True} if recipe.ending == "extrapolate" else {}
    return Plan(HP, steps, recipe.sigmas(noise), SOLVERS[recipe.solver], options, recipe)


class _Calls:
    """Counts the calls of the denoiser, and passes each on."""

    def __init__(self, on_call: Callable[[], object]) -> None:
        self.count, self.on_call = 0, on_call

    def __call__(self) -> None:
        self.count += 1
        self.on_call()


def compare(gallery: Gallery, images: int, seed: int, cfg_scale: float, on_call: Callable[[], object]) -> Comparison:
    """Sample every plan and the reference; ``on_call`` is called once per call of the denoiser."""
    table = stable_diffusion_noise()
    calls = _Calls(on_call)
    watched = replace(gallery, on_call=calls)
    seeds = range(seed, seed + images)
    noise = torch.from_numpy(np.stack([np.random.default_rng(each).standard_normal(gallery.dims) for each in seeds]))

    began = time.perf_counter()
    endpoint = reference_endpoint(watched, noise, cfg_scale, table.sigma_max)
    elapsed = time.perf_counter() - began
    runs = [Run(None, endpoint, calls.count, 1e3 * elapsed / images, 0.0)]

    model = watched.model(gallery.labels(images), cfg_scale)
    drawn = plans(table, cfg_scale)
    times: list[list[float]] = [[] for _ in drawn]
    # in turn, so that whatever else the machine does meets all of them
    for _ in range(REPEATS):
        sampled = []
        for plan, taken in zip(drawn, times, strict=True):
            calls.count = 0
            began = time.perf_counter()
            states = plan.solver(model, noise * float(plan.sigmas[0]), plan.sigmas, **plan.options)
            taken.append(time.perf_counter() - began)
            sampled.append((plan, states, calls.count))
    for (plan, states, nfe), taken in zip(sampled, times, strict=True):
        ms_per_image = 1e3 * statistics.median(taken) / images
        runs.append(Run(plan, states, nfe, ms_per_image, relative_error(states, endpoint)))
    return Comparison(gallery, tuple(runs), cfg_scale, seed)
