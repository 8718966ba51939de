"""Configurations: sampler, schedule type, steps, CFG and settings; each is a row of the table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..fields import SettingsError
from ..recipes import MAX_STEPS, PRESETS
from ..settings import ENABLED, Settings

__all__ = ["NAMED", "Configuration"]

HP_SCHEDULES = ("HP", "HP calibrated")


@dataclass(frozen=True)
class Configuration:
    """How pictures are drawn: a row of the table.

    Attributes:
        settings: HP Sampler's settings as (name, value), sorted by name.
    """

    sampler: str
    scheduler: str
    steps: int
    cfg_scale: float
    settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Configuration:
        """From ``sampler/schedule/steps/cfg`` and settings after a question mark, as ``HP Auto/HP/6/5.5?freeu=Off``.

        Raises:
            ValueError: saying what is wrong with the text.
        """
        head, _, tail = text.partition("?")
        # a sampler's name may have a slash in it, the other parts cannot
        parts = [part.strip() for part in head.rsplit("/", 3)]
        if len(parts) != 4 or not all(parts):
            raise ValueError(f"a configuration must be sampler/schedule/steps/cfg?name=value&..., got {text!r}")
        sampler, scheduler, steps, cfg_scale = parts
        if not steps.isascii() or not steps.isdigit() or not 1 <= int(steps) <= MAX_STEPS:
            raise ValueError(f"{text}: steps must be a whole number from 1 to {MAX_STEPS}, got {steps!r}")
        try:
            scale = float(cfg_scale)
        except ValueError:
            scale = math.nan
        if not 1 <= scale <= 30:
            raise ValueError(f"{text}: cfg must be a number from 1 to 30, got {cfg_scale!r}")
        return cls(sampler, scheduler, int(steps), scale, _settings_of(text, tail))

    def __str__(self) -> str:
        head = f"{self.sampler}/{self.scheduler}/{self.steps}/{self.cfg_scale:g}"
        tail = "&".join(f"{name}={value}" for name, value in self.settings)
        return f"{head}?{tail}" if tail else head

    @property
    def needs_hp_sampler(self) -> bool:
        """Whether the WebUI must have HP Sampler for it."""
        return self.sampler.startswith("HP ") or self.scheduler in HP_SCHEDULES or bool(self.settings)


def _settings_of(text: str, tail: str) -> tuple[tuple[str, Any], ...]:
    values: dict[str, Any] = {}
    for pair in filter(None, tail.split("&")):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name or name in values or name == ENABLED.name:
            raise ValueError(f"{text}: settings must be name=value, each once, got {pair!r}")
        values[name] = value
    try:
        settings = Settings.of([values])
    except SettingsError as error:
        raise ValueError(f"{text}: {error}") from None
    return tuple((name, getattr(settings, name)) for name in sorted(values))


def _preset(name: str, cfg_scale: float, more: str = "") -> str:
    return f"HP Auto/HP/{PRESETS[name].steps}/{cfg_scale:g}?recipe={name}{more}"


def _presets(*names: str) -> tuple[str, ...]:
    return tuple(_preset(name, 5.5) for name in names)


_KARRAS_20 = "DPM++ 2M/Karras/20/5.5"
_FREEU_ALWAYS = "&freeu=On&freeu_first=1&b1=1.2&b2=1.2&s1=0.9&s2=0.2"

NAMED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "paper-sd15": (
            *_presets("SD1.5 5 steps UniPC", "SD1.5 6 steps UniPC", "SD1.5 8 steps UniPC"),
            *_presets("SD1.5 5 steps", "SD1.5 6 steps", "SD1.5 8 steps"),
            _KARRAS_20,
        ),
        "paper-sdxl": (
            *_presets("SDXL 6 steps UniPC", "SDXL 8 steps UniPC"),
            _preset("SDXL 6 steps UniPC", 7.5),
            *_presets("SDXL 6 steps", "SDXL 8 steps"),
            _KARRAS_20,
        ),
        "paper-sdxl-freeu": tuple(
            _preset(name, 5.5, more)
            for name in ("SDXL 6 steps UniPC", "SDXL 8 steps UniPC")
            for more in ("", "&freeu=Off", _FREEU_ALWAYS)
        ),
        "karras-20": (_KARRAS_20,),
        "compare": (
            *(f"HP Auto/HP/{steps}/5.5?calibration=Off" for steps in (5, 6, 8)),
            *(f"DPM++ 2M/{schedule}/{steps}/5.5" for schedule in ("Karras", "SGM Uniform") for steps in (5, 6, 8)),
            _KARRAS_20,
        ),
    }
)
"""Named sets of configurations: those of the paper's tables (with its NFE and CFG), its Free-U ablation, baselines."""
