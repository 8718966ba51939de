"""The accordion's panel, presets, axes and settings page in a running WebUI."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from hpsampler.presets import Preset
from hpsampler.settings import ENABLED, FIELDS
from hpsampler.webui.accordion import GROUPS
from tests.accordion.checks import CHECKS, drawn
from tests.accordion.layout import contrasts
from tests.accordion.page import OPTION, STEPS, AccordionPage, begin, until
from tests.webui.harness import ROOT, answered, open_ui, paste, save_screenshot
from tests.webui.hosts import refusal
from tests.webui.test_page import SETTINGS, generate

TXT2IMG = {
    "sampler": "#txt2img_sampling", "schedule": "#txt2img_scheduler", "steps": "#txt2img_steps",
    "cfg": "#txt2img_cfg_scale",
}  # fmt: skip
AUTO = {"sampler_name": "HP Auto", "steps": STEPS, "cfg_scale": 7}


def hp(**settings):
    return {"alwayson_scripts": {"HP Sampler": {"args": [settings]}}}


def _ours(message):
    """Whether a line of the browser's console is a complaint about a script of ours."""
    return message.type in ("error", "warning") and "hpsampler" in f"{message.text} {message.location}"


@pytest.fixture
def ui(page, server):
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(f"{error} {error.stack}"))
    page.on("console", lambda message: _ours(message) and page.errors.append(message.text))
    page.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
    open_ui(page, server)
    yield page
    # the host's own page throws this when a width or height is changed, without any extension too
    assert [error for error in page.errors if "reading 'props'" not in error] == []


@pytest.fixture
def accordion(ui):
    opened = AccordionPage(ui, "txt2img_hpsampler", TXT2IMG)
    opened.open()
    return opened


def presets_of(server):
    return server.data / "models" / "hpsampler" / "presets"


@pytest.mark.parametrize("name", CHECKS)
def test_it_does_what_it_does_on_the_demonstration_s_page(accordion, name):
    CHECKS[name](accordion)


def test_presets_outlive_the_page_an_update_and_a_broken_file(accordion, ui, server):
    accordion.set("rho", 6.5)
    accordion.call("kept")
    accordion.press("save")
    broken = presets_of(server) / "broken.json"
    broken.write_text("{")
    server.restart_ui()
    open_ui(ui, server)
    accordion.open()
    ui.wait_for_function("() => document.querySelector('#txt2img_hpsampler_panel .hps-said p')")
    assert "broken.json: not a JSON file" in accordion.said()
    accordion.load("kept")
    assert accordion.values()["rho"] == 6.5
    broken_after = broken.read_text()
    broken.unlink()
    (image,), info = server.txt2img(**AUTO, **hp(preset="kept"))
    assert broken_after == "{" and "HP Rho: 6.5" in info["infotexts"][0]
    assert np.array_equal(image, server.txt2img(**AUTO, **hp(rho=6.5))[0][0])
    both = server.txt2img(**AUTO, **hp(preset="kept", rho=4))[1]["infotexts"][0]
    assert "HP Rho: 4.0" in both, "what is said beside a preset goes before it"
    status, answer = server.post("/sdapi/v1/txt2img", {**AUTO, **hp(preset="gone"), "width": 64, "height": 64})
    assert status == 500 and "no preset named 'gone'" in refusal(answer) and "SD1.5 5 steps" in refusal(answer)
    accordion.panel.locator("[data-slot=sure]").check()
    accordion.press("delete")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_can_be_seen_in_both_themes(page, server, theme):
    page.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
    open_ui(page, server, theme)
    accordion = AccordionPage(page, "txt2img_hpsampler", TXT2IMG)
    accordion.open()
    begin(accordion)
    accordion.set("recipe", "SD1.5 6 steps UniPC")
    accordion.settle()
    assert contrasts(accordion) >= 3
    folder = os.environ.get("HPS_SCREENSHOTS")
    if folder:
        page.locator("#txt2img_hpsampler").screenshot(path=Path(folder) / f"webui_{theme}.png")


def test_the_documentation_s_picture(accordion, ui):
    """Numbers where docs/accordion.md explains them."""
    begin(accordion)
    accordion.set("recipe", "SD1.5 6 steps UniPC")
    accordion.set("ending", "To zero")
    accordion.settle()
    panel = f"{accordion.id('panel')} .hpsampler-panel"
    parts = [
        ".hps-summary", ".hps-figure > svg", ".hps-key", ".hps-numbers", "[data-slot=offers]", ".hps-calibration",
        "select", "[data-act=more]",
    ]  # fmt: skip
    places = [f"{panel} {part}" for part in parts]
    rows = ["recipe", "ending", "advanced", *(suffix for _, suffix, _ in GROUPS)]
    places += [accordion.id(name) for name in rows]
    assert all(ui.locator(place).first.is_visible() for place in places)
    explained = re.findall(r"^(\d+)\. ", (ROOT / "docs" / "accordion.md").read_text(encoding="utf-8"), re.M)
    assert [int(number) for number in explained] == list(range(1, len(places) + 1))
    folder = os.environ.get("HPS_SCREENSHOTS")
    if folder:
        accordion.annotate(places)
        save_screenshot(ui.locator("#txt2img_hpsampler"), "accordion.webp")


def test_a_picture_s_parameters_paste_into_every_control_and_the_plot(accordion, ui, server):
    wanted = {**SETTINGS, "hires_recipe": "Auto", "calibration": "Auto"}
    _, info = server.txt2img(
        sampler_name="HP UniPC", scheduler="HP", steps=8, cfg_scale=7, enable_hr=True, hr_scale=2,
        denoising_strength=0.6, **hp(**wanted),
    )  # fmt: skip
    paste(ui, info["infotexts"][0])
    until(accordion.values, {field.name: wanted.get(field.name, field.default) for field in FIELDS})
    accordion.settle()
    assert len(accordion.sigmas()) == 9 and accordion.words() == ""


def test_generate_draws_what_the_plot_said(accordion, ui, server):
    begin(accordion)
    for side in ("width", "height"):
        ui.locator(f"#txt2img_{side} input[type=number]").fill("64")
    accordion.set("ending", "One more call")
    accordion.settle()
    assert "7 UNet calls" in accordion.summary()
    start = len(server.log())
    text = generate(ui)
    assert "HP Ending: One more call" in text
    assert server.get("/hps-probe/state")["hooks"] == 0 and "Total progress: 7it" in server.log()[start:]


def test_the_panel_follows_the_model(accordion, ui, server):
    begin(accordion)
    assert "SD 1.x, hps-tiny-sd15" in accordion.summary()
    menu = ui.locator(":is(#setting_sd_model_checkpoint, .model_selection)").first
    menu.locator("input").first.click()
    menu.locator(OPTION).filter(has_text="hps-tiny-sdxl").first.click()
    answered(ui)
    if server.host.loads_late:  # with the next picture
        for side in ("width", "height"):
            ui.locator(f"#txt2img_{side} input[type=number]").fill("64")
        assert "hps-tiny-sdxl" in generate(ui)
    summary = "document.querySelector('#txt2img_hpsampler_panel .hps-summary').textContent"
    ui.wait_for_function(f"() => {summary}.includes('SDXL, hps-tiny-sdxl')")
    accordion.settle()
    assert "SDXL 6 steps" in accordion.fitting()
    assert "SD1.5 6 steps" in accordion.menu_of_presets()["For other models or numbers of steps"]


def test_samplers_shown_as_radio_buttons_are_read_too(serve, page):
    server = serve(settings={"samplers_in_dropdown": False})
    page.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
    open_ui(page, server)
    accordion = AccordionPage(page, "txt2img_hpsampler", TXT2IMG)
    page.locator("#txt2img_hpsampler > .label-wrap").click()
    page.wait_for_selector("#txt2img_hpsampler_panel svg[role=img]")
    for sampler, words in (("HP UniPC", "Auto: UniPC, "), ("Euler a", "Euler a on Automatic does not use this")):
        page.locator("#txt2img_sampling label").filter(has_text=re.compile(rf"^\s*{sampler}\s*$")).click()
        accordion.settle()
        assert words in accordion.summary()
    accordion.panel.get_by_role("button", name="Use HP Auto").click()
    page.wait_for_function("() => document.querySelector('#txt2img_sampling input:checked').value == 'HP Auto'")
    accordion.settle()
    assert "Auto: DPM++ 2M, " in accordion.summary()


def test_the_second_pass_of_hires_fix_is_in_the_sentence(accordion, ui):
    begin(accordion)
    assert "Hires" not in accordion.summary()
    ui.locator("#txt2img_hr > .label-wrap").click()
    ui.locator("#txt2img_denoising_strength input[type=number]").fill("0.5")
    ui.locator("#txt2img_hires_steps input[type=number]").fill("4")
    accordion.settle()
    assert "Hires. fix: Auto: DPM++ 2M, 4 UNet calls, sigma" in accordion.summary()
    scale = ui.locator("#txt2img_hr_cfg input[type=number]")
    if scale.count():  # a host whose second pass has a guidance scale of its own
        scale.fill("5.5")
        accordion.settle()
        assert "CFG 5.5 acts as " in accordion.summary().partition("Hires. fix: ")[2]
    ui.locator("#txt2img_hr > .label-wrap").click()


def test_the_line_of_the_calibration_leads_to_the_tab(accordion, ui):
    begin(accordion)
    assert accordion.panel.locator(".hps-calibration").inner_text().startswith("Calibration: none for this checkpoint")
    accordion.panel.get_by_role("button", name="Calibrate…").click()
    ui.locator("#hpsampler_calibrate_name").wait_for(state="visible")
    ui.click("#tabs button:has-text('txt2img')")


def test_few_components_are_built(server):
    components = server.get("/config")["components"]
    for tab in ("txt2img", "img2img"):
        (start,) = [at for at, each in enumerate(components) if each["props"].get("elem_id") == f"{tab}_hpsampler"]
        ours = [each for each in components if str(each["props"].get("elem_id") or "").startswith(f"{tab}_hpsampler")]
        # with the forms that gradio puts around controls, which have no name
        last = max(each["id"] for each in ours)
        first = min(each["id"] for each in ours)
        built = [each for each in components if first <= each["id"] <= last]
        forms = [each for each in components if each["type"] == "form" and first <= each["id"]]
        assert len(built) <= 46, (tab, start, len(built), len(forms))


def test_img2img_shows_the_part_that_runs(ui, server):
    ui.click("#tabs button:has-text('img2img')")
    controls = {key: value.replace("txt2img", "img2img") for key, value in TXT2IMG.items()}
    accordion = AccordionPage(ui, "img2img_hpsampler", controls)
    accordion.open()
    accordion.number_at("#img2img_steps").fill("8")
    accordion.number_at("#img2img_denoising_strength").fill("0.5")
    accordion.settle()
    # int(0.5 * 8) + 1 steps of 8
    assert "5 UNet calls" in accordion.summary() and accordion.panel.locator(".hps-skipped").count() == 1
    assert "img2img has no second pass" in accordion.idle()["hires_recipe"]
    image = np.zeros((64, 64, 3), np.uint8)
    start = len(server.log())
    server.img2img(image, sampler_name="HP Auto", steps=8, denoising_strength=0.5)
    assert "5/5" in server.log()[start:]


HIRES = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.7}


class TestHires:
    def test_the_second_pass_has_its_own_recipe(self, server):
        first = {"recipe": "SD1.5 6 steps UniPC", "freeu": "On", "b1": 1.4}
        (same,), _ = server.txt2img(**AUTO, **HIRES, **hp(**first))
        (own,), info = server.txt2img(**AUTO, **HIRES, **hp(**first, hires_recipe="Auto"))
        (preset,), _ = server.txt2img(**AUTO, **HIRES, **hp(**first, hires_recipe="SD1.5 6 steps"))
        assert not np.array_equal(same, own) and not np.array_equal(own, preset)
        assert (
            "HP Hires recipe: Auto" in info["infotexts"][0] and "HP Recipe: SD1.5 6 steps UniPC" in info["infotexts"][0]
        )

    def test_it_is_that_recipe_exactly(self, server):
        (own,), _ = server.txt2img(**AUTO, **HIRES, **hp(hires_recipe="SD1.5 6 steps"))
        (auto,), _ = server.txt2img(**AUTO, **HIRES, **hp(hires_recipe="Auto"))
        (plain,), info = server.txt2img(**AUTO, **HIRES)
        assert np.array_equal(auto, plain), "Auto beside Auto is nothing else"
        assert not np.array_equal(own, plain) and "HP Hires" not in info["infotexts"][0]


def axes(server):
    info = server.get("/sdapi/v1/script-info")
    xyz = next(script for script in info if script["name"] == "x/y/z plot" and not script["is_img2img"])
    return xyz["args"][0]["choices"]


def grid(server, *chosen, **payload):
    """An X/Y/Z plot; each axis is its label and its values, as text."""
    args = server.xyz_args(*chosen, csv=True, include_lone_images=True)
    return server.txt2img(**{**AUTO, **payload}, script_name="x/y/z plot", script_args=args)


class TestAxes:
    def test_there_is_one_for_every_control_and_for_presets(self, server):
        ours = [label for label in axes(server) if label.startswith("[HP] ")]
        assert ours == ["[HP] Preset", *(f"[HP] {field.label}" for field in (ENABLED, *FIELDS))]
        server.restart_ui()
        assert [label for label in axes(server) if label.startswith("[HP] ")] == ours, "once after Reload UI"

    def test_a_grid_of_three(self, server):
        images, info = grid(
            server, ("[HP] Rho", "4, 7"), ("[HP] Ending", "Keep noise, To zero"), ("[HP] Free-U", "Off, On")
        )
        cells = info["infotexts"][-8:]
        found = [
            (
                re.search(r"HP Rho: ([\d.]+)", text)[1],
                re.search(r"HP Ending: ([\w ]+)", text)[1],
                "HP Free-U: On" in text,
            )
            for text in cells
        ]
        assert len(set(found)) == 8 and {each[0] for each in found} == {"4.0", "7.0"}
        pictures = images[-8:]
        assert len({picture.tobytes() for picture in pictures}) == 8
        for (rho, ending, freeu), picture in zip(found, pictures):
            (alone,), _ = server.txt2img(**AUTO, **hp(rho=float(rho), ending=ending, freeu="On" if freeu else "Off"))
            assert np.abs(alone.astype(int) - picture).max() <= 1, (rho, ending, freeu)

    def test_presets_and_ranges(self, server):
        _, info = grid(server, ("[HP] Preset", "Auto, SD1.5 6 steps, SD1.5 6 steps UniPC"), ("[HP] Base steps", "8-10"))
        cells = info["infotexts"][-9:]
        assert {re.search(r"HP Recipe: ([^,\n]+)", text)[1] for text in cells} == {
            "Auto", "SD1.5 6 steps", "SD1.5 6 steps UniPC",
        }  # fmt: skip
        assert {re.search(r"HP Base steps: (\d+)", text)[1] for text in cells} == {"8", "9", "10"}

    @pytest.mark.parametrize(
        ("axis", "values", "words"),
        [
            ("[HP] Rho", "4, 99", "Rho (rho) must be a number from 0.1 to 50, or 0, got 99.0"),
            ("[HP] Ending", "Keep noise, Never", "Ending (ending) must be one of Recipe"),
            ("[HP] Preset", "Auto, mine", "there is no preset named 'mine'"),
            ("[HP] Enabled", "maybe", "Enabled (enabled) must be true or false"),
        ],
    )
    def test_a_wrong_value_is_refused_before_the_first_cell(self, server, axis, values, words):
        start = len(server.log())
        args = server.xyz_args((axis, values), csv=True, include_lone_images=True)
        payload = {"width": 64, "height": 64, **AUTO, "script_name": "x/y/z plot", "script_args": args}
        status, answer = server.post("/sdapi/v1/txt2img", payload)
        assert status == 500 and words in refusal(answer), answer
        assert "Sampling" not in server.log()[start:] and "it/s" not in server.log()[start:]

    def test_a_grid_of_three_on_the_page(self, ui, server):
        accordion = AccordionPage(ui, "txt2img_hpsampler", TXT2IMG)
        accordion.choose_at(TXT2IMG["sampler"], "HP Auto")
        begin(accordion)
        for side in ("width", "height"):
            ui.locator(f"#txt2img_{side} input[type=number]").fill("64")
        ui.locator("#script_list input").first.click()
        ui.locator(OPTION).filter(has_text="X/Y/Z plot").first.click()
        ui.check("#script_txt2img_xyz_plot_csv_mode input")
        answered(ui)
        chosen = {"x": ("[HP] Rho", "4, 7"), "y": ("[HP] Ending", "Keep noise, To zero"), "z": ("[HP] Preset", "Auto")}
        for axis, (label, values) in chosen.items():
            accordion.choose_at(f"#script_txt2img_xyz_plot_{axis}_type", label)
            answered(ui)
            ui.fill(f"#script_txt2img_xyz_plot_{axis}_values textarea", values)
        start = len(server.log())
        text = generate(ui)
        assert "HP Recipe: Auto, HP Rho: 4.0, HP Ending: Keep noise" in text, "of the first picture"
        assert "X/Y/Z plot will create 4 images on 1 2x2 grid" in server.log()[start:]
        assert ui.locator("#txt2img_gallery img").count() >= 1

    def test_the_menus_offer_the_choices(self, ui, server):
        ui.locator("#script_list input").first.click()
        ui.locator('[data-testid="dropdown-option"]').filter(has_text="X/Y/Z plot").first.click()
        answered(ui)
        ui.locator("#script_txt2img_xyz_plot_x_type input").click()
        ui.locator('[data-testid="dropdown-option"]').filter(
            has_text=re.compile(r"^\W*\[HP\] Preset\s*$")
        ).first.click()
        answered(ui)
        menus = ui.locator("#txt2img_script_container .block:visible", has_text="X values").locator("input")
        menus.last.click()
        shown = ui.locator('[data-testid="dropdown-option"]').all_inner_texts()
        assert any("SD1.5 8 steps" in each for each in shown)
        assert not any("SDXL" in each for each in shown), "made for another family"


class TestSettingsPage:
    def test_it_is_there_with_its_options(self, ui):
        ui.click("#tabs button:has-text('Settings')")
        ui.locator("#settings button", has_text="HP Sampler").first.click()
        for name in ("hidden", "preset", "follow", "calibration_when_off", "plot"):
            assert ui.locator(f"#setting_hpsampler_{name}").is_visible(), name

    def test_a_preset_that_was_saved_now_can_be_chosen_there(self, accordion, ui):
        accordion.call("saved just now")
        accordion.press("save")
        ui.click("#tabs button:has-text('Settings')")
        ui.locator("#settings button", has_text="HP Sampler").first.click()
        heading = ui.evaluate(
            """() => {
                const buttons = [...document.querySelectorAll("#settings > .tab-nav > *")];
                const at = buttons.findIndex((e) => e.textContent.trim() === "HP Sampler");
                return buttons.slice(0, at).reverse().find((e) => e.tagName !== "BUTTON").textContent;
            }"""
        )
        assert heading == "Stable Diffusion"
        ui.click("#refresh_hpsampler_preset")
        answered(ui)
        ui.click("#setting_hpsampler_preset input")
        assert "saved just now" in " ".join(ui.locator("#setting_hpsampler_preset ul.options li").all_inner_texts())
        ui.locator("#setting_hpsampler_preset input").first.blur()
        ui.click("#tabs button:has-text('txt2img')")
        accordion.panel.locator("[data-slot=sure]").check()
        assert "deleted" in accordion.press("delete")

    def test_what_is_hidden_is_not_in_the_menus(self, serve):
        server = serve(settings={"hpsampler_hidden": ["HP DPM++ 1S", "HP calibrated"], "hpsampler_plot": False})
        names = [each["name"] for each in server.get("/sdapi/v1/samplers")]
        labels = [each["label"] for each in server.get("/sdapi/v1/schedulers")]
        assert "HP DPM++ 1S" not in names and "HP Auto" in names
        assert "HP calibrated" not in labels and "HP" in labels
        _, info = server.txt2img(**AUTO)
        assert "Sampler: HP Auto, Schedule type: HP" in info["infotexts"][0]
        _, info = server.txt2img(**{**AUTO, "sampler_name": "HP DPM++ 1S"})
        assert "Sampler: HP DPM++ 1S" in info["infotexts"][0], "a program still finds it, and no other is drawn with"

    def test_the_accordion_begins_with_a_preset(self, serve, page):
        mine = Preset.of("my start", {"rho": 6.5, "ending": "To zero"})
        server = serve(
            settings={"hpsampler_preset": "my start", "hpsampler_plot": False},
            files={"models/hpsampler/presets/my-start.json": mine.to_json()},
        )
        page.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
        open_ui(page, server)
        accordion = AccordionPage(page, "txt2img_hpsampler", TXT2IMG)
        values = accordion.values()
        assert values["rho"] == 6.5 and values["ending"] == "To zero" and values["b1"] == 1.1
        assert page.locator("#txt2img_hpsampler .input-accordion-checkbox").is_checked()
        accordion.choose_at(TXT2IMG["sampler"], "HP Auto")
        assert page.locator("#txt2img_hpsampler_panel svg").count() == 0, "the plot is off"
        assert accordion.offers() and "my start" in accordion.fitting() and accordion.idle(), "the rest is not"
        said_nothing, info = server.txt2img(**AUTO)
        assert "HP Rho: 6.5" in info["infotexts"][0], "requests that say nothing begin with it too"
        assert np.array_equal(said_nothing[0], server.txt2img(**AUTO, **hp(rho=6.5, ending="To zero"))[0][0])
        _, info = server.txt2img(**AUTO, **hp(rho=4))
        assert "HP Rho: 4.0" in info["infotexts"][0] and "HP Ending" not in info["infotexts"][0]

    def test_presets_follow_the_model(self, server):
        xl = hp(recipe="SDXL 6 steps")
        (as_named,), info = server.txt2img(**AUTO, **xl)
        assert "HP Recipe: SDXL 6 steps" in info["infotexts"][0] and "note" not in info["infotexts"][0]
        server.post("/sdapi/v1/options", {"hpsampler_follow": True})
        (followed,), info = server.txt2img(**AUTO, **xl)
        assert "HP Recipe: SD1.5 6 steps" in info["infotexts"][0]
        assert "the preset SDXL 6 steps stands for SD1.5 6 steps" in info["infotexts"][0]
        server.post("/sdapi/v1/options", {"hpsampler_follow": False})
        assert np.array_equal(followed, server.txt2img(**AUTO, **hp(recipe="SD1.5 6 steps"))[0][0])
        assert not np.array_equal(followed, as_named)


def test_the_numbers_are_python_s_on_this_model_too(accordion):
    begin(accordion)
    accordion.set("recipe", "SD1.5 6 steps")
    accordion.settle()
    assert accordion.sigmas() == pytest.approx(drawn(recipe="SD1.5 6 steps"), rel=1e-5)
    assert json.loads(json.dumps(accordion.sigmas()))


def test_new_noise_is_of_each_picture_s_own_seed(server):
    stirred = hp(noise_level=0.3)
    unipc = {**AUTO, "sampler_name": "HP UniPC"}
    both, info = server.txt2img(**unipc, **stirred, batch_size=2, seed=5)
    assert "HP UniPC noise level: 0.3" in info["infotexts"][0]
    plain, _ = server.txt2img(**unipc, seed=5)
    for i in range(2):
        (alone,), _ = server.txt2img(**unipc, **stirred, seed=5 + i)
        assert np.abs(alone.astype(int) - both[-2:][i]).max() <= 1
    assert np.abs(both[-2].astype(int) - plain[0]).max() > 3
    (again,), _ = server.txt2img(**unipc, **stirred, seed=5)
    assert np.abs(again.astype(int) - both[-2]).max() <= 1


def test_the_analytical_first_step_of_dpmpp_2m(server):
    start = len(server.log())
    (with_it,), info = server.txt2img(**AUTO, **hp(analytical_first_step="0.975"))
    assert "HP Analytical first step: 0.975" in info["infotexts"][0] and "6/6" in server.log()[start:]
    assert not np.array_equal(with_it, server.txt2img(**AUTO, **hp(analytical_first_step="On"))[0][0])
    assert not np.array_equal(with_it, server.txt2img(**AUTO)[0][0])


def test_an_older_picture_s_analytical_first_step_is_pasted(accordion, ui):
    ours = "HP Recipe: Auto, HP UniPC analytical first step: On, HP version: 0.3.0"
    paste(ui, f"a moon\nSteps: 6, Sampler: HP UniPC, Seed: 1, {ours}")
    until(lambda: accordion.values()["analytical_first_step"], "On")
