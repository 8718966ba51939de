"""The Calibrate tab, in gradio alone; what it shows and does is the runners'.

Two parts, schedules and statistics, each a form, a status and a list of what is kept. Written for gradio 3.41 (A1111)
and 4.40 (Forge) alike. ``javascript/hpsampler_calibrate.js`` presses the hidden button that looks at the status, so
that the page follows what runs in the background, also after a reload.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from html import escape
from typing import Any, Optional

import gradio as gr

from ..calibration.job import CalibrationConfig, CalibrationRunner
from ..jobs import DEFAULT_PROMPTS, JobRunner
from ..statistics.job import StatisticsConfig, StatisticsRunner
from ..store import StoreError
from .files import offered, text_of
from .report import profile_html, statistics_html, status_html

__all__ = ["TAB_ID", "TAB_TITLE", "build"]

TAB_TITLE, TAB_ID = "Calibrate", "hpsampler_calibrate"
STATISTICS_ID = "hpsampler_statistics"

INTRODUCTION = (
    "Fits the steps of HP Sampler to the checkpoint that is loaded now. It takes a while, once for each number of "
    "steps and guidance scale; then <b>HP Auto</b> and <b>HP DPM++ 2M</b> use it by themselves wherever it fits, and "
    "any sampler with the schedule type <b>HP calibrated</b>. Pictures can be drawn meanwhile: they take turns."
)

MEASURING = (
    "Measures how the checkpoint that is loaded now behaves, for the sampler <b>HP DPM-v3</b>, which uses it by itself "
    "with that checkpoint. Statistics belong to one guidance scale. Pictures can be drawn meanwhile: they take turns."
)

_ORDER = (
    "name", "steps", "cfg_scales", "width", "height", "prompts", "negative", "trajectories", "runs", "batch", "seed",
)  # fmt: skip
_SURVEY = (
    "name", "cfg_scale", "width", "height", "prompts", "negative", "samples", "points", "per_pixel", "batch", "seed",
)  # fmt: skip

_QUICK: dict[str, Any] = {"show_progress": "hidden"}


def build(calibrations: CalibrationRunner, statistics: StatisticsRunner) -> gr.Blocks:
    """The tab; each page that shows it sees the same runners."""
    with gr.Blocks(analytics_enabled=False) as page, gr.Tabs():
        with gr.Tab("Schedules", elem_id=f"{TAB_ID}_part"):
            _Calibrations(TAB_ID, calibrations).build()
        with gr.Tab("Statistics for HP DPM-v3", elem_id=f"{STATISTICS_ID}_part"):
            _Statistics(STATISTICS_ID, statistics).build()
    return page


class _Part(ABC):
    """One runner's part of the page. Each button answers with what may change; what is wrong is said, and not done.

    Args:
        prefix: of every ``elem_id``.
    """

    introduction = ""
    begin, kept = "", ""
    """What the button, and the menu of what is kept, are called."""
    fields: tuple[str, ...] = ()

    def __init__(self, prefix: str, runner: JobRunner[Any]) -> None:
        self.prefix, self.runner = prefix, runner

    def id(self, name: str) -> str:
        return f"{self.prefix}_{name}"

    # ---- what a part says ----

    @abstractmethod
    def form(self) -> dict[str, Any]:
        """The controls of an config by the names of its fields."""

    @abstractmethod
    def told(self, config: Any) -> str:
        """What an config takes, for people."""

    @abstractmethod
    def details(self, name: Optional[str]) -> str:
        """What one of those that are kept holds, as HTML."""

    def more(self, chosen: Any, shown: list[Any]) -> None:  # noqa: B027 - not every part has some
        """Further controls below the list."""

    # ---- the rest ----

    def build(self) -> None:
        gr.HTML(f"<p>{self.introduction}</p>")
        with gr.Row():
            with gr.Column():
                form = self.form()
                asked = [form[name] for name in self.fields]
                most = gr.HTML(elem_id=self.id("most"))
                with gr.Row():
                    start = gr.Button(self.begin, variant="primary", elem_id=self.id("start"))
                    stop = gr.Button("Stop", elem_id=self.id("stop"))
            with gr.Column():
                status = gr.HTML(status_html(self.runner.status()), elem_id=self.id("status"))
                look = gr.Button("Look", elem_id=self.id("look"), visible=False)
                with gr.Row():
                    unfinished = gr.Dropdown([], label="Unfinished", elem_id=self.id("unfinished"), scale=4)
                    resume = gr.Button("Resume", elem_id=self.id("resume"), scale=1)
                    discard = gr.Button("Discard", elem_id=self.id("discard"), scale=1)
        with gr.Row():
            chosen = gr.Dropdown([], label=self.kept, elem_id=self.id("chosen"), scale=4)
            new_name = gr.Textbox(label="New name", elem_id=self.id("new_name"), scale=3)
            rename = gr.Button("Rename", elem_id=self.id("rename"), scale=1)
            sure = gr.Checkbox(False, label="Really delete", elem_id=self.id("sure"), scale=1, min_width=120)
            delete = gr.Button("Delete", elem_id=self.id("delete"), scale=1)
        details = gr.HTML(elem_id=self.id("details"))

        shown = [status, unfinished, chosen, details]
        for control in asked:
            control.change(self.most, inputs=asked, outputs=[most], **_QUICK)
        start.click(self.start, inputs=asked, outputs=shown, **_QUICK)
        stop.click(self.stop, outputs=shown, **_QUICK)
        look.click(self.look, inputs=[chosen], outputs=shown, queue=False, **_QUICK)
        resume.click(self.resume, inputs=[unfinished], outputs=shown, **_QUICK)
        discard.click(self.discard, inputs=[unfinished], outputs=shown, **_QUICK)
        chosen.change(self.details, inputs=[chosen], outputs=[details], **_QUICK)
        rename.click(self.rename, inputs=[chosen, new_name], outputs=shown, **_QUICK)
        delete.click(self.delete, inputs=[chosen, sure], outputs=[*shown, sure], **_QUICK)
        self.more(chosen, shown)

    def add(
        self, made: dict[str, Any], kind: Callable[..., Any], name: str, label: str, value: Any, **own: Any
    ) -> None:
        made[name] = kind(label=label, value=value, elem_id=self.id(name), **own)

    def add_prompts(self, made: dict[str, Any], hint: str) -> None:
        self.add(
            made, gr.Textbox, "prompts", f"Prompts ({len(DEFAULT_PROMPTS)} to begin with)", "\n".join(DEFAULT_PROMPTS),
            lines=6, max_lines=12, info=f"One on each line, of the kind you draw. {hint}",
        )  # fmt: skip
        upload = gr.UploadButton(
            "Prompts from a text file", file_types=[".txt"], elem_id=self.id("prompts_file"), size="sm"
        )
        upload.upload(text_of, inputs=[upload], outputs=[made["prompts"]])
        self.add(made, gr.Textbox, "negative", "Negative prompt", "")

    def add_size(self, made: dict[str, Any], usual: Any) -> None:
        with gr.Row():
            for name in ("width", "height"):
                own = {"minimum": 64, "maximum": 2048, "step": 8}
                self.add(made, gr.Slider, name, name.capitalize(), getattr(usual, name), **own)

    def ordered(self, values: tuple[Any, ...]) -> Any:
        return self.runner.config_of(dict(zip(self.fields, values)))

    def most(self, *values: Any) -> str:
        try:
            return f"<p>{self.told(self.ordered(values))}</p>"
        except StoreError as error:
            return f"<p role='alert'>{escape(str(error))}</p>"

    def start(self, *values: Any) -> tuple[Any, ...]:
        return self.tried(lambda: self.runner.start(self.ordered(values)))

    def stop(self) -> tuple[Any, ...]:
        return self.tried(lambda: self.runner.stop(wait=30))

    def resume(self, name: Optional[str]) -> tuple[Any, ...]:
        return self.tried(lambda: self.runner.resume(_named(name, "Unfinished")))

    def discard(self, name: Optional[str]) -> tuple[Any, ...]:
        return self.tried(lambda: self.runner.discard(_named(name, "Unfinished")))

    def rename(self, name: Optional[str], new_name: str) -> tuple[Any, ...]:
        return self.tried(lambda: self.runner.rename(_named(name, self.kept), new_name))

    def delete(self, name: Optional[str], sure: bool) -> tuple[Any, ...]:
        def act() -> None:
            if not sure:
                raise StoreError("tick Really delete first")
            self.runner.delete(_named(name, self.kept))

        return (*self.tried(act), False)

    def look(self, chosen: Optional[str]) -> tuple[Any, ...]:
        return self.shown(chosen)

    def tried(self, act: Callable[[], Any]) -> tuple[Any, ...]:
        chosen = None
        try:
            done = act()
            chosen = done if isinstance(done, str) else None
        except (StoreError, OSError) as error:
            gr.Warning(f"HP Sampler: {error}")
        return self.shown(chosen, refresh=True)

    def shown(self, chosen: Optional[str], refresh: bool = False) -> tuple[Any, ...]:
        status = self.runner.status()
        if self.runner.running and not refresh:
            return status_html(status), gr.update(), gr.update(), gr.update()
        names, left = self.runner.names(), [each.name for each in self.runner.unfinished()]
        latest = status.config.name if status.config is not None else None
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


class _Calibrations(_Part):
    introduction, begin, kept, fields = INTRODUCTION, "Calibrate", "Calibrations", _ORDER
    runner: CalibrationRunner

    def form(self) -> dict[str, Any]:
        usual = CalibrationConfig("usual")
        made: dict[str, Any] = {}
        self.add(made, gr.Textbox, "name", "Name", "My calibration", info="Shown in menus and pictures.")
        with gr.Row():
            steps = ", ".join(map(str, usual.steps))
            self.add(made, gr.Textbox, "steps", "Steps", steps, info="Each by itself, 2 to 20.")
            self.add(
                made, gr.Textbox, "cfg_scales", "CFG scales", "7", info="One by one: none carries over to another."
            )
        self.add_size(made, usual)
        self.add_prompts(made, "Every second one judges the fit.")
        with gr.Accordion("Budget", open=False, elem_id=self.id("budget")):
            self.add(
                made, gr.Slider, "trajectories", "Trajectories", usual.trajectories, minimum=4, maximum=64, step=1,
                info="Pictures to fit to; as many others judge the fit.",
            )  # fmt: skip
            self.add(
                made, gr.Slider, "runs", "Runs", usual.runs, minimum=25, maximum=200, step=1,
                info="How often one calibration may draw them, its reference included.",
            )  # fmt: skip
            own = {"minimum": 1, "maximum": 32, "step": 1, "info": "Memory for time."}
            self.add(made, gr.Slider, "batch", "Batch size", usual.batch, **own)
            self.add(made, gr.Number, "seed", "Seed", usual.seed, precision=0)
        return made

    def told(self, config: CalibrationConfig) -> str:
        return (
            f"{len(config.cells)} to calibrate, at most {config.most_calls():,} UNet calls, each for one picture "
            "(drawing one picture with 20 steps takes 20). The time is shown once the first calls were made."
        )

    def more(self, chosen: Any, shown: list[Any]) -> None:
        with gr.Row():
            export = gr.Button("Export", elem_id=self.id("export"))
            take = gr.UploadButton("Import", file_types=[".json"], elem_id=self.id("import"))
        exported = gr.File(label="Exported", visible=False, elem_id=self.id("exported"))
        export.click(self.export, inputs=[chosen], outputs=[exported], **_QUICK)
        take.upload(self.take, inputs=[take], outputs=shown, **_QUICK)

    def take(self, file: Any) -> tuple[Any, ...]:
        return self.tried(lambda: self.runner.profiles.import_json(text_of(file)).name)

    def details(self, name: Optional[str]) -> str:
        profiles, problems = self.runner.profiles.read()
        for profile in profiles:
            if profile.name == name:
                return profile_html(profile, problems)
        return "".join(f"<p role='alert'>{escape(problem)}</p>" for problem in problems)

    def export(self, name: Optional[str]) -> Any:
        try:
            profile = self.runner.profiles.get(_named(name, self.kept))
        except StoreError as error:
            gr.Warning(f"HP Sampler: {error}")
            return gr.update(visible=False)
        return gr.update(value=offered(profile.name, profile.to_json()), visible=True)


class _Statistics(_Part):
    introduction, begin, kept, fields = MEASURING, "Measure", "Statistics", _SURVEY
    runner: StatisticsRunner

    def form(self) -> dict[str, Any]:
        usual = StatisticsConfig("usual")
        made: dict[str, Any] = {}
        with gr.Row():
            # a label of its own: the host keeps one default for every label of a tab
            self.add(
                made, gr.Textbox, "name", "Name of the statistics", "My statistics", info="Shown in menus and pictures."
            )
            own = {"minimum": 1, "maximum": 30, "step": 0.5, "info": "Statistics belong to one."}
            self.add(made, gr.Slider, "cfg_scale", "CFG scale", usual.cfg_scale, **own)
        self.add_size(made, usual)
        self.add_prompts(made, "Taken in turn.")
        with gr.Accordion("Budget", open=False, elem_id=self.id("budget")):
            own = {"minimum": 8, "maximum": 1024, "step": 8, "info": "Pictures whose way is walked, once each."}
            self.add(made, gr.Slider, "samples", "Samples", usual.samples, **own)
            own = {"minimum": 21, "maximum": 251, "step": 10, "info": "Of the grid; two UNet calls each."}
            self.add(made, gr.Slider, "points", "Grid points", usual.points, **own)
            self.add(
                made, gr.Checkbox, "per_pixel", "For every element of the latents", usual.per_pixel,
                info="As the paper has them: for one size only, and only with many samples.",
            )  # fmt: skip
            own = {"minimum": 1, "maximum": 32, "step": 1, "info": "Memory for time."}
            self.add(made, gr.Slider, "batch", "Batch size", usual.batch, **own)
            self.add(made, gr.Number, "seed", "Seed", usual.seed, precision=0)
        return made

    def told(self, config: StatisticsConfig) -> str:
        return (
            f"{config.most_calls():,} UNet calls, each for one picture (drawing one picture with 20 steps takes 20). "
            "The time is shown once the first calls were made."
        )

    def details(self, name: Optional[str]) -> str:
        if name is None:
            return ""
        try:
            return statistics_html(name, self.runner.read_provenance(name))
        except StoreError as error:
            return f"<p role='alert'>{escape(str(error))}</p>"


def _named(name: Optional[str], what: str) -> str:
    if not name:
        raise StoreError(f"choose one under {what} first")
    return name
