"""The schedules that a fit may start from and is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..guidance import effective_guidance
from ..noise import NoiseModel
from ..recipes import AUTO, recipe_for
from ..schedule import base_karras
from .trajectories import MultistepSchedule

__all__ = ["initial_schedules"]


def initial_schedules(
    family: str, steps: int, cfg_scales: Sequence[float], noise: NoiseModel
) -> dict[str, list[MultistepSchedule]]:
    """Schedules by name, each of them one for every guidance scale: the recipe first, then common schedules.

    All of them have Auto's guidance; without it the common ones are nowhere nearer above CFG n/2.
    """
    found: dict[str, list[MultistepSchedule]] = {}
    for cfg_scale in cfg_scales:
        for name, schedule in _of(family, steps, cfg_scale, noise).items():
            found.setdefault(name, []).append(schedule)
    return found


def _of(family: str, steps: int, cfg_scale: float, noise: NoiseModel) -> dict[str, MultistepSchedule]:
    recipe = recipe_for(family, steps, cfg_scale)
    coupled = recipe.sigmas(noise).double().tolist()
    even = noise.t_to_sigma(np.linspace(len(noise) - 1, 0, steps + 1)).tolist()
    karras = [*base_karras(steps, 7.0, noise.sigma_min, noise.sigma_max).tolist(), 0.0]
    guidance = (effective_guidance(cfg_scale, steps),) * steps
    return {
        AUTO: MultistepSchedule.of(coupled, 1.0, 1.0 if recipe.ending == "extrapolate" else 0.0, recipe.guidance),
        "first order": MultistepSchedule.of(coupled, 0.0, guidance=guidance),
        "SGM Uniform": MultistepSchedule.of(even, 1.0, 0.0, guidance),
        "Karras": MultistepSchedule.of(karras, 1.0, 0.0, guidance),
    }
