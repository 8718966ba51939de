"""Calibrating in a running WebUI, on the trained tiny checkpoint: tab, queue, pictures, command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pytest

from hpsampler.calibration.choice import SAME_PICTURE
from hpsampler.calibration.profile import Profile
from hpsampler.presets import Preset
from tests.webui.calibrate_tab import CalibrateTab, has_value, watched
from tests.webui.harness import PATIENCE, ROOT, open_ui, paste, save_screenshot
from tests.webui.hosts import SIDE
from tests.webui.test_page import choose, open_accordion
from tiny_model.pictures import captioned

SIZE = {"width": SIDE, "height": SIDE}
PROMPTS = [picture.caption() for picture in captioned(64)]
QUICK = {"prompts": PROMPTS, "trajectories": 12, "runs": 40, "batch": 12, "cfg_scales": "5", **SIZE}
AUTO = {"sampler_name": "HP Auto", "scheduler": "Automatic", "steps": 5, "cfg_scale": 5, **SIZE, "prompt": PROMPTS[0]}


class Bench:
    """What the tests ask of the WebUI's calibrations."""

    def __init__(self, server):
        self.server = server

    def ask(self, method, path, body=None):
        """Status and JSON."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.server.url}/hpsampler{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def status(self):
        return self.ask("GET", "/calibrate")[1]

    def wait(self, *states):
        deadline = time.monotonic() + PATIENCE
        while (status := self.status())["state"] not in states:
            assert time.monotonic() < deadline, status
            time.sleep(0.2)
        return status

    def wait_calls(self, calls):
        deadline = time.monotonic() + PATIENCE
        while (status := self.status())["calls"] < calls:
            assert status["state"] == "running" and time.monotonic() < deadline, status
            time.sleep(0.05)

    def made(self, name):
        return Profile.from_json(json.dumps(self.ask("GET", f"/calibrations/{name}")[1]))

    def clear(self):
        if self.status()["state"] == "running":
            self.ask("POST", "/calibrate/stop")
        for name in self.status()["unfinished"]:
            self.ask("POST", "/calibrate/discard", {"name": name})
        for each in self.ask("GET", "/calibrations")[1]["calibrations"]:
            self.ask("DELETE", f"/calibrations/{each['name'].replace(' ', '%20')}")


@pytest.fixture(scope="module")
def painter(serve, trained_checkpoint):
    # so Auto draws with what was fitted, whichever way the comparison of a few pictures finds to look best on a host
    return serve(checkpoint=trained_checkpoint, settings={"randn_source": "CPU", "hpsampler_aim": SAME_PICTURE})


@pytest.fixture
def bench(painter):
    bench = Bench(painter)
    bench.clear()
    yield bench
    bench.clear()


@pytest.fixture(scope="module")
def profile(painter):
    """A fit of 5 steps at CFG 5, made once; its text, so that any test can take it. What it compared is left out."""
    bench = Bench(painter)
    status, started = bench.ask("POST", "/calibrate", {"name": "made", "steps": [5], **QUICK})
    assert status == 200 and started == {"name": "made"}
    done = bench.wait("finished", "failed")
    assert done["state"] == "finished", done
    return replace(bench.made("made"), compared=()).to_json()


def take(bench, profile, **changed):
    status, taken = bench.ask("POST", "/calibrations", {**json.loads(profile), **changed})
    assert status == 200, taken
    return taken["name"]


def test_it_is_better_on_what_it_has_not_seen_and_says_what_it_cost(profile):
    (row,) = (made := Profile.from_json(profile)).joint
    (fitted,) = row.measured
    assert made.refused == () and made.width == SIDE and made.model == "hps-tiny"
    print(dict(fitted.held_out), fitted.baseline)
    assert fitted.held_out["calibrated"] < 0.95 * fitted.held_out["Auto"]
    assert row.calls <= 40 * 5 * 12 and row.schedule.at(5).sigmas[0] == pytest.approx(14.6146, rel=1e-4)
    assert len(made.decoder) == 7 and made.decoder[0][1] < made.decoder[-1][1]


def test_auto_uses_it_and_says_so_and_no_other_model_size_or_number_does(bench, painter, profile):
    plain, before = painter.txt2img(**AUTO)
    assert "HP Calibration" not in before["infotexts"][0]
    take(bench, profile)
    (fitted,) = Profile.from_json(profile).joint
    (image,), info = painter.txt2img(**AUTO)
    assert f"HP Calibration: made {fitted.hash}" in info["infotexts"][0]
    assert not np.array_equal(image, plain[0])
    for other in ({"steps": 6}, {"cfg_scale": 8.0}, {"width": 192, "height": 192}, {"sampler_name": "HP UniPC"}):
        _, info = painter.txt2img(**{**AUTO, **other})
        assert "HP Calibration" not in info["infotexts"][0], other
    off = {"alwayson_scripts": {"HP Sampler": {"args": [{"calibration": "Off"}]}}}
    (image,), info = painter.txt2img(**AUTO, **off)
    assert np.array_equal(image, plain[0]) and "HP Calibration" not in info["infotexts"][0]


def test_the_schedule_type_serves_any_sampler_or_says_why_not(bench, painter, profile):
    take(bench, profile)
    chosen = {**AUTO, "sampler_name": "Euler", "scheduler": "HP calibrated"}
    _, info = painter.txt2img(**chosen)
    assert "Schedule type: HP calibrated" in info["infotexts"][0] and "HP Calibration: made" in info["infotexts"][0]
    _, info = painter.txt2img(**{**chosen, "steps": 7})
    assert "HP calibrated is not used: none fits this model at 7 steps" in info["infotexts"][0]
    (image,), _ = painter.txt2img(**AUTO)
    (second,), info = painter.txt2img(**{**AUTO, "sampler_name": "HP DPM++ 2M", "scheduler": "HP calibrated"})
    assert np.array_equal(image, second)
    _, info = painter.img2img(image, **{**AUTO, "scheduler": "HP calibrated", "denoising_strength": 0.6})
    assert "HP Calibration: made" in info["infotexts"][0]
    _, info = painter.img2img(image, **{**AUTO, "denoising_strength": 0.6})
    assert "HP Calibration" not in info["infotexts"][0], "by itself only where it was fitted for"


def test_a_name_that_is_not_here_stops_before_the_first_call(painter, bench):
    args = {"alwayson_scripts": {"HP Sampler": {"args": [{"calibration": "nowhere 12345678"}]}}}
    status, answer = painter.post("/sdapi/v1/txt2img", {**AUTO, **args})
    assert status == 500 and "there is no calibration 'nowhere 12345678' here" in json.dumps(answer)


def test_pictures_are_drawn_meanwhile_and_are_the_same(bench, painter):
    (before,), _ = painter.txt2img(**AUTO)
    bench.ask("POST", "/calibrate", {"name": "meanwhile", "steps": [6], **QUICK, "trajectories": 32})
    bench.wait_calls(200)
    began = time.monotonic()
    (during,), _ = painter.txt2img(**AUTO)
    took = time.monotonic() - began
    assert bench.status()["state"] == "running"
    assert np.array_equal(before, during)
    print(f"a picture took {took:.1f} s beside a calibration")
    progress = painter.get("/sdapi/v1/progress")
    assert progress["state"]["interrupted"] is False
    assert bench.ask("POST", "/calibrate/stop")[1]["state"] == "stopped"


def test_interrupt_stops_it_and_resume_ends_it_as_if_nothing_had_happened(bench, painter):
    order = {"steps": [5, 6], **QUICK}
    bench.ask("POST", "/calibrate", {"name": "whole", **order})
    assert bench.wait("finished", "failed")["state"] == "finished"
    bench.ask("POST", "/calibrate", {"name": "broken", **order})
    bench.wait_calls(12 * 260)
    deadline = time.monotonic() + PATIENCE
    while bench.status()["state"] == "running":
        painter.post("/sdapi/v1/interrupt", {})
        assert time.monotonic() < deadline
    status = bench.status()
    assert status["state"] == "stopped" and status["unfinished"] == ["broken"]
    listed = bench.ask("GET", "/calibrations")[1]["calibrations"]
    assert sum(len(each["joint"]) for each in listed if each["name"] == "broken") < 2, "it was not done yet"
    assert bench.ask("POST", "/calibrate/resume", {"name": "broken"})[0] == 200
    assert bench.wait("finished", "failed")["state"] == "finished"
    whole, broken = bench.made("whole"), bench.made("broken")
    assert [each.hash for each in whole.joint] == [each.hash for each in broken.joint]
    assert bench.status()["unfinished"] == []


def test_another_checkpoint_meanwhile_is_noticed_and_said(bench, painter, trained_checkpoint):
    bench.ask("POST", "/calibrate", {"name": "changed", "steps": [6], **QUICK})
    bench.wait_calls(100)
    try:
        painter.set_checkpoint("hps-tiny-sd15")
        status = bench.wait("failed", "finished")
        assert status["state"] == "failed" and "was changed from hps-tiny to hps-tiny-sd15" in status["message"]
    finally:
        painter.set_checkpoint(trained_checkpoint)
    bench.ask("POST", "/calibrate/resume", {"name": "changed"})
    assert bench.wait("finished", "failed")["state"] == "finished"


def test_reload_ui_keeps_what_is_finished_and_what_is_not(bench, painter):
    bench.ask("POST", "/calibrate", {"name": "reloaded", "steps": [4, 8], **QUICK, "trajectories": 24})
    bench.wait_calls(24 * 200)
    painter.restart_ui()
    status = bench.status()
    assert status["state"] == "idle" and status["unfinished"] == ["reloaded"]
    bench.ask("POST", "/calibrate/resume", {"name": "reloaded"})
    bench.wait_calls(1)
    assert bench.ask("POST", "/calibrate/stop")[1]["state"] == "stopped"


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({}, "name is missing"),
        ({"name": "a", "steps": "five"}, "steps must be"),
        ({"name": "a", "cfg_scales": [99]}, "cfg_scales must be"),
        ({"name": "a", "width": 100}, "width must be a multiple of 8"),
        ({"name": "a", "prompts": ""}, "prompts must be"),
        ({"name": "../a"}, "name must be"),
        ({"name": "a", "nonsense": 1}, "unknown field 'nonsense'"),
    ],
)
def test_a_wrong_order_is_answered_in_words(bench, order, words):
    status, answer = bench.ask("POST", "/calibrate", order)
    assert status == 422 and words in answer["detail"]
    assert bench.status()["state"] != "running"


def test_prompts_that_call_networks_are_refused(bench):
    prompts = ["a cat", "a cat <lora:style:1>"]
    status, answer = bench.ask("POST", "/calibrate", {"name": "lora", **QUICK, "prompts": prompts})
    assert status == 422 and "must not call extra networks" in answer["detail"]
    assert bench.status()["state"] != "running" and bench.status()["unfinished"] == []


def test_a_broken_file_is_told_and_left(bench, painter, profile):
    take(bench, profile)
    folder = painter.data / "models" / "hpsampler" / "calibrations"
    (folder / "broken.json").write_text('{"format": "hpsampler calibration", "version": 1}')
    try:
        _, listed = bench.ask("GET", "/calibrations")
        assert [each["name"] for each in listed["calibrations"]] == ["made"]
        assert listed["problems"] == ["broken.json: name is missing"]
        _, info = painter.txt2img(**AUTO)
        assert "HP Calibration: made" in info["infotexts"][0]
    finally:
        (folder / "broken.json").unlink()


def test_the_command_line(bench, painter, tmp_path):
    def run(*args, code=0):
        command = [sys.executable, "-m", "hpsampler.calibrate", "--url", painter.url, *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    size = ("--width", SIDE, "--height", SIDE, "--trajectories", 12, "--runs", 40, "--batch", 12)
    told = run("start", "from here", "--steps", 5, "--cfg", 5, "--prompts", prompts, *size)
    assert re.search(r"5 steps: held-out errors CFG 5 0\.\d+ \(Auto 0\.\d+", told) and "is ready" in told
    assert f"from here: hps-tiny, {SIDE}x{SIDE}" in run("list")
    run("export", "from here", tmp_path / "mine.json")
    run("rename", "from here", "renamed")
    run("delete", "renamed")
    assert "there is no calibration named 'renamed'" in run("delete", "renamed", code=1)
    assert "Calibration: from here" in run("import", tmp_path / "mine.json")
    assert "width must be a multiple of 8" in run("start", "odd", "--width", 100, code=1)


class TestTab:
    """In Chromium."""

    @pytest.fixture
    def ui(self, page, painter, bench):
        with watched(page, painter) as found:
            yield found

    def test_calibrate_stop_resume_use_and_paste_back(self, ui, painter, bench):
        tab = CalibrateTab(ui)
        tab.open()
        tab.want("calibration")
        assert re.search(
            r"3 schedules to fit, at most [0-9,]+ UNet calls, as many as [0-9,]+ pictures", tab.text("cost")
        )
        ui.click("#hpsampler_calibrate_advanced > .label-wrap")
        tab.fill(name="on the page", steps="5, 8", cfg="5", size=f"{SIDE}x{SIDE}", prompts="\n".join(PROMPTS))
        # as many as QUICK has, whose five steps are accepted on every host, at the size that it can draw
        tab.fill(trajectories=12, runs=40, batch=12)
        tab.wait_text("cost", "2 schedules to fit, at most [0-9,]+ UNet calls")
        ui.set_viewport_size({"width": 400, "height": 500})
        tab.press("start")
        tab.wait_state("running")
        ui.wait_for_function(
            "() => { const box = document.querySelector('#hpsampler_calibrate_status').getBoundingClientRect();"
            " return box.top < innerHeight && box.bottom > 0 }"
        )
        ui.set_viewport_size({"width": 1400, "height": 1000})
        ui.wait_for_function("() => document.querySelectorAll('.hpsampler-status svg circle').length > 6")
        plot = ui.locator("#hpsampler_calibrate_status svg")
        assert "20 steps of DPM++ 2M Karras" in plot.text_content() and "Auto" in plot.text_content()
        assert re.search(r"at most .+ of drawing left", tab.text("status"))
        save_screenshot(ui.locator("#tab_hpsampler_calibrate"), "calibrate.webp")

        # the page can be loaded anew meanwhile
        tab.reload(painter)
        tab.wait_text("status", "5 steps: held-out errors")
        tab.press("stop")
        tab.wait_state("stopped")
        assert "Now:" not in tab.text("status"), "stopped means stopped"
        assert ui.locator("#hpsampler_calibrate_stop").is_hidden()
        tab.wait_text("status", re.escape("Can be resumed: on the page (calibration)."))
        tab.wait_text("cost", f"About .+, as calls were timed with hps-tiny at {SIDE}x{SIDE}")
        tab.choose("Calibration: on the page")
        ui.wait_for_function("() => document.querySelectorAll('#hpsampler_calibrate_details tbody tr').length == 1")
        assert tab.line("Unfinished Calibration: on the page").strip() == "on the page · calibration · unfinished"
        tab.choose("Unfinished Calibration: on the page")
        tab.press("resume")
        tab.wait_state("finished")
        tab.wait_chosen("Calibration: on the page")
        assert ui.locator("#hpsampler_calibrate_chosen input").count() == 1
        ui.wait_for_function("() => document.querySelectorAll('.hpsampler-profile :is(tbody tr, li)').length >= 2")
        assert ui.locator("#hpsampler_calibrate_details tbody tr").count() >= 1
        line = tab.line("Calibration: on the page")
        assert f"steps at CFG 5 · {SIDE}x{SIDE} · error 1." in line and "HP Auto and HP DPM++ 2M use it" in line
        save_screenshot(ui.locator("#tab_hpsampler_calibrate"), "calibrated.webp")
        self.use_and_paste_back(ui, painter, bench.made("on%20the%20page"))

    def use_and_paste_back(self, ui, painter, made):
        (five,) = (each for each in made.joint if each.steps == 5)
        ui.click("#tabs button:has-text('txt2img')")
        choose(ui, "#txt2img_sampling", "Euler")
        choose(ui, "#txt2img_scheduler", "HP calibrated")
        ui.fill("#txt2img_prompt textarea", PROMPTS[0])
        for name, value in {"steps": 5, "cfg_scale": 5, "width": SIDE, "height": SIDE}.items():
            ui.fill(f"#txt2img_{name} input[type=number]", str(value))
            ui.press(f"#txt2img_{name} input[type=number]", "Tab")
        ui.fill("#txt2img_seed input", "7")
        ui.press("#txt2img_seed input", "Tab")
        ui.click("#txt2img_generate")
        ui.wait_for_function(
            "hash => document.querySelector('#html_info_txt2img').innerText.includes(hash)", arg=five.hash
        )
        info = ui.locator("#html_info_txt2img").first.inner_text()
        assert f"HP Calibration: on the page {five.hash}" in info and "Schedule type: HP calibrated" in info

        (image,), said = painter.txt2img(**{**AUTO, "seed": 7})
        text = said["infotexts"][0]
        assert f"HP Calibration: on the page {five.hash}" in text
        paste(ui, text)
        open_accordion(ui)
        has_value(ui, "#txt2img_hpsampler_calibration input", f"on the page {five.hash}")
        assert ui.locator("#txt2img_hpsampler .input-accordion-checkbox").is_checked()
        ui.click("#txt2img_generate")
        ui.wait_for_function(
            "() => document.querySelector('#html_info_txt2img').innerText.includes('Sampler: HP Auto')"
        )
        shown = ui.locator("#html_info_txt2img").first.inner_text()
        assert f"HP Calibration: on the page {five.hash}" in shown and "HP Recipe: Auto" in shown
        again = {"args": [{"calibration": f"on the page {five.hash}"}]}
        (same,), _ = painter.txt2img(**{**AUTO, "seed": 7}, alwayson_scripts={"HP Sampler": again})
        assert np.array_equal(image, same)

    def test_a_picture_without_a_calibration_is_pasted_so_that_it_stays_without(self, ui, painter, bench, profile):
        _, info = painter.txt2img(**AUTO)
        take(bench, profile)
        paste(ui, info["infotexts"][0])
        open_accordion(ui)
        has_value(ui, "#txt2img_hpsampler_calibration input", "Off")

    def test_rename_export_delete_import_and_the_accordion_s_menu(self, ui, painter, bench, profile, tmp_path):
        take(bench, profile)
        presets = painter.data / "models" / "hpsampler" / "presets"
        presets.mkdir(exist_ok=True)
        (presets / "fast.json").write_text(Preset.of("fast", {"calibration": "made"}).to_json())
        open_accordion(ui)
        ui.fill("#txt2img_hpsampler_calibration input", "made")
        ui.press("#txt2img_hpsampler_calibration input", "Enter")
        tab = CalibrateTab(ui)
        tab.open()
        tab.wait_chosen("Calibration: made")
        tab.press("rename")
        tab.wait_text("details", "Rename the calibration 'made'")
        tab.wait_text("details", "HP Auto and HP DPM\\+\\+ 2M use it by themselves at 5 steps")
        tab.wait_text("details", "The preset 'fast' names it.")
        tab.wait_text("details", "The accordion in txt2img names it now.")
        assert "accordion in img2img" not in tab.text("details")
        (presets / "fast.json").unlink()
        tab.fill(new_name="other name")
        tab.press("do")
        tab.wait_chosen("Calibration: other name")
        tab.wait_text("details", "other name")
        ui.wait_for_function(
            "() => !document.querySelector('#hpsampler_calibrate_details').innerText.includes('names it')"
        )
        with ui.expect_download() as download:
            ui.locator("#hpsampler_calibrate_details a.hpsampler-export").click()
        path = tmp_path / "exported.json"
        download.value.save_as(path)
        assert Profile.from_json(path.read_text()).name == "other name"
        tab.press("delete")
        tab.wait_text("details", "Delete the calibration 'other name' for good")
        tab.press("cancel")
        tab.wait_text("details", "fitted to 12 trajectories")
        assert bench.ask("GET", "/calibrations/other%20name")[0] == 200, "not without an answer"
        with ui.expect_file_chooser() as chooser:
            tab.press("import")
        chooser.value.set_files(path)
        ui.locator("text=is here already").first.wait_for()
        assert len(bench.ask("GET", "/calibrations")[1]["calibrations"]) == 1
        tab.press("delete")
        tab.press("do")
        tab.wait_chosen("")
        assert bench.ask("GET", "/calibrations/other%20name")[0] == 422
        with ui.expect_file_chooser() as chooser:
            tab.press("import")
        chooser.value.set_files(path)
        tab.wait_chosen("Calibration: other name")
        open_ui(ui, painter)
        open_accordion(ui)
        ui.click("#txt2img_hpsampler_calibration input")
        options = "#txt2img_hpsampler_calibration ul.options li"
        ui.wait_for_function(f"() => document.querySelectorAll('{options}').length == 3")
        names = ui.locator(options).all_inner_texts()
        assert [name.strip().lstrip("✓").strip() for name in names] == ["Auto", "Off", "other name"]

    def test_the_keyboard_goes_on_where_a_button_is_gone(self, ui, bench, profile):
        take(bench, profile)
        take(bench, profile, name="second", seed=2)
        tab = CalibrateTab(ui)
        tab.open()
        tab.choose("Calibration: made")
        tab.wait_text("details", "fitted to 12 trajectories")

        def focused(name):
            at = f"#hpsampler_calibrate_{name}"
            ui.wait_for_function("at => document.activeElement?.closest(at)", arg=at)

        def press(name):
            ui.locator(f"#hpsampler_calibrate_{name}").focus()
            ui.keyboard.press("Enter")

        press("rename")
        focused("new_name")
        ui.keyboard.type("third")  # the old name is selected
        press("do")
        tab.wait_chosen("Calibration: third")
        focused("rename")
        press("rename")
        focused("new_name")
        press("cancel")
        focused("rename")
        press("delete")
        focused("cancel")
        ui.keyboard.press("Enter")
        focused("delete")
        ui.keyboard.press("Enter")
        focused("cancel")
        press("do")
        tab.wait_chosen("Calibration: second")
        focused("chosen")
        press("delete")
        focused("cancel")
        press("do")
        tab.wait_chosen("")
        focused("import")
