"""The Calibrate tab in the browser: what a person does there, and what they wait for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.webui.harness import open_ui

PREFIX = "#hpsampler_calibrate"

STATE = f"document.querySelector('{PREFIX}_status .hpsampler-status')?.dataset.state"


@contextmanager
def watched(page: Any, server: Any) -> Iterator[Any]:
    """The WebUI's page, without a network beyond it; an error of ours in it fails the test."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(f"{error}\n{error.stack}"))
    page.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
    open_ui(page, server)
    yield page
    # the host's page complains at its own controls, also without this extension
    assert [error for error in errors if "hpsampler" in error] == []


class CalibrateTab:
    """Waits are for what the page shows, for as long as the page's own limit, never for a time."""

    def __init__(self, ui: Any) -> None:
        self.ui = ui

    def open(self) -> None:
        """Show the tab, and wait until the WebUI has said what it is doing."""
        self.ui.click("#tabs button:has-text('Calibrate')")
        self.ui.wait_for_function(f"() => ![undefined, 'unknown'].includes({STATE})")

    def reload(self, server: Any) -> None:
        """Load the page anew, as somebody does who comes back later."""
        open_ui(self.ui, server)
        self.open()

    def want(self, what: str) -> None:
        """Choose what for, and wait until the page says what that takes."""
        self.ui.check(f"{PREFIX}_what input[value='{what}']")
        words = {"calibration": "A calibration finds", "statistics": "Statistics say", "both": "are made first"}[what]
        self.wait_text("cost", words)

    def fill(self, **values: Any) -> None:
        for name, value in values.items():
            field = self.ui.locator(f"{PREFIX}_{name}").locator("textarea, input[type=number], input[type=text]").first
            field.fill(str(value))
            field.press("Tab")

    def press(self, name: str) -> None:
        self.ui.click(f"{PREFIX}_{name}")

    def wait_text(self, name: str, pattern: str) -> None:
        """Until a part of the tab shows what a regular expression says."""
        self.ui.wait_for_function(
            "([part, pattern]) => new RegExp(pattern).test(document.querySelector(part).innerText)",
            arg=[f"{PREFIX}_{name}", pattern],
        )

    def wait_state(self, state: str) -> None:
        self.ui.wait_for_function(f"state => {STATE} == state", arg=state)

    def choose(self, key: str) -> None:
        """Choose one in the list, once it is there, and wait until the page shows it."""
        self.ui.check(f"{PREFIX}_chosen input[value='{key}']")

    def wait_chosen(self, key: str) -> None:
        """Until that one is chosen in the list; empty is an empty list."""
        self.ui.wait_for_function(
            "([list, key]) => key ? document.querySelector(`${list} input[value='${key}']`)?.checked"
            " : !document.querySelector(`${list} input`)",
            arg=[f"{PREFIX}_chosen", key],
        )

    def line(self, key: str) -> str:
        """What the list says of one."""
        return str(self.ui.locator(f"{PREFIX}_chosen label", has=self.ui.locator(f"input[value='{key}']")).inner_text())

    def text(self, name: str) -> str:
        return str(self.ui.locator(f"{PREFIX}_{name}").first.inner_text())


def has_value(ui: Any, selector: str, value: str) -> None:
    """Wait until an input has a value."""
    ui.wait_for_function(
        "([selector, value]) => document.querySelector(selector).value == value", arg=[selector, value]
    )  # fmt: skip
