"""One sampling pass: what the host's scheduler, sampler and callbacks, which know nothing of each other, must share.

txt2img and img2img have one pass, hires fix a second. A :class:`Pass` hangs on the denoiser wrapper that the host makes
anew for each pass (``p.sampler.model_wrap``), which reaches the scheduler as ``inner_model``, the sampler as
``model.sampler.model_wrap`` and the callbacks as ``denoiser.sampler.model_wrap``. So nothing outlives the request, and
two requests never meet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch

from ..freeu import FreeUPlan
from ..recipes import Recipe, shifted
from ..settings import Settings, SettingsError
from . import model

__all__ = ["Pass"]

ATTRIBUTE = "hpsampler_pass"


class Pass:
    """One sampling pass under one set of settings.

    Args:
        settings: what the person set.
        cfg_scale: the pass's guidance scale.
        from_noise: whether it starts from pure noise (txt2img's first pass).
        tell: tells the person something about the finished image.
    """

    def __init__(self, settings: Settings, cfg_scale: float, from_noise: bool, tell: Callable[[str], object]) -> None:
        self.settings, self.cfg_scale, self.from_noise, self.tell = settings, cfg_scale, from_noise, tell
        self.recipe: Optional[Recipe] = None
        """Set once the HP schedule was asked for; None while another schedule type is in use."""
        self.follows_recipe = settings.enabled
        """Whether the recipe's Free-U applies: with the accordion on, or with one of our own samplers."""

    @staticmethod
    def find(model_wrap: Any) -> Optional[Pass]:
        """The pass of a denoiser wrapper, if one was begun."""
        return getattr(model_wrap, ATTRIBUTE, None)

    @classmethod
    def of(cls, model_wrap: Any) -> Pass:
        """The pass of a denoiser wrapper; a default one where another script samples past our hooks."""
        found = cls.find(model_wrap)
        if found is None:
            # 7 is the host's default guidance scale; the scheduler of such a caller cannot know the real one
            found = cls(Settings(), cfg_scale=7.0, from_noise=False, tell=print)
            found.attach(model_wrap)
        return found

    def attach(self, model_wrap: Any) -> None:
        setattr(model_wrap, ATTRIBUTE, self)

    def resolve(self, steps: int) -> Recipe:
        """The recipe for a schedule of ``steps`` steps on the loaded model."""
        return self.settings.resolve(model.family(), steps, self.cfg_scale)

    def schedule(self, steps: int, sigma_min: float, sigma_max: float, model_wrap: Any) -> torch.Tensor:
        """The HP schedule of this pass, and from here on its recipe."""
        self.recipe = self.resolve(steps)
        noise = model.noise_model(model_wrap)
        own_ends = (abs(sigma_min / noise.sigma_min - 1) < 1e-4, abs(sigma_max / noise.sigma_max - 1) < 1e-4)
        try:
            return self.recipe.sigmas(noise, None if own_ends[0] else sigma_min, None if own_ends[1] else sigma_max)
        except ValueError as error:
            raise SettingsError(f"HP Sampler: {error}") from None

    def freeu_plan(self, call: int, total: int) -> Optional[FreeUPlan]:
        """Free-U at the UNet call of that index, in a pass of ``total`` calls.

        A recipe counts from the end: an img2img pass runs the last part of its schedule, a second-order sampler makes
        two calls a step. What a person set is counted in the calls they see.
        """
        if self.settings.freeu == "On":
            recipe = self.recipe or self.resolve(max(total, 1))
        elif self.recipe is not None and self.follows_recipe:
            recipe = self.recipe
        else:
            return None
        plans = recipe.freeu
        if not self.settings.counts_calls:
            plans = shifted(plans, total - recipe.steps)
        return next((plan for plan in plans if plan.covers(call)), None)
