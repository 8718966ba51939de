"""How the accordion lies on the page: each check takes an :class:`~tests.accordion.page.AccordionPage`, open."""

from __future__ import annotations

import json

from tests.accordion import page
from tests.accordion.page import AccordionPage, begin


def check_no_sentence_beside_a_control_lies_under_another_block(at: AccordionPage) -> None:
    """gradio 4 gives a menu all of its block's height, so that what stands below it would stick out."""
    begin(at)
    at.choose_at(at.controls["sampler"], "HP UniPC")
    at.set("freeu", "On")
    at.set("rho", 7)
    at.settle()
    found = json.loads(
        at.ui.evaluate(
            """(id) => JSON.stringify([...document.querySelectorAll(`${id} .hps-beside`)]
                .filter((said) => said.textContent && said.offsetParent !== null)
                .map((said) => {
                    said.scrollIntoView({block: "center"});
                    const [text, block] = [said.getBoundingClientRect(), said.parentElement.getBoundingClientRect()];
                    const seen = document.elementFromPoint(text.left + 2, text.top + text.height / 2);
                    return {text: said.textContent, height: text.height, below: text.bottom - block.bottom,
                        right: text.right - block.right, covered: seen !== null && seen !== said};
                }))""",
            f"#{at.prefix}",
        )
    )
    assert len(found) > 8
    for each in found:
        assert each["height"] > 8 and each["below"] <= 0 and each["right"] <= 0 and not each["covered"], each
    at.set("rho", 0)
    at.set("freeu", "Recipe")


STEADY = """(panel) => {
    const place = document.querySelector(panel + " .hpsampler-panel");
    const [before, frames] = place.steady || [];
    place.steady = [place.clientWidth, before === place.clientWidth && place.settled() ? frames + 1 : 0];
    return place.steady[1] > 30;
}"""
"""Whether the panel has shown what is set, at one and the same width, for so many frames."""


def shown_at(at: AccordionPage, width: int) -> dict:
    """How the panel lies at a width of the window: whether anything is cut off, and its smallest text."""
    at.ui.set_viewport_size({"width": width, "height": 900})
    # the browser, and some hosts' own scripts, lay the page out anew in several steps some time after that
    at.ui.wait_for_function(STEADY, arg=at.id("panel"), timeout=page.PATIENCE_MS)
    return json.loads(
        at.ui.evaluate(
            f"""() => {{
            const panel = document.querySelector("{at.id("panel")} .hpsampler-panel");
            const box = panel.getBoundingClientRect();
            const texts = [...panel.querySelectorAll("svg[role=img] text")].map((t) => t.getBoundingClientRect());
            return JSON.stringify({{
                wide: document.documentElement.scrollWidth > window.innerWidth + 1,
                outside: texts.filter((t) => t.left < box.left - 3 || t.right > box.right + 3).length,
                overlapping: texts.some((a, i) => texts.some((b, j) => j > i && a.left < b.right - 1 &&
                    b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)),
                size: Math.min(...texts.map((t) => t.height)), inside: box.left >= 0 && box.right <= window.innerWidth,
            }});
        }}"""
        )
    )


def check_it_is_readable_on_a_telephone(at: AccordionPage) -> None:
    begin(at)
    shown = shown_at(at, 360)
    assert shown["inside"] and shown["outside"] == 0 and not shown["overlapping"] and shown["size"] >= 9, shown
    at.ui.set_viewport_size({"width": 1400, "height": 1100})


def contrasts(at: AccordionPage) -> float:
    """The least contrast (WCAG) of the plot's texts and lines to the page behind them."""
    return at.ui.evaluate(
        """(id) => {
            const panel = document.querySelector(`${id} .hpsampler-panel`);
            const parsed = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
            let behind = panel;
            while (behind.parentElement && (parsed(getComputedStyle(behind).backgroundColor)[3] === 0)) {
                behind = behind.parentElement;
            }
            const light = ([r, g, b]) => {
                const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) =>
                    v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * x + 0.7152 * y + 0.0722 * z;
            };
            const ground = light(parsed(getComputedStyle(behind).backgroundColor));
            const colours = [getComputedStyle(panel).color];
            for (const e of panel.querySelectorAll("svg[role=img] text")) colours.push(getComputedStyle(e).fill);
            for (const kind of ["hps-ours", "hps-karras", "hps-base"]) {
                colours.push(getComputedStyle(panel.querySelector(`polyline.${kind}`)).stroke);
            }
            return Math.min(...colours.map(parsed).map(light).map((one) =>
                (Math.max(one, ground) + 0.05) / (Math.min(one, ground) + 0.05)));
        }""",
        f"{at.id('panel')}",
    )
