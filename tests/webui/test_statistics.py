"""DPM-Solver-v3 in a running WebUI, on the trained tiny checkpoint: statistics measured there, used, refused."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from hpsampler.statistics.coefficients import Provenance, Statistics
from hpsampler.statistics.files import load_statistics, save_statistics
from tests.webui.calibrate_tab import CalibrateTab, has_value, watched
from tests.webui.harness import ROOT, WebUIError, paste, save_screenshot
from tests.webui.hosts import SIDE
from tests.webui.test_calibrate import PROMPTS, Bench
from tests.webui.test_page import choose, open_accordion

SIZE = {"width": SIDE, "height": SIDE}
SURVEY = {"cfg_scale": 5, "prompts": PROMPTS, "samples": 24, "points": 41, "batch": 12, **SIZE}
DRAWN = {"sampler_name": "HP DPM-v3", "steps": 6, "cfg_scale": 5, "seed": 11, "prompt": PROMPTS[0], **SIZE}


class Measured(Bench):
    """What the tests ask of the WebUI's statistics."""

    def status(self):
        return self.ask("GET", "/measure")[1]

    def clear(self):
        if self.status()["state"] == "running":
            self.ask("POST", "/measure/stop")
        for name in self.status()["unfinished"]:
            self.ask("POST", "/measure/discard", {"name": name})
        for path in self.folder.glob("*.safetensors"):
            path.unlink()

    @property
    def folder(self):
        return self.server.data / "models" / "hpsampler" / "statistics"


@pytest.fixture(scope="module")
def painter(serve, trained_checkpoint):
    return serve(checkpoint=trained_checkpoint, settings={"randn_source": "CPU"})


@pytest.fixture
def bench(painter):
    bench = Measured(painter)
    bench.clear()
    yield bench
    bench.clear()


@pytest.fixture(scope="module")
def measured(painter):
    """Statistics at CFG 5, made once by the WebUI: the file's bytes."""
    bench = Measured(painter)
    status, started = bench.ask("POST", "/measure", {"name": "made", **SURVEY})
    assert status == 200 and started == {"name": "made"}
    done = bench.wait("finished", "failed")
    assert done["state"] == "finished" and done["calls"] == done["of"] == 24 * 41 * 2, done
    return (bench.folder / "made.safetensors").read_bytes()


def put(bench, data, name="made"):
    bench.folder.mkdir(parents=True, exist_ok=True)
    (bench.folder / f"{name}.safetensors").write_bytes(data)


def hp(values, **payload):
    return {**DRAWN, **payload, "alwayson_scripts": {"HP Sampler": {"args": [values]}}}


def text_of(info):
    return info["infotexts"][0]


def test_they_are_used_by_themselves_named_and_made_again_from_the_text(painter, bench, measured):
    put(bench, measured)
    (image,), info = painter.txt2img(**DRAWN)
    label = re.search(r"HP Statistics: (made [0-9a-f]{8})", text_of(info))[1]
    assert "HP note" not in text_of(info)
    again, _ = painter.txt2img(**hp({"statistics": label}))
    assert np.array_equal(again[0], image)
    off, told = painter.txt2img(**hp({"statistics": "Off"}))
    assert not np.array_equal(off[0], image) and "HP Statistics: Off" in text_of(told)
    _, told = painter.txt2img(**{**DRAWN, "cfg_scale": 7})
    assert "HP note" not in text_of(told), "six calls are drawn at CFG 5 then"
    _, told = painter.txt2img(**{**DRAWN, "cfg_scale": 20})
    assert f"the statistics {label} were measured at CFG 5, far from CFG 11.5" in text_of(told)


def test_without_any_it_draws_and_says_so(painter, bench):
    (image,), info = painter.txt2img(**DRAWN)
    assert image.std() > 5 and "there are no statistics of this model" in text_of(info)
    # of order 2 it is diffusers' DPM++ 2M of the kind heun, whose steps are DPM++ 2M's but for their weights
    plain, _ = painter.txt2img(**{**DRAWN, "sampler_name": "HP DPM++ 2M"})
    assert np.abs(plain[0].astype(float) - image).mean() < 25


@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_order_in_a_batch_is_its_pictures(painter, bench, measured, order):
    put(bench, measured)
    batch, _ = painter.txt2img(**hp({"order": order}, batch_size=3))
    for index in (0, 2):
        alone, _ = painter.txt2img(**hp({"order": order}, seed=11 + index))
        assert np.abs(batch[index].astype(int) - alone[0]).max() <= 1


def test_img2img_and_a_second_pass(painter, bench, measured):
    put(bench, measured)
    (image,), _ = painter.txt2img(**DRAWN)
    second, info = painter.txt2img(**DRAWN, enable_hr=True, hr_scale=2, hr_second_pass_steps=5, denoising_strength=0.6)
    assert second[0].shape[:2] == (2 * SIDE, 2 * SIDE) and "HP Statistics: made" in text_of(info)
    again, info = painter.img2img(image, **{**DRAWN, "denoising_strength": 0.5})
    assert again[0].std() > 5 and "HP Statistics: made" in text_of(info)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_what_is_corrupt_cut_off_misshapen_or_pickled_is_refused_by_name_and_left_out_by_auto(painter, bench, measured):
    put(bench, measured, "good")
    ran = bench.folder / "ran"
    points = np.linspace(-2.7, 3.5, 21)
    three = np.ones((21, 3, 5, 5), np.float32)
    wrong = bench.folder / "shape.safetensors"
    save_statistics(Statistics(points, three, three, three, Provenance("x", "y", "sd1", 5.0)), wrong)
    torch.save({"l": Bomb(ran)}, bench.folder / "archive.safetensors")
    put(bench, measured[: len(measured) // 2], "cut")
    put(bench, b"", "empty")
    put(bench, pickle.dumps(Bomb(ran)), "pickle")
    put(bench, measured[:8] + b"{" * 500 + measured[508:], "garbled")
    for name in ("cut", "empty", "pickle", "garbled", "archive"):
        with pytest.raises(WebUIError, match="answered 500") as refused:
            painter.txt2img(**hp({"statistics": name}))
        words = str(refused.value)
        assert f"{name}.safetensors: not a safetensors file" in words, name
        assert "Statistics (statistics) must be Auto, Off or some that are here" in words
    with pytest.raises(WebUIError, match="answered 500") as refused:
        painter.txt2img(**hp({"statistics": "shape"}))
    assert "3 channels" in str(refused.value)
    with pytest.raises(WebUIError, match="answered 500") as refused:
        painter.txt2img(**hp({"statistics": "nobody"}))
    assert "there are no statistics 'nobody' here; there are: archive, cut" in str(refused.value)
    _, info = painter.txt2img(**DRAWN)
    assert "HP Statistics: good" in text_of(info) and "cut.safetensors: not a safetensors file" in text_of(info)
    assert not ran.exists(), "nothing in a file is run"


def test_the_command_line(painter, bench, tmp_path):
    def run(*args, code=0):
        command = [sys.executable, "-m", "hpsampler.measure", "--url", painter.url, *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    size = ("--width", SIDE, "--height", SIDE, "--samples", 12, "--points", 21, "--batch", 6)
    told = run("start", "from here", "--cfg", 5, "--prompts", prompts, *size)
    assert "12 pictures' trajectories at CFG 5" in told and "from here is ready" in told
    assert "from here: model_hash" in run("list") and "cfg_scale 5" in run("list")
    run("rename", "from here", "renamed")
    assert load_statistics(bench.folder / "renamed.safetensors").source.samples == 12
    run("delete", "renamed")
    assert "there are no statistics named 'renamed'" in run("delete", "renamed", code=1)
    assert "points must be a whole number from 21" in run("start", "odd", "--points", 3, code=1)


def test_pictures_drawn_meanwhile_are_the_same(painter, bench):
    before, _ = painter.txt2img(**{**DRAWN, "sampler_name": "HP Auto"})
    bench.ask("POST", "/measure", {"name": "long", **SURVEY, "samples": 200})
    bench.wait_calls(100)
    meanwhile, _ = painter.txt2img(**{**DRAWN, "sampler_name": "HP Auto"})
    assert bench.status()["state"] == "running" and np.array_equal(before[0], meanwhile[0])
    bench.ask("POST", "/measure/stop")
    assert bench.status()["state"] == "stopped" and bench.status()["unfinished"] == ["long"]


class TestTab:
    """In Chromium."""

    @pytest.fixture
    def ui(self, page, painter, bench):
        with watched(page, painter) as found:
            yield found

    def test_measure_stop_reload_resume_use_and_paste_back(self, ui, painter, bench):
        tab = CalibrateTab(ui)
        tab.open()
        tab.want("statistics")
        ui.click("#hpsampler_calibrate_advanced > .label-wrap")
        ui.locator("#hpsampler_calibrate_runs").wait_for(state="hidden")
        tab.fill(name="on the page", steps=6, cfg=5, size=f"{SIDE}x{SIDE}", prompts="\n".join(PROMPTS))
        tab.fill(samples=48, points=41, trajectories=12, batch=12)
        tab.wait_text("cost", "Statistics at CFG 5, 3,936 UNet calls; then ways to draw to compare")
        tab.press("start")
        tab.wait_state("running")
        bench.wait_calls(1200)
        tab.wait_text("status", "of drawing left")
        tab.press("stop")
        tab.wait_state("stopped")
        tab.reload(painter)
        tab.choose("Unfinished Statistics: on the page")
        tab.press("resume")
        tab.wait_state("finished")
        tab.wait_chosen("Calibration: on the page")
        tab.wait_text("details", "Ways to draw, compared with many steps")
        tab.choose("Statistics: on the page")
        assert bench.status()["of"] < 3936, "what was done is not measured again"
        tab.wait_text("details", "at CFG 5, from 48 samples, 41 grid points, for every channel")
        assert "of hps-tiny" in tab.text("details")
        assert f"CFG 5 · {SIDE}x{SIDE} · HP DPM-v3 uses them by itself" in tab.line("Statistics: on the page")
        save_screenshot(ui.locator("#tab_hpsampler_calibrate"), "statistics.webp")
        self.use_and_paste_back(ui, painter)

    def use_and_paste_back(self, ui, painter):
        ui.click("#tabs button:has-text('txt2img')")
        choose(ui, "#txt2img_sampling", "HP DPM-v3")
        ui.fill("#txt2img_prompt textarea", PROMPTS[0])
        for name, value in {"steps": 6, "cfg_scale": 5, "width": SIDE, "height": SIDE}.items():
            ui.fill(f"#txt2img_{name} input[type=number]", str(value))
            ui.press(f"#txt2img_{name} input[type=number]", "Tab")
        ui.click("#txt2img_generate")
        ui.wait_for_function(
            "() => document.querySelector('#html_info_txt2img').innerText.includes('HP Statistics: on the page')"
        )
        _, said = painter.txt2img(**DRAWN)
        label = re.search(r"HP Statistics: (on the page [0-9a-f]{8})", text_of(said))[1]
        paste(ui, text_of(said))
        open_accordion(ui, "txt2img")
        has_value(ui, "#txt2img_hpsampler_statistics input", label)
        assert "no statistics" not in ui.locator("#txt2img_hpsampler_panel").first.inner_text()

    def test_both_are_made_in_one_go_stopped_at_once_and_resumed_after_a_reload_of_the_ui(self, ui, painter, bench):
        tab = CalibrateTab(ui)
        tab.open()
        tab.want("both")
        ui.click("#hpsampler_calibrate_advanced > .label-wrap")
        tab.fill(steps=5, cfg=5, size=f"{SIDE}x{SIDE}", prompts="\n".join(PROMPTS))
        tab.fill(samples=24, points=21, trajectories=12, runs=40, batch=12)
        tab.wait_text("cost", "Statistics at CFG 5, 1,008 UNet calls; then 1 schedule to fit")
        tab.press("start")
        tab.wait_text("status", "1 of 2: Making statistics of hps-tiny")
        tab.press("stop")
        tab.wait_state("stopped")
        tab.wait_text("status", re.escape("Can be resumed: hps-tiny (calibration and statistics)."))
        painter.restart_ui()
        tab.reload(painter)
        tab.wait_state("idle")
        tab.wait_text("status", re.escape("Can be resumed: hps-tiny (calibration and statistics)."))
        tab.choose("Unfinished Statistics: hps-tiny")
        tab.press("resume")
        tab.wait_text("status", "2 of 2: Making a calibration of hps-tiny")
        tab.wait_state("finished")
        tab.choose("Statistics: hps-tiny")
        tab.wait_text("details", "at CFG 5, from 24 samples, 21 grid points")
        tab.choose("Calibration: hps-tiny")
        tab.wait_text("details", "fitted to 12 trajectories")
        bench.ask("DELETE", "/calibrations/hps-tiny")
