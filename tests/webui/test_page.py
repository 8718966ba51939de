"""The extension on the WebUI's page, in Chromium."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from hpsampler.settings import FIELDS
from hpsampler.webui.accordion import ADVANCED, GROUPS
from tests.accordion.page import until
from tests.webui.harness import WebUI, answered, open_ui, paste

SAMPLERS = ["HP Auto", "HP DPM++ 1S", "HP DPM++ 2M", "HP UniPC", "HP DPM-v3"]
SETTINGS = {
    "recipe": "SD1.5 8 steps", "ending": "To zero", "base_steps": 11, "rho": 6.5, "truncation_index": 8,
    "time_rho": 1.1, "freeu": "On", "freeu_version": "2", "b1": 1.25, "b2": 1.15, "s1": 0.8, "s2": 0.3,
    "freeu_first": 3, "freeu_last": 5, "prediction": "data", "variant": "bh1", "order": 3,
}  # fmt: skip


@pytest.fixture
def ui(page, server):
    """The page, opened, with a list of its JavaScript errors."""
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    # fonts of a CDN, which the page can do without
    page.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
    open_ui(page, server)
    return page


def open_accordion(ui, tab="txt2img"):
    accordion = ui.locator(f"#{tab}_hpsampler")
    if not ui.locator(f"#{tab}_hpsampler_recipe").is_visible():
        accordion.locator("> .label-wrap").click()
    for group in (ADVANCED, *(suffix for _, suffix, _ in GROUPS)):
        ui.locator(f"#{tab}_hpsampler_{group} > .label-wrap").click()
    for field in FIELDS:
        ui.locator(f"#{tab}_hpsampler_{field.name}").wait_for(state="visible")
    return accordion


def options_of(ui, selector):
    ui.click(f"{selector} input")
    ui.wait_for_selector(f"{selector} ul.options li")
    # the chosen one carries a tick
    names = [text.strip().lstrip("✓").strip() for text in ui.locator(f"{selector} ul.options li").all_inner_texts()]
    ui.keyboard.press("Escape")
    return names


def choose(ui, selector, value):
    ui.click(f"{selector} input")
    ui.locator(f"{selector} ul.options li", has_text=value).filter(has_text=value).first.click()


def values_on_page(ui, tab="txt2img"):
    found = {"enabled": ui.locator(f"#{tab}_hpsampler .input-accordion-checkbox").is_checked()}
    for field in FIELDS:
        kind = "input" if field.choices or field.words else "input[type=number]"
        found[field.name] = ui.locator(f"#{tab}_hpsampler_{field.name} {kind}").first.input_value()
    return found


def generate(ui):
    before = ui.locator("#html_info_txt2img").first.inner_text()
    ui.click("#txt2img_generate")
    ui.wait_for_function(
        "before => { const e = document.querySelector('#html_info_txt2img'); return e.innerText != before }", arg=before
    )
    ui.locator("#txt2img_interrupt").wait_for(state="hidden")
    answered(ui)
    return ui.locator("#html_info_txt2img").first.inner_text()


@pytest.mark.parametrize(
    "selector", ["#txt2img_sampling", "#img2img_sampling", "#hr_sampler", "#txt2img_scheduler", "#img2img_scheduler"]
)
def test_the_dropdowns_have_ours_once(ui, selector):
    if selector.startswith("#img2img"):
        ui.click("#tabs button:has-text('img2img')")
    if selector.startswith("#hr"):
        ui.click("#txt2img_hr > .label-wrap")
    names = options_of(ui, selector)
    assert len(names) == len(set(names))
    assert names[-2:] == ["HP", "HP calibrated"] if "scheduler" in selector else names[-5:] == SAMPLERS


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_the_accordion_shows_every_control_with_its_default(ui, tab):
    if tab == "img2img":
        ui.click("#tabs button:has-text('img2img')")
    accordion = open_accordion(ui, tab)
    values = values_on_page(ui, tab)
    for field in FIELDS:
        control = accordion.locator(f"#{tab}_hpsampler_{field.name}")
        assert control.is_visible() and field.label in control.inner_text(), field.label
        assert values[field.name] == (field.default if isinstance(field.default, str) else f"{field.default:g}"), (
            field.name
        )
    assert accordion.bounding_box()["height"] > 500
    assert ui.errors == []


def test_generate_and_paste_back_whole(ui, server):
    args = {"alwayson_scripts": {"HP Sampler": {"args": [SETTINGS]}}}
    (image,), info = server.txt2img(sampler_name="HP UniPC", scheduler="HP", steps=8, cfg_scale=7, **args)
    paste(ui, info["infotexts"][0])
    wanted = {field.name: SETTINGS.get(field.name, field.default) for field in FIELDS}
    shown = {name: value if isinstance(value, str) else f"{value:g}" for name, value in wanted.items()}
    until(lambda: values_on_page(ui), {"enabled": True, **shown})
    # the host's way: the sampler's own schedule type pastes as Automatic
    assert ui.locator("#txt2img_sampling input").input_value() == "HP UniPC"
    assert ui.locator("#txt2img_scheduler input").input_value() == "Automatic"

    text = generate(ui)
    written = [part for part in info["infotexts"][0].split("\n")[-1].split(", ") if part.startswith("HP ")]
    assert len(written) > 12 and all(part in text for part in written), text
    again = server.txt2img(sampler_name="HP UniPC", scheduler="HP", steps=8, cfg_scale=7, **args)
    assert np.array_equal(again[0][0], image)
    assert ui.errors == []


def test_a_picture_without_ours_switches_the_accordion_off(ui, server):
    _, info = server.txt2img(sampler_name="Euler", steps=8)
    open_accordion(ui)
    assert values_on_page(ui)["enabled"] is True
    paste(ui, info["infotexts"][0])
    until(lambda: values_on_page(ui)["enabled"], False)


def test_the_main_job(ui):
    """What the README's "first image" says."""
    choose(ui, "#txt2img_sampling", "HP Auto")
    ui.locator("#txt2img_steps input[type=number]").fill("6")
    ui.locator("#txt2img_cfg_scale input[type=number]").fill("4")
    ui.fill("#txt2img_prompt textarea", "a lighthouse on a cliff")
    for side in ("width", "height"):
        ui.locator(f"#txt2img_{side} input[type=number]").fill("64")
    answered(ui)
    text = generate(ui)
    assert "Sampler: HP Auto" in text and "Schedule type: HP" in text and "Steps: 6" in text and "CFG scale: 4" in text
    assert "HP Recipe" not in text, "the accordion was off"
    assert ui.locator("#txt2img_gallery img").count() >= 1


def test_a_wrong_value_is_told_on_the_page(ui, host):
    choose(ui, "#txt2img_sampling", "HP Auto")
    open_accordion(ui)
    ui.locator("#txt2img_hpsampler_base_steps input[type=number]").fill("4")
    ui.locator("#txt2img_hpsampler_truncation_index input[type=number]").fill("9")
    answered(ui)
    ui.click("#txt2img_generate")
    ui.wait_for_selector(f"#html_log_txt2img {host.said_wrong}")
    text = ui.locator("#html_log_txt2img").first.inner_text()
    assert "HP Sampler: Truncation index" in text and "below Base steps = 4" in text and "9" in text


def test_a_note_is_told_on_the_page(ui):
    choose(ui, "#txt2img_sampling", "HP DPM++ 1S")
    open_accordion(ui)
    choose(ui, "#txt2img_hpsampler_ending", "Extrapolated")
    for side in ("width", "height"):
        ui.locator(f"#txt2img_{side} input[type=number]").fill("64")
    answered(ui)
    assert "ends at zero instead" in generate(ui)


def test_five_ui_reloads(server: WebUI, page):
    names = [sorted(x["name"] for x in server.get(f"/sdapi/v1/{kind}")) for kind in ("samplers", "schedulers")]
    (before,), _ = server.txt2img(sampler_name="HP Auto", steps=6)
    for _ in range(5):
        server.restart_ui()
    after = [sorted(x["name"] for x in server.get(f"/sdapi/v1/{kind}")) for kind in ("samplers", "schedulers")]
    assert after == names and all(len(each) == len(set(each)) for each in after)
    assert np.array_equal(server.txt2img(sampler_name="HP Auto", steps=6)[0][0], before)
    open_ui(page, server)
    shown = options_of(page, "#txt2img_sampling")
    assert len(shown) == len(set(shown)) and shown[-5:] == SAMPLERS
    freeu = {"alwayson_scripts": {"HP Sampler": {"args": [{"freeu": "On", "freeu_first": 1}]}}}
    server.txt2img(sampler_name="HP Auto", steps=6, **freeu)
    assert server.get("/hps-probe/state")["hooks"] == 0


def test_an_updated_extension_is_live_after_reload_ui(serve):
    """The host keeps packages in memory over a reload; ours must not run its old code then."""
    server = serve()
    package = server.data / "extensions" / "hp-sampler" / "hpsampler" / "__init__.py"
    text = package.read_text()
    package.write_text(re.sub(r'__version__ = ".*"', '__version__ = "99.0.0"', text))
    assert package.read_text() != text
    server.restart_ui()
    _, info = server.txt2img(sampler_name="HP Auto")
    assert "HP version: 99.0.0" in info["infotexts"][0]


def test_the_main_path_on_sdxl(serve):
    server = serve(checkpoint="hps-tiny-sdxl")
    straight = {"alwayson_scripts": {"HP Sampler": {"args": [{"guidance": "As set", "bend": 0}]}}}
    (eight,), info = server.txt2img(sampler_name="HP Auto", steps=8, cfg_scale=7, **straight)
    assert eight.std() > 15 and "hps-tiny-sdxl" in info["infotexts"][0]
    preset = {"alwayson_scripts": {"HP Sampler": {"args": [{"recipe": "SDXL 8 steps", "ending": "To zero"}]}}}
    (same,), _ = server.txt2img(sampler_name="HP Auto", steps=8, cfg_scale=7, **preset)
    assert np.array_equal(eight, same), (
        "with neither guidance nor bend of its own, Auto is the paper's SDXL schedule ended at 0"
    )
    sd15 = {"alwayson_scripts": {"HP Sampler": {"args": [{"recipe": "SD1.5 8 steps", "ending": "To zero"}]}}}
    assert not np.array_equal(eight, server.txt2img(sampler_name="HP Auto", steps=8, cfg_scale=7, **sd15)[0][0])
    for sampler in SAMPLERS:
        for steps in (5, 6):
            (image,), _ = server.txt2img(sampler_name=sampler, steps=steps)
            assert image.std() > 15, (sampler, steps)
    unipc = {"alwayson_scripts": {"HP Sampler": {"args": [{"recipe": "SDXL 6 steps UniPC"}]}}}
    (image,), info = server.txt2img(sampler_name="HP Auto", steps=6, **unipc)
    assert image.std() > 15 and "HP Recipe: SDXL 6 steps UniPC" in info["infotexts"][0]
    (large,), _ = server.txt2img(sampler_name="HP Auto", steps=5, enable_hr=True, hr_scale=2, denoising_strength=0.6)
    assert large.shape == (128, 128, 3) and large.std() > 15
    (painted,), _ = server.img2img(eight, sampler_name="HP Auto", steps=6, denoising_strength=0.5)
    assert painted.std() > 15 and "note" not in json.dumps(info)
