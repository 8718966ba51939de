"""The accordion's controls, in gradio alone: the WebUI shows them, and so does any other page that has a container.

Written for gradio 3.41 (A1111) and 4.40 (Forge) alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import gradio as gr

from ..settings import FIELDS, Field

__all__ = ["TITLE", "Accordion", "Container", "build"]

TITLE = "HP Sampler"

Container = Callable[..., AbstractContextManager[Any]]
"""Called with the switch's value, ``label`` and ``elem_id``; entered, it gives the switch. The host's is
``InputAccordion``."""

_ALWAYS_SHOWN = ("recipe", "ending")

Names = Callable[[], Sequence[str]]
"""The calibrations that there are."""

_GROUPS = (
    ("Schedule", "schedule", ("base_steps", "rho", "truncation_index", "time_rho", "end_sigma")),
    (
        "Free-U",
        "freeu_group",
        ("freeu", "freeu_version", "freeu_first", "freeu_last", "b1", "b2", "s1", "s2"),
    ),
    ("UniPC", "unipc_group", ("prediction", "variant", "order", "analytical_first_step")),
)
"""Title, end of the ``elem_id`` and fields of each part that opens by itself."""

_FIELDS = MappingProxyType({field.name: field for field in FIELDS})


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


def build(prefix: str, container: Container, calibrations: Names = tuple) -> Accordion:
    """Build the accordion where the page now stands; every ``elem_id`` starts with ``prefix``."""
    made: dict[str, Any] = {}
    with container(False, label=TITLE, elem_id=prefix) as enabled:
        made.update(_in_pairs(_ALWAYS_SHOWN, prefix))
        made["calibration"] = _calibration(_FIELDS["calibration"], prefix, calibrations)
        for title, suffix, names in _GROUPS:
            with gr.Accordion(title, open=False, elem_id=f"{prefix}_{suffix}"):
                made.update(_in_pairs(names, prefix))
    return Accordion(enabled, MappingProxyType({field.name: made[field.name] for field in FIELDS}))


def _in_pairs(names: Sequence[str], prefix: str) -> dict[str, Any]:
    """Two controls a row; the last of an odd number has the whole width."""
    made = {}
    for start in range(0, len(names), 2):
        pair = names[start : start + 2]
        with gr.Row() if len(pair) == 2 else nullcontext():
            made.update({name: _component(_FIELDS[name], prefix) for name in pair})
    return made


def _calibration(field: Field, prefix: str, names: Names) -> Any:
    """A menu that also takes what a picture says; what was calibrated since the page was built comes by the button."""

    def choices() -> list[str]:
        return [*field.words, *names()]

    with gr.Row():
        menu = gr.Dropdown(
            choices=choices(), allow_custom_value=True, label=field.label, value=field.default, info=field.help,
            elem_id=f"{prefix}_{field.name}", scale=8,
        )  # fmt: skip
        again = gr.Button("Look again", elem_id=f"{prefix}_{field.name}_again", size="sm", scale=1, min_width=90)
    again.click(lambda: gr.update(choices=choices()), outputs=[menu], show_progress=False)
    return menu


def _component(field: Field, prefix: str) -> Any:
    common = {"label": field.label, "value": field.default, "elem_id": f"{prefix}_{field.name}", "info": field.help}
    if field.choices:
        return gr.Dropdown(choices=list(field.choices), **common)
    low = field.low if field.neutral is None else min(field.low, field.neutral)
    return gr.Slider(minimum=low, maximum=field.high, step=field.step, **common)
