"""What a checkpoint's calibration decides for Auto, in a running WebUI: from the tab to the picture and back."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hpsampler.calibration.choice import AIMS, FORMS
from tests.webui.calibrate_tab import CalibrateTab, has_value, watched
from tests.webui.harness import paste, save_screenshot
from tests.webui.hosts import SIDE
from tests.webui.test_calibrate import AUTO, PROMPTS, Bench
from tests.webui.test_page import choose, open_accordion

DRAWN = {**AUTO, "cfg_scale": 7}


@pytest.fixture(scope="module")
def painter(serve, trained_checkpoint):
    return serve(checkpoint=trained_checkpoint, settings={"randn_source": "CPU", "hpsampler_aim": AIMS[0]})


@pytest.fixture(scope="module")
def bench(painter):
    return Bench(painter)


@pytest.fixture
def ui(page, painter):
    with watched(page, painter) as found:
        yield found


def test_pictures_are_what_the_tab_is_for_and_auto_draws_with_what_came_out_best(ui, painter, bench):
    _, before = painter.txt2img(**DRAWN)
    assert "HP Calibration" not in before["infotexts"][0]
    tab = CalibrateTab(ui)
    tab.open()
    ui.click("#hpsampler_calibrate_advanced > .label-wrap")
    tab.fill(name="chosen", steps=5, cfg="5, 7.5", size=f"{SIDE}x{SIDE}", prompts="\n".join(PROMPTS))
    tab.fill(samples=24, points=41, trajectories=24, batch=12)
    tab.wait_text(
        "cost", r"Statistics at CFG 5, 1,968 UNet calls; then ways to draw to compare, at most [\d,]+ UNet calls"
    )
    tab.press("start")
    tab.wait_text("status", "2 of 2: chosen is ready: 2 comparisons")
    tab.wait_state("finished")
    tab.choose("Calibration: chosen")
    tab.wait_text("details", "Ways to draw, compared with many steps")
    tab.wait_text(
        "chosen",
        rf"ways to draw compared, 5 steps at CFG 5 and 7.5 · {SIDE}x{SIDE} · HP Auto uses it by itself at 5 steps",
    )
    save_screenshot(ui.locator("#hpsampler_calibrate_details").first, "compared.webp")

    made = bench.made("chosen")
    print(made.compared)
    assert made.rows == () and [each.cfg_scale for each in made.compared] == [5, 7.5]
    compared = made.compared[1]
    for aim in AIMS:
        best = compared.ranked(aim)[0]
        (image,), info = painter.txt2img(**DRAWN, override_settings={"hpsampler_aim": aim})
        found = re.search(r"HP Calibration: (chosen [0-9a-f]{8})", info["infotexts"][0])
        expected = made.label(compared.with_statistics(best)) if best in FORMS else None
        assert (found and found[1]) == expected and ("HP Statistics: chosen" in info["infotexts"][0]) == bool(expected)
        if expected:
            again, _ = painter.txt2img(
                **DRAWN, alwayson_scripts={"HP Sampler": {"args": [{"enabled": True, "calibration": expected}]}}
            )
            assert np.array_equal(again[0], image), "by its label it is drawn again whatever Auto aims at"


def test_the_page_says_what_auto_does_and_takes_a_picture_back(ui, painter, bench):
    made = bench.made("chosen")
    compared = made.compared[1]
    form = next(name for name in compared.ranked(AIMS[0]) if name in FORMS)
    label = made.label(compared.with_statistics(form))
    _, info = painter.txt2img(
        **DRAWN, alwayson_scripts={"HP Sampler": {"args": [{"enabled": True, "calibration": label}]}}
    )
    open_accordion(ui, "txt2img")
    choose(ui, "#txt2img_sampling", "HP Auto")
    paste(ui, info["infotexts"][0])
    has_value(ui, "#txt2img_hpsampler_calibration input", label)
    told = "document.querySelector('#txt2img_hpsampler_panel').innerText"
    ui.wait_for_function(f"text => {told}.includes(text)", arg=f"calibration {label}: DPM-v3")
    ui.click("#txt2img_generate")
    ui.wait_for_function(
        "label => document.querySelector('#html_info_txt2img').innerText.includes(`HP Calibration: ${label}`)",
        arg=label,
    )
    assert "HP note" not in ui.locator("#html_info_txt2img").first.inner_text()
