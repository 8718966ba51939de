"""What pictures say of our settings, and how it comes back: pasted, sent from tab to tab, by a program."""

from __future__ import annotations

import importlib

import gradio as gr
import pytest
import torch

from hpsampler.presets import Preset
from hpsampler.settings import FIELDS
from tests.adapter.host.processing import Host, Txt2Img


@pytest.fixture
def host(webui):
    return Host(webui.script.HPSamplerScript())


def build(script):
    """The script's components, as the host builds them; those of its first build are the page's."""
    with gr.Blocks():
        return script.ui(False)


def api_values(script, given, infotext=None):
    """The values that the host's API hands on: those that the accordion begins with, an infotext's, the ``args``."""
    page = build(script)
    fields = list(script.infotext_fields)
    values = [each.value for each in build(script)]
    for field in fields if infotext is not None else ():
        value = field.function(infotext)
        if value is not None:
            values[page.index(field.component)] = value
    values[: len(given)] = given
    return values


class TestInfotext:
    def test_only_what_was_used_is_written(self, host):
        p = Txt2Img(steps=5)
        host.run(p, {"rho": 7, "order": 3, "ending": "to zero", "b1": 1.3})
        written = {key: value for key, value in p.extra_generation_params.items() if key.startswith("HP")}
        note = written.pop("HP note")
        assert set(written) == {"HP Recipe", "HP Rho", "HP Ending", "HP version"}
        assert note == (
            "Free-U b1 has no effect, as Free-U is not set to On; "
            "UniPC order has no effect, as it belongs to UniPC and DPM-v3, and another solver is in use"
        )

    def test_unipc_s_settings_are_written_where_unipc_ran(self, host):
        p = Txt2Img(steps=5, sampler_name="HP UniPC")
        host.run(p, {"order": 3, "prediction": "noise"})
        assert p.extra_generation_params["HP UniPC order"] == 3
        assert p.extra_generation_params["HP UniPC prediction"] == "noise"

    @pytest.mark.parametrize(
        "values",
        [
            {"recipe": "SDXL 6 steps", "time_rho": 1.0},
            {"base_steps": 12, "rho": 7.0, "truncation_index": 9, "freeu": "Off"},
            {"end_sigma": 0.06, "ending": "To zero", "freeu": "On", "b1": 1.2, "s2": 0.5, "freeu_first": 3},
        ],
    )
    def test_what_was_written_pastes_back_to_the_same_image(self, webui, host, values):
        p = Txt2Img(steps=6)
        image = host.run(p, {**values})
        params = {key: str(value) for key, value in p.extra_generation_params.items()}
        build(host.script)
        pasted = [field.function(params) for field in host.script.infotext_fields]
        again = host.run(Txt2Img(steps=6), *pasted)
        assert torch.equal(image, again)

    @pytest.mark.parametrize("version", ["0.6.0", "0.3.0"])
    def test_a_picture_of_an_older_version_is_drawn_as_it_was_then(self, host, version):
        """Auto has lowered guidance and bent its schedule since version 0.7.0."""
        then = host.run(Txt2Img(steps=6), {"guidance": "As set", "bend": 0})
        build(host.script)
        for recipe in ({}, {"HP Recipe": "Auto"}):
            pasted = [field.function({**recipe, "HP version": version}) for field in host.script.infotext_fields]
            assert pasted[0] is True and torch.equal(host.run(Txt2Img(steps=6), *pasted), then)
        now = [field.function({"HP Recipe": "Auto", "HP version": "0.7.0"}) for field in host.script.infotext_fields]
        assert not torch.equal(host.run(Txt2Img(steps=6), *now), then)

    def test_a_picture_without_our_keys_switches_the_accordion_off_and_touches_nothing_else(self, host):
        build(host.script)
        pasted = [field.function({"Steps": "20"}) for field in host.script.infotext_fields]
        assert pasted == [False] + [None] * len(FIELDS)

    def test_a_number_that_cannot_be_used_is_told_and_the_slider_set_to_its_default(self, webui, host):
        build(host.script)
        params = {"HP Recipe": "Auto", "HP Rho": "abc", "HP Bend": "much"}
        with pytest.warns(UserWarning) as told:
            webui.script_callbacks.infotext_pasted_callback("", params)
        assert [str(each.message).partition(", got ")[0] for each in told] == [
            "HP Sampler: Rho (rho) must be a number from 0.1 to 50, or 0",
            "HP Sampler: Bend (bend) must be Recipe or a number from 0 to 1",
        ]
        pasted = dict(zip(["enabled", *(field.name for field in FIELDS)],
                          (field.function(params) for field in host.script.infotext_fields)))  # fmt: skip
        assert pasted["rho"] == 0 and pasted["bend"] == "much", "the panel says what is wrong with a menu's value"
        with pytest.raises(ValueError, match="Bend"):
            host.run(Txt2Img(), *pasted.values())
        assert not webui.script_callbacks.reported

    @pytest.mark.parametrize("name", ["rho", "base_steps", "b1"])
    def test_a_program_is_told_which_field_a_wrong_number_is_of(self, host, name):
        (field,) = (each for each in FIELDS if each.name == name)
        with pytest.raises(ValueError, match=rf"{field.label} \({name}\) must be .* got 'abc'"):
            api_values(host.script, [], {"HP Recipe": "Auto", field.infotext: "abc"})


class TestSentFromTabToTab:
    def test_every_control_and_the_switch_are_carried(self, webui):
        """The host carries the fields whose target is one of the names; a plain function is none."""
        script = webui.script.HPSamplerScript()
        page = build(script)
        carried = [component for component, target in script.infotext_fields if target in script.paste_field_names]
        assert carried == page and len(script.paste_field_names) == len(page) == 1 + len(FIELDS)
        assert all(isinstance(target, str) and callable(target) for _, target in script.infotext_fields)


PICTURE = {"HP Recipe": "Auto", "HP Rho": "6.5", "HP Ending": "To zero", "HP version": "0.7.0"}


class TestProgram:
    """The host fills up what a program gives: by position, behind a dict too, and below both an infotext's values."""

    def drawn_with(self, host, values):
        p = Txt2Img(steps=5)
        host.run(p, *values)
        return p.extra_generation_params

    def test_a_dict_stands_in_place_of_single_values_of_an_infotext(self, host):
        written = self.drawn_with(host, api_values(host.script, [{"ending": "Keep noise"}], PICTURE))
        assert written["HP Rho"] == 6.5 and written["HP Ending"] == "Keep noise"

    def test_a_list_stands_in_place_of_its_first_values(self, host):
        written = self.drawn_with(host, api_values(host.script, [True, "SD1.5 5 steps"], PICTURE))
        assert written["HP Recipe"] == "SD1.5 5 steps" and written["HP Rho"] == 6.5

    def test_values_behind_a_dict_count_where_it_does_not_name_them(self, host):
        written = self.drawn_with(host, api_values(host.script, [{"rho": 6}, "Auto", 9, 4.0]))
        assert written["HP Base steps"] == 9 and written["HP Rho"] == 6.0

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ([{"rho": 6}, {"rho": 7}], "args takes one dict of names, and only as its first value"),
            ([{"rho": 6}, 1, 2], r"Recipe \(recipe\) must be one of .* got 1"),
            ([{"rho": 6}, "Auto", 0, "x"], None),
        ],
    )
    def test_what_makes_no_sense_behind_a_dict_is_refused(self, host, given, words):
        if words is None:
            # the dict names it, so that what stands in its place is not looked at
            assert self.drawn_with(host, api_values(host.script, given))["HP Rho"] == 6.0
        else:
            with pytest.raises(ValueError, match=words):
                self.drawn_with(host, api_values(host.script, given))

    def test_the_preset_that_the_accordion_begins_with_is_not_behind_a_dict(self, webui, host):
        folders = importlib.import_module("hpsampler.webui.folders")
        folders.presets().save(Preset.of("mine", {"time_rho": 1.5}))
        webui.shared.opts.hpsampler_preset = "mine"
        written = self.drawn_with(host, api_values(host.script, [{"rho": 6}]))
        assert written["HP Rho"] == 6.0 and "HP Time rho" not in written
        written = self.drawn_with(host, api_values(host.script, []))
        assert written["HP Time rho"] == 1.5, "who says nothing begins with it"
