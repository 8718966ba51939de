"""Ways to draw a few calls, compared with many steps on one model, by the model itself.

Two figures are measured on held-out trajectories. The distance is that of the latents to the endpoints that many steps
reach from the same noise. It is not all that counts: of two ways, the farther one may draw the better pictures.

So the second figure asks the model what it sees. Noise e of one level sigma is added to the latents x of a picture,
and the model denoises it with the prompt (D_c, guidance 1) and without (D_u, guidance 0)::

    s(x) = log |D_u(x + sigma e) - x|^2 - log |D_c(x + sigma e) - x|^2

which is how much the prompt helps to find the picture again. Where it helps as much as with the many-step picture of
the same noise and prompt, the subject is there and as well formed; the figure is the RMS of the difference of s. (Such
errors, subtracted and integrated over all levels, are the information that a prompt has about a picture, arXiv
2310.07972.)

On both small models of the bench its choice agrees with what a classifier's Frechet distance and the captions that it
reads say (docs/calibration.md); distances of patches or colours did not.
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
        self.reference = self._helped(held_out.endpoints)

    def figures(self, latents: torch.Tensor) -> Figures:
        """The figures of latents (n, c, h, w) that were drawn from the noise of ``held_out``."""
        difference = self._helped(latents) - self.reference
        return Figures.of(self.held_out.error_of(latents), float(difference.square().mean().sqrt()))

    def _helped(self, latents: torch.Tensor) -> torch.Tensor:
        """How much the prompts help, (n,), float64 on the CPU."""
        noisy, level = latents + SIGMA * self.noise, latents.new_full((len(latents),), SIGMA)
        without, given = (
            (self.held_out.model(noisy, level, cond_scale=scale) - latents).cpu().double().square().flatten(1).mean(1)
            for scale in (0.0, 1.0)
        )
        return without.log() - given.log()


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
