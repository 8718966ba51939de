"""The Calibrate tab, in gradio alone; what it shows and does is the workshop's.

Written for gradio 3.41 (A1111) and 4.40 (Forge) alike. ``javascript/hpsampler_calibrate.js`` presses the hidden button
that looks at the status, so that the page follows a calibration which runs in the background, also after a reload.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any, Optional

import gradio as gr

from ..shelf import ShelfError
from ..tuning import DEFAULT_PROMPTS, Order
from ..workshop import Workshop
from .files import offered, text_of
from .report import profile_html, status_html

__all__ = ["TAB_ID", "TAB_TITLE", "build"]

TAB_TITLE, TAB_ID = "Calibrate", "hpsampler_calibrate"

INTRODUCTION = (
    "Fits the steps of HP Sampler to the checkpoint that is loaded now. It takes a while, once for each number of "
    "steps and guidance scale; then <b>HP Auto</b> and <b>HP DPM++ 2M</b> use it by themselves wherever it fits, and "
    "any sampler with the schedule type <b>HP calibrated</b>. Pictures can be drawn meanwhile: they take turns."
)

_ORDER = (
    "name", "steps", "cfg_scales", "width", "height", "prompts", "negative", "trajectories", "runs", "batch", "seed",
)  # fmt: skip


def build(workshop: Workshop) -> gr.Blocks:
    """The tab; each page that shows it sees the same workshop."""
    with gr.Blocks(analytics_enabled=False) as page:
        gr.HTML(f"<p>{INTRODUCTION}</p>")
        with gr.Row():
            with gr.Column():
                asked = _form()
                most = gr.HTML(elem_id=_id("most"))
                with gr.Row():
                    start = gr.Button("Calibrate", variant="primary", elem_id=_id("start"))
                    stop = gr.Button("Stop", elem_id=_id("stop"))
            with gr.Column():
                status = gr.HTML(status_html(workshop.status()), elem_id=_id("status"))
                look = gr.Button("Look", elem_id=_id("look"), visible=False)
                with gr.Row():
                    unfinished = gr.Dropdown([], label="Unfinished", elem_id=_id("unfinished"), scale=4)
                    resume = gr.Button("Resume", elem_id=_id("resume"), scale=1)
                    discard = gr.Button("Discard", elem_id=_id("discard"), scale=1)
        with gr.Row():
            chosen = gr.Dropdown([], label="Calibrations", elem_id=_id("chosen"), scale=4)
            new_name = gr.Textbox(label="New name", elem_id=_id("new_name"), scale=3)
            rename = gr.Button("Rename", elem_id=_id("rename"), scale=1)
            sure = gr.Checkbox(False, label="Really delete", elem_id=_id("sure"), scale=1, min_width=120)
            delete = gr.Button("Delete", elem_id=_id("delete"), scale=1)
        details = gr.HTML(elem_id=_id("details"))
        with gr.Row():
            export = gr.Button("Export", elem_id=_id("export"))
            take = gr.UploadButton("Import", file_types=[".json"], elem_id=_id("import"))
        exported = gr.File(label="Exported", visible=False, elem_id=_id("exported"))

        acts = _Acts(workshop)
        shown = [status, unfinished, chosen, details]
        quick: dict[str, Any] = {"show_progress": "hidden"}
        for control in asked.values():
            control.change(acts.most, inputs=list(asked.values()), outputs=[most], **quick)
        start.click(acts.start, inputs=list(asked.values()), outputs=shown, **quick)
        stop.click(acts.stop, outputs=shown, **quick)
        look.click(acts.look, inputs=[chosen], outputs=shown, queue=False, **quick)
        resume.click(acts.resume, inputs=[unfinished], outputs=shown, **quick)
        discard.click(acts.discard, inputs=[unfinished], outputs=shown, **quick)
        chosen.change(acts.details, inputs=[chosen], outputs=[details], **quick)
        rename.click(acts.rename, inputs=[chosen, new_name], outputs=shown, **quick)
        delete.click(acts.delete, inputs=[chosen, sure], outputs=[*shown, sure], **quick)
        export.click(acts.export, inputs=[chosen], outputs=[exported], **quick)
        take.upload(acts.take, inputs=[take], outputs=shown, **quick)
    return page


def _id(name: str) -> str:
    return f"{TAB_ID}_{name}"


def _form() -> dict[str, Any]:
    """The controls of an order by the names of its fields, in the order of ``_ORDER``."""
    usual = Order("usual")
    made: dict[str, Any] = {}

    def add(kind: Callable[..., Any], name: str, label: str, value: Any, **own: Any) -> None:
        made[name] = kind(label=label, value=value, elem_id=_id(name), **own)

    add(gr.Textbox, "name", "Name", "My calibration", info="Shown in menus and pictures.")
    with gr.Row():
        add(
            gr.Textbox,
            "steps",
            "Steps",
            ", ".join(map(str, usual.steps)),
            info="Each by itself, 2 to 20.",
        )
        add(gr.Textbox, "cfg_scales", "CFG scales", "7", info="One by one: none carries over to another.")
    with gr.Row():
        add(gr.Slider, "width", "Width", usual.width, minimum=64, maximum=2048, step=8)
        add(gr.Slider, "height", "Height", usual.height, minimum=64, maximum=2048, step=8)
    add(
        gr.Textbox, "prompts", f"Prompts ({len(DEFAULT_PROMPTS)} to begin with)", "\n".join(DEFAULT_PROMPTS), lines=6,
        max_lines=12, info="One on each line, of the kind you draw. Every second one judges the fit.",
    )  # fmt: skip
    upload = gr.UploadButton("Prompts from a text file", file_types=[".txt"], elem_id=_id("prompts_file"), size="sm")
    upload.upload(text_of, inputs=[upload], outputs=[made["prompts"]])
    add(gr.Textbox, "negative", "Negative prompt", "")
    with gr.Accordion("Budget", open=False, elem_id=_id("budget")):
        add(
            gr.Slider, "trajectories", "Trajectories", usual.trajectories, minimum=4, maximum=64, step=1,
            info="Pictures to fit to; as many others judge the fit.",
        )  # fmt: skip
        add(
            gr.Slider, "runs", "Runs", usual.runs, minimum=25, maximum=200, step=1,
            info="How often one calibration may draw them, its reference included.",
        )  # fmt: skip
        add(
            gr.Slider,
            "batch",
            "Batch size",
            usual.batch,
            minimum=1,
            maximum=32,
            step=1,
            info="Memory for time.",
        )
        add(gr.Number, "seed", "Seed", usual.seed, precision=0)
    return {name: made[name] for name in _ORDER}


class _Acts:
    """What the buttons do. Each answers with the parts that may change; what is wrong is said, and nothing done."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop

    def most(self, *values: Any) -> str:
        try:
            order = Order.of(dict(zip(_ORDER, values)))
        except ShelfError as error:
            return f"<p role='alert'>{escape(str(error))}</p>"
        return (
            f"<p>{len(order.cells)} to calibrate, at most {order.most_calls():,} UNet calls, each for one picture "
            f"(drawing one picture with 20 steps takes 20). The time is shown once the first calls were made.</p>"
        )

    def start(self, *values: Any) -> tuple[Any, ...]:
        return self._tried(lambda: self.workshop.start(Order.of(dict(zip(_ORDER, values)))))

    def stop(self) -> tuple[Any, ...]:
        return self._tried(lambda: self.workshop.stop(wait=30))

    def resume(self, name: Optional[str]) -> tuple[Any, ...]:
        return self._tried(lambda: self.workshop.resume(_named(name, "Unfinished")))

    def discard(self, name: Optional[str]) -> tuple[Any, ...]:
        return self._tried(lambda: self.workshop.discard(_named(name, "Unfinished")))

    def rename(self, name: Optional[str], new_name: str) -> tuple[Any, ...]:
        return self._tried(lambda: self.workshop.rename(_named(name), new_name).name)

    def delete(self, name: Optional[str], sure: bool) -> tuple[Any, ...]:
        def act() -> None:
            if not sure:
                raise ShelfError("tick Really delete first")
            self.workshop.delete(_named(name))

        return (*self._tried(act), False)

    def take(self, file: Any) -> tuple[Any, ...]:
        return self._tried(lambda: self.workshop.library.take(text_of(file)).name)

    def look(self, chosen: Optional[str]) -> tuple[Any, ...]:
        return self._shown(chosen)

    def details(self, name: Optional[str]) -> str:
        profiles, problems = self.workshop.library.read()
        for profile in profiles:
            if profile.name == name:
                return profile_html(profile, problems)
        return "".join(f"<p role='alert'>{escape(problem)}</p>" for problem in problems)

    def export(self, name: Optional[str]) -> Any:
        try:
            profile = self.workshop.library.get(_named(name))
        except ShelfError as error:
            gr.Warning(f"HP Sampler: {error}")
            return gr.update(visible=False)
        return gr.update(value=offered(profile.name, profile.to_json()), visible=True)

    def _tried(self, act: Callable[[], Any]) -> tuple[Any, ...]:
        chosen = None
        try:
            done = act()
            chosen = done if isinstance(done, str) else None
        except (ShelfError, OSError) as error:
            gr.Warning(f"HP Sampler: {error}")
        return self._shown(chosen, refresh=True)

    def _shown(self, chosen: Optional[str], refresh: bool = False) -> tuple[Any, ...]:
        status = self.workshop.status()
        if self.workshop.running and not refresh:
            return status_html(status), gr.update(), gr.update(), gr.update()
        names, left = self.workshop.library.names(), [each.name for each in self.workshop.unfinished()]
        latest = status.order.name if status.order is not None else None
        first = latest if latest in left else left[0] if left else None
        made = latest if latest in names else None
        if chosen not in names:
            chosen = made or (names[0] if names else None)
        return (
            status_html(status),
            gr.update(choices=left, value=first),
            gr.update(choices=names, value=chosen),
            self.details(chosen),
        )


def _named(name: Optional[str], what: str = "Calibrations") -> str:
    if not name:
        raise ShelfError(f"choose one under {what} first")
    return name
