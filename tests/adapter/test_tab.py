"""The Calibrate tab on the stand-in host: what its one form asks for, its one progress, and its one list."""

from __future__ import annotations

import base64
import dataclasses
import importlib
import re
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch

from hpsampler.calibration.choice import Figures
from hpsampler.calibration.config import CalibrationConfig
from hpsampler.calibration.profile import Profile
from hpsampler.jobs import JobRunner
from hpsampler.presets import Preset, PresetStore
from hpsampler.statistics.config import StatisticsConfig
from hpsampler.statistics.files import load_statistics
from tests.adapter.conftest import FIVE
from tests.adapter.host.processing import Txt2Img

# jobs take long, and what hosts do otherwise in them is tested in test_calibration.py and test_statistics.py
pytestmark = pytest.mark.parametrize("face", ["a1111"], indirect=True)

PATIENCE = 900
"""Seconds: far more than it takes, as the machine may be busy."""

ASKED = {
    "name": "from the tab", "steps": "4", "cfg": "7", "size": "64x64", "prompts": "a\nb\nc\nd", "negative": "",
    "trajectories": 4, "runs": 30, "samples": 8, "points": 21, "batch": 4, "seed": 1,
}  # fmt: skip


@pytest.fixture
def said(monkeypatch):
    """What the page tells people in passing."""
    found = []
    monkeypatch.setattr(gr, "Warning", found.append)
    monkeypatch.setattr(gr, "Info", found.append)
    return found


def tab_and_runners(default_preset=""):
    tab, runners, page = (importlib.import_module(f"hpsampler.webui.{name}") for name in ("tab", "runners", "page"))
    made = runners.Runners()
    return tab.Tab(made, page.known, lambda: default_preset), made


def kinds():
    return importlib.import_module("hpsampler.webui.kinds")


def asked(values):
    """The form's values in its order."""
    return [values[name] for name in kinds().FORM]


def cost_of(tab, what, values):
    return tab.cost(what, *(values[name] for name in kinds().CHEAP))


def shown(tab, key=None):
    """Status, Stop's visibility, what is chosen, the list's lines by key, and the details."""
    status, start, stop, chosen, details, *_ = tab._shown(key, everything=True)
    assert start["interactive"] is not stop["visible"]
    return SimpleNamespace(
        status=status, stop=stop["visible"], chosen=chosen["value"], details=details["value"],
        lines={key: line for line, key in chosen["choices"]}, label=chosen["label"],
    )  # fmt: skip


def at_call(webui, number):
    """An event that is set at the call of that number from now on."""
    calls, reached = [], threading.Event()

    def look(params):
        calls.append(1)
        if len(calls) == number:
            reached.set()

    webui.script_callbacks.on_cfg_denoiser(look)
    return reached


def ended(runners):
    for runner in runners.all:
        assert runner.wait(PATIENCE), runner.status()
    return [runner.status().state for runner in runners.all]


def test_a_calibration_from_the_tab_s_values_to_a_picture(webui, host, library):
    """On the stand-in's checkpoint, whose UNet is random: whatever comes of it is kept or refused with numbers."""
    tab, runners = tab_and_runners()
    cost = cost_of(tab, "calibration", ASKED)
    assert "1 schedule to fit, at most" in cost and "known as soon as one call was timed" in cost
    tab.start("calibration", *asked(ASKED))
    assert ended(runners) == ["idle", "finished"], runners.calibrations.status().message
    cost, *_ = tab.refresh(None, "statistics", *(ASKED[name] for name in kinds().CHEAP))
    assert "336 UNet calls" in cost and "HP DPM-v3" in cost and "as calls were timed with tiny at 64x64" in cost
    now = shown(tab)
    assert 'data-state="finished"' in now.status and not now.stop
    assert now.label == "What there is for tiny" and now.chosen == "Calibration: from the tab"
    made = library.get("from the tab")
    assert len(made.joint) + len(made.refused) == 1
    assert np.isfinite([change for _, change in made.decoder]).all() and "<svg" in now.details
    p = Txt2Img(steps=4)
    host.run(p)
    is_best = [each.ranked("pictures")[0] == "calibrated" for each in made.compared] == [True]
    assert p.extra_generation_params.get("HP Calibration") == (made.label(made.joint[0]) if is_best else None)
    assert re.search(r"About <b>\d+ (s|min)</b>", cost_of(tab, "calibration", ASKED)), "the calls were timed"
    for wrong, words in (({"steps": "x"}, "steps must be"), ({"size": "64"}, "size must be width x height in pixels")):
        assert words in cost_of(tab, "calibration", {**ASKED, **wrong})


def test_what_was_timed_is_known_while_the_next_job_waits_and_scales_with_the_pictures(webui, host):
    tab, runners = tab_and_runners()
    tab.start("statistics", *asked(ASKED))
    assert ended(runners) == ["finished", "finished"]
    seconds = runners.timed.seconds
    assert runners.timed.model == "tiny" and 0 < seconds < PATIENCE
    queue = importlib.import_module("modules.call_queue").queue_lock
    with queue:
        tab.start("statistics", *asked(ASKED))
        assert runners.statistics.status().progress.calls == 0 and runners.timed.seconds == seconds
        told = [tab._timed(1000, size)[0] for size in ("64x64", "128x64")]
        assert told == pytest.approx([1000 * seconds, 2000 * seconds])
        runners.statistics.stop()
    assert ended(runners) == ["stopped", "stopped"]


def test_auto_draws_with_what_came_out_best_and_is_pasted_back(webui, host, library):
    tab, runners = tab_and_runners()
    tab.start("statistics", *asked({**ASKED, "cfg": "5 7"}))
    assert ended(runners) == ["finished", "finished"], [runner.status().message for runner in runners.all]
    made = library.get("from the tab")
    assert made.rows == () and [(each.steps, each.cfg_scale) for each in made.compared] == [(4, 5.0), (4, 7.0)]
    now = shown(tab, "Calibration: from the tab")
    assert now.lines["Calibration: from the tab"].startswith(
        "from the tab · calibration · ways to draw compared, 4 steps"
    )
    assert "<th>statistics, order 1</th>" in now.details and "HP Auto" in now.lines["Calibration: from the tab"]
    drawn = []
    for best in ("Auto", "statistics, order 1", "statistics, order 2, corrector"):
        figures = {name: Figures(1, 0.1 if name == best else 1) for name in made.compared[0].figures}
        library.save(replace(made, compared=(replace(made.compared[1], figures=figures),)), replacing=True)
        p = Txt2Img(steps=4)
        drawn.append((host.run(p), p.extra_generation_params))
        label = made.label(made.compared[1].with_statistics(best)) if best != "Auto" else None
        assert p.extra_generation_params.get("HP Calibration") == label
        assert ("HP Statistics" in p.extra_generation_params) == (best != "Auto")
    assert not any(torch.equal(drawn[0][0], latents) for latents, _ in drawn[1:])
    latents, written = drawn[1]
    again, names = Txt2Img(steps=4), {"calibration": written["HP Calibration"], "statistics": written["HP Statistics"]}
    assert torch.equal(host.run(again, {"enabled": True, **names}), latents)
    assert "HP note" not in again.extra_generation_params


def test_the_form_shows_what_belongs_to_what_is_wanted(webui):
    tab, _ = tab_and_runners()
    usual = [ASKED[name] for name in kinds().CHEAP]
    for what, fit, measure in (("calibration", True, False), ("statistics", False, True), ("both", True, True)):
        *parts, cost = tab.choose(what, *usual)
        assert [part["visible"] for part in parts] == [fit, measure, measure]
        assert ("HP DPM++ 2M" in cost, "HP DPM-v3" in cost) == (fit, measure) and "HP Auto" in cost
        assert ("ways to draw to compare" in cost, "to fit" in cost) == (not fit, fit)
    both = re.search(r"336 UNet calls; then 1 schedule to fit, at most ([\d,]+) UNet calls, as many as (\d+)", cost)
    assert int(both[2]) == round((336 + int(both[1].replace(",", ""))) / 20)


@pytest.mark.parametrize(
    ("scales", "main", "low", "words"),
    [
        ("2 3 5 7.5 10", 5.0, 3.0, "statistics at CFG 3 and 5, 672 UNet calls"),
        ("2, 7", 5.0, 2.0, "statistics at CFG 2 and 5, 672 UNet calls"),
        ("3.5 7", 5.0, None, "statistics at CFG 5, 336 UNet calls"),
        ("3", 3.0, None, "statistics at CFG 3, 336 UNet calls"),
        ("2 3", 3.0, None, "statistics at CFG 3, 336 UNet calls"),
        ("7", 7.0, None, "statistics at CFG 7, 336 UNet calls"),
    ],
)
def test_low_guidance_scales_get_statistics_of_their_own(webui, scales, main, low, words):
    found = kinds().STATISTICS.config({**ASKED, "cfg": scales})
    assert (found.cfg_scale, found.low_cfg_scale) == (main, low)
    assert kinds().STATISTICS.cost(found) == words


def test_both_are_made_one_after_the_other_under_one_name(webui, host, library):
    tab, runners = tab_and_runners()
    library.save(Profile("tiny", "x", ("x",), "sd1", 64, 64, 0.03, 14.6, 2, 2, 1))
    going = at_call(webui, 20)
    tab.start("both", *asked({**ASKED, "name": " "}))
    assert going.wait(PATIENCE)
    now = shown(tab)
    assert 'data-state="running"' in now.status and "1 of 2: Making statistics of tiny." in now.status and now.stop
    most = (
        336
        + CalibrationConfig.of({"name": "x", "steps": 4, "cfg_scales": 7, "trajectories": 4, "runs": 30}).most_calls()
    )
    assert f"of at most {most:,} UNet calls" in now.status, "of both"
    assert ended(runners) == ["finished", "finished"]
    status = shown(tab).status
    fitted = len(library.get("tiny 2").joint)
    assert (
        f"1 of 2: tiny 2 is ready: 8 pictures&#x27; trajectories, 21 grid points.<br>2 of 2: tiny 2 is ready: {fitted}"
        in status
    )
    assert {"Statistics: tiny 2", "Calibration: tiny 2"} <= set(shown(tab).lines), "the name was free for both"


def test_one_stop_ends_both_and_one_resume_goes_on_with_both(webui, host, library):
    tab, runners = tab_and_runners()
    going = at_call(webui, 20)
    tab.start("both", *asked(ASKED))
    assert going.wait(PATIENCE)
    tab.stop()
    assert ended(runners) == ["stopped", "stopped"]
    now = shown(tab)
    assert 'data-state="stopped"' in now.status and "Now:" not in now.status and not now.stop
    assert "Can be resumed: from the tab (calibration and statistics)." in now.status
    assert list(now.lines) == ["Unfinished Calibration: from the tab", "Unfinished Statistics: from the tab"]
    assert library.names() == [], "it was not begun"
    again, restarted = tab_and_runners()
    assert "Can be resumed: from the tab (calibration and statistics)." in shown(again).status, "also after a restart"
    again.resume(shown(again).chosen)
    assert ended(restarted) == ["finished", "finished"]
    now = shown(again)
    assert list(now.lines) == ["Calibration: from the tab", "Statistics: from the tab"]


def test_where_the_first_fails_the_second_is_not_begun(webui, host, library):
    tab, runners = tab_and_runners()
    going = at_call(webui, 20)
    tab.start("both", *asked({**ASKED, "samples": 64}))
    assert going.wait(PATIENCE)
    loaded = webui.shared.sd_model.sd_checkpoint_info
    webui.shared.sd_model.sd_checkpoint_info = SimpleNamespace(shorthash="ffff", hash="eeee", name_for_extra="other")
    try:
        assert ended(runners) == ["failed", "stopped"]
        now = shown(tab)
        assert "the checkpoint was changed from tiny to other" in now.status
        assert "(calibration and statistics; load tiny first)" in now.status
    finally:
        webui.shared.sd_model.sd_checkpoint_info = loaded
    tab.do("Delete", "Unfinished Statistics: from the tab", "")
    assert list(shown(tab).lines) == ["Unfinished Calibration: from the tab"] and library.names() == []


def test_stop_is_said_before_it_has_stopped(webui, host):
    tab, runners = tab_and_runners()
    going = at_call(webui, 100)
    tab.start("calibration", *asked(ASKED))
    assert going.wait(PATIENCE)
    queue = importlib.import_module("modules.call_queue").queue_lock
    with queue:
        runners.calibrations.stop()
        now = shown(tab)
        assert 'data-state="running"' in now.status and "Stopping after the UNet call that is under way" in now.status
        assert "Now:" not in now.status and "left" not in now.details
    assert ended(runners) == ["idle", "stopped"]


def test_only_one_thing_is_made_at_a_time(webui, host, said):
    tab, runners = tab_and_runners()
    going = at_call(webui, 5)
    tab.start("statistics", *asked({**ASKED, "samples": 64}))
    assert going.wait(PATIENCE)
    tab.start("calibration", *asked(ASKED))
    assert said == ["HP Sampler: 'from the tab' is under way; stop it first, or let it end"]
    tab.stop()
    assert ended(runners) == ["stopped", "stopped"]


def test_the_list_says_what_each_is_and_what_uses_it(webui, host, library, made):
    tab, _ = tab_and_runners(default_preset="fast")
    six = replace(FIVE, steps=6, sigmas=(14.6, 8.0, *FIVE.sigmas[1:]), factors=(0.0, *FIVE.factors))
    better = replace(six, held_out={"Auto": 0.3, "calibrated": 0.1})
    library.save(replace(made, name="mine too", fitted=(replace(better, cfg_scale=3.0), six)))
    library.save(replace(made, name="better", fitted=(replace(six, held_out={"Auto": 0.9, "calibrated": 0.1}),)))
    library.save(replace(made, name="foreign", model="another", hashes=("feedbeef",)))
    assert shown(tab).lines == {
        "Calibration: better": "better · calibration · 6 steps at CFG 7 · 64x64 · error 9.00 times smaller · "
        "HP Auto and HP DPM++ 2M use it by themselves at 6 steps",
        "Calibration: mine": "mine · calibration · 5 steps at CFG 7 · 64x64 · error 2.00 times smaller · "
        "HP Auto and HP DPM++ 2M use it by themselves at 5 steps",
        "Calibration: mine too": "mine too · calibration · 6 steps at CFG 3 and 7 · 64x64 · "
        "error 2.00 to 3.00 times smaller · HP Auto and HP DPM++ 2M use it by themselves at 6 steps",
        "Calibration: foreign": "foreign · calibration · 5 steps at CFG 7 · 64x64 · error 2.00 times smaller "
        "· of another",
    }
    presets = importlib.import_module("hpsampler.webui.folders").presets()
    assert isinstance(presets, PresetStore)
    presets.save(Preset.of("fast", {"calibration": "mine"}))
    presets.save(Preset.of("old", {"calibration": f"mine {FIVE.hash}"}))
    presets.save(Preset.of("other", {"calibration": "mine too"}))
    uses = shown(tab, "Calibration: mine").details
    assert "<li>HP Auto and HP DPM++ 2M use it by themselves at 5 steps.</li>" in uses
    assert "The preset &#x27;fast&#x27; names it, and the accordion begins with that." in uses
    assert "<li>The preset &#x27;old&#x27; names it.</li>" in uses and "&#x27;other&#x27;" not in uses
    for menu in ("txt2img_hpsampler_calibration", "img2img_hpsampler_calibration"):
        assert f'<li hidden data-menu="{menu}" data-named="mine">' in uses
    for act in ("Rename", "Delete"):
        question, resume, rename, delete, new_name, do, cancel = tab.ask(act, "Calibration: mine")
        assert act in question["value"] and "The preset &#x27;fast&#x27; names it" in question["value"]
        assert [each["visible"] for each in (resume, rename, delete)] == [False] * 3
        assert (new_name["visible"], do["visible"], do["value"], cancel["visible"]) == (
            act == "Rename",
            True,
            act,
            True,
        )
    assert library.get("mine") == made, "nothing is done before the answer"
    webui.shared.opts.data["hpsampler_calibration_when_off"] = False
    assert "at 5 steps while the accordion is on" in shown(tab).lines["Calibration: mine"]


def test_renamed_deleted_exported_and_taken_once(webui, host, library, made, tmp_path, said):
    tab, _ = tab_and_runners()
    now = shown(tab)
    assert now.chosen == "Calibration: mine" and not said
    link = re.search(r'download="mine.json" href="data:application/json;base64,([^"]+)">Export mine.json<', now.details)
    path = tmp_path / "exported.json"
    path.write_bytes(base64.b64decode(link[1]))
    _, _, _, chosen, *_ = tab.do("Rename", "Calibration: mine", "other")
    assert chosen["value"] == "Calibration: other" and library.names() == ["other"]
    _, _, _, chosen, *_ = tab.take(str(path))
    assert library.names() == ["other"] and "is here already, as 'other'; nothing was added" in said.pop()
    assert chosen["value"] == "Calibration: other"
    _, _, _, chosen, *_ = tab.do("Delete", "Calibration: other", "")
    assert library.names() == [] and chosen["value"] is None and chosen["info"] == "Nothing yet."
    library.save(replace(made, seed=2))
    _, _, _, chosen, *_ = tab.take(str(path))
    assert library.names() == ["mine", "mine 2"] and chosen["value"] == "Calibration: mine 2"
    assert "kept as 'mine 2', as 'mine' is the name of another one here" in said.pop()
    tab.resume(None)
    tab.resume("Calibration: mine")
    assert said == ["HP Sampler: choose one in the list first", "HP Sampler: nothing unfinished is named 'mine'"]


def test_statistics_are_exported_and_taken_once_too(webui, host, tmp_path, said):
    tab, runners = tab_and_runners()
    tab.start("statistics", *asked(ASKED))
    assert ended(runners) == ["finished", "finished"]
    link = re.search(
        r'download="from the tab.safetensors" href="data:[^,]+,([^"]+)"', shown(tab, "Statistics: from the tab").details
    )
    path = tmp_path / "taken.safetensors"
    path.write_bytes(base64.b64decode(link[1]))
    _, _, _, chosen, *_ = tab.take(str(path))
    assert chosen["value"] == "Statistics: from the tab" and "are here already, as 'from the tab'" in said.pop()
    tab.do("Rename", "Statistics: from the tab", "renamed")
    tab.do("Delete", "Statistics: renamed", "")
    assert runners.statistics.names() == []
    _, _, _, chosen, *_ = tab.take(str(path))
    assert chosen["value"] == "Statistics: taken" and not said
    assert load_statistics(runners.statistics.folder / "taken.safetensors").source.samples == 8
    path.write_bytes(b"nonsense")
    tab.take(str(path))
    assert "taken.safetensors: not a safetensors file" in said.pop() and runners.statistics.names() == ["taken"]


def test_the_tab_asks_every_field_once_and_has_what_its_script_presses(webui):
    (build,) = webui.script_callbacks.callbacks_ui_tabs
    ((page, title, name),) = build()
    assert (title, name) == ("Calibrate", "hpsampler_calibrate")
    assert len(page.blocks) - 1 <= 36, "gradio components, the root aside"
    ids = {each.elem_id: each for each in page.blocks.values() if getattr(each, "elem_id", None)}
    assert all(each.startswith(f"{name}_") for each in ids)
    assert len(ids) == len([each for each in page.blocks.values() if getattr(each, "elem_id", None)])
    form = {each: ids[f"{name}_{each}"].value for each in kinds().FORM}
    assert "as many as" in ids[f"{name}_cost"].value and ids[f"{name}_what"].value == "statistics"
    shown = {each: ids[f"{name}_{each}"].visible for each in ("runs", "samples", "points")}
    assert shown == {"runs": False, "samples": True, "points": True}, "as it begins, no schedule is fitted"
    for kind, config in ((kinds().CALIBRATION, CalibrationConfig), (kinds().STATISTICS, StatisticsConfig)):
        # statistics of every element are left to the command line; the low CFG scale follows from all of them, and
        # what it is for says whether there are fits
        left = {"per_pixel", "low_cfg_scale"} if config is StatisticsConfig else {"fit"}
        assert {*kind.fields.values(), "width", "height"} == {each.name for each in dataclasses.fields(config)} - left
        # every number that the form begins with is one that it accepts
        usual = config("usual") if config is CalibrationConfig else config("usual", low_cfg_scale=3.0)
        assert kind.config({**form, "name": "usual"}) == usual
    script = (Path(__file__).parents[2] / "javascript" / "hpsampler_calibrate.js").read_text(encoding="utf-8")
    assert f"#{name}_$" in script
    buttons = re.search(r"const buttons = \[(.*?)\]", script)[1]
    pressed = {*re.findall(r'find\("(\w+)"\)', script), *re.findall(r'"(\w+)"', buttons)}
    assert pressed == {
        "status", "refresh", "details", "rename", "delete", "do", "cancel", "start", "resume", "stop",
    }  # fmt: skip
    assert {f"{name}_{each}" for each in pressed} <= set(ids)
    assert (ids[f"{name}_start"].value, ids[f"{name}_stop"].value) == ("Calibrate", "Stop")


def test_building_the_page_makes_no_runner(webui):
    tab, runners = tab_and_runners()
    with gr.Blocks():
        tab.build()
    assert runners._calibrations is None and runners._statistics is None
    assert issubclass(type(runners.statistics), JobRunner)
