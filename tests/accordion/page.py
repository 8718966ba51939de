"""The accordion on an open page in Chromium, driven as a person would drive it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from hpsampler.settings import FIELDS, SettingsError
from hpsampler.webui.accordion import GROUPS

GROUP_OF = {name: suffix for _, suffix, names in GROUPS for name in names}
OPTION = '[data-testid="dropdown-option"]'
SETTLED_MS = 400
"""The panel looks at menus a few times a second."""


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
        for suffix in (*(suffix for _, suffix, _ in GROUPS), "preset_keep"):
            self.ui.locator(f"{self.id(suffix)} .label-wrap").click()
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
        self.settle()

    def settle(self) -> None:
        self.ui.wait_for_timeout(SETTLED_MS)

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
        """Reasons under greyed controls, by name of field."""
        found = {}
        for field in FIELDS:
            block = self.ui.locator(self.id(field.name)).first
            if "hps-idle" in (block.get_attribute("class") or ""):
                found[field.name] = block.locator("> .hps-reason").inner_text()
        return found

    def offers(self) -> list[str]:
        return self.panel.locator("[aria-label='Step counts on offer'] button").all_inner_texts()

    def fitting(self) -> list[str]:
        return self.panel.locator("[aria-label='Presets that fit'] button").all_inner_texts()

    def call(self, name: str) -> None:
        """Write a preset's name."""
        self.ui.fill(f"{self.id('preset_name')} input, {self.id('preset_name')} textarea", name)

    def said(self) -> str:
        """What the row of presets says."""
        return self.ui.locator(self.id("preset_said")).first.inner_text()

    def press(self, name: str) -> str:
        """Press a button of the presets' row and wait for what it says."""
        self.ui.evaluate(f"() => document.querySelectorAll('{self.id('preset_said')} p').forEach((p) => p.remove())")
        self.ui.click(self.id(f"preset_{name}"))
        self.ui.wait_for_function(
            f"() => (document.querySelector('{self.id('preset_said')} p') || {{}}).textContent", timeout=20_000
        )
        return self.said()

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
