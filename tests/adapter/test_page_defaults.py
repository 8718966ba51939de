"""The page's defaults in the host's file: what it froze by itself goes, what a person saved stays."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import gradio as gr
import pytest

from hpsampler.presets import Preset
from hpsampler.settings import ENABLED, FIELDS

NAMES = [ENABLED.name, *(field.name for field in FIELDS)]
OF_SLIDERS = ("minimum", "maximum", "step")


class Page:
    """A start of the host's page, as its ``UiLoadsave`` does it with the accordion's components."""

    def __init__(self, webui):
        self.webui, self.file = webui, Path(webui.shared.cmd_opts.ui_config_file)

    def data(self):
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def start(self):
        """The values and ranges that are seen, by name of setting."""
        self.webui.script_callbacks.before_ui_callback()
        assert not self.webui.script_callbacks.reported
        data, seen = self.data(), {}
        for tab in ("txt2img", "img2img"):
            with gr.Blocks():
                components = self.webui.script.HPSamplerScript().ui(tab == "img2img")
            for name, each in zip(NAMES, components):
                for what in ("value", *(OF_SLIDERS if isinstance(each, gr.Slider) else ())):
                    self._apply(data, f"customscript/hpsampler_webui.py/{tab}/{each.label}/{what}", each, what)
                seen[tab, name] = each.value
                if isinstance(each, gr.Slider):
                    seen[tab, f"{name} range"] = (each.minimum, each.maximum, each.step)
        self.file.write_text(json.dumps(data))
        return seen

    @staticmethod
    def _apply(data, key, component, what):
        if key not in data:
            data[key] = getattr(component, what)
            return
        choices = [each if isinstance(each, str) else each[0] for each in getattr(component, "choices", [])]
        if not choices or data[key] in choices:
            setattr(component, what, data[key])

    def save(self, tab, name, value):
        """As *Settings > Defaults* does, which writes what differs from the file."""
        label = "HP Sampler" if name == ENABLED.name else next(each.label for each in FIELDS if each.name == name)
        self.file.write_text(json.dumps({**self.data(), f"customscript/hpsampler_webui.py/{tab}/{label}/value": value}))


@pytest.fixture
def page(webui):
    return Page(webui)


@pytest.fixture
def presets(webui):
    return importlib.import_module("hpsampler.webui.folders").presets()


def begins_with(webui, preset):
    webui.shared.opts.hpsampler_preset = preset


def test_a_preset_to_begin_with_is_seen_at_the_next_start_and_gone_when_it_is_taken_back(webui, page, presets):
    presets.save(Preset.of("mine", {"rho": 6.5, "ending": "To zero"}))
    plain = page.start()
    assert plain["txt2img", "enabled"] is False and plain["txt2img", "rho"] == 0
    begins_with(webui, "mine")
    for _ in range(2):
        seen = page.start()
        assert (seen["txt2img", "enabled"], seen["img2img", "rho"]) == (True, 6.5)
    begins_with(webui, "SD1.5 5 steps")
    assert page.start()["txt2img", "recipe"] == "SD1.5 5 steps"
    begins_with(webui, "None")
    assert page.start() == plain


def test_what_a_person_saved_holds(webui, page, presets):
    presets.save(Preset.of("mine", {"rho": 6.5}))
    page.start()
    page.save("txt2img", "rho", 4)
    page.save("txt2img", "guidance", "As set")
    for preset in ("None", "mine", "None"):
        begins_with(webui, preset)
        for _ in range(2):
            seen = page.start()
            assert seen["txt2img", "rho"] == 4.0 and type(seen["txt2img", "rho"]) is float
            assert seen["txt2img", "guidance"] == "As set" and seen["img2img", "guidance"] == "Recipe"
    assert seen["txt2img", "enabled"] is False


def test_what_a_person_saved_holds_also_after_the_page_began_with_the_same(webui, page, presets):
    presets.save(Preset.of("mine", {"rho": 6.5}))
    page.start()
    page.save("txt2img", "rho", 6.5)
    for preset in ("mine", "None"):
        begins_with(webui, preset)
        page.start()
    assert page.start()["txt2img", "rho"] == 6.5


def test_a_default_that_was_saved_on_purpose_holds_against_a_preset(webui, page, presets):
    presets.save(Preset.of("mine", {"rho": 6.5}))
    begins_with(webui, "mine")
    page.start()
    page.save("txt2img", "rho", 0)
    page.save("txt2img", "enabled", False)
    for _ in range(2):
        seen = page.start()
        assert seen["txt2img", "rho"] == 0 and seen["txt2img", "enabled"] is False and seen["img2img", "rho"] == 6.5


def test_one_that_a_menu_is_filled_with_later_holds(page):
    page.start()
    for name, value in (("calibration", "my checkpoint"), ("statistics", "those 0123abcd"), ("bend", "0.45")):
        page.save("img2img", name, value)
    for _ in range(2):
        seen = page.start()
        assert [seen["img2img", name] for name in ("calibration", "statistics", "bend")] == [
            "my checkpoint", "those 0123abcd", "0.45",
        ]  # fmt: skip
        assert seen["txt2img", "calibration"] == "Auto"


class TestFilesOfOlderVersions:
    """They have no record of what the page began with."""

    def old(self, page, begin):
        """What versions up to 0.7.0 left: every value and range of the first start."""
        begin = {each.name: each.default for each in (ENABLED, *FIELDS)} | begin
        for tab in ("txt2img", "img2img"):
            for name, value in begin.items():
                page.save(tab, name, value)
            page.file.write_text(
                json.dumps({
                    **page.data(),
                    f"customscript/hpsampler_webui.py/{tab}/Truncation index/maximum": 12,
                    f"customscript/hpsampler_webui.py/{tab}/A control that is gone/value": 3,
                    f"{tab}/Sampling steps/value": 7,
                })
            )  # fmt: skip

    def test_frozen_defaults_and_ranges_go(self, webui, page, presets):
        plain = page.start()
        page.file.unlink()
        self.old(page, {})
        assert page.start() == plain, "ranges too"
        page.file.unlink()
        self.old(page, {})
        begins_with(webui, "SD1.5 5 steps")
        assert page.start()["txt2img", "recipe"] == "SD1.5 5 steps"
        assert page.data()["txt2img/Sampling steps/value"] == 7, "the host's own stay"
        assert not [key for key in page.data() if "gone" in key]

    def test_a_frozen_preset_goes(self, webui, page, presets):
        presets.save(Preset.of("mine", {"rho": 6.5}))
        for values in ({"rho": 6.5}, {"recipe": "SD1.5 5 steps"}):
            self.old(page, {"enabled": True, **values})
            seen = page.start()
            assert (seen["txt2img", "enabled"], seen["txt2img", "rho"], seen["txt2img", "recipe"]) == (False, 0, "Auto")
            page.file.unlink()

    def test_what_a_person_saved_stays(self, page):
        self.old(page, {"rho": 4})
        assert page.start()["txt2img", "rho"] == 4

    def test_a_control_that_a_person_has_hidden_stays_hidden(self, page):
        self.old(page, {})
        key = "customscript/hpsampler_webui.py/txt2img/{}/visible"
        page.file.write_text(json.dumps({**page.data(), key.format("Rho"): False, key.format("Bend"): True}))
        for _ in range(2):
            page.start()
            assert page.data()[key.format("Rho")] is False and key.format("Bend") not in page.data()


@pytest.mark.parametrize("text", ["{", "[]", "[" * 3000 + "]" * 3000, "null"])
def test_a_broken_file_is_left_to_the_host(webui, page, text):
    page.file.write_text(text)
    webui.script_callbacks.before_ui_callback()
    assert page.file.read_text() == text and not webui.script_callbacks.reported


@pytest.mark.parametrize("value", ["abc", None, [1], {"a": 1}, 99])
def test_a_value_that_cannot_be_used_is_told_and_taken_out(page, capsys, value):
    page.start()
    page.save("txt2img", "rho", value)
    assert page.start()["txt2img", "rho"] == 0
    assert (
        f"Rho (rho) must be a number from 0.1 to 50, or 0, got {value!r} in ui-config.json" in capsys.readouterr().out
    )
    page.start()
    assert "Rho" not in capsys.readouterr().out


def test_a_record_of_another_kind_is_no_record(page):
    for record in (None, 5, {"values": 3, "saved": None}, {"values": None}, {"saved": 4}):
        page.start()
        page.save("txt2img", "rho", 4)
        page.file.write_text(json.dumps({**page.data(), "customscript/hpsampler_webui.py/begun with": record}))
        assert page.start()["txt2img", "rho"] == 4


def test_a_file_that_cannot_be_written_is_told(webui, page, capsys, monkeypatch):
    def fail(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(importlib.import_module("hpsampler.webui.page_defaults"), "write_atomically", fail)
    webui.script_callbacks.before_ui_callback()
    assert "Permission denied" in capsys.readouterr().out and not webui.script_callbacks.reported
