"""One sampling pass: what the host's scheduler, sampler and callbacks, which know nothing of each other, must share.

txt2img and img2img have one pass, hires fix a second. A :class:`Pass` hangs on the denoiser wrapper that the host makes
anew for each pass (``p.sampler.model_wrap``), which reaches the scheduler as ``inner_model``, the sampler as
``model.sampler.model_wrap`` and the callbacks as ``denoiser.sampler.model_wrap``. So nothing outlives the request, and
two requests never meet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

import torch

from ..freeu import FreeUPlan
from ..golden.search import Form
from ..noise import NoiseModel
from ..recipes import AUTO, Recipe, measured_form, shifted
from ..settings import NO_STATISTICS, OFF, Settings, SettingsError
from ..store import StoreError
from . import checkpoint as model
from .folders import library, statistics_folder

if TYPE_CHECKING:
    from ..calibration.profile import Target
    from ..statistics.coefficients import Statistics

__all__ = ["Pass", "Request"]

ATTRIBUTE = "hpsampler_pass"


@dataclass(frozen=True)
class Request:
    """What a pass is to draw, and whom it tells.

    Attributes:
        from_noise: whether it starts from pure noise (txt2img's first pass).
        width, height: pixels.
        solver: the one that the chosen sampler fixes; None is the recipe's, or a sampler of the host's.
        own: whether the sampler is one of ours.
        tell: tells the person something about the finished image.
        record, record_statistics: write which calibration, which statistics were used into the image's infotext.
    """

    cfg_scale: float
    from_noise: bool
    width: int
    height: int
    solver: Optional[str]
    own: bool
    tell: Callable[[str], object]
    record: Callable[[str], object]
    record_statistics: Callable[[str], object] = print


class Pass:
    """One sampling pass under one set of settings.

    Raises:
        SettingsError: the settings name a calibration that is not here.
    """

    def __init__(self, settings: Settings, request: Request) -> None:
        self.settings, self.request = settings, request
        if settings.names_calibration:
            try:
                library().named(settings.calibration)
            except StoreError as error:
                raise SettingsError(
                    f"HP Sampler: Calibration (calibration) must be {AUTO}, {OFF} or one that is here; {error}"
                ) from None
        self.recipe: Optional[Recipe] = None
        """Set once the HP schedule was asked for; None while another schedule type is in use."""
        self._statistics: Optional[tuple[str, Statistics]] = None
        self.golden: Optional[Form] = None
        """Set where golden noise without a network goes before the first step."""
        self.quiet = False
        """Whether calls are made now that are no steps; Free-U is off in them."""
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
            request = Request(7.0, False, 0, 0, None, False, tell=print, record=print)
            found = cls(Settings(), request)
            found.attach(model_wrap)
        return found

    def attach(self, model_wrap: Any) -> None:
        setattr(model_wrap, ATTRIBUTE, self)

    def resolve(self, steps: int) -> Recipe:
        """The recipe for a schedule of ``steps`` steps on the loaded model."""
        return self.settings.resolve(model.family(), steps, self.request.cfg_scale)

    def schedule(
        self, steps: int, sigma_min: float, sigma_max: float, model_wrap: Any, calibrated: bool
    ) -> torch.Tensor:
        """The HP schedule of this pass, and from here on its recipe; ``calibrated`` where its type was chosen so."""
        # here and below, as a start of the WebUI needs none of it
        from ..calibration.profile import Target

        self.recipe = self.resolve(steps)
        noise = model.noise_model(model_wrap)
        own_ends = (abs(sigma_min / noise.sigma_min - 1) < 1e-4, abs(sigma_max / noise.sigma_max - 1) < 1e-4)
        target = Target(
            frozenset(model.hashes()), model.family(), noise, self.request.width, self.request.height,
            self.request.cfg_scale,
        )  # fmt: skip
        try:
            if all(own_ends):
                self.recipe = self._calibrated(self.recipe, target, calibrated)
            elif calibrated or self.settings.names_calibration:
                self.request.tell(
                    "no calibration was used, as the settings change the schedule's smallest or largest sigma"
                )
            return self.recipe.sigmas(noise, None if own_ends[0] else sigma_min, None if own_ends[1] else sigma_max)
        except ValueError as error:
            raise SettingsError(f"HP Sampler: {error}") from None

    def _calibrated(self, recipe: Recipe, target: Target, demanded: bool) -> Recipe:
        """``recipe``, or a calibrated one in its place.

        By itself one is used where it was fitted for: from pure noise, with our second-order multistep solver.
        """
        settings = self.settings
        demanded = demanded or settings.names_calibration
        fitting = self.request.from_noise and self.request.own and self.request.solver in (None, "dpmpp_2m")
        if not settings.takes_calibration or not (demanded or fitting):
            if demanded:
                self.request.tell("the schedule type HP calibrated followed the recipe, as the settings say what it is")
            return recipe
        if settings.names_calibration:
            found, reason = library().pick(settings.calibration, recipe.steps, target)
        else:
            found = library().best(recipe.steps, target)
            reason = f"none fits this model at {recipe.steps} steps, CFG {target.cfg_scale:g} and this size"
        if found is None:
            if demanded:
                name = f"the calibration {settings.calibration}" if settings.names_calibration else "HP calibrated"
                self.request.tell(f"{name} was not used: {reason}; the schedule is the recipe's")
            return recipe
        profile, fitted = found
        misfit = profile.misfit(target)
        if misfit:
            self.request.tell(f"the calibration {profile.label(fitted)} was used although {misfit}")
        self.request.record(profile.label(fitted))
        return profile.recipe(fitted, recipe)

    def find_statistics(self, noise: NoiseModel) -> None:
        """Choose DPM-Solver-v3's statistics before the first UNet call.

        Raises:
            SettingsError: some were named that are not here, or cannot be read.
        """
        from ..statistics.coefficients import StatisticsError
        from ..statistics.files import best_for, find_statistics

        wanted, tell = self.settings.statistics, self.request.tell
        if wanted == OFF:
            pass
        elif wanted != AUTO:
            try:
                self._statistics = find_statistics(statistics_folder(), wanted, noise)
            except StatisticsError as error:
                raise SettingsError(
                    f"HP Sampler: Statistics (statistics) must be {AUTO}, {OFF} or some that are here; {error}"
                ) from None
        else:
            self._statistics, problems = best_for(statistics_folder(), model.hashes(), self.request.cfg_scale, noise)
            for problem in problems:
                tell(f"statistics that cannot be read were left out: {problem}")
        if self._statistics is None:
            self.request.record_statistics(OFF)
            if wanted != OFF:
                tell(NO_STATISTICS)
            return
        label, found = self._statistics
        self.request.record_statistics(label)
        if found.source.cfg_scale and abs(found.source.cfg_scale - self.request.cfg_scale) > 1e-6:
            tell(f"the statistics {label} were measured at CFG {found.source.cfg_scale:g}")

    def statistics_for(self, channels: int, height: int, width: int) -> dict[str, Any]:
        """DPM-Solver-v3's arguments for latents of that shape.

        Raises:
            SettingsError: the statistics are of latents with another number of channels.
        """
        if self._statistics is None:
            # without them the corrector gains nothing, and harms under strong guidance
            return {"statistics": None, "corrector": False}
        label, found = self._statistics
        if found.l.shape[1] not in (1, channels):
            raise SettingsError(
                f"HP Sampler: Statistics (statistics): {label} are of latents with {found.l.shape[1]} channels, and "
                f"the loaded model's have {channels}"
            )
        note = found.size_note(height, width)
        if note:
            self.request.tell(note.rstrip("."))
        order, corrector = measured_form(self.request.cfg_scale)
        options: dict[str, Any] = {"statistics": found.resized(height, width), "corrector": corrector}
        if self.settings.recipe == AUTO and not self.settings.order:
            options["order"] = order
        return options

    def freeu_plan(self, call: int, total: int) -> Optional[FreeUPlan]:
        """Free-U at the UNet call of that index, in a pass of ``total`` calls.

        A recipe counts from the end: an img2img pass runs the last part of its schedule, a second-order sampler makes
        two calls a step. What a person set is counted in the calls they see.
        """
        if self.quiet:
            return None
        if self.recipe is not None and (self.follows_recipe or self.settings.freeu == "On"):
            plans = self.recipe.freeu
            if not self.settings.counts_calls:
                plans = shifted(plans, total - self.recipe.steps)
        elif self.settings.freeu == "On":
            # no schedule was coupled to a number of steps: what runs are the calls
            plans = self.settings.freeu_plans((), model.family(), max(total, 1))
        else:
            return None
        return next((plan for plan in plans if plan.covers(call)), None)
