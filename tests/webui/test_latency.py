"""How soon the plot follows a control in a running WebUI, from the input event to the redrawn plot."""

from __future__ import annotations

import os
from statistics import median, quantiles

from tests.accordion.page import AccordionPage, begin
from tests.webui.harness import open_ui
from tests.webui.test_accordion import TXT2IMG

MEASURE = """([slider, panel, values]) => {
    const input = document.querySelector(slider), place = document.querySelector(panel);
    const plot = place.querySelector(".hps-figure");
    const one = (value) => new Promise((done) => {
        const begun = performance.now();
        const seen = new MutationObserver(() => {
            seen.disconnect();
            done(performance.now() - begun);
        });
        seen.observe(plot, {childList: true});
        input.value = value;
        input.dispatchEvent(new Event("input", {bubbles: true}));
    });
    const idle = () => new Promise((done) => {
        const wait = () => (place.settled() ? done() : setTimeout(wait, 5));
        wait();
    });
    return values.reduce((before, value) => before.then(async (times) => {
        await idle();
        return [...times, await one(value)];
    }), Promise.resolve([]));
}"""


def test_the_plot_follows_at_once(page, server, capsys):
    """The aim on an idle machine is a median under 50 ms and 95 % under 120 ms; a busy one is given ten times that."""
    page.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
    open_ui(page, server)
    accordion = AccordionPage(page, "txt2img_hpsampler", TXT2IMG)
    accordion.open()
    begin(accordion)
    values = [round(2 + 0.1 * (i + 1), 1) for i in range(60)]
    times = page.evaluate(
        MEASURE, [f"{accordion.id('rho')} input[type=number]", f"{accordion.id('panel')} .hpsampler-panel", values]
    )
    middle, most = median(times), quantiles(times, n=20)[-1]
    with capsys.disabled():
        load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
        print(f"\nfrom the input event to the redrawn plot: median {middle:.0f} ms, 95 % {most:.0f} ms (load {load})")
    assert len(times) == len(values) and middle < 500
