"""What the panel's row of presets does: load, undo, save, rename, delete, export, import.

What is wrong is said in words, and nothing done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Optional
from urllib.parse import quote

from ..fields import SettingsError
from ..panel import Known, Page
from ..presets import RESERVED, Preset, PresetStore
from ..settings import ENABLED, FIELDS
from ..store import StoreError

__all__ = ["Done", "act", "said"]

KEPT_BY_UNDO = ("recipe", "hires_recipe", "calibration", "statistics")


@dataclass
class Done:
    """What came of a button.

    Attributes:
        said: HTML for the row's place.
        preset: the one that is chosen from now on.
        values: of the accordion's controls, those that are set, by name.
        file: name and contents of a file that the browser keeps, as attributes of a link.
        needs: the input that must be filled in first.
    """

    said: str = ""
    preset: Optional[str] = None
    values: dict[str, Any] = field(default_factory=dict)
    file: Optional[dict[str, str]] = None
    needs: str = ""

    def answer(self) -> dict[str, Any]:
        """As the page's script takes it."""
        found: dict[str, Any] = {"slots": {"said": self.said}, "file": self.file, "needs": self.needs}
        return found if self.preset is None else {**found, "preset": self.preset}


def act(store: PresetStore, question: Mapping[str, Any], values: Mapping[str, Any], page: Page, known: Known) -> Done:
    """Do what a button asks.

    Args:
        question: ``act``, and with it ``preset`` (the chosen one), ``name``, ``sure`` and ``text``.
        values: the accordion's, by name.
    """
    acts = {
        "load": _load, "undo": _undo, "save": _save, "rename": _rename, "delete": _delete, "export": _export,
        "import": _import,
    }  # fmt: skip
    done = Done()
    try:
        acts[question.get("act", "")](done, store, _Asked(question, values, page, known))
    except KeyError:
        done.said = said([f"there is nothing called {question.get('act')!r} to do"])
    except (StoreError, SettingsError, OSError) as error:
        done.said = said([str(error).removeprefix("HP Sampler: ")])
    return done


class _Asked:
    """A button's question, in the types that it should have."""

    def __init__(self, question: Mapping[str, Any], values: Mapping[str, Any], page: Page, known: Known) -> None:
        self.values, self.page, self.known = values, page, known
        self.preset, self.name, self.text = (str(question.get(key) or "") for key in ("preset", "name", "text"))
        self.sure = question.get("sure") is True

    def chosen(self) -> str:
        if not self.preset:
            raise StoreError("choose one under Preset first")
        return self.preset

    def own(self, doing: str) -> str:
        """The chosen preset, which must be one that a person saved."""
        if self.chosen() in RESERVED:
            raise StoreError(f"{self.preset} comes along with HP Sampler and cannot be {doing}; your own can")
        return self.preset


def _load(done: Done, store: PresetStore, asked: _Asked) -> None:
    preset = store.find(asked.chosen())
    done.preset, done.values = preset.name, {ENABLED.name: True, **preset.values()}
    done.said = said([], f"Preset {preset.name} loaded{_made_for(preset)}.")


def _undo(done: Done, store: PresetStore, asked: _Asked) -> None:
    done.values = {each.name: each.default for each in FIELDS if each.name not in KEPT_BY_UNDO}
    done.said = said([], f"All but the recipe is as {asked.values.get('recipe')} has it.")


def _save(done: Done, store: PresetStore, asked: _Asked) -> None:
    name = asked.name.strip() or (asked.preset if asked.preset in store.names() else "")
    if not name:
        done.needs = "name"
        raise StoreError("write a name for it, and press Save again")
    page, known = asked.page, asked.known
    settings = {each.name: asked.values.get(each.name, each.default) for each in FIELDS}
    preset = Preset.of(
        name, settings, family=known.family if known.model else "", steps=page.steps, cfg_scale=page.cfg,
        sampler=page.sampler, schedule=page.schedule,
    )  # fmt: skip
    taken = preset.name in store.names()
    if taken and asked.preset != preset.name:
        raise StoreError(
            f"there is a preset named {preset.name!r}; choose it first to save over it, or take another name"
        )
    kept = store.save(preset, replacing=taken)
    done.preset, done.said = kept.name, _done(store, f"Preset {kept.name} saved{_made_for(kept)}.")


def _rename(done: Done, store: PresetStore, asked: _Asked) -> None:
    before = asked.own("renamed")
    if not asked.name.strip():
        done.needs = "name"
        raise StoreError("write the new name first")
    done.preset = store.rename(before, asked.name).name
    done.said = _done(store, f"Preset {before} is now {done.preset}.")


def _delete(done: Done, store: PresetStore, asked: _Asked) -> None:
    name = asked.own("deleted")
    if not asked.sure:
        done.needs = "sure"
        raise StoreError(f"tick Confirm first, and press Delete again, to delete {name}")
    store.delete(name)
    done.preset, done.said = "", _done(store, f"Preset {name} deleted.")


def _import(done: Done, store: PresetStore, asked: _Asked) -> None:
    kept, told = store.import_json(asked.text)
    what = f"{told[0].upper()}{told[1:]}." if told else f"Preset {kept.name} imported{_made_for(kept)}."
    done.said = _done(store, f"{what} Choose it to load it.")


def _export(done: Done, store: PresetStore, asked: _Asked) -> None:
    preset = store.find(asked.chosen())
    text = f"data:application/json;charset=utf-8,{quote(preset.to_json())}"
    done.file = {"download": f"{preset.name}.json", "href": text}
    done.said = said([], f"Preset {preset.name} exported as {preset.name}.json.")


def _made_for(preset: Preset) -> str:
    told = [f"{preset.steps} steps" if preset.steps else "", f"CFG {preset.cfg_scale:g}" if preset.cfg_scale else ""]
    found = [each for each in [*told, preset.sampler] if each]
    return f", made for {', '.join(found)}" if found else ""


def _done(store: PresetStore, text: str) -> str:
    return said(store.read()[1], text)


def said(problems: Sequence[str], done: str = "") -> str:
    """HTML of what is wrong, and of what was done."""
    lines = [f"<p role='alert'>HP Sampler: {escape(each)}</p>" for each in problems]
    return "".join([*lines, f"<p role='status'>{escape(done)}</p>" if done else ""])
