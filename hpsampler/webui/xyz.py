"""``[HP]`` axes of the host's X/Y/Z plot: one for every control, one for presets.

An axis writes what it sets on the request, where the script finds it beside the accordion's own values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from modules import scripts

from ..fields import Field, SettingsError
from ..presets import built_in
from ..recipes import PRESETS
from ..settings import ENABLED, FIELDS
from ..store import StoreError
from . import checkpoint, host
from .folders import menus, presets

__all__ = ["PRESET_AXIS", "axes_of", "register"]

PREFIX = "[HP] "
PRESET_AXIS = PREFIX + "Preset"

ATTRIBUTE = "hpsampler_axes"
"""Name under which a cell's request carries what its axes set, by name of setting."""


def axes_of(p: Any) -> dict[str, Any]:
    """What the plot's axes set for this request; empty where there is no plot."""
    return dict(getattr(p, ATTRIBUTE, {}))


def register() -> None:
    """Add our axes to the plot, replacing those of an earlier load; nothing where the host has no such script."""
    module = next((each.module for each in scripts.scripts_data if each.path.endswith("xyz_grid.py")), None)
    if module is None:
        return
    options = module.axis_options
    options[:] = [each for each in options if not each.label.startswith(PREFIX)]
    options.append(
        module.AxisOption(PRESET_AXIS, str, partial(_set, "preset"), confirm=_confirm_presets, choices=_fitting_presets)
    )
    for field in (ENABLED, *FIELDS):
        kind: type = str if field.choices or isinstance(field.default, (str, bool)) else int if field.whole else float
        axis = module.AxisOptionTxt2Img if field.name == "hires_recipe" else module.AxisOption
        options.append(
            axis(
                PREFIX + field.label, kind, partial(_set, field.name), confirm=_confirm(field), choices=_choices(field)
            )
        )


def _family() -> str:
    """Of the loaded model; empty while there is none, or one that the method does not cover."""
    try:
        return checkpoint.family() if host.loaded() is not None else ""
    except SettingsError:
        return ""


def _fitting_presets() -> list[str]:
    """Presets that are not made for models of another family; any other can still be written."""
    family = _family()
    found = (*built_in(), *presets().read()[0])
    return [each.name for each in found if not family or not each.mismatch(family, each.steps)]


def _set(name: str, p: Any, value: Any, values: Sequence[Any]) -> None:
    # a cell's request is a shallow copy, so the others' must not be changed with it
    setattr(p, ATTRIBUTE, {**axes_of(p), name: _switch(value) if name == ENABLED.name else value})


def _switch(value: Any) -> Any:
    return {"true": True, "false": False}.get(str(value).strip().lower(), value)


def _choices(field: Field) -> Callable[[], list[str]] | None:
    if field.name == ENABLED.name:
        return lambda: ["True", "False"]
    if field.words:
        return lambda: [*field.words, *field.suggestions, *menus().get(field.name, list)()]
    if field.name in ("recipe", "hires_recipe"):
        return lambda: [each for each in field.choices if each not in PRESETS or each in _fitting_presets()]
    return (lambda: list(field.choices)) if field.choices else None


def _confirm(field: Field) -> Callable[[Any, Sequence[Any]], None]:
    """The host's check of an axis, before the first cell is drawn."""

    def confirm(p: Any, values: Sequence[Any]) -> None:
        for value in values:
            try:
                field.parse(_switch(value) if field.name == ENABLED.name else value)
            except SettingsError as error:
                raise RuntimeError(str(error)) from None

    return confirm


def _confirm_presets(p: Any, values: Sequence[str]) -> None:
    for value in values:
        try:
            presets().find(value)
        except StoreError as error:
            raise RuntimeError(f"HP Sampler: {error}") from None
