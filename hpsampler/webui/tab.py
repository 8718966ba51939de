"""The Calibrate tab: make a calibration, or statistics for HP DPM-v3, of the loaded checkpoint, and keep what was made.

One form serves both: its fields fit what is chosen under *What to make*, see :mod:`.kinds`. One progress, one list of
what there is and one of the jobs that have not ended serve both too.

The page is built once and shown to whoever opens it, so what it shows comes from a hidden button that the page's script
presses: once when the tab is opened, then for as long as something is under way. Work runs in the background, also
after a reload.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any, Optional

import gradio as gr

from ..job_config import DEFAULT_PROMPTS
from ..jobs import IDLE, Progress, Status
from ..store import StoreError
from .files import text_of
from .kinds import CALIBRATION, CHEAP, FORM, KINDS, Kind
from .progress import cost_html, status_html

if TYPE_CHECKING:
    from .runners import Runners

__all__ = ["TAB_ID", "TAB_TITLE", "Tab", "build"]

TAB_TITLE, TAB_ID = "Calibrate", "hpsampler_calibrate"

CHOSEN, UNFINISHED = "Made so far", "Unfinished"
"""Labels of the two lists."""

STOP_SECONDS = 30

_QUICK: dict[str, Any] = {"show_progress": "hidden"}


def build(runners: Runners) -> gr.Blocks:
    """The tab; each page that shows it sees the same runners."""
    with gr.Blocks(analytics_enabled=False) as page:
        Tab(runners).build()
    return page


class Tab:
    """What the page's buttons do. Each answers with what may change; what is wrong is said, and not done."""

    def __init__(self, runners: Runners) -> None:
        self.runners = runners

    # ---- what is on the page ----

    def build(self) -> None:
        with gr.Row():
            with gr.Column():
                form = self._form()
                asked = [form[name] for name in ("what", *FORM)]
                cheap = [form[name] for name in ("what", *CHEAP)]
                cost = gr.HTML(self.usual_cost(CALIBRATION), elem_id=_id("cost"))
                start = gr.Button(CALIBRATION.button, variant="primary", elem_id=_id("start"))
            with gr.Column():
                # what is under way when somebody opens the page is not known when it is built
                unknown: Status[Any] = Status("unknown", None, "Asking the WebUI what it is doing.", Progress())
                status = gr.HTML(status_html(unknown), elem_id=_id("status"))
                stop = gr.Button("Stop", visible=False, elem_id=_id("stop"))
                refresh = gr.Button("Refresh", visible=False, elem_id=_id("refresh"))
                unfinished = gr.Dropdown([], label=UNFINISHED, elem_id=_id("unfinished"))
                with gr.Row():
                    resume = gr.Button("Resume", elem_id=_id("resume"), min_width=80)
                    discard = gr.Button("Discard", elem_id=_id("discard"), min_width=80)
                chosen = gr.Dropdown([], label=CHOSEN, elem_id=_id("chosen"))
                new_name = gr.Textbox(label="New name", max_lines=1, elem_id=_id("new_name"))
                confirm = gr.Checkbox(False, label="Confirm", info="Tick to delete.", elem_id=_id("confirm"))
                with gr.Row():
                    rename = gr.Button("Rename", elem_id=_id("rename"), min_width=80)
                    delete = gr.Button("Delete", elem_id=_id("delete"), min_width=80)
                    take = gr.UploadButton("Import", file_types=[".json"], elem_id=_id("import"), min_width=80)
                details = gr.HTML(elem_id=_id("details"))

        shown = [status, stop, unfinished, chosen, details]
        changing = [form[name] for name in ("name", "steps", "cfg", "pictures", "effort", "per_pixel")]
        form["what"].change(
            self.choose, inputs=[form["what"], form["name"]], outputs=[*changing, start, cost], queue=False, **_QUICK
        )
        for name in CHEAP:
            form[name].change(self.cost, inputs=cheap, outputs=[cost], queue=False, **_QUICK)
        refresh.click(self.refresh, inputs=[chosen, *cheap], outputs=[cost, *shown], queue=False, **_QUICK)
        chosen.change(self.details, inputs=[chosen], outputs=[details], queue=False, **_QUICK)
        # these may have something to say, and the host's page says it in answers of its queue only
        start.click(self.start, inputs=asked, outputs=shown, **_QUICK)
        stop.click(self.stop, inputs=[form["what"]], outputs=shown, **_QUICK)
        resume.click(self.resume, inputs=[form["what"], unfinished], outputs=shown, **_QUICK)
        discard.click(self.discard, inputs=[form["what"], unfinished], outputs=shown, **_QUICK)
        rename.click(self.rename, inputs=[form["what"], chosen, new_name], outputs=shown, **_QUICK)
        delete.click(self.delete, inputs=[form["what"], chosen, confirm], outputs=[*shown, confirm], **_QUICK)
        take.upload(self.take, inputs=[form["what"], take], outputs=shown, **_QUICK)

    def _form(self) -> dict[str, Any]:
        """What is to be made, and the controls of FORM, as a calibration needs them."""
        made: dict[str, Any] = {}

        def add(kind: Callable[..., Any], name: str, **own: Any) -> None:
            made[name] = kind(elem_id=_id(name), **own)
            # a form that changes with what is to be made begins as it is here, not as the host once saved it
            made[name].do_not_save_to_config = True

        add(
            gr.Radio, "what", label="What to make", choices=[each.title for each in KINDS], value=CALIBRATION.title,
            info="Of the checkpoint that is loaded now. Pictures can be drawn meanwhile: they take turns.",
        )  # fmt: skip
        for name in ("name", "steps", "cfg"):
            add(gr.Textbox, name, max_lines=1, **CALIBRATION.form(name))
        add(
            gr.Textbox, "size", label="Size", value="512x512", max_lines=1,
            info="Width x height of the pictures, in pixels.",
        )  # fmt: skip
        add(
            gr.Textbox, "prompts", label=f"Prompts ({len(DEFAULT_PROMPTS)} to begin with)",
            value="\n".join(DEFAULT_PROMPTS), lines=6, max_lines=12, info="One on each line, of the kind you draw.",
        )  # fmt: skip
        add(gr.Textbox, "negative", label="Negative prompt", value="")
        upload = gr.UploadButton(
            "Prompts from a text file", file_types=[".txt"], elem_id=_id("prompts_file"), size="sm"
        )
        upload.upload(text_of, inputs=[upload], outputs=[made["prompts"]])
        with gr.Accordion("Budget", open=False, elem_id=_id("budget")):
            add(gr.Slider, "pictures", step=1, **CALIBRATION.form("pictures"))
            add(gr.Slider, "effort", step=1, **CALIBRATION.form("effort"))
            add(gr.Checkbox, "per_pixel", **CALIBRATION.form("per_pixel"))
            add(gr.Slider, "batch", label="Batch size", value=4, minimum=1, maximum=32, step=1, info="Memory for time.")
            add(gr.Number, "seed", label="Seed", value=1, precision=0)
        return made

    # ---- what the form says ----

    def choose(self, what: str, name: str) -> tuple[Any, ...]:
        """The form's fields, its button and the cost, for what is to be made now; a name that was typed stays."""
        kind = Kind.of(what)
        usual = {each.form("name")["value"] for each in KINDS}
        updates = {field: kind.form(field) for field in ("name", "steps", "cfg", "pictures", "effort", "per_pixel")}
        if name not in usual:
            del updates["name"]["value"]
        cost = self.usual_cost(kind)
        return *(gr.update(**each) for each in updates.values()), gr.update(value=kind.button), cost

    def usual_cost(self, kind: Kind) -> str:
        return cost_html(kind.about, kind.cost(kind.usual()), None)

    def cost(self, what: str, *values: Any) -> str:
        """What pressing the button takes, or what is wrong with the form."""
        kind = Kind.of(what)
        try:
            config = kind.config(dict(zip(CHEAP, values)))
        except StoreError as error:
            return f"<p role='alert'>{escape(str(error))}</p>"
        calls = config.most_calls()
        return cost_html(kind.about, kind.cost(config), self._seconds_of(calls, config.width * config.height))

    def _seconds_of(self, calls: int, area: int) -> Optional[float]:
        """How long so many calls take, judged by the latest that were timed; None before any was."""
        for kind in KINDS:
            status = kind.runner(self.runners).status()
            if status.progress.calls and status.config is not None:
                config = status.config
                a_call = status.progress.seconds / status.progress.calls
                return calls * a_call * area / (config.width * config.height)
        return None

    # ---- what is under way, and what there is ----

    def refresh(self, chosen: Optional[str], what: str, *values: Any) -> tuple[Any, ...]:
        return self.cost(what, *values), *self._shown(what, chosen)

    def start(self, what: str, *values: Any) -> tuple[Any, ...]:
        kind = Kind.of(what)

        def act() -> None:
            kind.runner(self.runners).start(kind.config(dict(zip(FORM, values))))

        return self._tried(what, act)

    def stop(self, what: str) -> tuple[Any, ...]:
        def act() -> None:
            for kind in KINDS:
                if kind.runner(self.runners).running:
                    kind.runner(self.runners).stop(wait=STOP_SECONDS)

        return self._tried(what, act)

    def resume(self, what: str, entry: Optional[str]) -> tuple[Any, ...]:
        def act() -> None:
            kind, name = _named(entry, UNFINISHED)
            kind.runner(self.runners).resume(name)

        return self._tried(what, act)

    def discard(self, what: str, entry: Optional[str]) -> tuple[Any, ...]:
        def act() -> None:
            kind, name = _named(entry, UNFINISHED)
            kind.runner(self.runners).discard(name)

        return self._tried(what, act)

    def rename(self, what: str, entry: Optional[str], new_name: str) -> tuple[Any, ...]:
        def act() -> str:
            kind, name = _named(entry, CHOSEN)
            return kind.entry(kind.runner(self.runners).rename(name, new_name))

        return self._tried(what, act)

    def delete(self, what: str, entry: Optional[str], confirm: bool) -> tuple[Any, ...]:
        def act() -> None:
            kind, name = _named(entry, CHOSEN)
            if not confirm:
                raise StoreError(f"tick Confirm first to delete {name!r}")
            kind.runner(self.runners).delete(name)

        return (*self._tried(what, act), False)

    def take(self, what: str, file: Any) -> tuple[Any, ...]:
        """Import a calibration; one that is here already is not taken twice."""

        from ..calibration.profile import Profile

        def act() -> str:
            profiles = self.runners.calibrations.profiles
            text = text_of(file)
            given = Profile.from_json(text)
            for kept in profiles.read()[0]:
                if replace(kept, name=given.name) == given:
                    gr.Info(f"HP Sampler: the calibration in that file is here already, as {kept.name!r}.")
                    return CALIBRATION.entry(kept.name)
            return CALIBRATION.entry(profiles.import_json(text).name)

        return self._tried(what, act)

    def details(self, entry: Optional[str]) -> str:
        """What one of those that are kept holds."""
        if not entry:
            return CALIBRATION.problems(self.runners)
        kind, name = Kind.of_entry(entry)
        return kind.details(self.runners, name)

    def _tried(self, what: str, act: Callable[[], Optional[str]]) -> tuple[Any, ...]:
        chosen = None
        try:
            chosen = act()
        except (StoreError, OSError) as error:
            gr.Warning(f"HP Sampler: {error}")
        return self._shown(what, chosen, everything=True)

    def _shown(self, what: str, chosen: Optional[str], everything: bool = False) -> tuple[Any, ...]:
        """Progress, Stop, both lists and the details; while something runs the last three only after a button."""
        statuses = {kind: kind.runner(self.runners).status() for kind in KINDS}
        running = [kind for kind in KINDS if kind.runner(self.runners).running]
        ended = [kind for kind in (Kind.of(what), *KINDS) if statuses[kind].state != IDLE]
        told = running or ended[:1] or [CALIBRATION]
        status = "".join(status_html(statuses[kind]) for kind in told)
        if running and not everything:
            return status, gr.update(visible=True), gr.update(), gr.update(), gr.update()
        left = [kind.entry(each.name) for kind in KINDS for each in kind.runner(self.runners).unfinished()]
        kept = [kind.entry(name) for kind in KINDS for name in kind.runner(self.runners).names()]
        latest = [kind.entry(config.name) for kind in told for config in (statuses[kind].config,) if config is not None]
        if chosen not in kept:
            chosen = _first(latest, kept)
        return (
            status,
            gr.update(visible=bool(running)),
            gr.update(choices=left, value=_first(latest, left)),
            gr.update(choices=kept, value=chosen),
            self.details(chosen),
        )


def _id(name: str) -> str:
    return f"{TAB_ID}_{name}"


def _first(wanted: list[str], of: list[str]) -> Optional[str]:
    """The first of those wanted that there is, or else of all there are."""
    return next((each for each in (*wanted, *of) if each in of), None)


def _named(entry: Optional[str], what: str) -> tuple[Kind, str]:
    if not entry:
        raise StoreError(f"choose one under {what} first")
    return Kind.of_entry(entry)
