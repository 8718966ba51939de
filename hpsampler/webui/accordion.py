"""The accordion's controls, in gradio alone: the WebUI shows them, and so does any other page that has a container.

Written for gradio 3.41 (A1111) and 4.40 (Forge) alike. ``javascript/hpsampler_panel.js`` reads the page's own controls
by the selectors given here, asks through a hidden textbox and button, and puts what :mod:`hpsampler.panel` answers into
the panel and beside the controls. Questions pass every queue, so that they are answered while a picture is drawn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from html import escape
from types import MappingProxyType
from typing import Any, Optional

import gradio as gr

from ..effects import AUTOMATIC, OWN_SAMPLER
from ..fields import Field
from ..panel import Known, Page
from ..presets import PresetStore
from ..recipes import AUTO
from ..settings import ENABLED, FIELDS
from . import preset_row
from .panel_places import skeleton
from .trouble import Trouble

__all__ = ["ADVANCED", "GROUPS", "TITLE", "Accordion", "Container", "PageContext", "build"]

TITLE = "HP Sampler"
ADVANCED = "advanced"

Container = Callable[..., AbstractContextManager[Any]]
"""Called with the switch's value, ``label`` and ``elem_id``; entered, it gives the switch. The host's is
``InputAccordion``."""

_GROUPS = (
    ("Schedule", "schedule", ("base_steps", "rho", "truncation_index", "time_rho", "end_sigma", "bend")),
    ("First step, calibration, second pass", "passes_group",
     ("calibration", "golden_noise", "analytical_first_step", "hires_recipe")),
    ("Free-U", "freeu_group", ("freeu", "freeu_version", "freeu_first", "freeu_last", "b1", "b2", "s1", "s2")),
    ("UniPC and DPM-v3", "unipc_group", ("prediction", "variant", "order", "noise_level", "statistics")),
)  # fmt: skip
ALWAYS_SHOWN = ("recipe", "guidance", "ending")

_FIELDS = MappingProxyType({field.name: field for field in FIELDS})


def _grouped(fields: Iterable[Field]) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """The groups with the fields that there are; one that belongs to none is in a last group of its own."""
    placed = {*ALWAYS_SHOWN, *(name for _, _, names in _GROUPS for name in names)}
    names = [each.name for each in fields]
    found = [(title, suffix, tuple(each for each in own if each in names)) for title, suffix, own in _GROUPS]
    rest = tuple(name for name in names if name not in placed)
    return (*found, *([("Other", "other_group", rest)] if rest else []))


GROUPS = _grouped(FIELDS)
"""Title, end of the ``elem_id`` and fields of each part that opens by itself; the one table of what is in which."""


@dataclass(frozen=True)
class PageContext:
    """What the accordion must know of the page it stands on.

    Attributes:
        page: CSS selectors of the page's own controls, by the names of :class:`~hpsampler.panel.Page`; those it has.
        known: what the server knows now.
        presets: where presets are kept.
        menus: names of what there is, by the field that takes one (calibrations, statistics).
        begin_with: values to begin with, by name of field; None is every field's default, and the switch off.
        preset: the name of the preset that those are.
        tab: title of the page's tab where calibrations are made; empty where there is none.
        saved: values that a person saved as the page's defaults, by name, which its menus must know as they are built.
        trouble: what of ours failed, which the panel says.
    """

    page: Mapping[str, str]
    known: Callable[[], Known]
    presets: PresetStore
    menus: Mapping[str, Callable[[], Sequence[str]]] = field(default_factory=dict)
    begin_with: Optional[Mapping[str, Any]] = field(default=None)
    preset: str = AUTO
    tab: str = ""
    saved: Mapping[str, Any] = field(default_factory=dict)
    trouble: Trouble = field(default_factory=Trouble)


@dataclass(frozen=True)
class Accordion:
    """The components that were built.

    Attributes:
        enabled: the switch.
        controls: the others by the name of their field, in the order of ``FIELDS``.
        auto: the hidden button that the offer "Use HP Auto" presses.
    """

    enabled: Any
    controls: Mapping[str, Any]
    auto: Any

    @property
    def inputs(self) -> list[Any]:
        """All of them, in the order that ``Settings.of`` takes their values in."""
        return [self.enabled, *self.controls.values()]

    def connect(self, sampler: Any, schedule: Any) -> None:
        """Let "Use HP Auto" set the page's own menus of samplers and schedule types."""
        self.auto.click(lambda: (OWN_SAMPLER, AUTOMATIC), outputs=[sampler, schedule], queue=False, **_QUIET)


_QUIET: dict[str, Any] = {"show_progress": "hidden"}


def build(prefix: str, container: Container, around: PageContext) -> Accordion:
    """Build the accordion where the page now stands; every ``elem_id`` starts with ``prefix``."""
    made: dict[str, Any] = {}

    def add(names: Sequence[str]) -> None:
        made.update({name: _component(_FIELDS[name], prefix, around) for name in names if name in _FIELDS})

    with container(around.begin_with is not None, label=TITLE, elem_id=prefix) as enabled:
        gr.HTML(skeleton(prefix, around.page), elem_id=f"{prefix}_panel")
        # gradio puts controls that follow each other into one form, which style.css lays out in columns
        talk = gr.Textbox(visible=False, elem_id=f"{prefix}_talk")
        add(ALWAYS_SHOWN)
        ask, act, auto = (gr.Button(name, visible=False, elem_id=f"{prefix}_{name}") for name in ("ask", "act", "auto"))
        with gr.Accordion("Advanced", open=False, elem_id=f"{prefix}_{ADVANCED}"):
            for title, suffix, names in GROUPS:
                with gr.Accordion(title, open=False, elem_id=f"{prefix}_{suffix}", elem_classes=["hps-group"]):
                    add(names)
    # nothing of it is a default that people set
    talk.do_not_save_to_config = True
    accordion = Accordion(enabled, MappingProxyType({each.name: made[each.name] for each in FIELDS}), auto)
    answers = _Answers(around)
    named = [made[name] for name in answers.menus]
    ask.click(answers.ask, [talk, *accordion.inputs], [talk, *named], queue=False, **_QUIET)
    act.click(answers.act, [talk, *accordion.inputs], [talk, *accordion.inputs], queue=False, **_QUIET)
    return accordion


class _Answers:
    """What the page asks, answered from the controls' values as they are now."""

    def __init__(self, around: PageContext) -> None:
        self.around = around
        self.menus = [each.name for each in FIELDS if each.words]
        self.groups = [(suffix, names) for _, suffix, names in GROUPS]

    def ask(self, text: str, *values: Any) -> tuple[Any, ...]:
        """What to show; where the page has just been opened, or something else changed, also the menus of names."""
        try:
            return self._ask(text, values)
        except Exception as error:
            return self._failed("the panel", error, text), *(gr.update() for _ in self.menus)

    def _failed(self, what: str, error: Exception, text: str) -> str:
        """An answer that says so; what is shown beside it stays as it was."""
        told = f'<li class="hps-error">{escape(self.around.trouble.report(what, error, lasting=False))}</li>'
        question = _read(text)
        preset = (question.get("page") or {}).get("preset") or self.around.preset
        return json.dumps({"slots": {"words": told}, "preset": preset, "answers": question.get("id")})

    def _ask(self, text: str, values: Sequence[Any]) -> tuple[Any, ...]:
        # here, as a start of the WebUI needs none of it
        from ..panel.view import view
        from .panel_html import answer

        question, named = _read(text), _by_name(values)
        page, known = self._page(question), self.around.known()
        width = float(question.get("width") or 0)
        found = answer(view(named, page, known), self.groups, width, self.around.tab)
        if question.get("look"):
            found["slots"]["said"] = preset_row.said([*self.around.trouble.sentences, *self.around.presets.read()[1]])
            menus = [gr.update(choices=self._menu(name)) for name in self.menus]
        else:
            menus = [gr.update()] * len(self.menus)
        return json.dumps({**found, "answers": question.get("id")}), *menus

    def act(self, text: str, *values: Any) -> tuple[Any, ...]:
        """What a button does to presets, and to the controls where it sets them."""
        try:
            return self._act(text, values)
        except Exception as error:
            return self._failed("the presets", error, text), *(gr.update() for _ in values)

    def _act(self, text: str, values: Sequence[Any]) -> tuple[Any, ...]:
        question, named = _read(text), _by_name(values)
        page, known = self._page(question), self.around.known()
        done = preset_row.act(self.around.presets, question, named, page, known)
        updates = [gr.update(value=done.values[name]) if name in done.values else gr.update() for name in named]
        return json.dumps({**done.answer(), "answers": question.get("id")}), *updates

    def _page(self, question: Mapping[str, Any]) -> Page:
        return Page.of({"preset": self.around.preset, **(question.get("page") or {})})

    def _menu(self, name: str) -> list[str]:
        return [*_FIELDS[name].words, *_FIELDS[name].suggestions, *self.around.menus.get(name, tuple)()]


def _read(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _by_name(values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip([ENABLED.name, *(each.name for each in FIELDS)], values))


def _component(field: Field, prefix: str, around: PageContext) -> Any:
    value = (around.begin_with or {}).get(field.name, field.default)
    common = {"label": field.label, "value": value, "elem_id": f"{prefix}_{field.name}", "info": field.help}
    if field.words:
        # it also takes what a picture says; its names come as the page opens, but for a default that was saved
        offered = dict.fromkeys([*field.words, *field.suggestions, str(around.saved.get(field.name, value))])
        return gr.Dropdown(choices=[*offered], allow_custom_value=True, **common)
    if field.choices:
        return gr.Dropdown(choices=list(field.choices), **common)
    low = field.low if field.neutral is None else min(field.low, field.neutral)
    return gr.Slider(minimum=low, maximum=field.high, step=field.step, **common)
