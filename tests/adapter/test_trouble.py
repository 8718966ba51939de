"""Whatever of ours fails at the WebUI's start: a line in the console, a sentence in the accordion, and it goes on."""

from __future__ import annotations

import importlib
import json
import runpy
import sys

import gradio as gr
import pytest
from fastapi import FastAPI

from tests.conftest import ROOT

BROKEN = "this host is another"


def fail(*args, **kwargs):
    raise RuntimeError(BROKEN)


def start(webui, script):
    """What a host does from its start to a page that is asked for: twice for the API's defaults, unguarded."""
    callbacks = webui.script_callbacks
    callbacks.before_ui_callback()
    callbacks.ui_settings_callback()
    with gr.Blocks() as page:
        for _ in range(3):
            script.show(False)
            for name, found in getattr(script, "after_component", {}).items():
                found(type("Event", (), {"component": gr.Dropdown(["HP Auto", "Automatic"], elem_id=name)})())
            inputs = script.ui(False)
        tabs = [tab for callback in callbacks.callbacks_ui_tabs for tab in callback()]
    for callback in callbacks.callbacks_app_started:
        callback(page, FastAPI())
    assert not callbacks.reported
    return page, inputs, tabs


def _flat(targets):
    """gradio names buttons, or each with its event."""
    return [each for target in targets for each in (target if isinstance(target, (list, tuple)) else [target])]


def panel_of(page, inputs):
    """What the panel says when it opens."""
    *_, ask = (each for each in page.blocks.values() if getattr(each, "elem_id", "") == "txt2img_hpsampler_ask")
    number = next(number for number, each in enumerate(page.dependencies) if ask._id in _flat(each["targets"]))
    fn = page.fns[number]
    answer, *_ = fn.fn(json.dumps({"id": 1, "look": True, "page": {}}), *(each.value for each in inputs))
    return json.loads(answer)["slots"]


@pytest.mark.parametrize(
    ("module", "name", "what"),
    [
        ("script.xyz", "register", "the axes of X/Y/Z plots failed"),
        ("script.options", "register", "the settings page failed"),
        ("script.tab", "build", "the tab Calibrate failed"),
        ("script", "add_routes", "the API of calibrations failed"),
        ("script", "paste_fields", "pasting pictures failed"),
    ],
)
def test_a_part_that_fails_is_missing_and_said(webui, monkeypatch, capsys, module, name, what):
    # callbacks hold what they call, so it is broken before they are made
    owner = webui.script
    for each in module.split(".")[1:]:
        owner = getattr(owner, each)
    monkeypatch.setattr(owner, name, fail)
    webui.script_callbacks.clear_callbacks()
    webui.script.install()
    page, inputs, _ = start(webui, webui.script.HPSamplerScript())
    sentence = f"{what} (RuntimeError: {BROKEN}); the rest works without it."
    lines = [line for line in capsys.readouterr().out.splitlines() if BROKEN in line]
    assert lines == [f"HP Sampler: {sentence}"]
    assert len(inputs) > 10 and sentence in panel_of(page, inputs)["said"]


@pytest.mark.parametrize("name", ["build", "presets", "PageContext"])
def test_an_accordion_that_cannot_be_built_is_one_sentence(webui, monkeypatch, capsys, name):
    monkeypatch.setattr(webui.script, name, fail)
    page, inputs, tabs = start(webui, webui.script.HPSamplerScript())
    assert inputs == [] and len(tabs) == 1
    texts = [each.value for each in page.blocks.values() if isinstance(each, gr.HTML) and BROKEN in str(each.value)]
    assert "HP Sampler: the accordion failed" in texts[0]
    said = [line for line in capsys.readouterr().out.splitlines() if BROKEN in line]
    # the page's own defaults ask for presets too
    assert ["the accordion failed" in line for line in said] == [False] * (name == "presets") + [True]
    assert not [each for each in page.dependencies if each["targets"] and "_ask" in str(each)]


def test_half_an_accordion_is_taken_off_the_page(webui, monkeypatch):
    accordion = importlib.import_module("hpsampler.webui.accordion")
    monkeypatch.setattr(accordion, "_Answers", fail)
    with gr.Blocks() as page:
        assert webui.script.HPSamplerScript().ui(False) == []
    (left,) = page.children
    assert isinstance(left, gr.Accordion) and [type(each) for each in left.children] == [gr.HTML]


@pytest.mark.parametrize("name", ["known", "view"])
def test_a_panel_that_fails_says_so_each_time_and_prints_it_once(webui, monkeypatch, capsys, name):
    if name == "known":
        monkeypatch.setattr(webui.script, "known", fail)
    else:
        monkeypatch.setattr(importlib.import_module("hpsampler.panel.view"), "view", fail)
    page, inputs, _ = start(webui, webui.script.HPSamplerScript())
    for _ in range(2):
        assert f"the panel failed (RuntimeError: {BROKEN})" in panel_of(page, inputs)["words"]
    assert len([line for line in capsys.readouterr().out.splitlines() if BROKEN in line]) == 1


def test_leaving_that_fails_is_one_line(webui, monkeypatch, capsys):
    monkeypatch.setattr(webui.script.registration, "unregister", fail)
    webui.script_callbacks.script_unloaded_callback()
    assert not webui.script_callbacks.reported
    assert f"HP Sampler: leaving failed (RuntimeError: {BROKEN})" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["hpsampler.webui.script", "hpsampler.webui.registration"])
def test_an_extension_that_cannot_be_imported_is_an_accordion_that_says_so(webui, monkeypatch, capsys, name):
    kept = {each: module for each, module in sys.modules.items() if each.partition(".")[0] == "hpsampler"}
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])

    class Finder:
        def find_spec(self, wanted, path=None, target=None):
            if wanted == name:
                raise ImportError("cannot import name 'schedulers_map'")

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    try:
        script = runpy.run_path(str(ROOT / "scripts" / "hpsampler_webui.py"))["HPSamplerScript"]()
    finally:
        # the core stays: other tests hold its classes
        for each in [each for each in sys.modules if each.partition(".")[0] == "hpsampler"]:
            del sys.modules[each]
        sys.modules.update(kept)
    with gr.Blocks() as page:
        assert script.ui(False) == script.ui(True) == []
    sentence = "HP Sampler could not be loaded and does nothing (ImportError: cannot import name 'schedulers_map')."
    assert sentence in capsys.readouterr().out
    assert "schedulers_map" in str(page.children[0].children[0].value)
    assert script.title() == "HP Sampler" and script.show(False) is webui.scripts.AlwaysVisible
