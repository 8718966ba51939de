"""The page's defaults that the WebUI keeps in ``ui-config.json``: a person's stay, and ours are not frozen there.

The WebUI writes the first value and range of every control into that file, and takes both from it ever after. So what
the accordion begins with, which the settings page and our versions decide, would stay what it was at the first start.
Before a page is built, what the WebUI wrote by itself is therefore taken out again. What a person saved in
*Settings > Defaults* stays. The two are told apart by a record, in the same file, of what the last page began with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..fields import Field, SettingsError
from ..settings import ENABLED, FIELDS
from ..store import write_atomically
from .accordion import TITLE

__all__ = ["SCRIPT", "saved", "thaw"]

SCRIPT = "hpsampler_webui.py"
"""Our script file, by whose name the host calls its controls."""

PREFIX = f"customscript/{SCRIPT}/"
RECORD = PREFIX + "begun with"

_BY_LABEL: Mapping[str, Field] = {TITLE: ENABLED, **{field.label: field for field in FIELDS}}


def thaw(file: Path, begin: Mapping[str, Any], presets: Iterable[Mapping[str, Any]]) -> list[str]:
    """Take out of the host's file what was not saved on purpose, and keep in it what the page begins with now.

    Args:
        file: the host's ``ui-config.json``, which need not be there.
        begin: the value that every control of the accordion begins with, by name.
        presets: values that it may have begun with before there was a record, by name.

    Returns:
        A sentence for each value that cannot be used, which is taken out too.

    Raises:
        OSError: the file cannot be read or written.
    """
    data = _read(file)
    if data is None:
        return []
    before, problems = dict(data), []
    last, kept = _recorded(data.pop(RECORD, None))
    given = {key: data.pop(key) for key in before if key.startswith(PREFIX) and key in data}
    frozen = _begun(given, presets) if last is None else {}
    for key, value in given.items():
        tab, label, what = _parts(key)
        field = _BY_LABEL.get(label)
        if field is not None and what == "visible" and value is False:
            data[key] = False  # nobody but a person hides a control
        if field is None or what != "value":
            continue  # ranges are ours, and so is a control that is gone
        begun = frozen[tab][field.name] if last is None else last.get(field.name)
        if key not in kept and value == begun:
            continue
        try:
            # the page's numbers come without a point, and the host takes a control's type from its value
            data[key] = field.parse(value)
        except SettingsError as error:
            problems.append(f"{error} in {file.name}; it begins with its default")
    data[RECORD] = {"values": dict(begin), "saved": [key for key in data if key.startswith(PREFIX)]}
    if data != before:
        write_atomically(file, json.dumps(data, indent=4, ensure_ascii=False))
    return problems


def saved(file: Path, tab: str) -> dict[str, Any]:
    """What a person saved as defaults of a tab's accordion, by name of setting."""
    found = {}
    for key, value in (_read(file) or {}).items():
        if key.startswith(PREFIX) and key != RECORD:
            of_tab, label, what = _parts(key)
            if of_tab == tab and what == "value" and label in _BY_LABEL:
                found[_BY_LABEL[label].name] = value
    return found


def _read(file: Path) -> dict[str, Any] | None:
    """The file's contents, empty where there is none; None where they are broken, which is the host's to say."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _recorded(record: Any) -> tuple[dict[str, Any] | None, list[Any]]:
    """What the last page began with, None where that is not known, and the keys of what had been saved before it."""
    values, kept = (record.get(name) if isinstance(record, dict) else None for name in ("values", "saved"))
    return values if isinstance(values, dict) else None, kept if isinstance(kept, list) else []


def _parts(key: str) -> tuple[str, str, str]:
    """Tab, label and what is kept of a control, from a key such as ``customscript/FILE/txt2img/Rho/value``."""
    parts = key.removeprefix(PREFIX).split("/")
    return (parts[0], "/".join(parts[1:-1]), parts[-1]) if len(parts) > 2 else ("", "", "")


def _begun(given: Mapping[str, Any], presets: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each tab of a file without a record began with: a preset, if it holds exactly that, else the defaults."""
    plain = {each.name: each.default for each in (ENABLED, *FIELDS)}
    tabs: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        tab, label, what = _parts(key)
        values = tabs.setdefault(tab, {})
        if what == "value" and label in _BY_LABEL:
            values[_BY_LABEL[label].name] = value
    began = [{**plain, **values, ENABLED.name: True} for values in presets]
    return {
        tab: next((each for each in began if values == {name: each[name] for name in values}), plain)
        for tab, values in tabs.items()
    }
