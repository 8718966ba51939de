"""The panel says what is drawn: held to the demonstration's plans, to the host's own passes, and to the core."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bench.schedules import SCHEDULES, stable_diffusion_noise
from demo.session import OURS, Request, plan
from hpsampler.calibration.profile import Fitted, Profile, ProfileStore, Target
from hpsampler.fields import SettingsError
from hpsampler.freeu import FreeU
from hpsampler.golden.search import CALLS
from hpsampler.noise import NoiseModel
from hpsampler.panel import Known, Page, Snapshot, View
from hpsampler.panel.view import view
from hpsampler.presets import Preset, built_in
from hpsampler.recipes import MAX_STEPS, PRESETS, recipe_for
from hpsampler.schedule import base_karras, insert_first_midpoint
from hpsampler.settings import FIELDS, NO_STATISTICS, OFF, Settings
from hpsampler.webui.accordion import GROUPS
from hpsampler.webui.panel_html import answer
from tests.adapter.host.processing import Host, Img2Img, Txt2Img
from tests.conftest import zero_terminal_snr

NAMES = [field.name for field in FIELDS]
BY_NAME = {field.name: field for field in FIELDS}
PARTS = [(suffix, names) for _, suffix, names in GROUPS]
SAMPLERS = (*OURS, "DPM++ 2M", "Euler", "Heun")
SCHEDULE_TYPES = ("Automatic", "HP", "Karras", "Exponential", "SGM Uniform", "Simple")
HASHES = ("0000000000",)

SD = stable_diffusion_noise()
ZSNR = NoiseModel.from_alphas_cumprod(zero_terminal_snr(SD.alphas_cumprod))
SHORT = NoiseModel.from_alphas_cumprod(np.linspace(0.9999, 0.002, 60))
MODEL = Known("sd1", SD, "a model", HASHES, presets=built_in())
KNOWN = {
    "sd": MODEL,
    "zero terminal SNR": replace(MODEL, noise=ZSNR),
    "sdxl": replace(MODEL, family="sdxl"),
    "sd2, short": replace(MODEL, family="sd2", noise=SHORT),
}


def look(values: Any = None, known: Known = MODEL, enabled: bool = True, **page: Any) -> View:
    state = {"sampler": "HP Auto", "schedule": "Automatic", "steps": 5, "cfg": 7, "width": 512, "height": 512, **page}
    return view({"enabled": enabled, **(values or {})}, Page.of(state), known)


def shown(found: View, width: float = 600, tab: str = "Calibrate") -> dict[str, Any]:
    """As the page gets it, by way of JSON."""
    return json.loads(json.dumps(answer(found, PARTS, width, tab)))


def text(html: str) -> str:
    return re.sub(r"<[^>]+>", "", html).replace("&#x27;", "'").replace("&gt;", ">").strip()


def sentence(found: View) -> str:
    return text(shown(found)["slots"]["summary"])


# ---- random states ---------------------------------------------------------------------------------------------------


def right_value(rng, field):
    if field.choices:
        choice = rng.choice(field.choices)
        choice = rng.choice([choice, choice, field.aliases.get(choice, choice)])
        return rng.choice([choice, choice, choice.upper(), f" {choice.lower()} \n"])
    if isinstance(field.default, str):
        return rng.choice([*field.words, " off ", field.words[0].upper()])
    if field.whole:
        few = rng.randint(max(math.ceil(field.low), 1), min(int(field.high), 12))
        return rng.choice([few, few, rng.randint(math.ceil(field.low), int(field.high)), field.default])
    low = max(field.low, 1e-3)
    spread = math.exp(rng.uniform(math.log(low), math.log(field.high)))
    return rng.choice([spread, round(spread, 2) or low, field.low, field.high, field.default])


def wrong_value(rng, field):
    if field.choices:
        return rng.choice(["", "nonsense", "it's", "both ' and \"", 7, "Ü\u2009\x07\U0001f600", "x" * 70, None])
    if isinstance(field.default, str):
        return rng.choice(["", "  ", "n" * 401, 3, None])
    return rng.choice([field.low - 1, field.high * 1.01 + 1, -1, -0.5, 1e-7, 1234567.5, 1e16, 3e22, None, "5x"])


def random_state(rng):
    """The accordion's values, its switch, and the page's own."""
    values = {}
    # most sets of many values contradict each other
    for name in rng.sample(NAMES, rng.choice([0, 1, 1, 2, 2, 3, 4, 6])):
        field = BY_NAME[name]
        values[name] = wrong_value(rng, field) if rng.random() < 0.07 else right_value(rng, field)
    if rng.random() < 0.4:
        values["recipe"] = rng.choice(tuple(PRESETS))
    if rng.random() < 0.3:
        values["freeu"] = "On"
    page = {
        "sampler": rng.choice([*OURS, *SAMPLERS]),
        "schedule": rng.choice(["Automatic", "HP", *SCHEDULE_TYPES]),
        "steps": rng.choice([rng.randint(1, 12), rng.randint(1, 12), rng.randint(1, MAX_STEPS)]),
        "cfg": rng.choice([1.0, 3.0, 3.5, 7.0, round(rng.uniform(1, 30), 1), rng.uniform(1, 30)]),
    }
    return values, rng.random() < 0.93, page


def calls_of(found: View) -> list[int]:
    return sorted({call for first, last in found.first.freeu for call in range(first, last + 1)})


def test_any_state_is_what_the_demonstration_draws():
    rng = random.Random("panel")
    errors = plans = 0
    for _ in range(600):
        values, enabled, page = random_state(rng)
        found = look(values, enabled=enabled, **page)
        assert len(shown(found)["controls"]) == len(FIELDS)
        try:
            settings = Settings.of_names({"enabled": enabled, **values})
            request = Request(
                "", sampler=page["sampler"], schedule=page["schedule"], steps=page["steps"], cfg_scale=page["cfg"],
                settings=settings,
            )  # fmt: skip
            drawn = plan(request, SD)
        except SettingsError as error:
            assert found.first.error == str(error), (values, page)
            assert found.first.wrong == error.names and found.first.sigmas == [] and not shown(found)["sigmas"]
            errors += 1
            continue
        assert found.first.error == "", (values, page)
        assert found.first.notes == list(drawn.notes), (values, page)
        if page["sampler"] in OURS:
            assert found.first.calls == drawn.calls
        else:
            assert found.first.calls is None
        made = drawn.calls - (CALLS if drawn.golden else 0)
        expected = [call + 1 for call in range(made) if any(each.covers(call) for each in drawn.freeu)]
        assert calls_of(found) == expected, (values, page)
        if request.schedule_used == "HP":
            assert found.first.asked and found.first.sigmas == pytest.approx(drawn.sigmas.tolist(), rel=1e-6)
            plans += 1
    assert errors > 50 and plans > 150


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_any_state_can_be_shown(known):
    """Whatever is set, on any model: an answer, which is the core's where there is a schedule."""
    rng = random.Random("any")
    for _ in range(150):
        values, enabled, page = random_state(rng)
        page |= {"img2img": rng.random() < 0.3, "denoising": rng.choice([0, 1, 0.5, 0.75, round(rng.random(), 2)])}
        page["hires"] = rng.random() < 0.3
        found = look(values, replace(known, follow=rng.random() < 0.5), enabled, **page)
        told = shown(found)
        assert bool(found.first.error) == ("would stop" in text(told["slots"]["summary"]))
        if found.first.asked and found.first.sigmas and not page["img2img"] and not found.first.calibration:
            expected = found.settings.resolve(known.family, page["steps"], page["cfg"]).sigmas(known.noise)
            sigmas = found.first.sigmas
            extra = len(sigmas) - len(expected)
            assert [sigmas[0], *sigmas[1 + extra :]] == pytest.approx(expected.tolist(), rel=1e-6)


# ---- the host's own passes -------------------------------------------------------------------------------------------

DRAWN = [
    ({}, {}),
    ({"recipe": "SD1.5 6 steps UniPC"}, {"steps": 6}),
    ({"recipe": "SD1.5 6 steps UniPC", "rho": 4.0}, {"steps": 9}),
    ({"analytical_first_step": "On", "freeu": "On"}, {"steps": 6}),
    ({"ending": "One more call", "freeu": "On", "freeu_first": 2, "freeu_last": 3}, {}),
    ({"golden_noise": "A"}, {}),
    ({"statistics": OFF}, {"sampler_name": "HP DPM-v3", "steps": 4}),
    ({"freeu": "On"}, {"sampler_name": "HP UniPC", "scheduler": "Karras"}),
    ({"freeu": "On"}, {"sampler_name": "Euler", "scheduler": "HP"}),
    ({"recipe": "SD1.5 5 steps UniPC"}, {"sampler_name": "Euler", "scheduler": "HP", "steps": 7}),
]


def recorded(webui, p, settings) -> tuple[list[float], list[bool]]:
    """Sigma of each UNet call of a request, and whether Free-U was on in it."""
    sigmas, freeu = [], []
    host = Host(webui.script.HPSamplerScript())
    webui.script_callbacks.on_cfg_denoiser(
        lambda params: (sigmas.append(float(params.sigma[0])), freeu.append(FreeU.attached(webui_unet(webui))))
    )
    host.run(p, settings)
    assert not host.printed
    return sigmas, freeu


def webui_unet(webui):
    return webui.shared.sd_model.model.diffusion_model


@pytest.mark.parametrize(("settings", "request_"), DRAWN, ids=str)
@pytest.mark.parametrize("img2img", [False, True])
def test_it_says_what_the_host_then_draws(webui, settings, request_, img2img):
    kind, own = (Img2Img, {"init_latent": torch.zeros(1, 4, 8, 8)}) if img2img else (Txt2Img, {})
    p = kind(**{"steps": 5, "denoising_strength": 0.6, **request_, **own})
    page = {
        "sampler": p.sampler_name, "schedule": p.scheduler, "steps": p.steps, "img2img": img2img, "denoising": 0.6,
        "width": 64, "height": 64,
    }  # fmt: skip
    sigmas, freeu = recorded(webui, p, settings)
    found = look(settings, **page)
    golden = found.first.golden
    assert len(sigmas) == found.first.made + golden and not any(freeu[:golden])
    assert [call + 1 for call, on in enumerate(freeu[golden:]) if on] == calls_of(found)
    if found.first.asked:
        inserted = found.first.steps[found.first.skipped] == 0
        expected = found.first.sigmas[found.first.skipped + inserted :][: found.first.made]
        assert sigmas[golden:] == pytest.approx(expected, rel=1e-4)
    assert sorted(p.extra_generation_params.get("HP note", "").split("; ")) == sorted(
        "; ".join(found.first.notes).split("; ")
    )


@pytest.mark.parametrize("own", ["Same", "Auto", "SD1.5 8 steps"])
def test_it_says_what_the_second_pass_of_hires_fix_draws(webui, own):
    settings = {"rho": 3.0, "hires_recipe": own, "freeu": "On"}
    p = Txt2Img(
        steps=5, enable_hr=True, hr_sampler_name="HP Auto", hr_scheduler="Automatic", hr_second_pass_steps=6,
        denoising_strength=0.7,
    )  # fmt: skip
    sigmas, freeu = recorded(webui, p, settings)
    found = look(settings, hires=True, denoising=0.7, hr_steps=6, hr_sampler="Use same sampler", width=64, height=64)
    second = found.second
    assert len(sigmas) == 5 + 6 and second.calls == 6
    assert sigmas[5:] == pytest.approx(second.sigmas[second.skipped :][:6], rel=1e-4)
    on = {call for first, last in second.freeu for call in range(first, last + 1)}
    assert [call + 1 for call, each in enumerate(freeu[5:]) if each] == sorted(on)
    assert re.search(r"Hires\. fix: .*, 6 UNet calls, sigma [\d.]+ to ", sentence(found))
    notes = [*found.first.notes, *(note for note in second.notes if note not in found.first.notes)]
    assert p.extra_generation_params.get("HP note", "") == "; ".join(notes)


# ---- what is drawn beside the schedule -------------------------------------------------------------------------------


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_the_base_schedule_is_drawn_up_to_its_cut(known):
    for name, recipe in PRESETS.items():
        first = look({"recipe": name, "ending": "Keep noise"}, known).first
        # with zero terminal SNR the cut means Stable Diffusion's own table
        noise = SD if known.noise.zero_terminal_snr else known.noise
        expected = base_karras(recipe.base_steps, recipe.rho, noise.sigma_min, noise.sigma_max)
        assert first.base == pytest.approx(expected.tolist(), rel=1e-6) and first.cut == recipe.truncation_index
        if len(known.noise) == 1000:
            # the table's two maps agree on its entries only
            assert first.sigmas[-1] == pytest.approx(first.base[first.cut], rel=5e-3)


def test_an_end_sigma_needs_no_base_schedule():
    found = look({"end_sigma": 0.5, "ending": "Keep noise"})
    assert (found.first.base, found.first.cut) == ([], 0)
    assert found.first.sigmas[-1] == pytest.approx(0.5, rel=1e-6) and "0.5, left for the VAE" in sentence(found)


@pytest.mark.parametrize("known", [MODEL, KNOWN["zero terminal SNR"]], ids=["sd", "zero terminal SNR"])
def test_karras_is_the_webui_s(known):
    for steps in (1, 2, 5, 20, 150):
        expected = SCHEDULES["Karras"](known.noise, steps).tolist()
        assert look(known=known, steps=steps).first.karras == pytest.approx(expected, rel=1e-6)


def test_a_cut_is_marked_only_where_one_is_made():
    for steps, made in ((5, True), (8, True), (9, False), (20, False)):
        found = look(steps=steps)
        assert found.first.is_cut is made and (">cut<" in shown(found)["slots"]["figure"]) is made


def test_something_can_be_drawn_where_nothing_of_it_is_used():
    """What it would be; where the numbers make no schedule, and are no error as nobody asks, without them."""
    other = {"sampler": "Euler", "schedule": "Karras"}
    assert look({"rho": 3}, **other).first.sigmas == look({"rho": 3}, sampler="Euler", schedule="HP").first.sigmas
    assert look({"end_sigma": 0.001}, sampler="Euler", schedule="HP").first.error
    found = look({"end_sigma": 0.001}, **other).first
    assert found.error == "" and found.sigmas == look().first.sigmas


def test_off_is_the_default():
    values = {"recipe": "SDXL 6 steps", "rho": "nonsense", "freeu": "On"}
    assert look(values, enabled=False).first == look(enabled=False).first == look().first


@pytest.mark.parametrize(("denoising", "steps"), [(0, 8), (0.3, 8), (0.75, 6), (0.999, 20), (1, 20), (1, 1), (0.5, 3)])
def test_img2img_leaves_out_what_the_webui_leaves_out(denoising, steps):
    page = {"img2img": True, "denoising": denoising, "steps": steps}
    first = look(**page).first
    t_enc = int(min(denoising, 0.999) * steps)
    assert first.skipped == steps - t_enc - 1 and first.calls == t_enc + 1 == len(first.sigmas[first.skipped :]) - 1
    # steps are counted as the calls are: those that are left out have none
    assert first.steps == [0] * first.skipped + list(range(1, t_enc + 2))
    assert look(**{**page, "img2img": False}).first.skipped == 0
    exact = look(**page, exact_steps=True).first
    if denoising > 0:
        # all of them, the last of a longer schedule
        assert exact.calls == steps and len(exact.sigmas) - 1 == int(steps / min(denoising, 0.999))


def test_samplers_of_the_host_that_take_a_schedule_in_their_own_way():
    """Some ask for one point more and drop the last but one, some ask for none."""
    expected = recipe_for("sd1", 6, 7).sigmas(SD).tolist()
    assert look(sampler="DPM2", schedule="HP").first.sigmas == pytest.approx([*expected[:-2], 0], rel=1e-6)
    first = look({"end_sigma": 0.001}, sampler="DDIM", schedule="HP").first
    assert first.notes == ["the sampler DDIM makes its own schedule and ignores the type HP"]
    assert not first.asked and not first.error


def test_steps_that_are_none_are_refused():
    for steps in (0, -1, 2.5):
        assert look(steps=steps).first.error.endswith(f"at least 1, got {steps}")


@pytest.mark.parametrize("page", [None, [], {"steps": "x", "cfg": None, "sampler": 3, "hires": None, "other": 1}])
def test_what_the_page_could_not_read_keeps_its_default(page):
    assert Page.of(page) == Page()


# ---- what is said of the controls ------------------------------------------------------------------------------------


def test_the_recipe_s_numbers_and_what_was_changed():
    found = look({"rho": 7.0, "ending": "Keep noise", "b1": 2.0}, steps=6)
    said = shown(found)["controls"]
    assert said["rho"]["text"] == "Changed; recipe: 5" and said["base_steps"]["text"] == "Recipe: 8"
    assert said["end_sigma"]["text"].startswith("Recipe: 0.1")
    # b1 has no effect while Free-U is off
    assert [name for name in NAMES if said[name]["changed"]] == ["rho", "ending"]
    assert "Changed: Rho 7 (recipe: 5) and Ending Keep noise (recipe: To zero)." in sentence(found)
    assert "Changed" not in sentence(look())
    many = {"rho": 7, "base_steps": 9, "truncation_index": 5, "time_rho": 1.3, "ending": "To zero"}
    assert "and 1 more." in sentence(look(many))


def test_a_recipe_s_own_freeu_is_shown_and_not_the_sliders_numbers():
    said = shown(look({"recipe": "SD1.5 6 steps UniPC"}, steps=6))
    assert [said["controls"][name]["text"] for name in ("b1", "b2", "s1", "s2", "freeu_first", "freeu_last")] == [
        "In use: 1.2", "In use: 1.2", "In use: 0.9", "In use: 0.2", "In use: 5", "In use: 6",
    ]  # fmt: skip
    assert said["groups"]["freeu_group"] == "on in UNet calls 5 to 6"
    two = shown(look({"recipe": "SDXL 6 steps"}, KNOWN["sdxl"], steps=6))["controls"]
    assert two["b1"]["text"] == "In use: 1.1, then 1.3" and two["freeu_first"]["text"] == "In use: 2, 6"


def test_ranges_follow_the_rest():
    controls = look({"base_steps": 12}, steps=6).controls
    assert [controls[name].highest for name in ("truncation_index", "freeu_first", "freeu_last", "rho")] == [
        11, 6, 6, None,
    ]  # fmt: skip
    # what is refused does not stand in its own way
    assert look({"truncation_index": 20}, steps=6).controls["truncation_index"].highest == 7


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"end_sigma": 0.2, "rho": 5}, {"end_sigma", "rho"}),
        ({"truncation_index": 20}, {"truncation_index"}),
        ({"truncation_index": 8, "base_steps": 8}, {"truncation_index", "base_steps"}),
        ({"freeu_first": 4, "freeu_last": 2}, {"freeu_last"}),
        ({"rho": None}, {"rho"}),
        ({"end_sigma": 0.001}, {"end_sigma"}),
        ({"calibration": "mine"}, {"calibration"}),
        ({"calibration": "mine", "rho": 3.0}, {"calibration", "rho"}),
    ],
)
def test_the_control_that_is_wrong_is_marked(values, wrong):
    found = look(values)
    assert {name for name, each in found.controls.items() if each.wrong} == wrong
    assert "would stop" in sentence(found) and "Error: " in text(shown(found)["slots"]["words"])
    assert not shown(found)["slots"]["figure"]


def test_a_group_without_effect_says_so_once():
    said = shown(look())
    assert said["groups"]["unipc_group"] == "no effect: another solver is in use"
    for name in ("prediction", "order", "b1"):
        assert said["controls"][name]["text"] == "" and said["controls"][name]["idle"]
    other = shown(look(sampler="Euler", schedule="Karras"))
    assert other["groups"]["schedule"] == "no effect: Euler on the schedule type Karras uses nothing of it"
    # of a group that has an effect, a reason that two controls share stands at the first
    v3 = shown(look(sampler="HP DPM-v3"))["controls"]
    assert v3["prediction"]["text"].startswith("No effect: it belongs to UniPC")
    assert v3["variant"]["text"] == "" and v3["variant"]["by"] == "prediction"
    assert v3["prediction"]["by"] == "prediction" and said["controls"]["b1"]["by"] == ""


def test_every_control_is_in_one_group_or_always_shown():
    grouped = [name for _, _, names in GROUPS for name in names]
    assert sorted([*grouped, "recipe", "ending"]) == sorted(name for name in NAMES if name not in ("guidance",)), (
        "each once"
    )


# ---- the sentence and the offers -------------------------------------------------------------------------------------


def test_one_call_is_no_calls():
    assert "1 UNet call, sigma" in sentence(look(steps=1)) and "2 UNet calls," in sentence(look(steps=2))


def test_off_and_other_samplers_are_told():
    assert "The accordion is off: HP samplers follow Auto." in sentence(look(enabled=False))
    euler = look(sampler="Euler")
    assert "Euler on Automatic does not use this schedule." in sentence(euler) and "Use HP Auto" in sentence(euler)
    assert "Use HP Auto" not in sentence(look())
    assert "no model is loaded yet" in sentence(look(known=replace(MODEL, model="")))
    assert shown(look(known=replace(MODEL, model="")))["waits"] is True
    covers = replace(MODEL, problem="HP Sampler covers SD 1.x, SD 2.x and SDXL")
    assert "covers SD 1.x" in look(known=covers).first.error
    assert look(known=covers, sampler="Euler").first.error == ""


def test_without_the_plot_the_rest_is_said():
    said = shown(look(known=replace(MODEL, plot=False)))
    assert said["slots"]["figure"] == "" and said["sigmas"] == [] and "5 steps" in said["slots"]["offers"]


def test_what_a_choice_is_made_for():
    assert [each.steps for each in look().offers] == [5, 6, 8]
    assert [(each.steps, each.cfg) for each in look({"recipe": "SDXL 7 steps UniPC"}).offers] == [(7, None)]
    assert look(sampler="Euler").offers == []


def test_presets_are_listed_by_what_they_are_for():
    own = (Preset("mine", steps=6), Preset("large", family="sdxl"), Preset("any"))
    found = look(known=replace(MODEL, presets=(*built_in(), *own)), steps=6, preset="large")
    assert found.fitting == ["Auto", "mine", "any"] and found.others[-1] == "large" and "SDXL 8 steps" in found.others
    assert "SD1.5 6 steps" in found.papers and "SDXL 6 steps" not in found.papers
    menu = shown(found)["slots"]["presets"]
    assert 'label="The paper&#x27;s own, exact; at CFG 7 Auto is better"' in menu
    assert '<option value="large" selected>' in menu and found.misfit == "made for SDXL"
    assert "Auto is better" not in shown(look(cfg=2))["slots"]["presets"]
    assert '<option value="" selected>none' in shown(look(preset="gone"))["slots"]["presets"]


def test_nothing_a_person_wrote_is_taken_for_html():
    name = "<img src=x onerror=alert(1)>"
    known = replace(MODEL, model=name, presets=(Preset(name),))
    said = shown(look({"calibration": name, "rho": name}, known, sampler=name, schedule="HP", preset=name))
    assert "<img" not in json.dumps(said["slots"])


# ---- calibrations ----------------------------------------------------------------------------------------------------


def fitted(rng, steps, cfg_scale):
    sigmas = sorted((rng.uniform(0.05, 14) for _ in range(steps)), reverse=True)
    errors = {"Auto": rng.uniform(0.1, 0.4), "calibrated": 0.1}
    levels = (*(round(each, 6) for each in sigmas), rng.choice([0.0, 0.03]))
    return Fitted(steps, cfg_scale, levels, (0.0, *[1.25] * (steps - 1)), "Auto", errors, 0.05, 3000)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Calibrations of the loaded model, and one of another."""
    rng = random.Random("calibrations")
    store = ProfileStore(tmp_path_factory.mktemp("calibrations"))
    for name, hashes, side in (
        ("mine", HASHES, 512), ("Another", HASHES, 512), ("wide", HASHES, 768), ("foreign", ("ffff",), 512),
    ):  # fmt: skip
        cells = tuple(fitted(rng, steps, cfg) for steps in (5, 6, 8) for cfg in (4.0, 5.0, 7.0))
        store.save(Profile(name, "a model", hashes, "sd1", side, 512, SD.sigma_min, SD.sigma_max, 24, 24, 1, cells))
    return store


@pytest.fixture
def calibrated(kept):
    return replace(MODEL, calibrations=Snapshot(kept.folder))


def test_a_calibration_is_chosen_as_the_library_chooses(kept, calibrated):
    rng = random.Random("chosen")
    used = 0
    for _ in range(400):
        page = {
            "sampler": rng.choice(SAMPLERS), "schedule": rng.choice(["Automatic", "HP", "HP calibrated", "Karras"]),
            "steps": rng.choice([4, 5, 6, 7, 8]), "cfg": rng.choice([4, 4.47, 4.5, 5, 5.7501, 6, 7, rng.uniform(3, 9)]),
            "img2img": rng.random() < 0.2, "width": rng.choice([512, 512, 640, 688, 692, 768, 1040]),
        }  # fmt: skip
        values = rng.choice([{}, {}, {"calibration": "mine"}, {"calibration": "wide"}, {"calibration": "Off"}])
        values = {**values, **rng.choice([{}, {}, {"freeu": "On"}, {"ending": "To zero"}])}
        first = look(values, calibrated, **page).first
        if first.error:
            assert "both say what the schedule is" in first.error
            continue
        target = Target(frozenset(HASHES), "sd1", SD, page["width"], 512, Page.of(page).cfg)
        named, exact = values.get("calibration", "Auto"), "ending" in values
        by_itself = page["sampler"] in ("HP Auto", "HP DPM++ 2M") and not page["img2img"]
        demanded = page["schedule"] == "HP calibrated" or named not in ("Auto", "Off")
        found = None
        if first.use.coupled and named != "Off" and not exact and (by_itself or demanded):
            pick = kept.pick(named, page["steps"], target)[0] if named != "Auto" else None
            found = pick if named != "Auto" else kept.best(page["steps"], target)
        assert first.calibration == (found[0].label(found[1]) if found else ""), (values, page)
        if found:
            used += 1
            assert first.base == [] and first.sigmas == pytest.approx(found[1].sigmas, rel=1e-6)
        elif demanded and first.use.coupled:
            assert any("is not used" in note or "follows the recipe" in note for note in first.notes)
    assert 50 < used < 350


def test_a_calibration_of_another_model_is_told(calibrated):
    first = look({"calibration": "foreign"}, calibrated).first
    assert first.error == "" and first.calibration == ""
    assert "foreign is not used: it was made for the model" in first.notes[0]
    missing = look({"calibration": "nobody's"}, calibrated).first
    assert "must be Auto, Off or one that is here" in missing.error and missing.wrong == ("calibration",)


def test_calibrated_numbers_of_steps_are_offered_and_one_at_most_is_ticked(calibrated):
    found = look(known=calibrated)
    assert [each.steps for each in found.offers if each.cfg is None] == [5, 6, 8]
    made = {(each.steps, each.cfg) for each in found.offers if each.cfg}
    assert made == {(steps, cfg) for steps in (5, 6, 8) for cfg in (4, 5, 7)}
    for cfg, ticked in ((7, (5, 7.0)), (6, (5, None)), (3, (5, None))):
        assert [(each.steps, each.cfg) for each in look(known=calibrated, cfg=cfg).offers if each.now] == [ticked]
    assert not [each for each in look(known=calibrated, steps=7).offers if each.now]
    for values, page in (({"calibration": "Off"}, {}), ({}, {"sampler": "HP UniPC"}), ({}, {"width": 4096})):
        assert len(look(values, calibrated, **page).offers) == 3


def test_the_calibration_has_a_line(calibrated):
    def line(found: View, tab: str = "Calibrate") -> str:
        return text(shown(found, tab=tab)["slots"]["calibration"])

    assert line(look(known=replace(calibrated, hashes=("no",)))) == (
        "Calibration: none for this checkpoint · Calibrate…"
    )
    assert line(look()) == "", "a page where none can be made"
    used = look(known=calibrated)
    assert line(used, "") == f"Calibration: {used.first.calibration} is in use"
    off = look(known=calibrated, enabled=False)
    assert "is in use; Settings > HP Sampler says whether" in line(off)
    assert f"follow Auto, with the calibration {off.first.calibration}" in sentence(off)
    stopped = look(known=replace(calibrated, off=Settings(calibration=OFF)), enabled=False)
    assert stopped.first.calibration == "" and "not used while the accordion is off" in line(stopped)
    assert "this checkpoint has steps 5 at CFG 4" in line(look(known=calibrated, steps=7))
    assert line(look({"calibration": "Off"}, calibrated), "") == "Calibration: off"
    assert "a preset, or a number that is set" in line(look({"rho": 3.0}, calibrated))


def test_statistics_are_known_by_their_names(tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"")
    v3 = replace(MODEL, statistics=tmp_path)
    assert NO_STATISTICS in look(known=v3, sampler="HP DPM-v3").first.notes
    assert look(known=replace(v3, measured=lambda: True), sampler="HP DPM-v3").first.notes == []
    for name in ("mine", "mine 1a2b3c4d", "Off"):
        assert look({"statistics": name}, v3, sampler="HP DPM-v3").first.error == ""
    other = look({"statistics": "other"}, v3, sampler="HP DPM-v3").first
    assert "there are no statistics 'other' here; there are: mine" in other.error and other.wrong == ("statistics",)


def test_presets_of_another_family_are_followed_where_the_settings_say_so():
    followed = look({"recipe": "SDXL 8 steps"}, replace(MODEL, follow=True), steps=8).first
    assert followed.recipe.name == "SD1.5 8 steps" and "stands for SD1.5 8 steps" in followed.notes[0]
    assert look({"recipe": "SDXL 8 steps"}, steps=8).first.recipe.name == "SDXL 8 steps"


# ---- the plot --------------------------------------------------------------------------------------------------------


def numbers_in(html: str) -> list[list[float]]:
    """Points of the plot's lines."""
    return [[float(each) for each in re.findall(r"[\d.]+", points)] for points in re.findall(r'points="([^"]*)"', html)]


@pytest.mark.parametrize("width", [0, 300, 1400])
def test_the_plot_lies_in_its_frame_at_any_width(width):
    for values, page in (({}, {}), ({"recipe": "SD1.5 6 steps UniPC"}, {"steps": 6}), ({}, {"steps": 150})):
        found = look(values, **page)
        figure = shown(found, width)["slots"]["figure"]
        for points in numbers_in(figure):
            xs, ys = points[::2], points[1::2]
            assert all(0 <= x <= max(width, 260) for x in xs) and all(30 <= y <= 203 for y in ys)


def test_steps_and_calls_are_counted_alike_from_1():
    found = look({"recipe": "SD1.5 6 steps UniPC"}, steps=6)
    figure, table = (shown(found)["slots"][name] for name in ("figure", "table"))
    assert re.findall(r'y="218.0" text-anchor="middle">(\d+)<', figure) == ["1", "2", "3", "4", "5", "6"]
    rows = re.findall(r"<tr><td>(\w+)</td>.*?<td>(on|)</td></tr>", table)
    assert rows == [("1", ""), ("2", ""), ("3", ""), ("4", ""), ("5", "on"), ("6", "on")]
    assert "Free-U in UNet calls 5 to 6." in figure
    # the analytical first step makes none, so it is not counted
    first = look({"analytical_first_step": "On"}, steps=6)
    assert "<td>no call</td>" in shown(first)["slots"]["table"] and first.first.steps == [0, 1, 2, 3, 4, 5, 6]
    expected = insert_first_midpoint(SD, recipe_for("sd1", 6, 7).sigmas(SD)).tolist()
    assert first.first.sigmas == pytest.approx(expected, rel=1e-6)
