"""The accordion's row of presets: choose, save, rename, delete, export, import; in gradio alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Optional

import gradio as gr

from ..presets import Preset, PresetStore
from ..settings import FIELDS, SettingsError
from ..store import StoreError
from .files import offered, text_of

__all__ = ["Row", "build"]


@dataclass(frozen=True)
class Row:
    """The row's components; ``chosen`` is the menu of names. :meth:`connect` gives them their work."""

    store: PresetStore
    chosen: Any
    picked: Any
    pick: Any
    around: Any
    name: Any
    sure: Any
    save: Any
    rename: Any
    delete: Any
    export: Any
    take: Any
    exported: Any
    said: Any

    def menu(self) -> tuple[Any, str]:
        """The menu's names as they are now, and what is to be said of files that cannot be read."""
        return gr.update(choices=self.store.all_names()), _said(self.store.read()[1])

    def connect(self, enabled: Any, controls: Mapping[str, Any], data: Any, panel: Callable[[], str]) -> None:
        """Let the buttons act on the accordion's ``controls``; ``data`` gets ``panel()`` where presets changed."""
        acts = _Acts(self.store, panel)
        values = list(controls.values())
        loaded = [self.chosen, enabled, *values, self.said]
        shown = [self.chosen, data, self.said, self.sure]
        quiet: dict[str, Any] = {"show_progress": "hidden"}
        # only what a person chooses loads it, not what the page itself sets
        self.chosen.input(acts.load, inputs=[self.chosen], outputs=loaded, **quiet)
        self.pick.click(acts.load, inputs=[self.picked], outputs=loaded, **quiet)
        self.save.click(acts.save, inputs=[self.name, self.chosen, self.around, *values], outputs=shown, **quiet)
        self.rename.click(acts.rename, inputs=[self.chosen, self.name], outputs=shown, **quiet)
        self.delete.click(acts.delete, inputs=[self.chosen, self.sure], outputs=shown, **quiet)
        self.take.upload(acts.take, inputs=[self.take], outputs=shown, **quiet)
        self.export.click(acts.export, inputs=[self.chosen], outputs=[self.exported, self.said], **quiet)


def build(prefix: str, store: PresetStore) -> Row:
    """Build the row where the page now stands."""

    def elem_id(name: str) -> str:
        return f"{prefix}_preset_{name}"

    with gr.Row():
        chosen = gr.Dropdown(
            store.all_names(), value=None, label="Preset", elem_id=f"{prefix}_preset",
            info="Choosing one sets every control below. Your own are kept beside your models.",
        )  # fmt: skip
    # pressed by the plot's panel, which offers what fits
    picked = gr.Textbox(visible=False, elem_id=elem_id("picked"))
    pick = gr.Button("Load", visible=False, elem_id=elem_id("pick"))
    around = gr.Textbox(visible=False, elem_id=elem_id("around"))
    with gr.Accordion("Keep presets", open=False, elem_id=elem_id("keep")):
        name = gr.Textbox(label="Name", max_lines=1, elem_id=elem_id("name"), info="To save or rename.")
        small: dict[str, Any] = {"size": "sm", "min_width": 80}
        with gr.Row():
            save = gr.Button("Save", elem_id=elem_id("save"), **small)
            rename = gr.Button("Rename", elem_id=elem_id("rename"), **small)
            export = gr.Button("Export", elem_id=elem_id("export"), **small)
            take = gr.UploadButton("Import", file_types=[".json"], elem_id=elem_id("import"), **small)
        with gr.Row():
            sure = gr.Checkbox(False, label="Really delete", elem_id=elem_id("sure"), min_width=120)
            delete = gr.Button("Delete", elem_id=elem_id("delete"), **small)
        exported = gr.File(label="Exported", visible=False, elem_id=elem_id("exported"))
    said = gr.HTML(elem_id=elem_id("said"))
    return Row(store, chosen, picked, pick, around, name, sure, save, rename, delete, export, take, exported, said)


class _Acts:
    """What the buttons do. What is wrong is said in words, and nothing done."""

    def __init__(self, store: PresetStore, panel: Callable[[], str]) -> None:
        self.store, self.panel = store, panel

    def load(self, name: Optional[str]) -> tuple[Any, ...]:
        unchanged = [gr.update()] * (2 + len(FIELDS))
        try:
            preset = self.store.find(_named(name))
        except StoreError as error:
            return (*unchanged, _said([str(error)]))
        values = preset.values()
        text = f"Preset {preset.name} loaded{_made_for(preset)}."
        return (preset.name, True, *(values[field.name] for field in FIELDS), _said([], text))

    def save(self, name: str, chosen: Optional[str], around: str, *values: Any) -> tuple[Any, ...]:
        def act() -> tuple[Optional[str], str]:
            settings = dict(zip((field.name for field in FIELDS), values))
            preset = Preset.of(name or "", settings, **_around(around))
            taken = preset.name in self.store.names()
            if taken and chosen != preset.name:
                raise StoreError(
                    f"there is a preset named {preset.name!r}; choose it first to save over it, or take another name"
                )
            kept = self.store.save(preset, replacing=taken)
            return kept.name, f"Preset {kept.name} saved{_made_for(kept)}."

        return self._tried(act)

    def rename(self, chosen: Optional[str], name: str) -> tuple[Any, ...]:
        def act() -> tuple[Optional[str], str]:
            new = self.store.rename(_named(chosen), name or "").name
            return new, f"Preset {chosen} is now {new}."

        return self._tried(act)

    def delete(self, chosen: Optional[str], sure: bool) -> tuple[Any, ...]:
        def act() -> tuple[Optional[str], str]:
            if not sure:
                raise StoreError("tick Really delete first")
            self.store.delete(_named(chosen))
            return None, f"Preset {chosen} deleted."

        return self._tried(act)

    def take(self, file: Any) -> tuple[Any, ...]:
        def act() -> tuple[Optional[str], str]:
            kept = self.store.import_json(text_of(file))
            return kept.name, f"Preset {kept.name} imported{_made_for(kept)}; choose it to load it."

        return self._tried(act)

    def export(self, chosen: Optional[str]) -> tuple[Any, ...]:
        try:
            preset = self.store.find(_named(chosen))
            return gr.update(value=offered(preset.name, preset.to_json()), visible=True), _said([])
        except (StoreError, OSError) as error:
            return gr.update(visible=False), _said([str(error)])

    def _tried(self, act: Callable[[], tuple[Optional[str], str]]) -> tuple[Any, ...]:
        try:
            chosen, done = act()
        except (StoreError, SettingsError, OSError) as error:
            return gr.update(choices=self.store.all_names()), gr.update(), _said([str(error)]), False
        menu = gr.update(choices=self.store.all_names(), value=chosen)
        return menu, self.panel(), _said(self.store.read()[1], done), False


def _around(text: str) -> dict[str, Any]:
    """What the page said of its own controls; the panel's script writes it."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    keys = ("family", "steps", "cfg_scale", "sampler", "schedule")
    return {key: found[key] for key in keys if key in found} if isinstance(found, dict) else {}


def _made_for(preset: Preset) -> str:
    told = [f"{preset.steps} steps" if preset.steps else "", f"CFG {preset.cfg_scale:g}" if preset.cfg_scale else ""]
    said = [each for each in [*told, preset.sampler] if each]
    return f", made for {', '.join(said)}" if said else ""


def _named(name: Optional[str]) -> str:
    if not name:
        raise StoreError("choose one under Preset first")
    return name


def _said(problems: Sequence[str], done: str = "") -> str:
    lines = [f"<p role='alert'>HP Sampler: {escape(each)}</p>" for each in problems]
    return "".join([*lines, f"<p role='status'>{escape(done)}</p>" if done else ""])
