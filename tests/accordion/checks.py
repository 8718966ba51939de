"""What the accordion does; each check takes an :class:`~tests.accordion.page.AccordionPage` whose accordion is open.

``CHECKS`` holds them by name; both pages' tests run them all.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from bench.schedules import stable_diffusion_noise
from hpsampler.presets import Preset
from hpsampler.recipes import AUTO, PRESETS
from hpsampler.schedule import insert_first_midpoint
from hpsampler.settings import FIELDS, Settings
from hpsampler.webui.panel_places import SCRIPT_TEXTS
from tests.accordion import layout
from tests.accordion.page import CFG, PATIENCE_MS, STEPS, AccordionPage, begin, until

MOVED = {
    "recipe": "SD1.5 8 steps", "ending": "One more call", "base_steps": 11, "rho": 6.5, "truncation_index": 5,
    "time_rho": 1.5, "end_sigma": 0.3, "freeu": "On", "freeu_version": "2", "b1": 1.25, "b2": 1.15, "s1": 0.8,
    "s2": 0.3, "freeu_first": 3, "freeu_last": 5, "prediction": "noise", "variant": "bh1", "order": 3,
    "analytical_first_step": "On", "calibration": "Off", "hires_recipe": "SDXL 8 steps", "noise_level": 0.1,
    "statistics": "Off", "golden_noise": "A", "guidance": "0.6", "bend": "0.35",
}  # fmt: skip
"""Another value for every control."""

TABLE = stable_diffusion_noise()


def drawn(**settings) -> list[float]:
    """What Python says the schedule is."""
    recipe = Settings.of([settings]).resolve("sd1", STEPS, CFG)
    sigmas = recipe.sigmas(TABLE)
    return (insert_first_midpoint(TABLE, sigmas) if recipe.analytical_first_step else sigmas).tolist()


def check_every_control_moves_the_plot_or_says_why_not(at: AccordionPage) -> None:
    begin(at)
    assert at.sigmas() == pytest.approx(drawn(), rel=1e-5)
    defaults = {field.name: field.default for field in FIELDS}
    assert set(MOVED) == set(defaults)
    for name, value in MOVED.items():
        idle = at.idle()
        at.set(name, value)
        at.settle()
        assert at.values() == {**defaults, name: value}, name
        assert at.words() == "" or name == "recipe", (name, at.words())
        if name in idle:
            assert idle[name] and at.marked(name, "changed") == ""
            assert at.sigmas() == pytest.approx(drawn(), rel=1e-5), name
        else:
            assert at.sigmas() == pytest.approx(drawn(**{name: value}), rel=1e-5), name
        at.set(name, defaults[name])
    at.settle()
    assert at.sigmas() == pytest.approx(drawn(), rel=1e-5)


def check_a_slider_is_followed_while_it_is_dragged(at: AccordionPage) -> None:
    """Each event changes the plot; events that come faster than answers are skipped, but the newest never is."""
    begin(at)
    shown = """([slider, figure, values]) => new Promise((done) => {
        const input = document.querySelector(slider), plot = document.querySelector(figure);
        const seen = new Set();
        new MutationObserver(() => seen.add(plot.dataset.sigmas)).observe(plot, {attributes: true});
        const move = (value) => {
            input.value = value;
            input.dispatchEvent(new Event("input", {bubbles: true}));
        };
        const step = () => {
            // the last one only after an answer, so that there are two at least
            if (values.length > 1 || (values.length && seen.size)) move(values.shift());
            else if (!values.length && plot.closest(".hpsampler-panel").settled()) return done(seen.size);
            setTimeout(step, 20);
        };
        step();
    })"""
    values = [round(2 + 0.1 * i, 1) for i in range(30)]
    places = [f"{at.id('rho')} input[type=number]", f"{at.id('panel')} .hps-figure", values]
    assert at.ui.evaluate(shown, places) >= 2
    at.settle()
    assert at.sigmas() == pytest.approx(drawn(rho=values[-1]), rel=1e-5)
    at.set("rho", 0)


def check_the_recipe_s_numbers_stand_beside_the_controls(at: AccordionPage) -> None:
    begin(at)
    assert at.beside("rho") == "Recipe: 5" and at.beside("truncation_index") == "Recipe: 6"
    assert at.beside("ending") == "Recipe: To zero" and at.beside("end_sigma") == "Recipe: 0.132"
    at.set("rho", 7)
    at.settle()
    assert at.beside("rho") == "Changed; recipe: 5" and at.marked("rho", "changed")
    assert "Changed: Rho 7 (recipe: 5)." in at.summary() and at.title("schedule") == "1 changed"
    at.press("undo")
    assert at.values()["rho"] == 0 and "Changed" not in at.summary() and not at.marked("rho", "changed")
    at.set("recipe", "SD1.5 6 steps UniPC")
    at.settle()
    # those in use, and not the sliders' own
    assert [at.beside(name) for name in ("b1", "b2", "freeu_first", "freeu_last")] == [
        "In use: 1.2", "In use: 1.2", "In use: 5", "In use: 6",
    ]  # fmt: skip
    assert at.title("freeu_group") == "on in UNet calls 5 to 6" and at.beside("order") == "Recipe: 1"


def check_ranges_follow_the_rest(at: AccordionPage) -> None:
    begin(at)

    def highest(name: str) -> list[str]:
        return at.ui.locator(f"{at.id(name)} input").evaluate_all("(inputs) => inputs.map((e) => e.max)")

    assert highest("truncation_index") == ["7", "7"] and highest("freeu_last") == ["6", "6"]
    assert highest("rho") == ["50", "50"]
    at.set("base_steps", 12)
    at.settle()
    assert highest("truncation_index") == ["11", "11"]
    at.set("base_steps", 0)


def check_one_click_leads_from_another_sampler_to_ours(at: AccordionPage) -> None:
    begin(at)
    at.choose_at(at.controls["schedule"], "Karras")
    at.choose_at(at.controls["sampler"], at.other_sampler)
    assert "uses nothing of it" in at.title("schedule") and at.beside("rho") == ""
    at.panel.get_by_role("button", name="Use HP Auto").click()
    at.ui.wait_for_function(
        f"() => document.querySelector('{at.controls['sampler']} input').value === 'HP Auto'", timeout=PATIENCE_MS
    )
    at.settle()
    assert at.ui.locator(f"{at.controls['schedule']} input").first.input_value() == "Automatic"
    assert "6 UNet calls" in at.summary() and at.panel.get_by_role("button", name="Use HP Auto").count() == 0


def check_nothing_but_the_answer_is_kept_of_a_silent_server(at: AccordionPage) -> None:
    """The last plot stays while there is no answer, marked as older; then it is asked for again."""
    begin(at)
    before = at.sigmas()
    held = []
    at.ui.route("**/run/predict*", lambda route: held.append(route))
    at.set("rho", 6)
    at.ui.wait_for_function(f"() => document.querySelector('{at.id('panel')} .hps-late')", timeout=PATIENCE_MS)
    assert at.sigmas() == before and "older than what is set" in at.panel.locator(".hps-silent").inner_text()
    at.ui.unroute("**/run/predict*")
    for route in held:
        route.continue_()
    at.ui.wait_for_function(f"() => !document.querySelector('{at.id('panel')} .hps-late')", timeout=PATIENCE_MS)
    at.settle()
    assert at.sigmas() == pytest.approx(drawn(rho=6), rel=1e-5)
    at.set("rho", 0)


def check_where_its_own_request_is_refused_the_page_s_button_asks(at: AccordionPage) -> None:
    """A host may refuse a request that does not come from gradio's own script, which names its session."""
    begin(at)
    refused, pressed = [], []

    def answer(route) -> None:
        if "session_hash" in route.request.post_data_json:
            pressed.append(route)
            route.continue_()
        else:
            refused.append(route)
            route.fulfill(status=(500, 403)[len(refused) % 2], body="no")

    at.ui.route("**/run/predict*", answer)
    for rho in (6, 7.5):
        at.set("rho", rho)
        at.settle()
        assert at.sigmas() == pytest.approx(drawn(rho=rho), rel=1e-5)
    assert len(refused) == 1 and pressed, "once is enough"
    assert at.panel.locator(".hps-silent").inner_text() == ""
    at.ui.unroute("**/run/predict*")


def check_a_network_that_fails_is_told_once_and_recovered_from(at: AccordionPage) -> None:
    begin(at)
    before = at.sigmas()
    at.ui.route("**/run/predict*", lambda route: route.abort())
    at.set("rho", 6)
    told = at.panel.locator(".hps-silent")
    until(told.inner_text, SCRIPT_TEXTS["silent"])
    late = f"{at.id('panel')} .hps-late"
    assert at.sigmas() == before and at.ui.locator(late).count() == 1
    at.set("rho", 7.5)
    assert at.sigmas() == before and told.inner_text() == SCRIPT_TEXTS["silent"]
    at.ui.unroute("**/run/predict*")
    at.settle()
    assert at.sigmas() == pytest.approx(drawn(rho=7.5), rel=1e-5)
    assert told.inner_text() == "" and at.ui.locator(late).count() == 0


def check_what_it_is_made_for_is_one_click_away(at: AccordionPage) -> None:
    begin(at)
    assert at.offers() == ["5 steps", "✓ 6 steps", "8 steps"]
    at.panel.get_by_role("button", name="8 steps", exact=True).click()
    assert at.number_at(at.controls["steps"]).input_value() == "8"
    at.settle()
    assert len(at.sigmas()) == 9 and at.offers()[2] == "✓ 8 steps"
    at.set("recipe", "SD1.5 5 steps")
    at.settle()
    assert at.offers() == ["5 steps"] and "is made for 5 steps; it runs with 8" in at.words()
    at.panel.get_by_role("button", name="5 steps", exact=True).click()
    at.settle()
    assert at.words() == "" and at.number_at(at.controls["steps"]).input_value() == "5"
    assert "left for the VAE" in at.summary()


def check_what_has_no_effect_is_greyed_with_the_reason(at: AccordionPage) -> None:
    begin(at)
    unipc = {"prediction", "variant", "order", "noise_level", "statistics"}
    freeu = {"freeu_version", "b1", "b2", "s1", "s2", "freeu_first", "freeu_last"}
    assert set(at.idle()) == unipc | freeu
    assert "it belongs to UniPC and DPM-v3" in at.idle()["order"] and "Free-U is not set to On" in at.idle()["b1"]
    # once in a group's title, not at each of its controls
    assert at.title("unipc_group") == "no effect: another solver is in use" and at.title("freeu_group") == "off"
    assert {at.beside(name) for name in unipc | freeu} == {""}
    at.set("freeu", "On")
    at.choose_at(at.controls["sampler"], "HP UniPC")
    assert set(at.idle()) == {"statistics"} and "it belongs to DPM-v3" in at.beside("statistics")
    described = at.ui.locator(f"{at.id('statistics')} input").first.get_attribute("aria-describedby")
    assert "it belongs to DPM-v3" in at.ui.locator(f"#{described}").inner_text()
    at.choose_at(at.controls["sampler"], at.other_sampler)
    idle = at.idle()
    assert "rho" in idle and f"{at.other_sampler} on the schedule type Automatic uses nothing of it" in idle["rho"]
    assert "freeu" not in idle and "does not use this schedule" in at.summary()
    at.choose_at(at.controls["schedule"], "HP")
    assert set(at.idle()) == {*unipc, "analytical_first_step", "guidance"}
    at.switch(False)
    at.settle()
    assert at.idle() == {} and "The accordion is off" in at.summary()


def check_contradictions_are_said_before_generate(at: AccordionPage) -> None:
    begin(at)
    at.set("end_sigma", 0.2)
    at.set("rho", 5)
    at.settle()
    expected = "End sigma (end_sigma=0.2) and rho both say where the schedule ends; set one of them to 0"
    assert expected in at.words() and "would stop" in at.summary() and at.sigmas() == []
    assert [name for name in at.named() if at.marked(name, "wrong")] == ["rho", "end_sigma"]
    assert at.title("schedule").startswith("to be corrected")
    at.set("rho", 0)
    at.set("end_sigma", 0)
    at.set("truncation_index", 20)
    at.settle()
    assert "Truncation index (truncation_index) must be below Base steps = 8, got 20" in at.words()
    at.set("truncation_index", 0)
    at.settle()
    assert at.words() == "" and len(at.sigmas()) == STEPS + 1 and not at.marked("truncation_index", "wrong")


def check_freeu_and_the_rest_can_be_read_without_the_picture(at: AccordionPage) -> None:
    begin(at)
    at.set("recipe", "SD1.5 6 steps UniPC")
    at.settle()
    label = at.panel.locator("svg[role=img]").get_attribute("aria-label")
    assert "Free-U in UNet calls 5 to 6." in label and "cut at point 6" in label and "DPM++ 2M Karras" in label
    assert at.panel.locator(".hps-freeu").count() == 1
    at.panel.locator(".hps-numbers > summary").click()
    rows = [[cell.strip() for cell in row.split("\t")] for row in at.panel.locator("tr").all_inner_texts()]
    assert rows[0] == ["Step", "HP from", "to", "Karras from", "Free-U"]
    # steps are counted as calls are, from 1
    assert [row[0] for row in rows[1:]] == ["1", "2", "3", "4", "5", "6"]
    assert [row[4] for row in rows[1:]] == ["", "", "", "", "on", "on"]
    expected = drawn(recipe="SD1.5 6 steps UniPC")
    assert [float(row[1]) for row in rows[1:]] == pytest.approx(expected[:-1], rel=5e-3)
    assert [float(row[2]) for row in rows[1:]] == pytest.approx(expected[1:], rel=5e-3)
    at.panel.locator(".hps-numbers > summary").click()


def check_a_cut_is_marked_where_one_is_made(at: AccordionPage) -> None:
    begin(at)
    texts = at.panel.locator("svg[role=img] text")
    assert "cut" in texts.all_text_contents()
    at.number_at(at.controls["steps"]).fill("20")
    at.settle()
    assert "cut" not in texts.all_text_contents() and "is not cut" in at.panel.locator("svg[role=img]").get_attribute(
        "aria-label"
    )
    at.number_at(at.controls["steps"]).fill("1")
    at.settle()
    assert "1 UNet call," in at.summary()


def check_presets_are_kept(at: AccordionPage) -> None:
    """Saved, loaded, renamed, exported, imported, deleted; never lost, never one over another."""
    begin(at)
    assert at.preset == AUTO
    ours = {"rho": 6.5, "ending": "To zero", "freeu": "On", "b1": 1.25}
    for name, value in ours.items():
        at.set(name, value)
    at.settle()
    assert "write a name for it" in at.press("save"), "Auto is not saved over"
    assert at.ui.evaluate("() => document.activeElement.dataset.slot") == "name"
    at.call("my five")
    assert at.press("save") == "Preset my five saved, made for 6 steps, CFG 7, HP Auto."
    assert "my five" in at.fitting() and at.preset == "my five"
    at.load(AUTO)
    assert all(at.values()[name] != value for name, value in ours.items())

    at.load("my five")
    assert {name: at.values()[name] for name in ours} == ours and at.preset == "my five"

    at.set("rho", 7)
    at.settle()
    assert "saved" in at.press("save"), "the chosen one is updated"
    at.load("SD1.5 5 steps")
    assert at.values()["recipe"] == "SD1.5 5 steps" and at.values()["rho"] == 0
    assert "choose it first to save over it" in at.press("save"), "another one is not written over"
    for act, done in (("rename", "renamed"), ("delete", "deleted")):
        assert f"SD1.5 5 steps comes along with HP Sampler and cannot be {done}" in at.press(act)
    at.call("SDXL 8 steps")
    assert "name must be one that has no other meaning here" in at.press("save")

    at.load("my five")
    assert at.values()["rho"] == 7
    at.call("my six")
    assert at.press("rename") == "Preset my five is now my six."
    with at.ui.expect_download() as download:
        at.press("export")
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert Preset.from_json(text).name == "my six" and Preset.from_json(text).settings == {**ours, "rho": 7.0}

    file = {"name": "x.json", "mimeType": "application/json", "buffer": text.encode()}
    take = at.panel.locator("input[type=file]").set_input_files
    assert "is here already, as 'my six'; nothing was added" in at.acted(lambda: take([file]))
    other = Preset.of("my six", {"rho": 3}).to_json().encode()
    assert "is kept as 'my six 2'" in at.acted(lambda: take([{**file, "buffer": other}]))
    assert "tick Confirm first" in at.press("delete")
    for name in ("my six 2", "my six"):
        at.load(name)
        at.panel.locator("[data-slot=sure]").check()
        assert at.press("delete") == f"Preset {name} deleted."
    assert "my six" not in at.fitting()


def check_presets_are_listed_by_what_they_are_for(at: AccordionPage) -> None:
    begin(at)
    papers = [name for name, each in PRESETS.items() if name[:5] == "SD1.5" and each.steps == 6]
    groups = at.menu_of_presets()
    assert groups["For SD 1.x at 6 steps"][0] == AUTO
    assert groups["The paper's own, exact; at CFG 7 Auto is better"] == papers
    assert "SDXL 8 steps" in groups["For other models or numbers of steps"]
    at.load("SDXL 8 steps")
    assert "SDXL 8 steps is made for SDXL and made for 8 steps" in at.words()
    assert at.values()["recipe"] == "SDXL 8 steps" and at.preset == "SDXL 8 steps"


def check_it_can_be_used_without_a_mouse_and_is_named(at: AccordionPage) -> None:
    begin(at)
    for field in FIELDS:
        kind = "input" if field.choices or field.words else "input[type=number]"
        control = at.ui.locator(f"{at.id(field.name)} {kind}").first
        named = control.evaluate(
            "(e) => e.getAttribute('aria-label') || [...(e.labels || [])].map((l) => l.textContent).join(' ')"
        )
        assert field.label in named, field.name
    at.number_at(at.controls["steps"]).fill("5")
    at.settle()
    button = at.panel.get_by_role("button", name="8 steps", exact=True)
    button.focus()
    at.ui.keyboard.press("Enter")
    at.settle()
    assert at.number_at(at.controls["steps"]).input_value() == "8"
    # one after another in the order in which they are read
    places = at.ui.evaluate(
        """(id) => [...document.querySelectorAll(`${id} button, ${id} input`)]
            .filter((e) => e.offsetParent !== null && e.tabIndex >= 0)
            .map((e) => e.getBoundingClientRect().top)""",
        f"#{at.prefix}",
    )
    assert len(places) > 45 and not any(b < a - 120 for a, b in pairwise(places)), "two controls a row"
    jumps = f"() => document.querySelectorAll('#{at.prefix} [tabindex]:not([tabindex=\"0\"])').length"
    assert at.ui.evaluate(jumps) == 0


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in {**globals(), **vars(layout)}.items()
    if name.startswith("check_")
}
