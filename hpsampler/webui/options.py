"""The settings page: Settings -> HP Sampler."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import shared

from ..calibration.choice import AIMS, PICTURES
from ..effects import SAMPLERS, SCHEDULES
from ..settings import OFF, Settings
from .folders import presets

__all__ = ["NO_PRESET", "aim", "default_preset", "follows_model", "hidden", "plots", "register", "settings_when_off"]

PLACE: dict[str, Any] = {"section": ("hpsampler", "HP Sampler"), "category_id": "sd"}
"""The page, and the host's category "Stable Diffusion"; without one it stands under "Uncategorized"."""
HIDDEN, PRESET, FOLLOW, PLOT = "hpsampler_hidden", "hpsampler_preset", "hpsampler_follow", "hpsampler_plot"
WHEN_OFF, AIM = "hpsampler_calibration_when_off", "hpsampler_aim"
NO_PRESET = "None"


def register() -> None:
    """Add the page; called by the host for every page it builds."""
    names = [*SAMPLERS, *SCHEDULES.values()]
    add = shared.opts.add_option
    add(
        HIDDEN,
        shared.OptionInfo(
            [], "Samplers and schedule types to leave out of the menus", gr.CheckboxGroup, {"choices": names},
            **PLACE,
        ).needs_reload_ui(),
    )  # fmt: skip
    add(
        PRESET,
        shared.OptionInfo(
            NO_PRESET, "Preset that the accordion begins with, switched on", gr.Dropdown,
            lambda: {"choices": [NO_PRESET, *presets().all_names()]}, **PLACE,
            # gives the menu a button that reads the presets anew
            refresh=lambda: None,
        ).info("requests to the API that say nothing of HP Sampler begin with it too").needs_reload_ui(),
    )  # fmt: skip
    add(
        FOLLOW,
        shared.OptionInfo(False, "Presets follow the model", **PLACE).info(
            "while an SDXL model is loaded, SD 1.5's presets stand for SDXL's of the same name, and the other way round"
        ),
    )
    add(
        WHEN_OFF,
        shared.OptionInfo(True, "Use a fitting calibration also while the accordion is off", **PLACE).info(
            "HP Auto and HP DPM++ 2M then draw with it by themselves; the sentence in the accordion says so"
        ),
    )
    add(
        AIM,
        shared.OptionInfo(
            PICTURES, "Auto aims at", gr.Radio, {"choices": list(AIMS)}, **PLACE
        ).info("where a calibration compared ways to draw, HP Auto takes the one that is best at this"),
    )  # fmt: skip
    add(
        PLOT,
        shared.OptionInfo(True, "Draw the schedule in the accordion", **PLACE).needs_reload_ui(),
    )


def _get(name: str, default: Any) -> Any:
    """An option's value; before the page was ever built it has none."""
    return shared.opts.data.get(name, default)


def hidden() -> frozenset[str]:
    return frozenset(_get(HIDDEN, []))


def default_preset() -> str:
    """Name of the preset to begin with; empty for none."""
    name = _get(PRESET, NO_PRESET)
    return "" if name in (NO_PRESET, None) else str(name)


def follows_model() -> bool:
    return bool(_get(FOLLOW, False))


def settings_when_off() -> Settings:
    """What a request is drawn with while the accordion is off."""
    return Settings() if _get(WHEN_OFF, True) else Settings(calibration=OFF)


def aim() -> str:
    """What Auto aims at; what is none of it stands for the default."""
    found = _get(AIM, PICTURES)
    return found if found in AIMS else PICTURES


def plots() -> bool:
    return bool(_get(PLOT, True))
