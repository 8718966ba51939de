"""Ways to draw a few calls, compared with many steps on one model, by the model itself.

Two figures are measured on held-out trajectories. The distance is that of the latents to the endpoints that many steps
reach from the same noise. It is not all that counts: of two ways, the farther one may draw the better pictures.

So the second figure asks the model itself how well it knows the pictures. Noise e of one level sigma is added to the
latents x of a picture, and the model denoises it with the prompt, without guidance (D_c)::

    s(x) = log |D_c(x + sigma e) - x|^2

What is malformed, oversaturated or not what the prompt says is found again worse. (Such errors, integrated over all
levels, bound the likelihood of a picture under the model, arXiv 2107.00630.) The figure is the mean of s less its mean
for the many-step pictures of the same noise and prompts: at 0 the pictures are as well known to the model as those of
many steps, below 0 better. It is a little kind to smooth pictures.

On both small models of the bench it ranks the ways much as a classifier's Frechet distance and the captions that it
reads do (docs/calibration.md); distances of patches or colours did not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

import torch

from ..guidance import with_guidance
from ..noise import NoiseModel
from ..recipes import AUTO, Recipe, recipe_for
from ..solvers import SOLVERS
from ..statistics.coefficients import Statistics
from .choice import FORMS, Figures, WithStatistics
from .profile import Profile
from .rows import CALIBRATED
from .trajectories import Trajectories

__all__ = ["SIGMA", "Judge", "draw", "ways"]

SIGMA = 0.7
"""Noise level at which the model is asked: fine detail is lost, the subject is not. Several levels choose no better."""


class Judge:
    """Compares latents with the many-step ones of the same noise.

    Args:
        held_out: the many-step latents; nothing may have been fitted to them.
        noise: unit noise of its own, of the latents' shape.
    """

    def __init__(self, held_out: Trajectories, noise: torch.Tensor) -> None:
        self.held_out, self.noise = held_out, noise
        self.reference = self._lost(held_out.endpoints)

    def figures(self, latents: torch.Tensor) -> Figures:
        """The figures of latents (n, c, h, w) that were drawn from the noise of ``held_out``."""
        return Figures.of(self.held_out.error_of(latents), float((self._lost(latents) - self.reference).mean()))

    def _lost(self, latents: torch.Tensor) -> torch.Tensor:
        """The log of what the model does not find again of each picture, (n,), float64 on the CPU."""
        level = latents.new_full((len(latents),), SIGMA)
        found = self.held_out.model(latents + SIGMA * self.noise, level, cond_scale=1.0)
        return (found - latents).cpu().double().square().flatten(1).mean(1).log()


def ways(
    profile: Profile, steps: int, cfg_scale: float, statistics: Optional[tuple[str, Statistics]]
) -> Mapping[str, Recipe]:
    """The ways to draw with ``steps`` calls on the model of a profile, by name; Auto's own first."""
    auto = recipe_for(profile.family, steps, cfg_scale)
    found = {AUTO: auto}
    for row in profile.joint:
        if row.steps == steps and not row.misfit(cfg_scale):
            found[CALIBRATED] = profile.recipe(row, auto, cfg_scale)
    if statistics is not None:
        for name in FORMS:
            found[name] = profile.recipe(WithStatistics(steps, name, statistics[0]), auto, cfg_scale)
    return found


def draw(
    name: str, recipe: Recipe, held_out: Trajectories, table: NoiseModel, statistics: Optional[Statistics]
) -> torch.Tensor:
    """The latents that one way reaches from the noise of ``held_out``."""
    sigmas, options = recipe.sigmas(table), recipe.options()
    if name in FORMS:
        assert statistics is not None
        height, width = held_out.noise.shape[-2:]
        options.update(statistics=statistics.resized(height, width), corrector=FORMS[name][1])
    model = with_guidance(held_out.model, recipe.guidance)
    return SOLVERS[recipe.solver](model, held_out.noise * float(sigmas[0]), sigmas, **options)
