"""What the page shows of the settings, computed where the picture's own plan is made (:mod:`hpsampler.plan`).

The page sends what its controls hold; :func:`view` answers with the numbers of each pass, what is wrong, what has no
effect, what the recipe says beside each control, and what is on offer. How it looks is the page's
(:mod:`hpsampler.webui.panel_html`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Optional

import torch

from .calibration.profile import Profile, ProfileStore
from .effects import Use, idle
from .golden.search import CALLS as GOLDEN_CALLS
from .noise import NoiseModel
from .plan import LoadedModel, Pass, Request, followed, misfit_note
from .presets import Preset
from .recipes import AUTO, PRESETS, Recipe
from .schedule import base_karras
from .settings import (
    ANALYTICAL,
    AS_RECIPE,
    ENDING_LABELS,
    FIELDS,
    NO_STATISTICS,
    OFF,
    SCHEDULE_FIELDS,
    Field,
    Settings,
    SettingsError,
)
from .statistics.files import statistics_files
from .store import StoreError

__all__ = ["Control", "Known", "Offer", "Page", "PassView", "Snapshot", "View", "view"]

OFFERED_STEPS = (5, 6, 8)
"""What Auto is made for."""

TWO_CALLS = frozenset({"DPM++ SDE", "DPM++ 2S a", "Heun", "DPM2", "DPM2 a", "Restart"})
ONE_POINT_MORE = frozenset({"DPM++ 3M SDE", "DPM2", "DPM2 a"})
OWN_SCHEDULE = frozenset({"DDIM", "DDIM CFG++", "PLMS", "UniPC", "DPM fast", "DPM adaptive"})
"""What samplers of the host do with a schedule, by their names there."""

SAME_SAMPLER, SAME_SCHEDULE = "Use same sampler", "Use same scheduler"
KARRAS_RHO = 7.0


class Snapshot(ProfileStore):
    """The calibrations of a folder, read once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._found = super().read()

    def read(self) -> tuple[list[Profile], list[str]]:
        return self._found


@dataclass(frozen=True)
class Known:
    """What the server knows beside the page's controls.

    Attributes:
        model: the loaded checkpoint's name, for people; empty while none is loaded.
        problem: why the loaded model cannot be sampled with ours; empty where it can.
        presets: the built-in and a person's own.
        calibrations: those that people keep; None where there can be none.
        statistics: the folder of DPM-Solver-v3's; None where there are none.
        measured: whether there are statistics of the loaded model.
        follow: whether presets follow the model.
        plot: whether the schedule is drawn.
        off: the settings of a picture that is drawn while the accordion is off.
    """

    family: str
    noise: NoiseModel
    model: str = ""
    hashes: tuple[str, ...] = ()
    problem: str = ""
    presets: tuple[Preset, ...] = ()
    calibrations: Optional[ProfileStore] = None
    statistics: Optional[Path] = None
    measured: Callable[[], bool] = lambda: False
    follow: bool = False
    plot: bool = True
    off: Settings = field(default_factory=Settings)

    @property
    def of_model(self) -> list[Profile]:
        """Calibrations of the loaded model."""
        profiles = self.calibrations.read()[0] if self.calibrations else []
        return [each for each in profiles if not each.model_mismatch(self.hashes, self.noise)]


@dataclass(frozen=True)
class Page:
    """The page's own controls.

    Attributes:
        denoising: of img2img and of hires. fix.
        exact_steps: whether the host makes img2img run exactly as many steps as are set.
        hires: whether hires. fix is on; the next four are its own controls.
        preset: the one that is chosen.
    """

    sampler: str = ""
    schedule: str = ""
    steps: float = 20
    cfg: float = 7.0
    width: int = 0
    height: int = 0
    img2img: bool = False
    denoising: float = 1.0
    exact_steps: bool = False
    hires: bool = False
    hr_sampler: str = ""
    hr_schedule: str = ""
    hr_steps: float = 0
    hr_scale: float = 2.0
    preset: str = ""

    @classmethod
    def of(cls, values: Any) -> Page:
        """From what the page's script read; what it could not read keeps its default."""
        found: dict[str, Any] = {}
        for name, default in vars(cls()).items():
            value = values.get(name) if isinstance(values, Mapping) else None
            if isinstance(default, str):
                found[name] = value if isinstance(value, str) else default
            elif isinstance(default, bool):
                found[name] = bool(value) if value is not None else default
            else:
                found[name] = _number(value, default)
        return cls(**{**found, "width": int(found["width"]), "height": int(found["height"])})

    @property
    def second(self) -> Page:
        """The second pass of hires. fix as a page of its own."""
        return replace(
            self,
            sampler=self.sampler if self.hr_sampler in ("", SAME_SAMPLER) else self.hr_sampler,
            schedule=self.schedule if self.hr_schedule in ("", SAME_SCHEDULE) else self.hr_schedule,
            steps=self.hr_steps or self.steps,
            width=int(self.width * self.hr_scale),
            height=int(self.height * self.hr_scale),
        )


def _number(value: Any, default: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return default
    if not math.isfinite(number):
        return default
    return int(number) if number.is_integer() else number


@dataclass
class PassView:
    """What one pass does.

    Attributes:
        error: what would stop the generation; ``wrong`` are the fields that it is about. Nothing else is told then.
        asked: whether our schedule is drawn with; the rest is what it would be.
        sigmas: at the points between the steps, those that img2img leaves out included.
        steps: for each of the steps between two points, the number of its first UNet call, from 1; 0 where none is
            made there.
        skipped: steps that are left out at the start.
        calls: UNet calls, those for golden noise included; None where the sampler is the host's.
        freeu: UNet calls with Free-U, from 1: first and last of each window.
        base, cut: the base schedule and the point where it is cut; empty where something else says the end.
        karras: the schedule of DPM++ 2M Karras with as many steps.
        recipe: in force; ``named`` is the one that was chosen, without what was set beside it.
        calibration: the label of the one in use.
    """

    use: Use
    notes: list[str] = field(default_factory=list)
    error: str = ""
    wrong: tuple[str, ...] = ()
    asked: bool = False
    sigmas: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    skipped: int = 0
    calls: Optional[int] = None
    made: int = 0
    golden: int = 0
    freeu: list[tuple[int, int]] = field(default_factory=list)
    base: list[float] = field(default_factory=list)
    cut: int = 0
    karras: list[float] = field(default_factory=list)
    recipe: Optional[Recipe] = None
    named: Optional[Recipe] = None
    calibration: str = ""

    @property
    def is_cut(self) -> bool:
        """Whether the schedule ends before the base schedule's last point."""
        return 0 < self.cut < len(self.base) - 1

    def tell(self, note: str) -> None:
        if note and note not in self.notes:
            self.notes.append(note)


@dataclass(frozen=True)
class Offer:
    """A number of steps that the present choice is made for, and a guidance scale where it is for one."""

    steps: int
    cfg: Optional[float]
    now: bool = False


@dataclass(frozen=True)
class Control:
    """What is said of one control.

    Attributes:
        idle: why it has no effect; empty where it has one.
        recipe: what the recipe says; empty where it says nothing of it.
        changed: whether it stands in place of the recipe's.
        wrong: whether the error is about it.
        highest: the end of its range, where that follows from the rest.
    """

    idle: str = ""
    recipe: str = ""
    changed: bool = False
    wrong: bool = False
    highest: Optional[int] = None


@dataclass
class View:
    """All that the page shows.

    Attributes:
        second: hires. fix's second pass, where there is one.
        changed: fields that differ from the recipe and have an effect, with their values.
        fitting, papers, others: presets for this model and number of steps, a person's own and Auto; the paper's;
            the rest.
        misfit: why the chosen preset is not made for this model or number of steps.
        settings: as they are drawn with; where something is wrong, those that can be read.
    """

    enabled: bool
    page: Page
    known: Known
    first: PassView
    second: Optional[PassView] = None
    controls: dict[str, Control] = field(default_factory=dict)
    changed: list[tuple[Field, str]] = field(default_factory=list)
    offers: list[Offer] = field(default_factory=list)
    fitting: list[str] = field(default_factory=list)
    papers: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    misfit: str = ""
    settings: Settings = field(default_factory=Settings)


class _Planned(Pass):
    """A pass that is looked at and not drawn: statistics are not read, which are large."""

    known: Known

    def find_statistics(self) -> None:
        wanted, folder = self.settings.statistics, self.known.statistics
        kept = statistics_files(folder) if folder else {}
        if wanted == AUTO and not self.known.measured():
            self.tell(NO_STATISTICS)
        # a picture names them with a hash of their numbers, by which they are found though renamed
        if wanted not in (AUTO, OFF, *kept) and wanted.rpartition(" ")[0] not in kept:
            raise SettingsError(
                f"HP Sampler: Statistics (statistics) must be {AUTO}, {OFF} or some that are here; there are no "
                f"statistics {wanted!r} here; there are: {', '.join(kept) or 'none yet'}",
                "statistics",
            )


def view(values: Mapping[str, Any], page: Page, known: Known) -> View:
    """What is shown for the accordion's ``values`` by name, its switch included."""
    enabled = bool(values.get("enabled"))
    first = PassView(Use.of(page.sampler, page.schedule, not page.img2img))
    found = View(enabled, page, known, first)
    try:
        settings = Settings.of_names(values) if enabled else known.off
        if enabled and known.follow:
            settings = followed(settings, known.family, first.tell)
        found.settings = settings
        _plan(first, settings, page, known)
    except SettingsError as error:
        first.error, first.wrong = str(error), error.names
    if page.hires and not page.img2img and not first.error:
        found.second = second = PassView(Use.of(page.second.sampler, page.second.schedule))
        try:
            _plan(second, found.settings.of_second_pass(), page.second, known, second=True)
        except SettingsError as error:
            second.error, second.wrong = str(error), error.names
    if not found.settings.enabled and enabled:
        # what could not be read whole is read one by one, so that the page still says what it can
        found.settings = _readable(values)
    if first.named is None and _is_count(page.steps):
        first.named = _named(found.settings, page, known)
    found.controls = _controls(found)
    _mark_changed(found)
    found.offers = _offers(found)
    _list_presets(found)
    return found


# ---- one pass --------------------------------------------------------------------------------------------------------


def _is_count(steps: float) -> bool:
    return steps == int(steps) and steps >= 1


def _counted(page: Page, second: bool) -> tuple[int, int]:
    """Steps of the schedule, and how many at its start are left out, as the host counts them."""
    steps, strength = int(page.steps), min(page.denoising, 0.999)
    if (second or (page.img2img and page.exact_steps)) and strength > 0:
        # the last of a longer schedule
        longer = int(steps / strength)
        return longer, longer - steps
    if page.img2img or second:
        return steps, max(steps - int(strength * steps) - 1, 0)
    return steps, 0


def _named(settings: Settings, page: Page, known: Known) -> Recipe:
    """The recipe that was chosen, without what was set beside it."""
    return Settings(enabled=True, recipe=settings.recipe).resolve(known.family, int(page.steps), page.cfg)


def _plan(shown: PassView, settings: Settings, page: Page, known: Known, second: bool = False) -> None:
    if not _is_count(page.steps):
        raise SettingsError(f"HP Sampler: steps must be a whole number of at least 1, got {page.steps!r}")
    use, noise = shown.use, known.noise
    if known.problem and (use.own or use.coupled or settings.freeu == "On"):
        raise SettingsError(known.problem)
    steps, shown.skipped = _counted(page, second)
    request = Request(
        use, page.cfg, not page.img2img and not second, int(page.steps), page.width, page.height, second
    )  # fmt: skip
    this = _Planned(
        settings, request, LoadedModel(known.family, noise, known.hashes), known.calibrations, tell=shown.tell
    )  # fmt: skip
    this.known = known
    shown.named = _named(settings, page, known)
    shown.karras = [*base_karras(steps, KARRAS_RHO, noise.sigma_min, noise.sigma_max).tolist(), 0.0]
    shown.asked = use.coupled and page.sampler not in OWN_SCHEDULE
    shown.tell(misfit_note(settings, use, steps))
    this.begin(shown.asked or not use.coupled)
    extra = page.sampler in ONE_POINT_MORE
    if shown.asked:
        sigmas = this.schedule(steps + extra, use.calibrated)
        recipe = this.recipe
    else:
        recipe, sigmas = _would_be(this, steps + extra, noise)
    assert recipe is not None
    if extra:
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    _count_calls(shown, this, sigmas)
    shown.recipe, shown.calibration = replace(recipe, solver=use.solver or recipe.solver), recipe.calibration
    if not recipe.levels and recipe.end_sigma is None:
        shown.base, shown.cut = recipe.base(noise).tolist(), recipe.truncation_index


def _would_be(this: Pass, steps: int, noise: NoiseModel) -> tuple[Recipe, torch.Tensor]:
    """The recipe and the schedule that are not asked for; numbers that make none are no error then."""
    try:
        recipe = this.resolve(steps)
        return recipe, recipe.sigmas(noise)
    except ValueError:
        plain = {each.name: each.default for each in FIELDS if each.name in SCHEDULE_FIELDS}
        recipe = replace(this.settings, **plain).resolve(this.model.family, steps, this.request.cfg_scale)
        return recipe, recipe.sigmas(noise)


def _count_calls(shown: PassView, this: Pass, sigmas: torch.Tensor) -> None:
    """UNet calls of the pass and those with Free-U, and the points that its solver adds."""
    use, skipped = shown.use, shown.skipped
    ran = len(sigmas) - 1 - skipped
    if not shown.asked:
        # the host's own schedule has a step for each of those that are set
        ran = len(shown.karras) - 1 - skipped
    a_step = 2 if use.sampler in TWO_CALLS else 1
    to_zero = not shown.asked or float(sigmas[-1]) == 0
    shown.made = 2 * ran - to_zero if a_step == 2 else ran
    inserted = 0
    if use.own:
        run = this.solve(use.solver, sigmas[skipped:])
        inserted = int(run.analytical)
        sigmas = torch.cat([sigmas[:skipped], run.sigmas])
        shown.golden = GOLDEN_CALLS if this.golden else 0
        shown.calls = shown.made + shown.golden
    total = a_step * (len(shown.karras) - 1 - skipped)
    on = [call for call in range(shown.made) if this.freeu_plan(call, total) is not None]
    starts = [call for call in on if call - 1 not in on]
    ends = [call for call in on if call + 1 not in on]
    shown.freeu = [(first + 1, last + 1) for first, last in zip(starts, ends)]
    shown.sigmas = sigmas.tolist()
    begin = skipped + inserted
    shown.steps = [
        0 if index < begin else a_step * (index - begin) + 1 for index, _ in enumerate(pairwise(shown.sigmas))
    ]


# ---- what is said of the controls ------------------------------------------------------------------------------------


def _readable(values: Mapping[str, Any]) -> Settings:
    """The settings, with defaults in place of what cannot be used."""
    found: dict[str, Any] = {"enabled": True}
    for each in FIELDS:
        try:
            found[each.name] = each.parse(values.get(each.name, each.default))
        except SettingsError:
            continue
    return Settings(**found)


def _controls(shown: View) -> dict[str, Control]:
    first, settings = shown.first, shown.settings
    reasons = idle(settings, first.use, first.named) if shown.enabled and first.named else {}
    wrong = {*first.wrong, *(shown.second.wrong if shown.second else ())}
    highest = _highest(shown)
    return {
        each.name: Control(
            reasons.get(each.name, ""),
            _of_recipe(each, shown),
            settings.enabled and getattr(settings, each.name) != each.default and each.name != "recipe",
            each.name in wrong,
            highest.get(each.name),
        )
        for each in FIELDS
    }


def _highest(shown: View) -> dict[str, int]:
    """Ends of ranges that follow from other controls."""
    named, calls = shown.first.named, shown.first.made
    base_steps = shown.settings.base_steps or (named.base_steps if named else 0)
    ends = {"truncation_index": base_steps - 1, "freeu_first": calls, "freeu_last": calls}
    return {name: end for name, end in ends.items() if end > 0}


def _of_recipe(field: Field, shown: View) -> str:
    """What the recipe says where this control is left to it; empty where it says nothing."""
    first, settings = shown.first, shown.settings
    recipe = first.named
    if recipe is None:
        return ""
    if field.name in SCHEDULE_FIELDS - {"ending"} and first.calibration:
        return "the calibrated schedule instead"
    if field.name == "end_sigma":
        return _short(first.base[first.cut]) if first.base and not settings.end_sigma else ""
    if field.name in ("b1", "b2", "s1", "s2", "freeu_version", "freeu_first", "freeu_last", "freeu"):
        return _of_freeu(field.name, shown)
    left = field.default == AS_RECIPE or (field.neutral is not None and field.neutral == field.default)
    value = getattr(recipe, field.name, None)
    if not left or value is None:
        return ""
    return _worded(field.name, value)


def _worded(name: str, value: Any) -> str:
    """A recipe's value as the page's menus call it."""
    menus: Mapping[str, Mapping[str, Any]] = {"ending": ENDING_LABELS, "analytical_first_step": ANALYTICAL}
    words = {own: label for label, own in menus.get(name, {}).items()}
    if value in words:
        return words[value]
    return _short(value) if isinstance(value, (int, float)) else str(value)


def _of_freeu(name: str, shown: View) -> str:
    """Free-U's numbers where the recipe decides them, and the calls of "late" where they were left open."""
    first, settings = shown.first, shown.settings
    plans = first.named.freeu if first.named and settings.freeu == AS_RECIPE else ()
    if name == "freeu":
        return "" if settings.freeu != AS_RECIPE else "On" if first.freeu else OFF
    if name in ("freeu_first", "freeu_last"):
        ends = [str(window[name == "freeu_last"]) for window in first.freeu]
        return ", ".join(ends) if settings.freeu == AS_RECIPE or not getattr(settings, name) else ""
    attribute = "version" if name == "freeu_version" else name
    return ", then ".join(dict.fromkeys(_short(getattr(plan, attribute)) for plan in plans)) if first.freeu else ""


def _mark_changed(shown: View) -> None:
    for each in FIELDS:
        control = shown.controls[each.name]
        if control.changed and not control.idle and each.name not in ("hires_recipe", "calibration", "statistics"):
            value = getattr(shown.settings, each.name)
            shown.changed.append((each, _short(value) if isinstance(value, (int, float)) else str(value)))


def _short(value: float) -> str:
    return f"{value:.4g}" if value >= 10 else f"{value:.3g}"


# ---- offers ----------------------------------------------------------------------------------------------------------


def _offers(shown: View) -> list[Offer]:
    """Numbers of steps that the present choice is made for; at most one of them is what is set now."""
    settings, page, first = shown.settings, shown.page, shown.first
    if settings.recipe != AUTO:
        found = [Offer(PRESETS[settings.recipe].steps, None)]
    else:
        calibrated = [Offer(steps, cfg) for steps, cfg in _calibrated_for(shown)]
        auto = [] if settings.names_calibration else [Offer(steps, None) for steps in OFFERED_STEPS]
        found = sorted({*auto, *calibrated}, key=lambda each: (each.steps, each.cfg or 0))
    exact = any(each.steps == page.steps and each.cfg == page.cfg for each in found)
    return [
        replace(each, now=each.steps == page.steps and each.cfg == (page.cfg if exact else None))
        for each in (found if first.use.coupled else [])
    ]


def _calibrated_for(shown: View) -> Collection[tuple[int, float]]:
    """Steps and guidance scale of the calibrations that would be used."""
    settings, page, known, use = shown.settings, shown.page, shown.known, shown.first.use
    request = Request(use, page.cfg, not page.img2img, 1, page.width, page.height)
    this = Pass(settings, request, LoadedModel(known.family, known.noise, known.hashes), known.calibrations)
    if not this.asks_calibration(use.calibrated) or known.calibrations is None:
        return ()
    target = this.target()
    if not settings.names_calibration:
        pairs = [(profile, each) for profile in known.of_model for each in profile.fitted]
    else:
        try:
            named = known.calibrations.named(settings.calibration)
        except StoreError:
            return ()
        pairs = [(named, each) for each in named.fitted] if isinstance(named, Profile) else named
    return {(each.steps, each.cfg_scale) for profile, each in pairs if not profile.mismatch(target)}


def _list_presets(shown: View) -> None:
    steps, known = int(shown.page.steps), shown.known
    for each in known.presets:
        misfit = each.mismatch(known.family, steps)
        if each.name in PRESETS:
            (shown.others if each.mismatch(known.family, each.steps) else shown.papers).append(each.name)
        else:
            (shown.others if misfit else shown.fitting).append(each.name)
        if misfit and each.name == shown.page.preset:
            shown.misfit = misfit


def words_of_calls(calls: int) -> str:
    return f"{calls} UNet call{'' if calls == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
