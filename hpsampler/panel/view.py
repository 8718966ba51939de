"""The panel's answer to what the page's controls hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ..calibration.profile import Drawing, Profile
from ..calibration.rows import Fitted, Joint
from ..effects import Use, idle
from ..fields import Field, SettingsError
from ..notes import followed
from ..plan import LoadedModel, Pass, Request
from ..recipes import AUTO, PRESETS
from ..settings import ANALYTICAL, AS_RECIPE, ENDING_LABELS, FIELDS, OFF, SCHEDULE_FIELDS, Settings
from ..store import StoreError
from .passes import is_count, look_at, named_recipe
from .state import Control, Known, Offer, Page, PassView, View

__all__ = ["short", "view"]

OFFERED_STEPS = (5, 6, 8)
"""What Auto is made for."""


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
        look_at(first, settings, page, known)
    except SettingsError as error:
        first.error, first.wrong = str(error), error.names
    if page.hires and not page.img2img and not first.error:
        found.second = second = PassView(Use.of(page.second.sampler, page.second.schedule))
        try:
            look_at(second, found.settings.of_second_pass(), page.second, known, second=True)
        except SettingsError as error:
            second.error, second.wrong = str(error), error.names
    if not found.settings.enabled and enabled:
        # what could not be read whole is read one by one, so that the page still says what it can
        found.settings = _readable(values)
    if first.named is None and is_count(page.steps):
        first.named = named_recipe(found.settings, page, known)
    found.controls = _controls(found)
    _mark_changed(found)
    found.offers = _offers(found)
    _list_presets(found)
    return found


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
        return short(first.base[first.cut]) if first.base and not settings.end_sigma else ""
    if field.name == "guidance":
        return _of_guidance(shown)
    if field.name in ("b1", "b2", "s1", "s2", "freeu_version", "freeu_first", "freeu_last", "freeu"):
        return _of_freeu(field.name, shown)
    left = field.default == AS_RECIPE or (field.neutral is not None and field.neutral == field.default)
    value = getattr(recipe, field.name, None)
    if not left or value is None:
        return ""
    return _worded(field.name, value)


def _of_guidance(shown: View) -> str:
    """What the recipe makes of the CFG scale."""
    scales = shown.first.guidance
    if shown.settings.guidance != AS_RECIPE or not shown.first.use.own:
        return ""
    return short(scales[0]) if scales else "as set"


def _worded(name: str, value: Any) -> str:
    """A recipe's value as the page's menus call it."""
    menus: Mapping[str, Mapping[str, Any]] = {"ending": ENDING_LABELS, "analytical_first_step": ANALYTICAL}
    words = {own: label for label, own in menus.get(name, {}).items()}
    if value in words:
        return words[value]
    return short(value) if isinstance(value, (int, float)) else str(value)


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
    return ", then ".join(dict.fromkeys(short(getattr(plan, attribute)) for plan in plans)) if first.freeu else ""


def _mark_changed(shown: View) -> None:
    for each in FIELDS:
        control = shown.controls[each.name]
        if control.changed and not control.idle and each.name not in ("hires_recipe", "calibration", "statistics"):
            value = getattr(shown.settings, each.name)
            shown.changed.append((each, short(value) if isinstance(value, (int, float)) else str(value)))


def short(value: float) -> str:
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
    pairs: list[tuple[Profile, Drawing]]
    if not settings.names_calibration:
        pairs = [(profile, each) for profile in known.of_model for each in profile.rows]
    else:
        try:
            named = known.calibrations.named(settings.calibration)
        except StoreError:
            return ()
        pairs = [(named, each) for each in named.rows] if isinstance(named, Profile) else named
    fitting = [each for profile, each in pairs if not profile.mismatch(target)]
    # a joint one is offered at the CFG that is set, or at the nearest that it is for
    joint = {
        (each.steps, min(max(page.cfg, each.schedule.low), each.schedule.high))
        for each in fitting
        if isinstance(each, Joint)
    }
    return joint | {(each.steps, each.cfg_scale) for each in fitting if isinstance(each, Fitted)}


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
