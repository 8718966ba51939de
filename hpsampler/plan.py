"""One sampling pass, planned: what a person set and what the pass is for give recipe, schedule, solver, Free-U, notes.

This is the one place that decides. The adapter's hooks, the panel of the page and the demonstration's drawings all ask
a :class:`Pass`, in the order in which a host samples::

    this = Pass(settings, request, model)
    this.begin()                          what is wrong is raised here, before any UNet call
    sigmas = this.schedule(steps)         where the schedule type is ours
    run = this.solve(solver, sigmas)      where the sampler is ours
    this.freeu_plan(call, total)          before each UNet call
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional, Protocol

import torch

from . import notes
from .calibration.choice import PICTURES, WithStatistics
from .calibration.lookup import find_drawing
from .calibration.profile import ProfileStore, Target
from .effects import Use
from .fields import SettingsError
from .freeu import FreeUPlan, Waves
from .golden.search import GoldenForm
from .guidance import STATISTICS_REACH, STATISTICS_SHARE, effective_guidance
from .noise import NoiseModel
from .recipes import AUTO, Recipe, measured_form, shifted
from .schedule import insert_first_midpoint
from .settings import AS_RECIPE, NO_STATISTICS, OFF, SCHEDULE_FIELDS, Settings
from .statistics.coefficients import Statistics, StatisticsError
from .statistics.files import Opened, best_for, find_statistics
from .store import StoreError

__all__ = ["LoadedModel", "Model", "Pass", "Request", "Run"]


class Model(Protocol):
    """The model that is sampled; each attribute may be costly, or raise SettingsError, and is asked when needed."""

    @property
    def family(self) -> str: ...

    @property
    def noise(self) -> NoiseModel: ...

    @property
    def hashes(self) -> Collection[str]: ...


@dataclass(frozen=True)
class LoadedModel:
    """A :class:`Model` whose facts are known."""

    family: str
    noise: NoiseModel
    hashes: Collection[str] = ()


@dataclass(frozen=True)
class Request:
    """What a pass is to draw.

    Attributes:
        use: sampler and schedule type.
        from_noise: whether it starts from pure noise (txt2img's first pass).
        steps: the number that the person set.
        width, height: pixels.
        second: whether it is hires. fix's second pass.
        start: of img2img: the entry of the schedule that the host starts at, and the strength that it shall mean; None
            where it runs the whole schedule, or where the strength is not known.
    """

    use: Use
    cfg_scale: float
    from_noise: bool = True
    steps: int = 1
    width: int = 0
    height: int = 0
    second: bool = False
    start: Optional[tuple[int, float]] = None


@dataclass(frozen=True)
class Run:
    """What a sampler of ours runs: ``SOLVERS[recipe.solver](with_guidance(model, guidance), x, sigmas, **options)``.

    Attributes:
        sigmas: as the solver takes them, the analytical first step's point included.
        analytical: whether the first step makes no call.
        guidance: the guidance scale of each call; empty is the person's in all.
    """

    recipe: Recipe
    options: dict[str, Any]
    sigmas: torch.Tensor
    analytical: bool
    guidance: tuple[float, ...] = ()


def _nobody(*_: Any) -> None:
    """Is told, and keeps nothing."""


class Pass:
    """One sampling pass under one set of settings.

    Args:
        calibrations: those that people keep; None where there are none.
        statistics: the folder where DPM-Solver-v3's lie; None where there are none.
        tell: tells the person something about the finished image.
        record: ``record(name, label)`` keeps what was used for the setting of that name.
        aim: what Auto shall aim at where a calibration compared ways to draw, of
            :data:`~hpsampler.calibration.choice.AIMS`.
        opened: the statistics that other passes of the request have read.
    """

    def __init__(
        self,
        settings: Settings,
        request: Request,
        model: Model,
        calibrations: Optional[ProfileStore] = None,
        statistics: Optional[Path] = None,
        tell: Callable[[str], object] = _nobody,
        record: Callable[[str, str], object] = _nobody,
        aim: str = PICTURES,
        opened: Optional[Opened] = None,
    ) -> None:
        self.settings, self.request, self.model = settings, request, model
        self.opened = opened or Opened()
        self.calibrations, self.statistics_folder = calibrations, statistics
        self.tell, self.record, self.aim = tell, record, aim
        self.recipe: Optional[Recipe] = None
        """Set once the HP schedule was asked for; None while another schedule type is in use."""
        self.statistics: Optional[tuple[str, Statistics]] = None
        self.form: Optional[WithStatistics] = None
        """Set where a calibration found that DPM-Solver-v3 with statistics is Auto's best way to draw."""
        self.auto_is_best = ""
        """A sentence where a calibration compared ways to draw, and Auto's own recipe is the best."""
        self.has_statistics = False
        """Whether there are statistics for this pass, read or not."""
        self.golden: Optional[GoldenForm] = None
        """Set where golden noise without a network goes before the first step."""
        self.waves: Waves = {}
        """What Free-U's filter needs, kept from one call to the next."""
        self.quiet = False
        """Whether calls are made now that are no steps; Free-U is off in them."""
        self.follows_recipe = settings.enabled
        """Whether the recipe's Free-U applies: with the accordion on, or with one of our own samplers."""

    @property
    def used(self) -> bool:
        """Whether anything of ours is in use."""
        return self.request.use.own or self.request.use.coupled or self.settings.freeu == "On"

    def resolve(self, steps: int) -> Recipe:
        """The recipe for a schedule of ``steps`` steps on the loaded model."""
        return self.settings.resolve(self.model.family, steps, self.request.cfg_scale)

    # ---- before the first call ---------------------------------------------------------------------------------------

    def begin(self, takes_schedule: bool = True) -> None:
        """Check what will be used, and tell what will not.

        Args:
            takes_schedule: whether the sampler asks for a schedule at all; some of the host's make their own.

        Raises:
            SettingsError: settings that cannot be used together, or that name what is not here.
        """
        settings, use = self.settings, self.request.use
        if settings.names_calibration:
            self._check_calibration()
        if self.used:
            recipe = self.resolve(self.request.steps)
            if use.runs(recipe) == "dpm_v3":
                self.find_statistics(settings.statistics)
        if use.coupled and not takes_schedule:
            self._tell_ignored()
        self._tell_if(notes.off_schedule(settings, use))
        if self.request.second:
            self._tell_if(notes.of_second_pass(use))
        else:
            left_out = settings.golden_idle(use.own, use.from_noise)
            self._tell_if(left_out)
            self.golden = None if left_out else settings.golden_form

    def call(self) -> None:
        """At each UNet call: tell if nobody has asked for our schedule type, as that can be seen only now."""
        if self.request.use.coupled and not self.request.use.own and self.recipe is None:
            self._tell_ignored()

    def _tell_ignored(self) -> None:
        use = self.request.use
        self.tell(notes.ignored(use.sampler, use.schedule))

    def _tell_if(self, note: str) -> None:
        if note:
            self.tell(note)

    def _check_calibration(self) -> None:
        try:
            if self.calibrations is None:
                raise StoreError(f"there is no calibration {self.settings.calibration!r} here")
            self.calibrations.named(self.settings.calibration)
        except StoreError as error:
            raise SettingsError(
                f"HP Sampler: Calibration (calibration) must be {AUTO}, {OFF} or one that is here; {error}",
                "calibration",
            ) from None

    def find_statistics(self, wanted: str) -> None:
        """Choose DPM-Solver-v3's statistics.

        Args:
            wanted: Auto, Off, or which by name or label.

        Raises:
            SettingsError: some were named that are not here, or cannot be read.
        """
        folder = self.statistics_folder
        drawn_at = self.statistics_guidance(self.request.steps)
        if folder is None or wanted == OFF:
            pass
        elif wanted != AUTO:
            try:
                self.statistics = find_statistics(folder, wanted, self.model.noise, self.opened)
            except StatisticsError as error:
                raise SettingsError(
                    f"HP Sampler: Statistics (statistics) must be {AUTO}, {OFF} or some that are here; {error}",
                    "statistics",
                ) from None
        else:
            self.statistics, problems = best_for(folder, self.model.hashes, drawn_at, self.model.noise, self.opened)
            for problem in problems:
                self.tell(f"statistics that cannot be read are left out: {problem}")
        if self.statistics is None:
            self.record("statistics", OFF)
            if wanted != OFF:
                self.tell(NO_STATISTICS)
            return
        self.has_statistics = True
        label, found = self.statistics
        self.record("statistics", label)
        measured_at = found.source.cfg_scale
        if measured_at and not measured_at / STATISTICS_REACH <= drawn_at <= measured_at * STATISTICS_REACH:
            self.tell(f"the statistics {label} were measured at CFG {measured_at:g}, far from CFG {drawn_at:g}")

    # ---- the schedule ------------------------------------------------------------------------------------------------

    def schedule(
        self,
        steps: int,
        calibrated: bool = False,
        sigma_min: Optional[float] = None,
        sigma_max: Optional[float] = None,
    ) -> torch.Tensor:
        """The HP schedule of this pass, and from here on its recipe.

        Args:
            calibrated: whether the schedule type asks for a calibrated one.
            sigma_min, sigma_max: ends that the host asks for; None are the table's own.
        """
        if steps < 1:
            # strength 0 with an exact number of steps: the picture stays as it is
            return torch.zeros(1)
        self.recipe = self.resolve(steps)
        noise, settings = self.model.noise, self.settings
        low = None if sigma_min is None or abs(sigma_min / noise.sigma_min - 1) < 1e-4 else sigma_min
        high = None if sigma_max is None or abs(sigma_max / noise.sigma_max - 1) < 1e-4 else sigma_max
        try:
            if low is None and high is None:
                self.recipe = self._calibrated(self.recipe, calibrated)
            elif calibrated or settings.names_calibration:
                self.tell("no calibration is used, as the settings change the schedule's smallest or largest sigma")
            # guidance that was set stands in place of that of a calibration too
            self.recipe = replace(self.recipe, guidance=settings.guidance_scales(self.recipe, self.request.cfg_scale))
            first, strength = self.request.start or (0, 1.0)
            return self.recipe.sigmas(noise, low, high, first, strength)
        except ValueError as error:
            names = (field.name for field in settings.changed(SCHEDULE_FIELDS - {"ending"}))
            raise SettingsError(f"HP Sampler: {error}", *names) from None

    def target(self) -> Target:
        """What a calibration must fit."""
        model, request = self.model, self.request
        return Target(
            frozenset(model.hashes), model.family, model.noise, request.width, request.height, request.cfg_scale
        )

    def asks_calibration(self, calibrated: bool = False) -> bool:
        """Whether a calibrated schedule may stand in for the recipe's here.

        By itself one is used where it was fitted for: from pure noise, with our second-order multistep solver.
        """
        use = self.request.use
        demanded = calibrated or self.settings.names_calibration
        fitting = self.request.from_noise and use.own and use.solver in (None, "dpmpp_2m")
        return self.settings.takes_calibration and (demanded or fitting)

    def _calibrated(self, recipe: Recipe, calibrated: bool) -> Recipe:
        """``recipe``, or what a calibration found in its place."""
        settings = self.settings
        demanded = calibrated or settings.names_calibration
        if not self.asks_calibration(calibrated):
            if demanded:
                self.tell("the schedule type HP calibrated follows the recipe, as the settings say what it is")
            return recipe
        store, target = self.calibrations, self.target()
        found, reason = None, ""
        if store is not None:
            wanted = settings.calibration if settings.names_calibration else ""
            # a schedule type has a schedule and no solver
            can_draw = None if calibrated else self._can_draw
            found, reason = find_drawing(store, wanted, recipe.steps, target, self.aim, can_draw)
        if found is None:
            self.auto_is_best = "" if demanded else reason
            if demanded:
                name = f"the calibration {settings.calibration}" if settings.names_calibration else "HP calibrated"
                nothing = f"none fits this model at {recipe.steps} steps, CFG {target.cfg_scale:g} and this size"
                self.tell(f"{name} is not used: {reason or nothing}; the schedule is the recipe's")
            return recipe
        profile, drawing = found
        misfit = profile.mismatch(target)
        if misfit:
            self.tell(f"the calibration {profile.label(drawing)} is used although {misfit}")
        self.record("calibration", profile.label(drawing))
        self.form = drawing if isinstance(drawing, WithStatistics) else None
        return profile.recipe(drawing, recipe, self.request.cfg_scale)

    def _can_draw(self, drawing: WithStatistics) -> bool:
        """Whether DPM-Solver-v3 may run here, with those statistics; they are then the pass's."""
        use, wanted = self.request.use, self.settings.statistics
        if not use.own or use.solver is not None or wanted not in (AUTO, drawing.statistics):
            return False
        if not self.has_statistics:
            try:
                self.find_statistics(drawing.statistics)
            except SettingsError:
                return False
        return self.has_statistics

    # ---- the solver --------------------------------------------------------------------------------------------------

    def solve(self, solver: Optional[str], sigmas: torch.Tensor, latent: Sequence[int] = ()) -> Run:
        """What a sampler of ours runs on ``sigmas``, the host's part of the schedule.

        Args:
            solver: the one that the sampler fixes; None is the recipe's.
            latent: channels, height and width, for DPM-Solver-v3's statistics.

        Raises:
            SettingsError: the statistics are of latents with another number of channels.
        """
        self.follows_recipe = True
        recipe = self.recipe
        if recipe is None:
            # another schedule type: what belongs to the HP schedule's ends has nothing to act on
            recipe = replace(self.resolve(len(sigmas) - 1), ending="keep", analytical_first_step=0.0)
        if solver is not None:
            recipe = replace(recipe, solver=solver)
        guidance = self._guidance(recipe, len(sigmas) - 1)
        options = recipe.options()
        if options.get("factors"):
            # img2img runs the last part of its schedule, and the factors belong to its steps
            options["factors"] = recipe.factors[1 - len(sigmas) :]
        unmet = self.settings.ending_unmet(recipe)
        if unmet:
            self.tell(unmet)
        analytical = bool(options.get("analytical_first_step"))
        if analytical and self.request.from_noise:
            sigmas = insert_first_midpoint(self.model.noise, sigmas)
        elif analytical:
            options["analytical_first_step"], analytical = 0.0, False
            self.tell("the analytical first step starts from pure noise; it is left out here")
        if recipe.solver == "dpm_v3":
            options.update(self._statistics_options(*latent))
        return Run(recipe, options, sigmas, analytical, guidance)

    def _guidance(self, recipe: Recipe, calls: int) -> tuple[float, ...]:
        """The guidance scale of each of the last ``calls`` calls of a recipe."""
        settings = self.settings
        if self.recipe is None:
            # another schedule type, of which img2img runs the last part
            recipe = self.resolve(max(calls, self.request.steps))
        scales = recipe.guidance
        measured = recipe.solver == "dpm_v3" and self.has_statistics
        if measured and settings.recipe == AUTO and settings.guidance == AS_RECIPE:
            scales = (self.statistics_guidance(recipe.steps),) * recipe.steps
        return scales[-calls:]

    def statistics_guidance(self, steps: int) -> float:
        """The guidance scale at which DPM-Solver-v3 with statistics draws ``steps`` calls under these settings."""
        if self.settings.recipe != AUTO or self.settings.guidance != AS_RECIPE:
            return self.request.cfg_scale
        return effective_guidance(self.request.cfg_scale, steps, STATISTICS_SHARE)

    def _statistics_options(self, channels: int = 0, height: int = 0, width: int = 0) -> dict[str, Any]:
        """DPM-Solver-v3's arguments for latents of that shape."""
        if self.statistics is None:
            # without them the corrector gains nothing, and harms under strong guidance
            return {"statistics": None, "corrector": False}
        label, found = self.statistics
        if found.l.shape[1] not in (1, channels):
            raise SettingsError(
                f"HP Sampler: Statistics (statistics): {label} are of latents with {found.l.shape[1]} channels, and "
                f"the loaded model's have {channels}",
                "statistics",
            )
        note = found.size_note(height, width)
        if note:
            self.tell(note.rstrip("."))
        form = self.form
        order, corrector = (form.order, form.corrector) if form else measured_form(self.request.cfg_scale)
        options: dict[str, Any] = {"statistics": found.resized(height, width), "corrector": corrector}
        if self.settings.recipe == AUTO and not self.settings.order:
            options["order"] = order
        return options

    # ---- Free-U ------------------------------------------------------------------------------------------------------

    def freeu_plans(self, total: int) -> tuple[FreeUPlan, ...]:
        """Free-U in a pass of ``total`` UNet calls, its windows counted in them from 0.

        A recipe counts from the end: an img2img pass runs the last part of its schedule, a second-order sampler makes
        two calls a step. What a person set is counted in the calls they see.
        """
        settings = self.settings
        more = self.recipe is not None and self.recipe.ending == "extra_call"
        self._tell_if(notes.window_passed(settings, total + more * (1 if self.request.use.own else 2)))
        if self.recipe is not None and (self.follows_recipe or settings.freeu == "On"):
            plans = self.recipe.freeu
            return plans if settings.counts_calls else shifted(plans, total - self.recipe.steps)
        if settings.freeu == "On":
            # no schedule was coupled to a number of steps: what runs are the calls
            return settings.freeu_plans((), self.model.family, max(total, 1))
        return ()

    def freeu_plan(self, call: int, total: int) -> Optional[FreeUPlan]:
        """Free-U at the UNet call of that index, in a pass of ``total`` calls."""
        if self.quiet:
            return None
        return next((plan for plan in self.freeu_plans(total) if plan.covers(call)), None)
