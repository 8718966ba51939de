"""The accordion's controls, in gradio alone: the WebUI shows them, and so does any other page that has a container.

Written for gradio 3.41 (A1111) and 4.40 (Forge) alike. ``javascript/hpsampler_panel.js`` draws the schedule into it
and says beside a control where it has no effect; it reads the page's own controls by the selectors given here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from html import escape
from types import MappingProxyType
from typing import Any, Optional

import gradio as gr

from ..presets import PresetStore
from ..settings import FIELDS, Field
from . import preset_row

__all__ = ["GROUPS", "TITLE", "Accordion", "Container", "PageContext", "build"]

TITLE = "HP Sampler"

Container = Callable[..., AbstractContextManager[Any]]
"""Called with the switch's value, ``label`` and ``elem_id``; entered, it gives the switch. The host's is
``InputAccordion``."""

_ALWAYS_SHOWN = ("recipe", "ending")

GROUPS = (
    (
        "Schedule",
        "schedule",
        ("base_steps", "rho", "truncation_index", "time_rho", "end_sigma", "analytical_first_step", "golden_noise"),
    ),
    (
        "Free-U",
        "freeu_group",
        ("freeu", "freeu_version", "freeu_first", "freeu_last", "b1", "b2", "s1", "s2"),
    ),
    ("UniPC and DPM-v3", "unipc_group", ("prediction", "variant", "order", "noise_level", "statistics")),
)
"""Title, end of the ``elem_id`` and fields of each part that opens by itself."""

_FIELDS = MappingProxyType({field.name: field for field in FIELDS})


@dataclass(frozen=True)
class PageContext:
    """What the accordion must know of the page it stands on.

    Attributes:
        page: CSS selectors of the page's own ``sampler``, ``schedule``, ``steps``, ``cfg``, ``width``, ``height`` and
            ``denoising``; those that it has.
        panel: the plot's data, see :func:`~hpsampler.panel.panel_data`.
        presets: where presets are kept.
        menus: names of what there is, by the field that takes one (calibrations, statistics).
        begin_with: values to begin with, by name of field; None is every field's default, and the switch off.
    """

    page: Mapping[str, str]
    panel: Callable[[], Mapping[str, Any]]
    presets: PresetStore
    menus: Mapping[str, Callable[[], Sequence[str]]] = field(default_factory=dict)
    begin_with: Optional[Mapping[str, Any]] = field(default=None)


@dataclass(frozen=True)
class Accordion:
    """The components that were built.

    Attributes:
        enabled: the switch.
        controls: the others by the name of their field, in the order of ``FIELDS``.
    """

    enabled: Any
    controls: Mapping[str, Any]

    @property
    def inputs(self) -> list[Any]:
        """All of them, in the order that ``Settings.of`` takes their values in."""
        return [self.enabled, *self.controls.values()]


def build(prefix: str, container: Container, around: PageContext) -> Accordion:
    """Build the accordion where the page now stands; every ``elem_id`` starts with ``prefix``."""
    made: dict[str, Any] = {}
    begin = around.begin_with or {}
    with container(around.begin_with is not None, label=TITLE, elem_id=prefix) as enabled:
        gr.HTML(
            f'<div class="hpsampler-panel" data-prefix="{escape(prefix)}" '
            f'data-page="{escape(json.dumps(dict(around.page)))}"></div>',
            elem_id=f"{prefix}_panel",
        )
        data = gr.Textbox(lambda: json.dumps(around.panel()), visible=False, elem_id=f"{prefix}_data")
        again = gr.Button("Look again", visible=False, elem_id=f"{prefix}_look")
        row = preset_row.build(prefix, around.presets)
        made.update(_in_pairs(_ALWAYS_SHOWN, prefix, begin))
        with gr.Row():
            made["calibration"] = _component(_FIELDS["calibration"], prefix, begin)
            made["hires_recipe"] = _component(_FIELDS["hires_recipe"], prefix, begin)
        for title, suffix, names in GROUPS:
            with gr.Accordion(title, open=False, elem_id=f"{prefix}_{suffix}"):
                made.update(_in_pairs(names, prefix, begin))
    accordion = Accordion(enabled, MappingProxyType({each.name: made[each.name] for each in FIELDS}))
    row.connect(accordion.enabled, accordion.controls, data, lambda: json.dumps(around.panel()))

    named = [each.name for each in FIELDS if each.words]

    def look() -> tuple[Any, ...]:
        menus = [gr.update(choices=_menu(_FIELDS[name], around.menus.get(name, tuple))) for name in named]
        names, said = row.menu()
        return json.dumps(around.panel()), *menus, names, said

    # the page is built once, and what it lists may have changed since; its script presses this as it opens
    outputs = [data, *(made[name] for name in named), row.chosen, row.said]
    again.click(look, outputs=outputs, show_progress="hidden", queue=False)
    return accordion


def _in_pairs(names: Sequence[str], prefix: str, begin: Mapping[str, Any]) -> dict[str, Any]:
    """Two controls a row; the last of an odd number has the whole width."""
    made = {}
    for start in range(0, len(names), 2):
        pair = names[start : start + 2]
        with gr.Row() if len(pair) == 2 else nullcontext():
            made.update({name: _component(_FIELDS[name], prefix, begin) for name in pair})
    return made


def _menu(field: Field, names: Callable[[], Sequence[str]]) -> list[str]:
    return [*field.words, *names()]


def _named(field: Field, prefix: str, begin: Mapping[str, Any]) -> Any:
    """A menu that also takes what a picture says; its names come as the page opens."""
    return gr.Dropdown(
        choices=list(field.words), allow_custom_value=True, label=field.label, info=field.help,
        value=begin.get(field.name, field.default), elem_id=f"{prefix}_{field.name}",
    )  # fmt: skip


def _component(field: Field, prefix: str, begin: Mapping[str, Any]) -> Any:
    if field.words:
        return _named(field, prefix, begin)
    value = begin.get(field.name, field.default)
    common = {"label": field.label, "value": value, "elem_id": f"{prefix}_{field.name}", "info": field.help}
    if field.choices:
        return gr.Dropdown(choices=list(field.choices), **common)
    low = field.low if field.neutral is None else min(field.low, field.neutral)
    return gr.Slider(minimum=low, maximum=field.high, step=field.step, **common)
