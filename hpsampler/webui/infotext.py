"""What pictures say of our settings: how it is pasted, sent from tab to tab, and read from the API's ``infotext``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import gradio as gr
from modules.infotext_utils import PasteField

from ..fields import Field, SettingsError
from ..notes import VERSION_KEY
from ..settings import AS_SET, FIELDS, OFF
from .accordion import TITLE, Accordion
from .folders import library

__all__ = ["KEYS", "NOTE_KEY", "on_pasted", "paste_fields"]

_BY_NAME = MappingProxyType({field.name: field for field in FIELDS})

KEYS = MappingProxyType({field.name: field.infotext for field in FIELDS})
"""The infotext's key of every setting."""

NOTE_KEY = "HP note"
SWITCH_KEY = TITLE
"""What the switch is called between tabs; no picture has it, as its settings say whether it was on."""

BEFORE_GUIDANCE = {"guidance": AS_SET, "bend": "0"}
"""What Auto did before version 0.7.0, and what a picture of that time is pasted with."""


class _Target(str):
    """A key that also says how its value is read.

    The host pastes by calling what can be called, and sends values from tab to tab by comparing names.
    """

    read: Callable[[Mapping[str, Any]], Any]

    def __new__(cls, key: str, read: Callable[[Mapping[str, Any]], Any]) -> _Target:
        found = super().__new__(cls, key)
        found.read = read
        return found

    def __call__(self, params: Mapping[str, Any]) -> Any:
        return self.read(params)


def paste_fields(accordion: Accordion) -> tuple[list[PasteField], list[str]]:
    """The host's ``infotext_fields`` of an accordion, and its ``paste_field_names``."""
    targets = {accordion.enabled: _Target(SWITCH_KEY, _needs_accordion)}
    targets.update({accordion.controls[field.name]: _Target(field.infotext, _reader(field)) for field in FIELDS})
    return [PasteField(component, target) for component, target in targets.items()], [*map(str, targets.values())]


def on_pasted(text: str, params: dict[str, Any]) -> None:
    """Before the page takes over a pasted text: tell what cannot be used.

    A menu takes it nevertheless, and the panel says what is wrong. A slider cannot, and gets its default.
    """
    if not _needs_accordion(params):
        return
    for field in FIELDS:
        key = field.infotext if field.infotext in params else field.formerly
        try:
            if key in params:
                field.parse(params[key])
        except SettingsError as error:
            if _is_text(field):
                gr.Warning(str(error))
            else:
                gr.Warning(f"{error}; it is set to {field.default:g}")
                params[key] = field.default


def _is_text(field: Field) -> bool:
    return isinstance(field.default, str)


def _needs_accordion(params: Mapping[str, Any]) -> bool:
    """Whether a pasted picture can only be made again with the accordion on.

    One that Auto drew without a calibration needs it as soon as there are calibrations, which Auto would use now; and
    one of an older version, as Auto draws other pictures since.
    """
    if any(KEYS[name] in params for name in ("recipe", "calibration", "statistics", "golden_noise")):
        return True
    return VERSION_KEY in params and (_is_older(params) or bool(library().names()))


def _is_older(params: Mapping[str, Any]) -> bool:
    """Whether a pasted picture was drawn before guidance and bend were numbers of the recipe."""
    numbers = re.findall(r"\d+", str(params.get(VERSION_KEY, "")))[:2]
    return VERSION_KEY in params and [int(number[:4]) for number in numbers] < [0, 7]


def _reader(field: Field) -> Callable[[Mapping[str, Any]], Any]:
    """What a pasted infotext says of a field: its default where a picture of ours leaves it out."""

    def read(params: Mapping[str, Any]) -> Any:
        if not _needs_accordion(params):
            return None
        # what says nothing of a calibration was drawn without one
        default = OFF if field.infotext == KEYS["calibration"] and library().names() else field.default
        if _is_older(params):
            default = BEFORE_GUIDANCE.get(field.name, default)
        value = params.get(field.infotext, params.get(field.formerly, default))
        try:
            return field.parse(value)
        except SettingsError:
            if _is_text(field):
                return str(value)  # which is refused where it would be used
            raise  # a program's answer then names the field; the page never comes here

    return read
