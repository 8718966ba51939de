"""The schedule in the browser: javascript/hpsampler_schedule.js gives what this package gives, for any settings."""

from __future__ import annotations

import importlib
import json
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np
import pytest
import torch

from bench.schedules import SCHEDULES, stable_diffusion_noise
from demo.session import OURS, Request, plan
from hpsampler.calibration.profile import Fitted, Profile, ProfileStore, Target
from hpsampler.effects import Use, idle
from hpsampler.golden.search import CALLS
from hpsampler.noise import NoiseModel
from hpsampler.panel import panel_data
from hpsampler.recipes import AUTO, MAX_STEPS, PRESETS, recipe_for, shifted
from hpsampler.schedule import base_karras, insert_first_midpoint
from hpsampler.settings import FIELDS, NO_STATISTICS, OFF, SCHEDULE_FIELDS, Settings, SettingsError
from hpsampler.store import StoreError
from tests.conftest import zero_terminal_snr

SCRIPT = Path(__file__).resolve().parents[1] / "javascript" / "hpsampler_schedule.js"
NAMES = [field.name for field in FIELDS]
BY_NAME = {field.name: field for field in FIELDS}
LABELS = ("HP", "HP calibrated")
TWO_CALLS = {"Heun"}
SAMPLERS = (*OURS, "DPM++ 2M", "Euler", "Heun")
SCHEDULE_TYPES = ("Automatic", *LABELS, "Karras", "Exponential", "SGM Uniform", "Simple")

SD = stable_diffusion_noise()
TABLES = {
    "sd": SD,
    "zero terminal SNR": NoiseModel.from_alphas_cumprod(zero_terminal_snr(SD.alphas_cumprod)),
    "short": NoiseModel.from_alphas_cumprod(np.linspace(0.9999, 0.002, 60)),
}


@dataclass(frozen=True)
class Setup:
    """A loaded model, and what its page gets."""

    family: str = "sd1"
    table: str = "sd"
    follow: bool = False
    profiles: tuple[Profile, ...] = ()

    @property
    def noise(self) -> NoiseModel:
        return TABLES[self.table]

    def data(self) -> dict[str, Any]:
        return panel_data(
            "a model", self.family, self.noise, OURS, LABELS, profiles=self.profiles, hashes=HASHES, follow=self.follow
        )


HASHES = ("0000000000",)
"""By which the stand-in host knows its checkpoint."""
SETUPS = (
    Setup(),
    Setup(table="zero terminal SNR"),
    Setup(follow=True),
    Setup("sdxl"),
    Setup("sdxl", "zero terminal SNR", follow=True),
    Setup("sd2", "short", follow=True),
)


def state_of(values=None, **others):
    state = {
        "enabled": True, "values": values or {}, "sampler": "HP Auto", "schedule": "Automatic", "steps": 5, "cfg": 7,
        "img2img": False, "denoising": 0.75, "width": 512, "height": 512,
    }  # fmt: skip
    assert others.keys() <= state.keys()
    return {**state, **others}


# ---- random states ---------------------------------------------------------------------------------------------------


def sent(value: Any) -> Any:
    """A number as it arrives from a page: a whole one is an int."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e21 else value


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
    return sent(rng.choice([spread, round(spread, 2) or low, field.low, field.high, field.default]))


def wrong_value(rng, field):
    if field.choices:
        return rng.choice(["", "nonsense", "it's", "both ' and \"", 7, "Ü\u2009\x07\U0001f600", "x" * 70, None])
    if isinstance(field.default, str):
        return rng.choice(["", "  ", "n" * 401, 3, None])
    beyond = [
        field.low - 1,
        field.high * 1.01 + 1,
        -1,
        -0.5,
        1e-7,
        1234567.5,
        1e16,
        1.5e17,
        3e22,
        None,
        "5x",
        0.1 + 0.2,
    ]
    return sent(rng.choice([*beyond, *([2.5, 5.000001] if field.whole else [])]))


def random_state(rng):
    values = {field.name: field.default for field in FIELDS}
    # most sets of many values contradict each other
    for name in rng.sample(NAMES, rng.choice([0, 1, 1, 2, 2, 3, 4, 6])):
        field = BY_NAME[name]
        values[name] = wrong_value(rng, field) if rng.random() < 0.07 else right_value(rng, field)
    if rng.random() < 0.4:
        values["recipe"] = rng.choice(tuple(PRESETS))
    if rng.random() < 0.3:
        values["freeu"] = "On"
    values = {name: value for name, value in values.items() if rng.random() < 0.97}
    return state_of(
        values,
        enabled=rng.random() < 0.93,
        sampler=rng.choice([*OURS, *SAMPLERS]),
        schedule=rng.choice(["Automatic", "HP", *SCHEDULE_TYPES]),
        steps=rng.choice([rng.randint(1, 12), rng.randint(1, 12), rng.randint(1, MAX_STEPS)]),
        cfg=sent(rng.choice([1.0, 3.0, 3.5, 7.0, round(rng.uniform(1, 30), 1), rng.uniform(1, 30)])),
        img2img=rng.random() < 0.2,
        denoising=rng.choice([0, 1, 0.5, 0.75, round(rng.random(), 2)]),
    )


# ---- what Python says ------------------------------------------------------------------------------------------------


def use_of(state) -> Use:
    own, schedule = state["sampler"] in OURS, state["schedule"]
    coupled = own if schedule == "Automatic" else schedule in LABELS
    return Use(state["sampler"], schedule, own, OURS.get(state["sampler"]), coupled, not state["img2img"])


def settings_of(setup, state, notes) -> Settings:
    settings = Settings.of_names({"enabled": state["enabled"], **state["values"]})
    if not setup.follow:
        return settings
    followed = settings.following(setup.family)
    for before, after in ((settings.recipe, followed.recipe), (settings.hires_recipe, followed.hires_recipe)):
        if before != after:
            notes.append(f"the preset {before} stood for {after}, as presets follow the model")
    return followed


def skipped_of(state) -> int:
    """As the WebUI's sample_img2img slices its sigmas."""
    if not state["img2img"]:
        return 0
    t_enc = int(min(state["denoising"], 0.999) * state["steps"])
    return state["steps"] - t_enc - 1


def drawn(setup: Setup, state: dict[str, Any]) -> dict[str, Any]:
    """What the adapter would do, without a host: the rules of hpsampler/webui on this package's own functions.

    ``sigmas`` is None where the schedule is not ours, ``freeu`` where Python cannot tell.
    """
    notes: list[str] = []
    answer: dict[str, Any] = {"error": "", "notes": notes}
    steps, cfg = state["steps"], state["cfg"]
    try:
        settings = settings_of(setup, state, notes)
        use = use_of(state)
        answer["coupled"] = use.coupled
        named = PRESETS.get(settings.recipe)
        answer["idle"] = idle(settings, use, named or recipe_for(setup.family, steps, cfg))
        if use.own or use.coupled or settings.freeu == "On":
            settings.resolve(setup.family, steps, cfg)
        if settings.enabled and named and use.coupled and named.steps != steps:
            notes.append(f"the recipe {named.name} is made for {named.steps} steps; it ran with {steps}")
        unused = settings.changed(SCHEDULE_FIELDS | {"analytical_first_step"})
        if unused and use.own and not use.coupled:
            labels = ", ".join(field.label for field in unused)
            notes.append(f"{labels} had no effect, as the schedule type was {use.schedule} and not HP")
        golden = settings.golden_idle(use.own, use.from_noise)
        if golden:
            notes.append(golden)
        return {**answer, **_run(setup, state, settings, use, notes)}
    except SettingsError as error:
        return {**answer, "error": str(error)}
    except ValueError as error:
        return {**answer, "error": f"HP Sampler: {error}"}


def _run(setup, state, settings, use, notes):
    steps, cfg = state["steps"], state["cfg"]
    skipped = skipped_of(state)
    recipe = sigmas = None
    if use.coupled:
        recipe = settings.resolve(setup.family, steps, cfg)
        if state["schedule"] == LABELS[1] or settings.names_calibration:
            if not settings.takes_calibration:
                notes.append("the schedule type HP calibrated followed the recipe, as the settings say what it is")
            else:
                reason = f"none fits this model at {steps} steps, CFG {cfg:g} and this size"
                notes.append(f"HP calibrated was not used: {reason}; the schedule is the recipe's")
        sigmas = recipe.sigmas(setup.noise)
    run = (steps if sigmas is None else len(sigmas) - 1) - skipped
    golden = CALLS if settings.golden_form and not settings.golden_idle(use.own, use.from_noise) else 0
    made, total = run, steps - skipped
    if state["sampler"] in TWO_CALLS:
        made, total = 2 * run - (sigmas is None or bool(sigmas[-1] == 0)), 2 * total
    freeu = _freeu_calls(setup, settings, use, recipe, cfg, total, made)
    used = None
    if use.own:
        used = recipe or replace(
            settings.resolve(setup.family, steps, cfg), ending="keep", analytical_first_step=False
        )  # fmt: skip
        used = replace(used, solver=use.solver or used.solver)
        options = used.options()
        if settings.ending_unmet(used):
            notes.append(settings.ending_unmet(used))
        if used.solver == "dpm_v3" and settings.statistics != OFF:
            notes.append(NO_STATISTICS)
        if options.get("analytical_first_step"):
            if use.from_noise:
                sigmas = insert_first_midpoint(setup.noise, sigmas)
            else:
                notes.append("the analytical first step starts from pure noise; it was left out here")
    return {
        "sigmas": None if sigmas is None else sigmas.tolist(),
        "calls": run + golden if use.own else None,
        "freeu": freeu,
        "recipe": used and [used.name, used.solver, used.order, used.prediction, used.variant],
    }


def _freeu_calls(setup, settings, use, recipe, cfg, total, made) -> Optional[list[int]]:
    """As Pass.freeu_plan says for every call, counted from 1."""
    if settings.freeu == "On":
        if recipe is None:
            try:
                recipe = settings.resolve(setup.family, max(total, 1), cfg)
            except SettingsError:
                return None  # an unused cut that does not go with the recipe of that many calls
    elif recipe is None or not (settings.enabled or use.own):
        return []
    plans = recipe.freeu if settings.counts_calls else shifted(recipe.freeu, total - recipe.steps)
    return [call + 1 for call in range(made) if any(plan.covers(call) for plan in plans)]


def planned(setup: Setup, state: dict[str, Any]) -> Optional[dict[str, Any]]:
    """What the demonstration page draws; None where it has no such thing."""
    if setup.family != "sd1" or setup.follow or state["img2img"] or state["schedule"] == LABELS[1]:
        return None
    try:
        settings = Settings.of_names({"enabled": state["enabled"], **state["values"]})
        request = Request(
            "", sampler=state["sampler"], schedule=state["schedule"], steps=state["steps"], cfg_scale=state["cfg"],
            settings=settings,
        )  # fmt: skip
        made = plan(request, setup.noise)
    except SettingsError as error:
        return {"error": str(error)}
    coupled = request.schedule_used == "HP"
    freeu = [
        call + 1
        for call in range(made.calls - (CALLS if made.golden else 0))
        if any(plan.covers(call) for plan in made.freeu)
    ]
    return {
        "error": "",
        "notes": list(made.notes),
        "coupled": coupled,
        "sigmas": made.sigmas.tolist() if coupled else None,
        "calls": made.calls if request.sampler in OURS else None,
        "freeu": freeu,
    }


def differences(answer: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Where the browser's answer is not Python's."""
    found = []

    def compare(name, ours, theirs):
        if ours != theirs:
            found.append(f"{name}: {ours} is not {theirs}")

    compare("error", answer["error"], expected["error"])
    names = ["coupled", "idle"] if expected["error"] else ["coupled", "idle", "notes", "calls"]
    for name in names:
        if name in expected:
            # a note is told once
            compare(name, answer[name], list(dict.fromkeys(expected[name])) if name == "notes" else expected[name])
    if found or expected["error"]:
        return found
    if expected["freeu"] is not None:
        windows = answer["freeu"]
        compare("freeu", sorted({k for first, last in windows for k in range(first, last + 1)}), expected["freeu"])
    if expected["sigmas"] is not None:
        sigmas = expected["sigmas"]
        compare("points", len(answer["sigmas"]), len(sigmas))
        if not found and not np.allclose(answer["sigmas"], sigmas, rtol=1e-6, atol=0):
            found.append(f"sigmas: {answer['sigmas']} are not {sigmas}")
        compare("end", [answer["endSigma"], answer["noiseLeft"]], [answer["sigmas"][-1], sigmas[-1] > 0])
    if expected.get("recipe"):
        compare("recipe", list(answer["recipe"].values()), expected["recipe"])
    return found


# ---- in the browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(browser):
    page = browser.new_page()
    page.add_script_tag(path=str(SCRIPT))
    return page


def views(page, setup: Setup, states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers of ``view``, by way of JSON as on the real page."""
    text = page.evaluate(
        """([data, states]) => {
            const parsed = JSON.parse(data);
            return JSON.stringify(JSON.parse(states).map((state) => hpSamplerSchedule.view(parsed, state)));
        }""",
        [json.dumps(setup.data()), json.dumps(states)],
    )
    return json.loads(text)


def view(page, state, setup=SETUPS[0]):
    return views(page, setup, [state])[0]


def disagreements(page, setup, states):
    found = []
    for state, answer in zip(states, views(page, setup, states)):
        expectations = [drawn(setup, state), planned(setup, state)]
        # see _freeu_calls: the demonstration page refuses these
        if expectations[0].get("freeu", ()) is None:
            expectations.pop()
        found += [(state, each) for each in expectations if each is not None for each in differences(answer, each)]
    return found


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_any_state_gives_what_python_gives(page, setup):
    rng = random.Random(f"schedule {setup}")
    states = [random_state(rng) for _ in range(500)]
    found = disagreements(page, setup, states)
    assert not found, f"{len(found)} of {len(states)}, the first: {found[0]}"


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("rho: settings.rho || recipe.rho", "rho: recipe.rho"),
        ("tOfEnd(table, end)", "sigmaToT(table, end)"),
        ("* (last - first)) ** rho", "* (last - first)) ** (rho * 1.00001)"),
        ("return steps - Math.max(1, Math.floor(steps / 3))", "return steps - Math.max(1, Math.ceil(steps / 3))"),
        ("must be below Base steps", "must be under Base steps"),
        ("img2img has no second pass", "there is no second pass"),
        ('=== "unipc";', '=== "none";'),
        ("end < table.high)", "end < table.high / 2)"),
    ],
)
def test_the_comparison_finds_a_fault(browser, text, other):
    source = SCRIPT.read_text(encoding="utf-8")
    assert text in source
    page = browser.new_page()
    page.add_script_tag(content=source.replace(text, other))
    rng = random.Random("faults")
    assert disagreements(page, SETUPS[0], [random_state(rng) for _ in range(1000)])
    page.close()


def test_numbers_are_written_as_python_writes_them(page):
    rng = random.Random("numbers")
    numbers = [rng.uniform(-1, 1) * 10 ** rng.uniform(-12, 22) for _ in range(2000)]
    numbers += [round(number, rng.randint(0, 6)) for number in numbers]
    numbers += [rng.randrange(10**7) / 2**6 for _ in range(1000)]  # halfway between two
    numbers += [0.0, -0.0, 1e-5, 1e-4, 0.0001234565, 999999.5, 9999995.0, 1e15, 1e16, 1e21, 5e-324, 1.7e308]
    read = "(numbers) => numbers.map((value) => [{}])"
    general = read.format(", ".join(f"hpSamplerSchedule.general(value, {digits})" for digits in (1, 4, 6)))
    assert page.evaluate(general, numbers) == [[f"{n:.1g}", f"{n:.4g}", f"{n:g}"] for n in numbers]
    assert page.evaluate(read.format("hpSamplerSchedule.float(value)"), numbers) == [[repr(n)] for n in numbers]


def test_values_are_shown_as_python_shows_them(page):
    values = [
        0,
        5,
        -3,
        2.5,
        10**20,
        1e22,
        1e-7,
        True,
        None,
        "",
        "it's",
        '"',
        "'\"",
        "a\\b\n\t\x07\x7f",
        "é\u2009\u200b😀\U000e0001",
    ]
    asked = "(values) => JSON.parse(values).map((value) => hpSamplerSchedule.represented(value))"
    assert page.evaluate(asked, json.dumps(values)) == [repr(value) for value in values]


def test_nothing_is_left_in_the_page(page):
    assert page.evaluate("typeof view") == "undefined"
    state = state_of({"recipe": "SDXL 6 steps"})
    before = json.dumps([SETUPS[0].data(), state])
    after = page.evaluate(
        "(text) => { const both = JSON.parse(text); hpSamplerSchedule.view(...both); return JSON.stringify(both) }",
        before,
    )
    assert json.loads(after) == json.loads(before)


# ---- what is drawn beside it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_the_base_schedule_is_drawn_up_to_its_cut(page, setup):
    states = [state_of({"recipe": name, "ending": "Keep noise"}) for name in PRESETS]
    for name, answer in zip(PRESETS, views(page, replace(setup, follow=False), states)):
        recipe, ends = PRESETS[name], (setup.noise.sigma_min, setup.noise.sigma_max)
        if setup.noise.zero_terminal_snr:
            # there the cut means Stable Diffusion's own table
            ends = (SD.sigma_min, SD.sigma_max)
        assert answer["base"] == pytest.approx(base_karras(recipe.base_steps, recipe.rho, *ends), rel=1e-6)
        assert answer["cut"] == recipe.truncation_index
        if setup.table != "short":
            # the table's two maps agree on its entries only
            assert answer["endSigma"] == pytest.approx(answer["base"][answer["cut"]], rel=5e-3)


def test_an_end_sigma_needs_no_base_schedule(page):
    answer = view(page, state_of({"end_sigma": 0.5, "ending": "Keep noise"}))
    assert (answer["base"], answer["cut"]) == ([], 0)
    assert answer["endSigma"] == pytest.approx(0.5, rel=1e-6) and answer["noiseLeft"]


@pytest.mark.parametrize("setup", SETUPS[:2], ids=str)
def test_karras_is_the_webui_s(page, setup):
    for steps in (1, 2, 5, 20, 150):
        expected = SCHEDULES["Karras"](setup.noise, steps).tolist()
        assert view(page, state_of(steps=steps), setup)["karras"] == pytest.approx(expected, rel=1e-6)


def test_something_can_be_drawn_where_nothing_of_it_is_used(page):
    """What it would be; where the numbers make no schedule, and are no error as nobody asks, without them."""
    state = state_of({"rho": 3}, sampler="Euler", schedule="Karras")
    assert view(page, state)["sigmas"] == view(page, {**state, "schedule": "HP"})["sigmas"]
    wrong = state_of({"end_sigma": 0.001}, sampler="Euler", schedule="Karras")
    assert view(page, {**wrong, "schedule": "HP"})["error"]
    answer = view(page, wrong)
    assert answer["error"] == "" and answer["sigmas"] == view(page, state_of())["sigmas"]


def test_off_is_the_default(page):
    values = {"recipe": "SDXL 6 steps", "rho": "nonsense", "freeu": "On"}
    assert view(page, state_of(values, enabled=False)) == view(page, state_of(enabled=False))
    assert view(page, state_of(enabled=False)) == view(page, state_of())


@pytest.mark.parametrize(("denoising", "steps"), [(0, 8), (0.3, 8), (0.75, 6), (0.999, 20), (1, 20), (1, 1), (0.5, 3)])
def test_img2img_leaves_out_what_the_webui_leaves_out(page, denoising, steps):
    state = state_of(img2img=True, denoising=denoising, steps=steps)
    answer = view(page, state)
    t_enc = int(min(denoising, 0.999) * steps)
    assert answer["skipped"] == steps - t_enc - 1
    assert answer["calls"] == t_enc + 1 == len(answer["sigmas"][answer["skipped"] :]) - 1
    assert view(page, {**state, "img2img": False})["skipped"] == 0
    exact = view(page, {**state, "exactSteps": True})
    if denoising > 0:
        # all of them, the last of a longer schedule
        assert exact["calls"] == steps and len(exact["sigmas"]) - 1 == int(steps / min(denoising, 0.999))


def test_samplers_of_the_host_that_take_a_schedule_in_their_own_way(page):
    """Some ask for one point more and drop the last but one, some ask for none."""
    expected = recipe_for("sd1", 6, 7).sigmas(SD).tolist()
    answer = view(page, state_of(sampler="DPM2", schedule="HP"))
    assert answer["sigmas"] == pytest.approx([*expected[:-2], 0], rel=1e-6)
    answer = view(page, state_of({"end_sigma": 0.001}, sampler="DDIM", schedule="HP"))
    assert answer["notes"] == ["the sampler DDIM makes its own schedule and ignored the type HP"]
    assert not answer["coupled"] and not answer["error"]


def test_steps_that_are_none_are_refused(page):
    for steps in (0, -1, 2.5):
        assert view(page, state_of(steps=steps))["error"].endswith(f"at least 1, got {steps}")


def test_what_a_choice_is_made_for(page):
    assert [offer["steps"] for offer in view(page, state_of())["offers"]] == [5, 6, 8]
    offers = view(page, state_of({"recipe": "SDXL 7 steps UniPC"}))["offers"]
    assert [(offer["steps"], offer["cfg"]) for offer in offers] == [(7, None)]


# ---- calibrations ----------------------------------------------------------------------------------------------------


def fitted(rng, steps, cfg_scale):
    sigmas = sorted((rng.uniform(0.05, 14) for _ in range(steps)), reverse=True)
    end = rng.choice([0.0, 0.03])
    errors = {"Auto": rng.uniform(0.1, 0.4), "calibrated": 0.1}
    return Fitted(
        steps, cfg_scale, (*(round(each, 6) for each in sigmas), end), (0.0, *[1.25] * (steps - 1)), "Auto", errors,
        0.05, 3000,
    )  # fmt: skip


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Calibrations of the loaded model, and one of another."""
    rng = random.Random("calibrations")
    library = ProfileStore(tmp_path_factory.mktemp("calibrations"))
    for name, hashes, side in (
        ("mine", HASHES, 512), ("Another", HASHES, 512), ("wide", HASHES, 768), ("foreign", ("ffff",), 512),
    ):  # fmt: skip
        cells = tuple(fitted(rng, steps, cfg) for steps in (5, 6, 8) for cfg in (4.0, 5.0, 7.0))
        made = Profile(name, "a model", hashes, "sd1", side, 512, SD.sigma_min, SD.sigma_max, 24, 24, 1, fitted=cells)
        library.save(made)
    return library


def calibrated(library, setup, state, notes):
    """As Pass._calibrated: the schedule and its label, or None."""
    settings, use = Settings.of_names({"enabled": True, **state["values"]}), use_of(state)
    target = Target(
        frozenset(HASHES), setup.family, setup.noise, state["width"], state["height"], state["cfg"]
    )  # fmt: skip
    demanded = state["schedule"] == LABELS[1] or settings.names_calibration
    fitting = use.from_noise and use.own and use.solver in (None, "dpmpp_2m")
    if not settings.takes_calibration or not (demanded or fitting):
        if demanded:
            notes.append("the schedule type HP calibrated followed the recipe, as the settings say what it is")
        return None
    if settings.names_calibration:
        found, reason = library.pick(settings.calibration, state["steps"], target)
    else:
        found = library.best(state["steps"], target)
        reason = f"none fits this model at {state['steps']} steps, CFG {state['cfg']:g} and this size"
    if found is None:
        if demanded:
            name = f"the calibration {settings.calibration}" if settings.names_calibration else "HP calibrated"
            notes.append(f"{name} was not used: {reason}; the schedule is the recipe's")
        return None
    profile, each = found
    mismatch = profile.mismatch(target)
    if mismatch:
        notes.append(f"the calibration {profile.label(each)} was used although {mismatch}")
    return profile.label(each), each.sigmas


def test_a_calibration_is_chosen_as_the_library_chooses(page, shelf):
    rng = random.Random("chosen")
    profiles = shelf.read()[0]
    labels = [profile.label(each) for profile in profiles if profile.name != "foreign" for each in profile.fitted]
    setup = Setup(profiles=tuple(profiles))
    states = []
    for _ in range(600):
        named = rng.choice(
            [AUTO, "Off", "mine", "Another", "wide", rng.choice(labels), "; ".join(rng.sample(labels, 3))]
        )
        named = rng.choice([AUTO, named, f"renamed {named.split()[-1]}" if named in labels else named])
        states.append(
            state_of(
                {"calibration": named, **rng.choice([{}, {}, {}, {"freeu": "On"}, {"ending": "To zero"}])},
                sampler=rng.choice(SAMPLERS),
                schedule=rng.choice(["Automatic", *LABELS]),
                steps=rng.choice([4, 5, 6, 7, 8]),
                cfg=sent(rng.choice([4, 4.47, 4.4721, 4.5, 5, 5.75, 5.7501, 6, 7, round(rng.uniform(3, 9), 1)])),
                img2img=rng.random() < 0.2,
                width=rng.choice([512, 512, 512, 640, 688, 692, 768, 1040]),
            )
        )
    used = 0
    for state, answer in zip(states, views(page, setup, states)):
        try:
            Settings.of_names({"enabled": True, **state["values"]})
        except SettingsError as error:
            assert answer["error"] == str(error)
            continue
        if not use_of(state).coupled:
            assert answer["calibration"] == ""
            continue
        notes: list[str] = []
        found = calibrated(shelf, setup, state, notes)
        assert [note for note in answer["notes"] if note != NO_STATISTICS] == notes, state
        assert answer["calibration"] == (found[0] if found else ""), state
        if found:
            used += 1
            kept = answer["sigmas"]
            assert answer["base"] == [] and kept == pytest.approx(found[1], rel=1e-6), state
    assert 100 < used < len(states) - 100


def test_the_adapter_s_own_passes_do_the_same(page, webui, shelf):
    """Not what the tests above say of it, but the code that draws pictures, up to its solver."""
    passes = importlib.import_module("hpsampler.webui.passes")
    library = importlib.import_module("hpsampler.webui.folders").library()
    for profile in shelf.read()[0]:
        library.save(profile)
    setup = Setup(profiles=tuple(shelf.read()[0]))
    wrap = SimpleNamespace(sigmas=torch.tensor(SD.sigmas))
    rng = random.Random("passes")
    states = [random_state(rng) for _ in range(600)]
    for state in states:
        state["values"].update(rng.choice([{}, {"calibration": rng.choice(["mine", "wide", "foreign"])}]))
        state["width"] = rng.choice([512, 512, 640])
    compared = 0
    for state, answer in zip(states, views(page, setup, states)):
        try:
            settings, use = Settings.of_names({"enabled": state["enabled"], **state["values"]}), use_of(state)
        except SettingsError as error:
            assert answer["error"] == str(error)
            continue
        told: list[str] = []
        recorded: list[str] = []
        request = passes.Request(
            state["cfg"], use.from_noise, state["width"], state["height"], use.solver, use.own, told.append,
            recorded.append,
        )  # fmt: skip
        this = passes.Pass(settings, request)
        this.follows_recipe = settings.enabled or use.own
        steps, skipped = state["steps"], answer["skipped"]
        try:
            if use.own or use.coupled or settings.freeu == "On":
                this.resolve(steps)
            sigmas = None
            if use.coupled:
                demanded = state["schedule"] == LABELS[1]
                sigmas = this.schedule(steps, SD.sigma_min, SD.sigma_max, wrap, demanded).tolist()
        except SettingsError as error:
            assert answer["error"] == str(error), state
            continue
        assert answer["error"] == ""
        if state["values"].get("calibration") != "foreign":
            assert [note for note in answer["notes"] if note in told] == told, state
        assert answer["calibration"] == "; ".join(recorded), state
        each = 2 if state["sampler"] in TWO_CALLS else 1
        run = steps - skipped if sigmas is None else len(sigmas) - 1 - skipped
        made = each * run - (each == 2 and (sigmas is None or sigmas[-1] == 0))
        try:
            on = [call + 1 for call in range(made) if this.freeu_plan(call, each * (steps - skipped))]
        except SettingsError:
            continue  # see _freeu_calls
        assert sorted({k for first, last in answer["freeu"] for k in range(first, last + 1)}) == on, state
        if sigmas is not None:
            kept = answer["sigmas"]
            if len(kept) == len(sigmas) + 1:
                kept = [kept[0], *kept[2:]]  # the solver's own point, for the analytical first step
            assert kept == pytest.approx(sigmas, rel=1e-6), state
            compared += 1
    assert compared > 150


def test_a_calibration_of_another_model_is_not_known_here(page, shelf):
    setup = Setup(profiles=tuple(shelf.read()[0]))
    answer = view(page, state_of({"calibration": "foreign"}), setup)
    assert answer["error"] == "" and answer["calibration"] == ""
    assert "the calibration foreign was not used" in answer["notes"][0]
    with pytest.raises(StoreError):
        shelf.named("nobody's")


def test_calibrated_numbers_of_steps_are_offered(page, shelf):
    setup = Setup(profiles=tuple(shelf.read()[0]))
    offers = view(page, state_of(), setup)["offers"]
    assert [offer["steps"] for offer in offers if offer["cfg"] is None] == [5, 6, 8]
    made = {(offer["steps"], offer["cfg"]) for offer in offers if offer["why"] == "calibrated"}
    assert made == {(steps, cfg) for steps in (5, 6, 8) for cfg in (4, 5, 7)}
    for other in (state_of({"calibration": "Off"}), state_of(sampler="HP UniPC"), state_of(width=4096)):
        assert len(view(page, other, setup)["offers"]) == 3


# ---- speed -----------------------------------------------------------------------------------------------------------


def test_it_follows_a_slider(page):
    rng = random.Random("slider")
    states = [random_state(rng) for _ in range(1000)]
    median, mean = page.evaluate(
        """([data, states]) => {
            const parsed = JSON.parse(data);
            const times = states.map((state) => {
                const start = performance.now();
                hpSamplerSchedule.view(parsed, state);
                return performance.now() - start;
            });
            const sum = times.reduce((a, b) => a + b);
            return [times.sort((a, b) => a - b)[times.length / 2], sum / times.length];
        }""",
        [json.dumps(SETUPS[0].data()), states],
    )
    # the browser's clock is coarse, the mean is not
    assert median < 5 and mean < 5
