"""The accordion on an open page in Chromium, driven as a person would drive it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hpsampler.fields import SettingsError
from hpsampler.settings import FIELDS
from hpsampler.webui.accordion import ADVANCED, GROUPS

GROUP_OF = {name: suffix for _, suffix, names in GROUPS for name in names}
OPTION = '[data-testid="dropdown-option"]'
STEPS, CFG = 6, 7.0
PATIENCE_MS = 60_000
"""A busy machine takes its time; a wait that fails ends nevertheless."""


def until(read: Callable[[], Any], wanted: Any) -> None:
    """Read again and again until it is what is wanted."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while (found := read()) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == wanted


@dataclass(frozen=True)
class AccordionPage:
    """A page with an accordion.

    Attributes:
        ui: the browser's page.
        prefix: of the accordion's ``elem_id``s.
        controls: selectors of the page's own sampler, schedule, steps and cfg.
        other_sampler: one of the page's that is not ours.
    """

    ui: Any
    prefix: str
    controls: dict[str, str]
    other_sampler: str = "DPM++ 2M"

    def id(self, name: str) -> str:
        return f"#{self.prefix}_{name}"

    def open(self, sampler: str = "HP Auto") -> None:
        """Unfold all of it, switch it on, and choose a sampler."""
        if not self.ui.locator(self.id("recipe")).first.is_visible():
            self.ui.locator(f"#{self.prefix} > .label-wrap").click()
        for suffix in (ADVANCED, *(suffix for _, suffix, _ in GROUPS)):
            self.ui.locator(f"{self.id(suffix)} > .label-wrap").click()
        self.panel.locator("[data-act=more]").click()
        self.switch(True)
        self.choose_at(self.controls["sampler"], sampler)
        self.ui.wait_for_selector(f"{self.id('panel')} svg[role=img]")

    def switch(self, on: bool) -> None:
        boxes = f"#{self.prefix} .input-accordion-checkbox, {self.id('enabled')} input"
        self.ui.locator(boxes).first.set_checked(on)

    def number_at(self, selector: str) -> Any:
        return self.ui.locator(f"{selector} input[type=number]").first

    def choose_at(self, selector: str, value: str) -> None:
        self.ui.click(f"{selector} input")
        exactly = re.compile(rf"^\W*{re.escape(value)}\s*$")
        self.ui.locator(f"{selector} {OPTION}").filter(has_text=exactly).first.click()
        until(self.ui.locator(f"{selector} input").first.input_value, value)
        self.settle()

    def settle(self) -> None:
        """Wait until what the panel shows is of what is set now."""
        panel = f"{self.id('panel')} .hpsampler-panel"
        settled = "(panel) => document.querySelector(panel)?.settled?.()"
        self.ui.wait_for_function(settled, arg=panel, timeout=PATIENCE_MS)

    def set(self, name: str, value: Any) -> None:
        """Set one of the accordion's controls."""
        field = next(field for field in FIELDS if field.name == name)
        if field.choices or field.words:
            self.choose_at(self.id(name), str(value))
        else:
            self.number_at(self.id(name)).fill(f"{value:g}")
            self.number_at(self.id(name)).blur()

    def values(self) -> dict[str, Any]:
        """What the controls show, by name of field, in their proper types."""
        found = {}
        for field in FIELDS:
            kind = "input" if field.choices or field.words else "input[type=number]"
            shown = self.ui.locator(f"{self.id(field.name)} {kind}").first.input_value()
            try:
                found[field.name] = field.parse(shown)
            except SettingsError:
                found[field.name] = shown
        return found

    @property
    def panel(self) -> Any:
        return self.ui.locator(f"{self.id('panel')} .hpsampler-panel").first

    def sigmas(self) -> list[float]:
        return json.loads(self.panel.locator(".hps-figure").get_attribute("data-sigmas"))

    def words(self) -> str:
        return self.panel.locator(".hps-words").inner_text()

    def summary(self) -> str:
        return self.panel.locator(".hps-summary").inner_text()

    def idle(self) -> dict[str, str]:
        """Why controls are greyed, by name of field."""
        return {name: reason for name in self.named() if (reason := self.marked(name, "idle"))}

    @staticmethod
    def named() -> list[str]:
        return [field.name for field in FIELDS]

    def marked(self, name: str, mark: str) -> str:
        """Whether a control is marked as idle (and why), changed or wrong."""
        block = self.ui.locator(self.id(name)).first
        if f"hps-{mark}" not in (block.get_attribute("class") or "").split():
            return ""
        return block.get_attribute("data-idle") if mark == "idle" else mark

    def beside(self, name: str) -> str:
        """What stands at a control."""
        return self.ui.locator(f"{self.id(name)} > .hps-beside").inner_text()

    def title(self, suffix: str) -> str:
        """What a group's title adds to its name."""
        return self.ui.locator(f"{self.id(suffix)} > .label-wrap > span").first.get_attribute("data-note") or ""

    def offers(self) -> list[str]:
        return self.panel.locator("[aria-label='Step counts on offer'] button").all_inner_texts()

    def menu_of_presets(self) -> dict[str, list[str]]:
        """The groups of the menu of presets, with their names."""
        return dict(
            self.panel.locator("select").evaluate(
                "(e) => [...e.querySelectorAll('optgroup')].map((g) => [g.label, [...g.children].map((o) => o.value)])"
            )
        )

    def fitting(self) -> list[str]:
        """Presets that fit the model and the number of steps, the paper's among them."""
        groups = self.menu_of_presets()
        return [name for label, names in groups.items() if "other" not in label for name in names]

    @property
    def preset(self) -> str:
        return self.panel.locator("select").input_value()

    def load(self, name: str) -> str:
        """Choose a preset, and wait until the controls have its values."""
        return self.acted(lambda: self.panel.locator("select").select_option(name))

    def call(self, name: str) -> None:
        """Write a preset's name."""
        self.ui.fill(self.id("preset_name"), name)

    def said(self) -> str:
        """What the row of presets says."""
        return self.panel.locator(".hps-said").inner_text()

    def press(self, act: str) -> str:
        """Press one of the panel's buttons and wait for what it says."""
        return self.acted(lambda: self.panel.locator(f"button[data-act={act}]").click())

    def acted(self, act: Any) -> str:
        """Do what makes the panel act, and wait for what it says."""
        done = self.panel.get_attribute("data-done") or "0"
        act()
        panel = f"{self.id('panel')} .hpsampler-panel"
        self.ui.wait_for_function(
            "([panel, done]) => Number(document.querySelector(panel).dataset.done) > Number(done)",
            arg=[panel, done],
            timeout=PATIENCE_MS,
        )
        text = self.said()
        self.settle()
        return text

    def annotate(self, selectors: list[str]) -> None:
        """Put numbers beside parts of the page, for the documentation's pictures."""
        self.ui.evaluate(
            """(selectors) => selectors.forEach((selector, i) => {
                const box = document.querySelector(selector).getBoundingClientRect();
                const badge = document.createElement("div");
                badge.textContent = i + 1;
                Object.assign(badge.style, {position: "absolute", left: `${box.right + scrollX - 30}px`,
                    top: `${box.top + scrollY + 2}px`, width: "24px", height: "24px", borderRadius: "12px",
                    background: "#be185d", color: "white", font: "bold 14px system-ui", textAlign: "center",
                    lineHeight: "24px", zIndex: 9999});
                document.body.append(badge);
            })""",
            selectors,
        )


def begin(at: AccordionPage) -> None:
    at.number_at(at.controls["steps"]).fill(str(STEPS))
    at.number_at(at.controls["cfg"]).fill(str(CFG))
    at.settle()
