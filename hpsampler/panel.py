"""What the page must know to draw the schedule by itself, as plain data.

``javascript/hpsampler_schedule.js`` follows a slider at once, so it computes in the browser what this package computes
for the picture. Every table it needs comes from here, and the tests hold its numbers to this package's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Optional

from .calibration.profile import AREA_REACH, CFG_REACH, Profile
from .golden.search import CALLS
from .noise import NoiseModel
from .presets import Preset
from .recipes import (
    AUTO,
    FAMILIES,
    LOW_GUIDANCE,
    MAX_STEPS,
    PRESETS,
    SOLVER_LABELS,
    Recipe,
    counterpart,
    preset_family,
    recipe_for,
)
from .settings import (
    ANALYTICAL,
    ENDING_LABELS,
    FIELDS,
    FREEU_FIELDS,
    GOLDEN_FORMS,
    NO_STATISTICS,
    SCHEDULE_FIELDS,
    SOLVERS_OF,
    Field,
)

__all__ = ["panel_data"]

OFFERED_STEPS = (5, 6, 8)
"""What Auto is made for."""


def panel_data(
    model: str,
    family: str,
    noise: NoiseModel,
    samplers: Mapping[str, Optional[str]],
    schedules: Collection[str],
    presets: Sequence[Preset] = (),
    profiles: Sequence[Profile] = (),
    hashes: Collection[str] = (),
    measured: bool = False,
    follow: bool = False,
    plot: bool = True,
    problem: str = "",
) -> dict[str, Any]:
    """All of it, ready for JSON.

    Args:
        model: the loaded checkpoint's name, for people.
        samplers: ours, and the solver that each fixes.
        schedules: labels of our schedule types.
        presets: the built-in and a person's own.
        profiles: calibrations; those of other models are left out.
        hashes: of the loaded model.
        measured: whether there are statistics of the loaded model, for DPM-Solver-v3.
        follow: whether presets follow the model.
        plot: whether the schedule is drawn.
        problem: why the loaded model cannot be sampled with ours; empty where it can.
    """
    return {
        "model": model,
        "family": family,
        "problem": problem,
        "plot": plot,
        "noise": {"sigmas": noise.sigmas.tolist(), "zeroTerminalSnr": noise.zero_terminal_snr},
        "samplers": dict(samplers),
        "schedules": list(schedules),
        "fields": {field.name: _field(field) for field in FIELDS},
        "groups": {
            "schedule": sorted(SCHEDULE_FIELDS), "freeu": sorted(FREEU_FIELDS),
        },
        "solversOf": {name: list(owners) for name, owners in SOLVERS_OF.items()},
        "solverLabels": dict(SOLVER_LABELS),
        "analytical": dict(ANALYTICAL),
        "endings": dict(ENDING_LABELS),
        "recipes": {name: _recipe(recipe) for name, recipe in PRESETS.items()},
        "counterparts": {name: counterpart(name, family) for name in PRESETS} if follow else {},
        "auto": _auto(family),
        "presets": [_preset(each, family) for each in presets],
        "calibrations": [row for each in profiles for row in _calibrations(each, frozenset(hashes), noise)],
        "goldenForms": list(GOLDEN_FORMS),
        "goldenCalls": CALLS,
        "noStatistics": "" if measured else NO_STATISTICS,
        "reach": {"cfg": CFG_REACH, "area": AREA_REACH},
        "offered": list(OFFERED_STEPS),
        "maxSteps": MAX_STEPS,
    }  # fmt: skip


def _field(field: Field) -> dict[str, Any]:
    return {
        "label": field.label, "default": field.default, "choices": list(field.choices), "low": field.low,
        "high": field.high, "neutral": field.neutral, "whole": field.whole, "words": list(field.words),
        "text": isinstance(field.default, str) and not field.choices,
    }  # fmt: skip


def _recipe(recipe: Recipe) -> dict[str, Any]:
    found = asdict(recipe)
    return {**found, "family": preset_family(recipe.name)}


def _auto(family: str) -> list[dict[str, Any]]:
    """Auto's recipes for one family: each with the last steps and the last guidance scale it is for."""
    rows: list[dict[str, Any]] = []
    for high_guidance in (False, True):
        cfg_scale = LOW_GUIDANCE + high_guidance
        last: Optional[dict[str, Any]] = None
        for steps in range(1, MAX_STEPS + 1):
            recipe = _recipe(recipe_for(family, steps, cfg_scale))
            same = last is not None and {**recipe, "steps": 0} == {**last["recipe"], "steps": 0}
            if last is None or not same:
                last = {"lastSteps": steps, "lastCfg": None if high_guidance else LOW_GUIDANCE, "recipe": recipe}
                rows.append(last)
            last["lastSteps"] = steps
    return rows


def _preset(preset: Preset, family: str) -> dict[str, Any]:
    assert not preset.family or preset.family in FAMILIES
    return {
        "name": preset.name, "family": preset.family, "steps": preset.steps, "cfg": preset.cfg_scale,
        "sampler": preset.sampler, "schedule": preset.schedule, "recipe": preset.settings.get("recipe", AUTO),
        "fitsModel": not preset.mismatch(family, preset.steps),
    }  # fmt: skip


def _calibrations(profile: Profile, hashes: frozenset[str], noise: NoiseModel) -> list[dict[str, Any]]:
    """The schedules of a profile that was made for the loaded model."""
    if profile.model_mismatch(hashes, noise):
        return []
    return [
        {
            "name": profile.name, "label": profile.label(each), "hash": each.hash, "steps": each.steps,
            "cfg": each.cfg_scale, "width": profile.width, "height": profile.height, "gain": each.gain,
            "sigmas": list(each.sigmas),
        }
        for each in profile.fitted
    ]  # fmt: skip
