"""Presets: what people keep of the accordion, beside those that come along."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .fields import LONGEST_TEXT, SettingsError
from .recipes import AUTO, FAMILIES, MAX_STEPS, PRESETS, preset_family
from .settings import ENABLED, FIELDS, Settings
from .store import Reader, Store, StoreError, abbreviated, clean_name, parse_json

__all__ = ["FAMILY_LABELS", "Preset", "PresetStore", "built_in"]

FORMAT, VERSION = "hpsampler preset", 1

MAX_CFG = 1000.0

FAMILY_LABELS = MappingProxyType({"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"})

OWN_SAMPLER = "HP Auto"


@dataclass(frozen=True)
class Preset:
    """The accordion's values under a name.

    Attributes:
        settings: by name of field, those that differ from their default.
        family: of the models it was made for, see ``FAMILIES``; empty is any.
        steps, cfg_scale: that it was made for; 0 is not said.
        sampler, schedule: that it was made with, as the page names them; empty is not said.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    family: str = ""
    steps: int = 0
    cfg_scale: float = 0.0
    sampler: str = ""
    schedule: str = ""

    @classmethod
    def of(cls, name: str, values: Mapping[str, Any], **around: Any) -> Preset:
        """From the accordion's values by name, and what stands ``around`` it (the other attributes).

        Raises:
            StoreError: a name that cannot be kept, values that cannot be used, or a wrong attribute.
        """
        preset = cls(clean_name(name, RESERVED), _checked(values), **around)
        # one set of checks: what a file may hold
        return cls.from_json(preset.to_json())

    def values(self) -> dict[str, Any]:
        """Every field of the accordion by name."""
        return {each.name: self.settings.get(each.name, each.default) for each in FIELDS}

    def mismatch(self, family: str, steps: int) -> str:
        """Why it is not made for models of that family at so many steps; empty where it is.

        SD 2.x has no presets of its own, and takes SD 1.x's.
        """
        relatives = {family, "sd1"} if family == "sd2" else {family}
        told = [
            FAMILY_LABELS[self.family] if self.family and self.family not in relatives else "",
            f"{self.steps} steps" if self.steps and self.steps != steps else "",
        ]
        return " and ".join(f"made for {each}" for each in told if each)

    def to_json(self) -> str:
        data = {
            "format": FORMAT, "version": VERSION, "name": self.name, "family": self.family, "steps": self.steps,
            "cfg_scale": self.cfg_scale, "sampler": self.sampler, "schedule": self.schedule,
            "settings": dict(self.settings),
        }  # fmt: skip
        return json.dumps(data, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Preset:
        """Read and check every value.

        Raises:
            StoreError: naming the field, its value and what is allowed.
        """
        read = Reader(parse_json(text, "preset", FORMAT, VERSION))
        settings = read.at("settings")
        if not isinstance(settings.data, dict):
            raise settings.error("an object of settings by name")
        family = read.at("family")
        if family.data not in ("", *FAMILIES):
            raise family.error(f"empty or one of {', '.join(FAMILIES)}")
        return cls(
            name=clean_name(read.text("name"), RESERVED),
            settings=_checked(settings.data),
            family=family.data,
            steps=read.whole("steps", 0, MAX_STEPS),
            cfg_scale=read.number("cfg_scale", 0, MAX_CFG),
            sampler=_label(read.at("sampler")),
            schedule=_label(read.at("schedule")),
        )


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that differ from their default, in their proper types.

    Raises:
        StoreError: an unknown name, a wrong value, or values that contradict each other.
    """
    if ENABLED.name in values:
        raise StoreError(f"settings.{ENABLED.name} must not be there: loading a preset switches HP Sampler on")
    names = [each.name for each in FIELDS]
    for name in values:
        if name not in names:
            raise StoreError(f"unknown setting {abbreviated(name)}; the names are {', '.join(names)}")
    try:
        settings = Settings.of_names({ENABLED.name: True, **values})
    except SettingsError as error:
        raise StoreError(str(error).removeprefix("HP Sampler: ")) from None
    kept = {each.name: getattr(settings, each.name) for each in settings.changed(names)}
    for name, value in kept.items():
        # a page cannot show halves of characters, and a picture's text is one line
        if isinstance(value, str) and not value.isprintable():
            raise StoreError(f"settings.{name} must be a text of printable characters, got {abbreviated(value)}")
    return kept


def _label(row: Reader) -> str:
    if not isinstance(row.data, str) or len(row.data) > LONGEST_TEXT or not row.data.isprintable():
        raise row.error(f"a text of at most {LONGEST_TEXT} characters")
    return row.data


RESERVED = (AUTO, *PRESETS)
"""Names of the built-in presets."""


def built_in() -> tuple[Preset, ...]:
    """Auto, and the paper's presets."""
    papers = (
        Preset(name, {"recipe": name}, preset_family(name), recipe.steps, sampler=OWN_SAMPLER)
        for name, recipe in PRESETS.items()
    )
    return (Preset(AUTO, sampler=OWN_SAMPLER), *papers)


class PresetStore(Store[Preset]):
    """A person's own presets, in a folder."""

    kind = "preset"
    reserved = RESERVED

    @staticmethod
    def parse(text: str) -> Preset:
        return Preset.from_json(text)

    def all_names(self) -> list[str]:
        """The built-in ones, then a person's own."""
        return [*RESERVED, *self.names()]

    def find(self, name: str) -> Preset:
        """The preset of that name, built in or not.

        Raises:
            StoreError: there is none.
        """
        presets = {each.name: each for each in (*built_in(), *self.read()[0])}
        if name not in presets:
            raise StoreError(f"there is no preset named {name!r}; there are: {', '.join(presets)}")
        return presets[name]
