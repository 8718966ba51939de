"""The demonstration page: its session without gradio, then the page in Chromium. Random networks: no weights needed."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.oracles_import import k_diffusion_sampling
from demo.session import OURS, SAMPLERS, SCHEDULES, Request, draw, infotext, latents, plan
from hpsampler.fields import SettingsError
from hpsampler.freeu import FreeU
from hpsampler.golden.search import GoldenForm, golden_latent, sigma_below
from hpsampler.guidance import with_guidance
from hpsampler.recipes import PRESETS, recipe_for
from hpsampler.schedule import insert_first_midpoint
from hpsampler.settings import FIELDS, Settings
from hpsampler.solvers import SOLVERS
from hpsampler.webui.accordion import ADVANCED, GROUPS
from tests.accordion.checks import CHECKS
from tests.accordion.layout import contrasts
from tests.accordion.page import AccordionPage
from tiny_model.model import TinyModel, seeded_noise
from tiny_model.networks import Classifier, TinyDiffusion
from tiny_model.pictures import SIDE, answers

PROMPT = "a red star on a navy background"


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        diffusion = TinyDiffusion()
        for parameter in diffusion.unet.parameters():
            # the class zero-initialises its last layers, which would make every output 0
            if parameter.abs().sum() == 0 and parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.05)
        return TinyModel(diffusion, Classifier(answers()), torch.device("cpu"))


def request_of(settings=None, **values):
    return Request(PROMPT, settings=Settings.of([settings]) if settings else Settings(), **values)


def sampled(model, request):
    return latents(model, request, plan(request, model.noise))


def freeu_calls(model, request):
    """The calls, from 0, in which Free-U was on."""
    seen = []
    unet = model.diffusion.unet
    handle = unet.register_forward_pre_hook(lambda *_: seen.append(FreeU.attached(unet)))
    try:
        sampled(model, request)
    finally:
        handle.remove()
    assert not FreeU.attached(unet)
    return [call for call, attached in enumerate(seen) if attached]


class TestPlan:
    @pytest.mark.parametrize("sampler", SAMPLERS)
    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_every_sampler_with_every_schedule_makes_the_calls_it_says(self, model, sampler, schedule):
        request = request_of(sampler=sampler, schedule=schedule, steps=3)
        planned = plan(request, model.noise)
        result, calls = latents(model, request, planned)
        assert torch.isfinite(result).all() and result.shape == (1, 4, SIDE // 8, SIDE // 8)
        # Heun makes two calls a step but for a last one to 0
        kept = planned.sigmas[-1] > 0
        assert kept == (request.schedule_used == "KL Optimal")
        assert calls == planned.calls == {"Heun": 6 if kept else 5}.get(sampler, 3)

    @pytest.mark.parametrize("cfg_scale", [2.0, 5.0, 7.0])
    @pytest.mark.parametrize(("sampler", "solver"), OURS.items())
    def test_it_is_the_core_called_directly(self, model, sampler, solver, cfg_scale):
        recipe = recipe_for("sd1", 5, cfg_scale)
        sigmas = recipe.sigmas(model.noise)
        denoiser = model.denoiser([PROMPT], cfg_scale, freeu=recipe.freeu)
        options = recipe.options()
        if solver == "unipc":
            low = cfg_scale <= 3
            options = {"order": 2, "prediction": "data", "variant": "bh2", "extrapolate": low}
        elif solver is not None:
            options = {"extrapolate": cfg_scale <= 3} if solver == "dpmpp_2m" else {}
            if solver == "dpm_v3":
                options = {"order": 2, "corrector": False}
        guided = with_guidance(denoiser, recipe.guidance)
        expected = SOLVERS[solver or recipe.solver](guided, seeded_noise([3]) * sigmas[0], sigmas, **options)
        for enabled in (False, True):
            request = Request(PROMPT, seed=3, sampler=sampler, cfg_scale=cfg_scale, settings=Settings(enabled=enabled))
            assert torch.equal(sampled(model, request)[0], expected)

    @pytest.mark.parametrize("form", list(GoldenForm))
    def test_golden_noise_is_the_core_s_and_counted(self, model, form):
        request = Request(
            PROMPT, seed=3, cfg_scale=5.0, settings=Settings.of_names({"enabled": True, "golden_noise": form.value})
        )
        planned = plan(request, model.noise)
        result, calls = latents(model, request, planned)
        assert calls == planned.calls == 7 and f"HP Golden noise: {form.value}" in infotext(request)
        sigma = float(planned.sigmas[0])
        guided, plain = (model.denoiser([PROMPT], scale) for scale in (5.0, 1.0))
        x = golden_latent(form, seeded_noise([3]) * planned.sigmas[0], sigma, sigma_below(sigma), guided, plain)
        assert torch.equal(result, planned.sample(model.denoiser([PROMPT], 5.0), x, planned.sigmas))
        euler = replace(request, sampler="Euler")
        assert plan(euler, model.noise).golden is None and "needs an HP sampler" in plan(euler, model.noise).notes[0]
        with pytest.raises(SettingsError, match="Golden noise \\(golden_noise\\) must be Off, A or B on this page"):
            replace(request, settings=Settings.of_names({"enabled": True, "golden_noise": "mine"}))

    def test_a_built_in_sampler_is_k_diffusion_s(self, model):
        request = request_of(sampler="DPM++ 2M", steps=4, seed=3, cfg_scale=2.0)
        sigmas = plan(request, model.noise).sigmas
        karras = k_diffusion_sampling().get_sigmas_karras(4, model.noise.sigma_min, model.noise.sigma_max)
        assert sigmas.tolist() == pytest.approx(karras.tolist(), rel=1e-4)
        x = seeded_noise([3]) * sigmas[0]
        expected = k_diffusion_sampling().sample_dpmpp_2m(model.denoiser([PROMPT], 2.0), x, sigmas, disable=True)
        assert torch.equal(sampled(model, request)[0], expected)

    def test_automatic_is_what_the_webui_takes(self, model):
        used = {sampler: request_of(sampler=sampler).schedule_used for sampler in SAMPLERS}
        assert used == {**dict.fromkeys(OURS, "HP"), "DPM++ 2M": "Karras", "Euler": "Uniform", "Heun": "Uniform"}

    def test_the_samplers_are_the_adapter_s(self, webui):
        from hpsampler.webui.registration import SAMPLERS as registered

        assert dict(registered) == dict(OURS)

    def test_one_more_call(self, model):
        assert sampled(model, request_of({"ending": "One more call"}))[1] == 6

    def test_the_analytical_first_step_spends_its_call_on_a_point_more(self, model):
        request = request_of({"analytical_first_step": "On"}, sampler="HP UniPC", steps=6)
        planned = plan(request, model.noise)
        result, calls = latents(model, request, planned)
        assert torch.equal(
            planned.sigmas, insert_first_midpoint(model.noise, recipe_for("sd1", 6, 7.0).sigmas(model.noise))
        )
        assert calls == planned.calls == 6 and torch.isfinite(result).all()

    def test_a_batch_is_its_pictures_alone(self, model):
        both, _ = sampled(model, request_of(seed=3, pictures=2, steps=6))
        for i in range(2):
            alone, _ = sampled(model, request_of(seed=3 + i, steps=6))
            torch.testing.assert_close(both[i], alone[0], rtol=1e-4, atol=1e-4)


LATE = {"recipe": "SD1.5 6 steps UniPC"}
"""A preset with Free-U from call 5 on."""


class TestFreeU:
    def test_on_changes_the_picture(self, model):
        on, off = (sampled(model, request_of({"freeu": freeu}, steps=4))[0] for freeu in ("On", "Off"))
        assert not torch.equal(on, off)

    @pytest.mark.parametrize(
        ("sampler", "schedule", "settings", "calls"),
        [
            ("HP Auto", "Automatic", None, []),
            ("HP Auto", "Automatic", LATE, [4, 5]),
            ("HP Auto", "Automatic", {**LATE, "freeu": "Off"}, []),
            ("HP Auto", "Karras", LATE, []),
            ("Euler", "HP", None, []),
            ("Euler", "HP", LATE, [4, 5]),
            ("Euler", "Karras", LATE, []),
            ("Euler", "Karras", {"freeu": "On", "freeu_first": 2, "freeu_last": 3}, [1, 2]),
            ("Heun", "HP", LATE, [10, 11]),
            ("Heun", "HP", {"freeu": "On", "freeu_first": 2, "freeu_last": 3}, [1, 2]),
        ],
    )
    def test_it_is_on_where_the_webui_has_it(self, model, sampler, schedule, settings, calls):
        values = None if settings is None else {"enabled": True, **settings}
        assert freeu_calls(model, request_of(values, sampler=sampler, schedule=schedule, steps=6)) == calls


class TestMessages:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"end_sigma": 0.2, "rho": 5}, ["End sigma", "rho"]),
            ({"end_sigma": 0.01}, ["end_sigma", "0.02917", "0.01"]),
            ({"truncation_index": 20}, ["Truncation index", "8", "20"]),
        ],
    )
    def test_wrong_settings_are_named_before_any_call(self, model, settings, words):
        with pytest.raises(SettingsError) as error:
            draw(model, request_of(settings), lambda *_: pytest.fail("a UNet call was made"))
        assert all(word in str(error.value) for word in words), str(error.value)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"steps": 0}, "Sampling steps must be a whole number from 1 to 150, got 0"),
            ({"steps": 2.5}, "Sampling steps"),
            ({"pictures": 99}, "Pictures"),
            ({"seed": -2}, "Seed"),
            ({"seed": None}, "Seed"),
            ({"cfg_scale": float("nan")}, "CFG scale"),
            ({"sampler": "LCM"}, "Sampling method must be one of HP Auto"),
            ({"schedule": "Turbo"}, "Schedule type must be one of Automatic"),
        ],
    )
    def test_a_wrong_request_is_named(self, values, message):
        with pytest.raises(SettingsError, match=message):
            request_of(**values)

    @pytest.mark.parametrize(
        ("values", "settings", "note"),
        [
            ({"steps": 7}, {"recipe": "SD1.5 5 steps"}, "made for 5 steps; it runs with 7"),
            ({"schedule": "Karras"}, {"rho": 7}, "Rho has no effect, as the schedule type is Karras"),
            ({"sampler": "HP DPM++ 1S"}, {"ending": "Extrapolated"}, "ends at zero instead"),
        ],
    )
    def test_what_the_webui_notes_is_noted(self, model, values, settings, note):
        assert any(note in each for each in plan(request_of(settings, **values), model.noise).notes)


class TestDrawing:
    def test_a_drawing_is_whole(self, model):
        told = []
        drawing = draw(model, request_of(seed=7, pictures=2), lambda *call: told.append(call))
        assert drawing.pictures.shape == (2, 3, SIDE, SIDE)
        assert drawing.pictures.min() >= 0 and drawing.pictures.max() <= 1
        assert drawing.calls == 5 and told == [(i, 5) for i in range(1, 6)] and drawing.seeds == [7, 8]
        for reading in drawing.readings:
            assert reading.asked == {"colour": "red", "shape": "star"}
            assert reading.right == {name: reading.read[name] == word for name, word in reading.asked.items()}

    @pytest.mark.parametrize(
        ("prompt", "asked"),
        [("a heart", {"shape": "heart"}), ("a red and a blue star", {}), ("a red dragon", {}), ("", {})],
    )
    def test_only_what_the_prompt_clearly_asks_is_judged(self, model, prompt, asked):
        assert draw(model, Request(prompt, steps=1)).readings[0].asked == asked

    def test_infotext(self):
        settings = {"rho": 7, "order": 3, "b1": 1.3}
        text = infotext(Request("a moon", "red", 5, settings=Settings.of([settings])), ["one; two: three"])
        assert re.fullmatch(
            "a moon\nNegative prompt: red\nSteps: 5, Sampler: HP Auto, Schedule type: HP, CFG scale: 7, Seed: 5, "
            r'Size: 96x96, HP Recipe: Auto, HP Rho: 7.0, HP version: [\d.]+, HP note: "one; two: three"',
            text,
        )
        assert "HP" not in infotext(request_of({"rho": 7}, sampler="Euler"))
        assert "HP Free-U: On" in infotext(request_of({"freeu": "On"}, sampler="Euler"))
        unipc = request_of({"order": 3}, sampler="HP UniPC")
        assert "HP UniPC order: 3" in infotext(unipc)


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """Folder of the page's presets."""
    return tmp_path_factory.mktemp("presets")


@pytest.fixture(scope="module")
def address(model, presets):
    """Address of the page, served from a thread."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from demo.ui import page

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = page(model, presets).queue()
    blocks.launch(server_name="127.0.0.1", server_port=port, quiet=True, prevent_thread_lock=True, show_api=False)
    yield f"http://127.0.0.1:{port}/"
    blocks.close()


@pytest.fixture
def ui(browser, address):
    """The page, opened; none of its own scripts may have failed at the end."""
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    # on a busy machine everything takes its time
    page.set_default_timeout(120_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    # what comes from a CDN the page can do without
    page.route(lambda url: not url.startswith((address, "data:", "blob:")), lambda route: route.abort())
    page.goto(address)
    page.wait_for_selector("#demo_generate")
    yield page
    page.close()
    assert [error for error in errors if "Failed to load resource" not in error and "CORS" not in error] == []


def number(ui, name):
    return ui.locator(f"#{name} input[type=number]").first


def choose(ui, name, value):
    ui.click(f"#{name} input")
    ui.locator('[data-testid="dropdown-option"]').filter(has_text=re.compile(rf"{re.escape(value)}\s*$")).first.click()


def generate(ui):
    """Click, wait for another picture's text, and give it and what stands below it."""
    text = ui.locator("#demo_infotext textarea")
    before = text.input_value()
    ui.click("#demo_generate")
    ui.wait_for_function("before => document.querySelector('#demo_infotext textarea').value != before", arg=before)
    return text.input_value(), ui.locator("#demo_facts textarea").input_value()


PAGE = {"sampler": "#demo_sampler", "schedule": "#demo_schedule", "steps": "#demo_steps", "cfg": "#demo_cfg"}


@pytest.fixture
def accordion(ui):
    opened = AccordionPage(ui, "demo_hpsampler", PAGE)
    opened.open()
    return opened


class TestAccordion:
    @pytest.mark.parametrize("name", CHECKS)
    def test_it(self, accordion, name):
        CHECKS[name](accordion)

    def test_a_preset_outlives_the_page(self, accordion, presets):
        accordion.set("rho", 6.5)
        accordion.call("kept")
        accordion.press("save")
        (presets / "broken.json").write_text("{")
        accordion.ui.reload()
        accordion.ui.wait_for_selector("#demo_generate")
        accordion.open()
        accordion.ui.wait_for_function("() => document.querySelector('#demo_hpsampler_panel .hps-said p')")
        assert "broken.json: not a JSON file" in accordion.said()
        assert "kept" in accordion.fitting()
        accordion.load("kept")
        assert accordion.values()["rho"] == 6.5
        assert (presets / "broken.json").read_text() == "{"

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_it_can_be_seen_in_both_themes(self, ui, address, theme):
        ui.goto(f"{address}?__theme={theme}")
        ui.wait_for_selector("#demo_generate")
        accordion = AccordionPage(ui, "demo_hpsampler", PAGE)
        accordion.open()
        accordion.set("recipe", "SD1.5 5 steps UniPC")
        accordion.settle()
        assert contrasts(accordion) >= 3
        folder = os.environ.get("HPS_SCREENSHOTS")
        if folder:
            accordion.panel.screenshot(path=Path(folder) / f"panel_{theme}.png")


class TestPage:
    def test_the_accordion_is_the_extension_s_and_whole(self, ui):
        ui.locator("#demo_hpsampler > .label-wrap").click()
        for group in (ADVANCED, *(suffix for _, suffix, _ in GROUPS)):
            ui.locator(f"#demo_hpsampler_{group} > .label-wrap").click()
        assert not ui.locator("#demo_hpsampler_enabled input").is_checked()
        for field in FIELDS:
            control = ui.locator(f"#demo_hpsampler_{field.name}")
            control.wait_for()
            assert field.label in control.inner_text()
        ui.click("#demo_hpsampler_recipe input")
        assert ui.locator('[data-testid="dropdown-option"]').count() == len(PRESETS) + 1
        ui.keyboard.press("Escape")

    def test_draw_change_and_be_told(self, ui):
        number(ui, "demo_pictures").fill("2")
        ui.fill("#demo_prompt textarea", "a blue dragon")
        text, facts = generate(ui)
        assert text.startswith("a blue dragon\nSteps: 5, Sampler: HP Auto, Schedule type: HP, CFG scale: 7, Seed: ")
        assert "HP Recipe" not in text, "the accordion was off"
        assert "5 NFE" in facts and "for 2 pictures" in facts and "does not know: dragon" in facts
        assert ui.locator("#demo_gallery img").count() >= 2

        ui.fill("#demo_prompt textarea", PROMPT)
        number(ui, "demo_seed").fill("41")
        choose(ui, "demo_sampler", "HP UniPC")
        ui.locator("#demo_hpsampler > .label-wrap").click()
        for group in (ADVANCED, "schedule"):
            ui.locator(f"#demo_hpsampler_{group} > .label-wrap").click()
        ui.check("#demo_hpsampler_enabled input")
        choose(ui, "demo_hpsampler_ending", "One more call")
        number(ui, "demo_hpsampler_rho").fill("6.5")
        text, facts = generate(ui)
        for part in ("Sampler: HP UniPC", "Seed: 41", "HP Recipe: Auto", "HP Rho: 6.5", "HP Ending: One more call"):
            assert part in text
        assert "6 NFE" in facts and "reads the colour right in" in facts and "does not know" not in facts

        number(ui, "demo_hpsampler_end_sigma").fill("0.2")
        ui.click("#demo_generate")
        toast = ui.locator(".toast-body")
        toast.wait_for()
        assert "End sigma" in toast.inner_text() and "rho" in toast.inner_text()


def test_a_named_calibration_is_refused_here():
    with pytest.raises(SettingsError, match="must be Auto or Off on this page, got 'mine'"):
        Request("a red star", settings=Settings.of([{"calibration": "mine"}]))


def test_a_busy_or_impossible_port_is_said_before_the_page_is_built(monkeypatch, capsys):
    ui = pytest.importorskip("demo.ui")
    monkeypatch.setattr(ui, "page", lambda *_: pytest.fail("the page was built"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for given, words in {
            str(port): f"--port {port}: another program uses it; choose another one",
            "0": "must be a whole number from 1 to 65535, got 0",
            "70000": "must be a whole number from 1 to 65535, got 70000",
            "x": "must be a whole number from 1 to 65535, got x",
        }.items():
            with pytest.raises(SystemExit) as stopped:
                ui.main(["--port", given])
            assert stopped.value.code == 2 and words in capsys.readouterr().err
