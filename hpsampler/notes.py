"""What goes with a picture in words: its parameters, which settings have no effect in it, what was made for another.

The sentences are shown before a picture is drawn and written into it afterwards, so they are in the present tense.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from . import __version__
from .effects import Use, idle
from .fields import Field
from .recipes import PRESETS, Recipe, recipe_for
from .settings import FIELDS, OFF, SCHEDULE_FIELDS, Settings

__all__ = [
    "EXACT_FIELDS", "VERSION_KEY", "followed", "ignored", "misfit", "of_second_pass", "off_schedule", "parameters",
    "unused", "window_passed",
]  # fmt: skip

VERSION_KEY = "HP version"

EXACT_FIELDS = SCHEDULE_FIELDS | {"analytical_first_step"}
"""Settings that say what the schedule is, so that no calibration stands in its place."""


def _no_effect(fields: Collection[Field], reason: str) -> str:
    labels = [each.label for each in fields]
    listed = " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))
    return f"{listed} {'has' if len(labels) == 1 else 'have'} no effect, as {reason}"


def ignored(sampler: str, schedule: str) -> str:
    """What is said of a sampler of the host's that takes no schedule type, where one of ours was asked for."""
    return f"the sampler {sampler} makes its own schedule and ignores the type {schedule}"


def off_schedule(settings: Settings, use: Use) -> str:
    """What was set of our schedule while one of our samplers runs on another type; empty where nothing was."""
    fields = settings.changed(EXACT_FIELDS)
    if not fields or not use.own or use.coupled:
        return ""
    return _no_effect(fields, f"the schedule type is {use.schedule} and not HP")


def unused(settings: Settings, passes: Sequence[tuple[Use, Recipe]]) -> list[str]:
    """What else was set and has no effect in any pass of a picture: a sentence for each reason.

    What is switched off is not missed. What a pass tells by itself is left to it.

    Args:
        passes: what each uses of ours, and the recipe that the settings name for it.
    """
    reasons = [idle(settings, use, recipe) for use, recipe in passes]
    told = {"golden_noise"} | (EXACT_FIELDS if any(use.own for use, _ in passes) else set())
    groups: dict[str, list[Field]] = {}
    for field in settings.changed([each.name for each in FIELDS if each.name not in told]):
        if getattr(settings, field.name) != OFF and all(field.name in each for each in reasons):
            groups.setdefault(reasons[0][field.name], []).append(field)
    return [_no_effect(fields, reason) for reason, fields in groups.items()]


def of_second_pass(use: Use) -> str:
    """That a sampler of ours runs hires. fix's second pass on another schedule type, which the first may have had.

    The parameters of a picture do not say it where both passes have the same.
    """
    if not use.own or use.coupled:
        return ""
    return f"the second pass runs {use.sampler} on the schedule type {use.schedule} and not on HP"


def window_passed(settings: Settings, calls: int) -> str:
    """That Free-U was set to begin after the last UNet call; empty where it was not."""
    if settings.freeu != "On" or settings.freeu_first <= calls:
        return ""
    counted = f"{calls} UNet call{'' if calls == 1 else 's'}"
    return f"Free-U has no effect, as its first call is {settings.freeu_first} and there are {counted}"


def misfit(settings: Settings, use: Use, steps: int) -> str:
    """That a preset runs with other steps than its own; empty where it does not."""
    preset = PRESETS.get(settings.recipe)
    if not settings.enabled or preset is None or not use.coupled or preset.steps == steps:
        return ""
    return f"the recipe {preset.name} is made for {preset.steps} steps; it runs with {steps}"


def followed(settings: Settings, family: str, tell: Callable[[str], object]) -> Settings:
    """``settings`` with presets of another family replaced by their counterparts, which is told.

    Raises:
        SettingsError: as :meth:`Settings.following`.
    """
    found = settings.following(family)
    for before, after in ((settings.recipe, found.recipe), (settings.hires_recipe, found.hires_recipe)):
        if before != after:
            tell(f"the preset {before} stands for {after}, as presets follow the model")
    return found


def parameters(settings: Settings, uses: Sequence[Use]) -> dict[str, Any]:
    """What the passes of a picture write into its infotext of what was set; empty where nothing of ours is used.

    Args:
        uses: of the first pass, and of hires. fix's second where there is one.
    """
    schedule, own = any(use.coupled for use in uses), any(use.own for use in uses)
    if not (settings.freeu == "On" or settings.npnet or schedule or own):
        return {}
    if not settings.enabled:
        return {VERSION_KEY: __version__}
    recipes = [PRESETS.get(each.recipe) for each in (settings, settings.of_second_pass())]
    # Auto's is DPM++ 2M whatever the steps and the guidance
    solvers = {use.runs(recipe or recipe_for("sd1", 1, 7.0)) for use, recipe in zip(uses, recipes)}
    hires = len(uses) > 1 and (uses[1].own or uses[1].coupled)
    freeu = settings.freeu == "On" or schedule
    return {**settings.infotext(schedule, freeu, solvers, hires), VERSION_KEY: __version__}
