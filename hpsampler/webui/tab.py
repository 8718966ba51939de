"""The Calibrate tab: make a calibration, or statistics for HP DPM-v3, of the loaded checkpoint, and keep what was made.

One form asks for either, or for both; see :mod:`.kinds`. There is one progress, and one list of what there is; see
:mod:`.kept`.

The page is built once and shown to whoever opens it, so what it shows comes from a hidden button that the page's script
presses: once when the tab is opened, then for as long as something is under way. Work runs in the background, also
after a reload.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import gradio as gr

from ..calibration.config import CalibrationConfig
from ..jobs import RUNNING, Progress, Status
from ..statistics.config import StatisticsConfig
from ..store import RESERVED, StoreError, clean_name
from .files import text_of
from .kept import Entry, entries, question_html, unfinished_in_words, uses_html
from .kinds import CALIBRATION, CHEAP, FORM, GOALS, STATISTICS, size_of
from .progress import cost_html, status_html

if TYPE_CHECKING:
    from ..panel import Known
    from .runners import Runners

__all__ = ["TAB_ID", "TAB_TITLE", "Tab", "build"]

TAB_TITLE, TAB_ID = "Calibrate", "hpsampler_calibrate"

RENAME, DELETE = "Rename", "Delete"
"""Labels of the button that does what was asked about."""

STOP_SECONDS = 2
"""How long Stop waits for the call that is under way, before the page says that it waits for it."""

USUAL = "statistics"
"""What is wanted where nobody says otherwise: it takes the least, and drew the best pictures on two small models."""

NAME = "My checkpoint"
"""The name of what is made where nobody gives one and the checkpoint's own cannot be kept."""

_QUICK: dict[str, Any] = {"show_progress": "hidden"}


def build(runners: Runners, known: Callable[[], Known], default_preset: Callable[[], str]) -> gr.Blocks:
    """The tab; each page that shows it sees the same runners. The arguments are those of :class:`Tab`."""
    with gr.Blocks(analytics_enabled=False) as page:
        Tab(runners, known, default_preset).build()
    return page


class Tab:
    """What the page's buttons do. Each answers with what may change; what is wrong is said, and not done.

    Args:
        runners: of calibrations and of statistics.
        known: what the page knows of the loaded checkpoint and of presets.
        default_preset: name of the preset that the accordion begins with; may be empty.
    """

    def __init__(
        self, runners: Runners, known: Callable[[], Known], default_preset: Callable[[], str] = lambda: ""
    ) -> None:
        self.runners, self.known, self.default_preset = runners, known, default_preset

    # ---- what is on the page ----

    def build(self) -> None:
        with gr.Row():
            with gr.Column():
                form = self._form()
                usual = [form[name].value for name in CHEAP]
                cost = gr.HTML(self.cost(form["what"].value, *usual), elem_id=_id("cost"))
                start = gr.Button("Calibrate", variant="primary", elem_id=_id("start"))
            with gr.Column():
                # what is under way when somebody opens the page is not known when it is built
                unknown: Status[Any] = Status("unknown", None, "Asking the WebUI what it is doing.", Progress())
                status = gr.HTML(status_html(unknown), elem_id=_id("status"))
                stop = gr.Button("Stop", visible=False, elem_id=_id("stop"))
                refresh = gr.Button("Refresh", visible=False, elem_id=_id("refresh"))
                chosen = gr.Radio([], label="What there is", elem_id=_id("chosen"))
                with gr.Row(elem_id=_id("acts")):
                    resume, rename, delete = (
                        gr.Button(label, visible=False, elem_id=_id(name), min_width=80, size="sm")
                        for name, label in (("resume", "Resume"), ("rename", "Rename…"), ("delete", "Delete…"))
                    )
                    new_name = gr.Textbox(label="New name", max_lines=1, visible=False, elem_id=_id("new_name"))
                    do = gr.Button(DELETE, variant="stop", visible=False, elem_id=_id("do"), min_width=80, size="sm")
                    cancel = gr.Button("Cancel", visible=False, elem_id=_id("cancel"), min_width=80, size="sm")
                    take = gr.UploadButton(
                        "Import", file_types=[".json", ".safetensors"], elem_id=_id("import"), min_width=80, size="sm"
                    )
                details = gr.HTML(elem_id=_id("details"))
        for each in (*form.values(), chosen, new_name):
            # nothing of it is a default that people set
            each.do_not_save_to_config = True

        looked = [details, resume, rename, delete, new_name, do, cancel]
        shown = [status, start, stop, chosen, *looked]
        asked, cheap = ([form[name] for name in ("what", *names)] for names in (FORM, CHEAP))
        parts = [form[name] for name in ("runs", "samples", "points")]
        form["what"].change(self.choose, inputs=cheap, outputs=[*parts, cost], queue=False, **_QUICK)
        for name in CHEAP:
            form[name].change(self.cost, inputs=cheap, outputs=[cost], queue=False, **_QUICK)
        refresh.click(self.refresh, inputs=[chosen, *cheap], outputs=[cost, *shown], queue=False, **_QUICK)
        for event in (chosen.change, cancel.click):
            event(self.look, inputs=[chosen], outputs=looked, queue=False, **_QUICK)
        for button, act in ((rename, RENAME), (delete, DELETE)):
            button.click(partial(self.ask, act), inputs=[chosen], outputs=looked, queue=False, **_QUICK)
        # these may have something to say, and the host's page says it in answers of its queue only
        start.click(self.start, inputs=asked, outputs=shown, **_QUICK)
        stop.click(self.stop, outputs=shown, **_QUICK)
        resume.click(self.resume, inputs=[chosen], outputs=shown, **_QUICK)
        do.click(self.do, inputs=[do, chosen, new_name], outputs=shown, **_QUICK)
        take.upload(self.take, inputs=[take], outputs=shown, **_QUICK)

    def _form(self) -> dict[str, Any]:
        """What is wanted, and the controls of FORM."""
        made: dict[str, Any] = {}
        fit, measure = CalibrationConfig("usual"), StatisticsConfig("usual")
        steps, scales = (", ".join(f"{each:g}" for each in values) for values in (fit.steps, fit.cfg_scales))

        def add(kind: Callable[..., Any], name: str, label: str, **own: Any) -> None:
            made[name] = kind(label=label, elem_id=_id(name), **own)

        add(
            gr.Radio, "what", "What for", choices=[(goal.title, key) for key, goal in GOALS.items()],
            value=USUAL, info="With the checkpoint that is loaded. You can draw meanwhile: they take turns.",
        )  # fmt: skip
        add(
            gr.Textbox, "name", "Name", value="", max_lines=1, placeholder="the checkpoint's name",
            info="Shown in menus and pictures.",
        )  # fmt: skip
        add(gr.Textbox, "steps", "Steps", value=steps, max_lines=1, info="2 to 20, each by itself.")
        add(gr.Textbox, "cfg", "CFG scale", value=scales, max_lines=1, info="One or several that you draw with.")
        add(
            gr.Textbox, "size", "Size", value=f"{fit.width}x{fit.height}", max_lines=1,
            info="Width x height of your pictures, in pixels.",
        )  # fmt: skip
        add(
            gr.Textbox, "prompts", f"Prompts ({len(fit.prompts)} to begin with)", value="\n".join(fit.prompts),
            lines=6, max_lines=12, info="One on each line, of the kind you draw.",
        )  # fmt: skip
        add(gr.Textbox, "negative", "Negative prompt", value="")
        upload = gr.UploadButton(
            "Prompts from a text file", file_types=[".txt"], elem_id=_id("prompts_file"), size="sm"
        )
        upload.upload(text_of, inputs=[upload], outputs=[made["prompts"]])
        with gr.Accordion("Advanced", open=False, elem_id=_id("advanced")):
            add(
                gr.Slider, "trajectories", "Trajectories", value=fit.trajectories, minimum=4, maximum=64, step=1,
                info="Pictures to judge by, at all CFG scales together; a fit has as many others.",
            )  # fmt: skip
            add(
                gr.Slider, "runs", "Runs of a fit", value=fit.runs, minimum=25, maximum=200, step=1,
                visible=GOALS[USUAL].fits, info="How often one fit may draw them, its reference included.",
            )  # fmt: skip
            add(
                gr.Slider, "samples", "Samples of the statistics", value=measure.samples, minimum=8, maximum=1024,
                step=1, info="Pictures whose trajectory is walked, once each.",
            )  # fmt: skip
            add(
                gr.Slider, "points", "Grid points of the statistics", value=measure.points, minimum=21, maximum=251,
                step=1, info="Two UNet calls each.",
            )  # fmt: skip
            add(
                gr.Slider,
                "batch",
                "Batch size",
                value=fit.batch,
                minimum=1,
                maximum=32,
                step=1,
                info="Memory for time.",
            )
            add(gr.Number, "seed", "Seed", value=fit.seed, precision=0)
        return made

    # ---- what the form says ----

    def choose(self, what: str, *values: Any) -> tuple[Any, ...]:
        """The controls that belong to what is wanted now, and its cost."""
        fit, measure = gr.update(visible=GOALS[what].fits), gr.update(visible=STATISTICS in GOALS[what].kinds)
        return fit, measure, measure, self.cost(what, *values)

    def cost(self, what: str, *values: Any) -> str:
        """What pressing the button takes, or what is wrong with the form."""
        goal, given = GOALS[what], dict(zip(CHEAP, values))
        try:
            configs = goal.configs({**given, "name": given["name"] or NAME})
        except StoreError as error:
            return f"<p role='alert'>{escape(str(error))}</p>"
        most = sum(config.most_calls() for _, config in configs)
        return cost_html(
            goal.about, [kind.cost(config) for kind, config in configs], most, *self._timed(most, given["size"])
        )

    def _timed(self, calls: int, size: str) -> tuple[Optional[float], str]:
        """How long so many calls for pictures of a size take, judged by the latest that were timed, and on what."""
        timed = self.runners.timed
        if timed is None:
            return None, ""
        config = timed.config
        width, height = size_of(size)
        seconds = calls * timed.seconds * int(width) * int(height) / (config.width * config.height)
        return seconds, f"with {timed.model} at {config.width}x{config.height}"

    # ---- what is under way, and what there is ----

    def refresh(self, key: Optional[str], what: str, *values: Any) -> tuple[Any, ...]:
        return self.cost(what, *values), *self._shown(key, everything=False)

    def start(self, what: str, *values: Any) -> tuple[Any, ...]:
        def act() -> None:
            given = dict(zip(FORM, values))
            given["name"] = given["name"].strip() or self._name()
            configs = GOALS[what].configs(given)
            self.runners.start([(kind.runner(self.runners), config) for kind, config in configs])

        return self._tried(act)

    def _name(self) -> str:
        """The loaded checkpoint's name, as far as it can be one."""
        name = "".join(each if each.isalnum() or each in "_ .()+-" else " " for each in self.known().model)
        try:
            return clean_name(name.strip("_ .()+-"), RESERVED)
        except StoreError:
            return NAME

    def stop(self) -> tuple[Any, ...]:
        return self._tried(lambda: self.runners.stop(wait=STOP_SECONDS))

    def resume(self, key: Optional[str]) -> tuple[Any, ...]:
        def act() -> None:
            self.runners.resume(self._entry(key).name)

        return self._tried(act)

    def take(self, file: Any) -> tuple[Any, ...]:
        """Import what is in a file; what is here already is not taken twice."""

        def act() -> str:
            path = Path(getattr(file, "name", file))
            kind = CALIBRATION if path.suffix.lower() == ".json" else STATISTICS
            name, said = kind.take(self.runners, path)
            if said:
                gr.Info(f"HP Sampler: {said}.")
            return Entry(kind, name).key

        return self._tried(act)

    def look(self, key: Optional[str]) -> tuple[Any, ...]:
        """What one of the list holds and what uses it, and the buttons that it may have."""
        found = entries(self.runners, self.known(), self.default_preset())
        return self._looked(next((each for each in found if each.key == key), None))

    def ask(self, act: str, key: Optional[str]) -> tuple[Any, ...]:
        """Before something is renamed or deleted: what uses it."""
        try:
            entry = self._entry(key)
        except StoreError:
            return self.look(key)
        return (
            gr.update(value=question_html(entry, act == DELETE)),
            *(gr.update(visible=False),) * 3,
            gr.update(visible=act == RENAME, value=entry.name),
            gr.update(visible=True, value=act, variant="stop" if act == DELETE else "primary"),
            gr.update(visible=True),
        )

    def do(self, act: str, key: Optional[str], new_name: str) -> tuple[Any, ...]:
        """Rename or delete, as was asked about."""

        def work() -> Optional[str]:
            entry = self._entry(key)
            runner = entry.kind.runner(self.runners)
            if act == RENAME:
                return Entry(entry.kind, runner.rename(entry.name, new_name)).key
            if entry.unfinished:
                runner.discard(entry.name)
            else:
                runner.delete(entry.name)
            return None

        return self._tried(work)

    def _entry(self, key: Optional[str]) -> Entry:
        """Raises StoreError: it is not in the list, or not any more."""
        for each in entries(self.runners, self.known(), self.default_preset()):
            if each.key == key:
                return each
        raise StoreError(f"there is no {key!r} any more" if key else "choose one in the list first")

    def _looked(self, entry: Optional[Entry]) -> tuple[Any, ...]:
        free = not self.runners.running
        return (
            gr.update(value=self._details(entry)),
            gr.update(visible=entry is not None and entry.unfinished and free),
            gr.update(visible=entry is not None and not entry.unfinished),
            gr.update(visible=entry is not None),
            *(gr.update(visible=False),) * 3,
        )

    def _details(self, entry: Optional[Entry]) -> str:
        problems = self.runners.calibrations.profiles.read()[1]
        told = "".join(f"<p role='alert'>{escape(problem)}</p>" for problem in problems)
        if entry is None or entry.unfinished:
            return told
        try:
            return told + uses_html(entry) + entry.kind.details(self.runners, entry.name)
        except StoreError as error:
            return f"{told}<p role='alert'>{escape(str(error))}</p>"

    def _tried(self, act: Callable[[], Optional[str]]) -> tuple[Any, ...]:
        key = None
        try:
            key = act()
        except (StoreError, OSError) as error:
            gr.Warning(f"HP Sampler: {error}")
        return self._shown(key, everything=True)

    def _shown(self, key: Optional[str], everything: bool) -> tuple[Any, ...]:
        """Progress, Stop, the list and what is chosen of it; while something runs the last two only after a button."""
        running = self.runners.running
        statuses = [runner.status() for runner in self.runners.all]
        latest = max(statuses, key=lambda each: (each.state == RUNNING, each.began))
        if running and not everything:
            return status_html(latest), *_buttons(running), *(gr.update(),) * 8
        known = self.known()
        found = entries(self.runners, known, self.default_preset())
        name = latest.config.name if latest.config is not None else ""
        entry = next((each for each in found if each.key == key), None)
        entry = entry or next((each for each in found if each.name == name), found[0] if found else None)
        loaded = known.model or "no checkpoint, as none is loaded"
        return (
            status_html(latest, unfinished_in_words(found)),
            *_buttons(running),
            gr.update(
                choices=[(each.line, each.key) for each in found], value=entry.key if entry else None,
                label=f"What there is for {loaded}", info="" if found else "Nothing yet.",
            ),
            *self._looked(entry),
        )  # fmt: skip


def _buttons(running: bool) -> tuple[Any, Any]:
    """The one that starts, and the one that stops."""
    return gr.update(interactive=not running), gr.update(visible=running)


def _id(name: str) -> str:
    return f"{TAB_ID}_{name}"
