"""The accordion's panel as it is built: its places, which are empty until the page's script asks for what is in them.

``javascript/hpsampler_panel.js`` puts each text of :func:`~hpsampler.webui.panel_html.answer` into the place of its
name, and does what a button's ``data-act`` says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape

__all__ = ["SCRIPT_TEXTS", "skeleton"]

SCRIPT_TEXTS = {
    "waiting": "Waiting for the WebUI: what is shown is older than what is set.",
    "silent": "The WebUI does not answer, so what is shown is older than what is set. It is asked again.",
}


def skeleton(prefix: str, page: Mapping[str, str]) -> str:
    """The panel's places, empty; its script fills them."""

    def button(act: str, label: str, title: str = "") -> str:
        hint = f' title="{escape(title)}"' if title else ""
        return f'<button type="button" data-act="{act}"{hint}>{label}</button>'

    manage = (
        '<div class="hps-row" data-slot="manage" role="group" aria-label="Manage presets" hidden>'
        f'<label>Name <input type="text" data-slot="name" maxlength="60" id="{prefix}_preset_name"></label>'
        f"{button('rename', 'Rename', 'Gives the chosen preset the name')}"
        f"{button('export', 'Export', 'The chosen preset as a file')}"
        f'<label class="hps-file">Import<input type="file" accept=".json" data-act="import"></label>'
        f'<label><input type="checkbox" data-slot="sure"> Confirm</label>'
        f"{button('delete', 'Delete', 'Deletes the chosen preset, once Confirm is ticked')}</div>"
    )
    return (
        f'<div class="hpsampler-panel" data-prefix="{escape(prefix)}" data-page="{escape(json.dumps(dict(page)))}" '
        f'data-texts="{escape(json.dumps(SCRIPT_TEXTS))}">'
        '<p class="hps-silent" role="status"></p>'
        '<p class="hps-summary" data-slot="summary"></p>'
        '<ul class="hps-words" data-slot="words" aria-live="polite"></ul>'
        '<div class="hps-figure" data-slot="figure"></div>'
        '<details class="hps-numbers"><summary>Numbers</summary><div data-slot="table"></div></details>'
        '<div class="hps-row" data-slot="offers" role="group" aria-label="Step counts on offer"></div>'
        '<p class="hps-calibration" data-slot="calibration"></p>'
        '<div class="hps-row hps-presets"><label>Preset '
        f'<select data-slot="presets" data-act="load" id="{prefix}_preset"></select></label>'
        f"{button('save', 'Save', 'Under the name below More, or over the chosen preset of your own')}"
        '<button type="button" data-act="more" aria-expanded="false">More…</button></div>'
        f"{manage}"
        '<div class="hps-said" data-slot="said" aria-live="polite"></div>'
        "</div>"
    )
