"""The panel while the WebUI draws: what is shown is of what is set, or is marked as older."""

from __future__ import annotations

import json

import pytest

from tests.accordion.checks import drawn
from tests.accordion.page import AccordionPage, begin, until
from tests.webui.harness import answered, open_ui
from tests.webui.test_accordion import TXT2IMG

PICTURES = 100
"""So many in one go that they are interrupted long before the last."""

RECORD = """([slider, panel]) => {
    const input = document.querySelector(slider), place = document.querySelector(panel);
    const figure = place.querySelector(".hps-figure");
    window.hpsSeen = [];
    setInterval(() => window.hpsSeen.push({
        value: Number(input.value), sigmas: figure.dataset.sigmas, plots: figure.querySelectorAll("svg").length,
        settled: place.settled(), late: place.classList.contains("hps-late"),
    }), 10);
}"""
UNMARKED = 100
"""For at most so many moments an older plot stands there unmarked, as a plot that flickers helps nobody.
The panel's clock runs in the same thread, so on a busy machine there are not more of them."""


@pytest.fixture
def accordion(page, server):
    page.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
    open_ui(page, server)
    opened = AccordionPage(page, "txt2img_hpsampler", TXT2IMG)
    opened.open()
    begin(opened)
    return opened


def test_the_plot_is_never_of_anything_but_what_is_set_or_marked(accordion, server):
    ui = accordion.ui
    panel = f"{accordion.id('panel')} .hpsampler-panel"
    for name, value in {"width": 64, "height": 64, "batch_count": PICTURES}.items():
        ui.fill(f"#txt2img_{name} input[type=number]", str(value))
    accordion.settle()
    start = len(server.log())
    ui.click("#txt2img_generate")
    drawing = ui.locator("#txt2img_interrupt")
    drawing.wait_for(state="visible")
    server.wait_for_log("Total progress: ", start)
    ui.evaluate(RECORD, [f"{accordion.id('rho')} input[type=number]", panel])

    changed = [4, 6.5, 8, 3]
    for rho in changed:
        accordion.set("rho", rho)
        accordion.settle()
        assert accordion.sigmas() == pytest.approx(drawn(rho=rho), rel=1e-5)
    # one answer is held back, as by a WebUI that is too busy
    held = []
    ui.route("**/run/predict*", lambda route: held.append(route))
    accordion.set("rho", 10)
    until(ui.locator(f"{panel}.hps-late").count, 1)
    assert accordion.sigmas() == pytest.approx(drawn(rho=changed[-1]), rel=1e-5), "the last plot stays"
    assert "older than what is set" in accordion.panel.locator(".hps-silent").inner_text()
    ui.unroute("**/run/predict*")
    for route in held:
        route.continue_()
    accordion.settle()
    assert accordion.sigmas() == pytest.approx(drawn(rho=10), rel=1e-5)

    assert drawing.is_visible() and f"{PICTURES * 6}/{PICTURES * 6}" not in server.log()[start:], "it still draws"
    drawing.click()
    drawing.wait_for(state="hidden")
    answered(ui)
    accordion.settle()
    assert accordion.sigmas() == pytest.approx(drawn(rho=10), rel=1e-5), "and after it"
    check(ui.evaluate("() => window.hpsSeen"), [0, *changed, 10])


def check(seen: list[dict], values: list[float]) -> None:
    """Whether a plot stood there at each moment, of the value that was set or, until the answer, of the one before."""
    expected = {value: drawn(rho=value) for value in values}
    plots = {each["sigmas"] for each in seen}
    of = {text: next(v for v in values if expected[v] == pytest.approx(json.loads(text), rel=1e-5)) for text in plots}
    assert set(of.values()) == {each["value"] for each in seen} == set(values)
    unmarked = 0
    for each in seen:
        assert each["plots"], each
        shown, now = of[each["sigmas"]], each["value"]
        older = shown != now
        assert not older or (shown == values[values.index(now) - 1] and not each["settled"]), each
        unmarked = unmarked + 1 if older and not each["late"] else 0
        assert unmarked <= UNMARKED, each
    assert any(each["late"] for each in seen)
