"""Axes, settings page, presets and the second pass's recipe in the stand-in host."""

from __future__ import annotations

import copy
import importlib
from types import SimpleNamespace

import gradio as gr
import pytest
import torch

from hpsampler.calibration.profile import Fitted, Profile
from hpsampler.presets import Preset, built_in
from hpsampler.recipes import preset_family, recipe_for
from hpsampler.settings import FIELDS
from tests.adapter.host.processing import Host, Img2Img, Txt2Img
from tests.adapter.test_requests import OURS


class AxisOption(SimpleNamespace):
    """The host's, as far as an axis of another script needs it."""

    def __init__(self, label, type, apply, confirm=None, choices=None):
        super().__init__(label=label, type=type, apply=apply, confirm=confirm, choices=choices)


class AxisOptionTxt2Img(AxisOption):
    is_img2img = False


@pytest.fixture
def host(webui):
    return Host(webui.script.HPSamplerScript())


@pytest.fixture
def axes(webui):
    """Our axes by the rest of their labels, as the host's plot has them."""
    module = SimpleNamespace(
        axis_options=[AxisOption("Nothing", str, None)], AxisOption=AxisOption, AxisOptionTxt2Img=AxisOptionTxt2Img
    )
    webui.scripts.scripts_data[:] = [SimpleNamespace(path="/x/scripts/xyz_grid.py", module=module)]
    for _ in range(2):  # again after Reload UI
        webui.script_callbacks.before_ui_callback()
    assert not webui.script_callbacks.reported
    assert module.axis_options[0].label == "Nothing"
    return {each.label.removeprefix("[HP] "): each for each in module.axis_options[1:]}


@pytest.fixture
def shelf(webui):
    return importlib.import_module("hpsampler.webui.folders").presets()


def with_axes(p, **chosen):
    """A cell of a plot: ``chosen`` are (axis, value)."""
    cell = copy.copy(p)
    for axis, value in chosen.values():
        axis.apply(cell, value, [value])
    return cell


class TestAxes:
    def test_there_is_one_for_every_control(self, axes):
        assert list(axes) == ["Preset", "Enabled", *(field.label for field in FIELDS)]
        for field in FIELDS:
            axis = axes[field.label]
            wanted = list(field.choices) or [*field.words, *field.suggestions]
            if field.name in ("recipe", "hires_recipe"):
                # those of another family can be written, and are not offered
                wanted = [name for name in wanted if preset_family(name) in ("", "sd1")]
            assert (axis.choices() if axis.choices else []) == wanted
            kinds = {int: int, float: float, str: str}
            assert axis.type is kinds[type(field.default)], field.label

    def test_presets_of_another_family_are_not_offered(self, webui, axes, shelf):
        for name, family in (("ours", "sd1"), ("any", ""), ("large", "sdxl")):
            shelf.save(Preset.of(name, {"rho": 4}, family=family))
        offered = axes["Preset"].choices()
        assert offered[0] == "Auto" and "SD1.5 8 steps" in offered and "SDXL 8 steps" not in offered
        assert offered[-2:] == ["any", "ours"]
        axes["Preset"].confirm(None, ["SDXL 8 steps", "large"])
        webui.shared.sd_model = webui.face.nothing()
        assert "SDXL 8 steps" in axes["Preset"].choices()

    def test_without_the_plot_s_script_nothing_happens(self, webui):
        webui.scripts.scripts_data.clear()
        webui.script_callbacks.before_ui_callback()
        assert not webui.script_callbacks.reported

    @pytest.mark.parametrize("on", [False, True])
    def test_an_axis_goes_before_the_accordion(self, host, axes, on):
        accordion = {"enabled": on, "rho": 3.0, "ending": "Keep noise"}
        drawn = host.run(with_axes(Txt2Img(steps=5), x=(axes["Rho"], 6.5)), accordion)
        same = {"rho": 6.5, "ending": "Keep noise"}
        assert torch.equal(drawn, host.run(Txt2Img(steps=5), same))
        assert not torch.equal(drawn, host.run(Txt2Img(steps=5), {**same, "rho": 3.0}))

    def test_cells_do_not_change_each_other(self, host, axes):
        p = Txt2Img(steps=5)
        first, second = (with_axes(p, x=(axes["Rho"], rho), y=(axes["Ending"], "To zero")) for rho in (4, 7))
        both = [host.run(each) for each in (first, second)]
        assert not torch.equal(*both) and torch.equal(host.run(p), host.run(Txt2Img(steps=5)))
        assert first.extra_generation_params["HP Rho"] == 4.0 and second.extra_generation_params["HP Rho"] == 7.0

    def test_a_preset_and_a_number_beside_it(self, host, axes, shelf):
        shelf.save(Preset.of("mine", {"rho": 6.5, "ending": "To zero"}))
        assert axes["Preset"].choices()[-1] == "mine"
        cell = with_axes(Txt2Img(steps=5), x=(axes["Rho"], 4), y=(axes["Preset"], "mine"))
        drawn = host.run(cell, {"ending": "Keep noise"})
        assert torch.equal(drawn, host.run(Txt2Img(steps=5), {"rho": 4, "ending": "To zero"}))

    def test_it_can_be_switched_off_in_a_cell(self, host, axes):
        off = host.run(with_axes(Txt2Img(steps=5), x=(axes["Enabled"], "False")), {"rho": 3})
        assert torch.equal(off, host.run(Txt2Img(steps=5)))

    @pytest.mark.parametrize(
        ("axis", "value", "words"),
        [
            ("Rho", 99.0, "Rho (rho) must be a number from 0.1 to 50, or 0, got 99.0"),
            ("Base steps", 1, "Base steps (base_steps)"),
            ("Recipe", "SD9", "Recipe (recipe) must be one of Auto"),
            ("Enabled", "maybe", "Enabled (enabled) must be true or false"),
            ("Preset", "gone", "there is no preset named 'gone'; there are: Auto, SD1.5 4 steps"),
        ],
    )
    def test_values_are_confirmed_before_the_first_cell(self, axes, axis, value, words):
        with pytest.raises(RuntimeError) as error:
            axes[axis].confirm(None, [axes[axis].choices()[0] if axes[axis].choices else 5, value])
        assert words in str(error.value)


class TestPresets:
    def test_the_api_takes_one_by_name(self, host, shelf):
        shelf.save(Preset.of("mine", {"rho": 6.5, "ending": "To zero"}))
        p = Txt2Img(steps=5)
        drawn = host.run(p, {"preset": "mine", "ending": "Keep noise"})
        assert torch.equal(drawn, host.run(Txt2Img(steps=5), {"rho": 6.5, "ending": "Keep noise"}))
        assert p.extra_generation_params["HP Rho"] == 6.5
        papers = host.run(Txt2Img(steps=5), {"preset": "SD1.5 5 steps"})
        assert torch.equal(papers, host.run(Txt2Img(steps=5), {"recipe": "SD1.5 5 steps"}))

    def test_an_unknown_one_stops_the_picture(self, webui, host):
        calls = []
        webui.script_callbacks.on_cfg_denoiser(calls.append)
        with pytest.raises(Exception, match=r"HP Sampler: Preset \(preset\): there is no preset named 'gone'"):
            host.run(Txt2Img(steps=5), {"preset": "gone"})
        assert not calls

    def test_they_follow_the_model_where_the_settings_say_so(self, webui, host):
        xl = {"recipe": "SDXL 8 steps", "hires_recipe": "SDXL 5 steps UniPC"}
        named = host.run(Txt2Img(steps=8), xl)
        webui.shared.opts.hpsampler_follow = True
        p = Txt2Img(steps=8)
        followed = host.run(p, xl)
        assert torch.equal(followed, host.run(Txt2Img(steps=8), {"recipe": "SD1.5 8 steps"}))
        assert not torch.equal(followed, named) and p.extra_generation_params["HP Recipe"] == "SD1.5 8 steps"
        assert "the preset SDXL 8 steps stands for SD1.5 8 steps" in p.extra_generation_params["HP note"]
        assert "SDXL 5 steps UniPC stands for SD1.5 5 steps UniPC" in p.extra_generation_params["HP note"]
        webui.shared.sd_model = webui.checkpoint("is_sdxl")
        p = Txt2Img(steps=8)
        host.run(p, xl)
        assert "HP note" not in p.extra_generation_params

    def test_a_model_that_is_not_covered_is_still_told(self, webui, host):
        webui.shared.opts.hpsampler_follow = True
        webui.shared.sd_model = webui.checkpoint("is_sd3")
        with pytest.raises(Exception, match=r"covers SD 1\.x, SD 2\.x and SDXL"):
            host.run(Txt2Img(steps=8), {"recipe": "SDXL 8 steps"})
        assert torch.isfinite(host.run(Txt2Img(steps=8, sampler_name="Euler"), {"enabled": False})).all()


class TestSecondPass:
    def hires(self, **others):
        return Txt2Img(
            steps=5, enable_hr=True, hr_sampler_name="HP Auto", hr_scheduler="Automatic", hr_second_pass_steps=6,
            denoising_strength=0.7, **others,
        )  # fmt: skip

    def sigmas(self, webui, host, settings):
        seen = []
        webui.script_callbacks.on_cfg_denoiser(lambda params: seen.append(float(params.sigma[0])))
        p = self.hires()
        host.run(p, settings)
        return seen, p.extra_generation_params

    def test_it_takes_the_same_or_its_own(self, webui, host, noise):
        rho = {"rho": 3.0, "ending": "Keep noise"}
        same, written = self.sigmas(webui, host, rho)
        assert "HP Hires recipe" not in written
        own, written = self.sigmas(webui, host, {**rho, "hires_recipe": "Auto"})
        assert written["HP Hires recipe"] == "Auto" and written["HP Rho"] == 3.0
        assert own[:5] == same[:5] and own[5:] != same[5:]
        # six steps at 0.7 are the last of eight
        auto = recipe_for("sd1", 8, 7.0).sigmas(noise, first=2, strength=0.7).tolist()
        assert own[5:] == pytest.approx(auto[2:-1], rel=1e-4), "exactly Auto's, nothing set beside it"

    def test_a_preset_for_other_steps_is_told_for_its_pass(self, webui, host):
        _, written = self.sigmas(webui, host, {"hires_recipe": "SD1.5 6 steps"})
        assert "the recipe SD1.5 6 steps is made for 6 steps; it runs with 8" in written["HP note"]
        _, written = self.sigmas(webui, host, {"hires_recipe": "SD1.5 8 steps"})
        assert "HP note" not in written


class TestSettingsPage:
    def test_its_options(self, webui):
        webui.script_callbacks.ui_settings_callback()
        labels = webui.shared.opts.data_labels
        assert list(labels) == [
            "hpsampler_hidden", "hpsampler_preset", "hpsampler_follow", "hpsampler_calibration_when_off",
            "hpsampler_aim", "hpsampler_plot",
        ]  # fmt: skip
        assert all(each.section == ("hpsampler", "HP Sampler") for each in labels.values())
        assert all(each.category_id == "sd" for each in labels.values()), "not under Uncategorized"
        assert labels["hpsampler_preset"].refresh is not None, "what was saved just now can be chosen"
        names = labels["hpsampler_preset"].component_args()["choices"]
        assert names == ["None", *(each.name for each in built_in())]

    def test_what_is_hidden_is_not_in_the_menus(self, webui):
        webui.shared.opts.hpsampler_hidden = ["HP UniPC", "HP calibrated"]
        webui.load()
        assert [each.name for each in webui.sd_samplers.all_samplers] == [
            "Euler", "HP Auto", "HP DPM++ 1S", "HP DPM++ 2M", "HP DPM-v3",
        ]  # fmt: skip
        assert [each.label for each in webui.sd_schedulers.schedulers] == ["Automatic", "Karras", "HP"]
        assert "hp_calibrated" in webui.sd_schedulers.schedulers_map, "pictures still find it"
        assert webui.sd_samplers.get_sampler_and_scheduler("HP UniPC", "HP")[0] == "HP UniPC"
        host = Host(webui.script.HPSamplerScript())
        webui.shared.opts.hpsampler_hidden = ["HP"]
        webui.load()
        assert torch.isfinite(host.run(Txt2Img(steps=5))).all()

    @pytest.mark.parametrize("value", [None, 5, "HP UniPC", [None], {"a": 1}])
    @pytest.mark.parametrize("name", ["hidden", "preset", "follow", "calibration_when_off", "plot", "aim"])
    def test_one_that_cannot_be_used_is_told_and_its_default_used(self, webui, host, capsys, name, value):
        """The host saves whatever its file or a program says."""
        usual = host.run(Txt2Img(steps=5))
        setattr(webui.shared.opts, f"hpsampler_{name}", value)
        capsys.readouterr()
        webui.script = webui.load()
        said = capsys.readouterr().out
        assert [each.name for each in webui.sd_samplers.all_samplers][1:] == OURS, "it loads, and hides nothing"
        host.script = webui.script.HPSamplerScript()
        with gr.Blocks():
            enabled, *_ = host.script.ui(False)
        p = Txt2Img(steps=5)
        assert torch.equal(host.run(p), usual) and not host.printed
        assert importlib.import_module("hpsampler.webui.page").known().plot is True and enabled.value is False
        # a menu in which nothing is chosen is saved as null, and a text may be a preset's name that is gone
        fine = name == "preset" and (value is None or isinstance(value, str))
        told = f"the option hpsampler_{name} is {value!r}, which it cannot be; its default "
        assert (told in said) != fine and (told in p.extra_generation_params.get("HP note", "")) != fine

    def test_the_accordion_begins_with_a_preset(self, webui, shelf, capsys):
        shelf.save(Preset.of("mine", {"rho": 6.5}))
        webui.shared.opts.hpsampler_preset = "mine"
        with gr.Blocks():
            enabled, *controls = webui.script.HPSamplerScript().ui(False)
        values = dict(zip((field.name for field in FIELDS), (each.value for each in controls)))
        assert enabled.value is True and values["rho"] == 6.5 and values["b1"] == 1.1
        shelf.delete("mine")
        with gr.Blocks():
            enabled, *_ = webui.script.HPSamplerScript().ui(False)
        assert enabled.value is False and "no preset named 'mine'" in capsys.readouterr().out


class TestCalibrationWhileOff:
    def test_it_can_be_stopped_without_switching_the_accordion_on(self, webui, host):
        store = importlib.import_module("hpsampler.webui.folders").library()
        made = Fitted(5, 7.0, (14.6, 6.0, 2.5, 1.1, 0.4, 0.0), (0.0, 1.1, 0.8, 0.2, 0.1), "Auto",
                      {"Auto": 0.2, "calibrated": 0.1}, 0.02, 1000)  # fmt: skip
        store.save(Profile("mine", "tiny", ("0000000000",), "sd1", 64, 64, 0.0291671, 14.614641, 24, 24, 1, (made,)))
        by_itself = host.run(Txt2Img(steps=5))
        webui.shared.opts.hpsampler_calibration_when_off = False
        p = Txt2Img(steps=5)
        plain = host.run(p)
        assert not torch.equal(plain, by_itself) and "HP Calibration" not in p.extra_generation_params
        assert torch.equal(plain, host.run(Txt2Img(steps=5), {"calibration": "Off"}))
        # on, it is the accordion that says it
        assert torch.equal(by_itself, host.run(Txt2Img(steps=5), {"enabled": True}))


class TestPanel:
    def test_it_knows_the_loaded_model(self, webui, noise):
        known = importlib.import_module("hpsampler.webui.page").known
        found = known()
        assert found.family == "sd1" and found.problem == "" and found.plot is True
        assert found.noise.sigmas.tolist() == pytest.approx(noise.sigmas.tolist(), rel=1e-4)
        webui.shared.sd_model = webui.checkpoint("is_sd3")
        assert "covers SD 1.x" in known().problem
        webui.shared.sd_model = webui.face.nothing()
        assert known().model == "" and len(known().noise) == 1000

    def test_use_hp_auto_sets_the_page_s_own_menus_in_whichever_order_they_are_built(self, webui):
        for first in (True, False):
            script = webui.script.HPSamplerScript()
            script.show(False)
            with gr.Blocks() as page:
                if not first:
                    script.ui(False)
                for name, found in script.after_component.items():
                    assert name.startswith("txt2img_")
                    found(SimpleNamespace(component=gr.Dropdown(["HP Auto", "Automatic"], elem_id=name)))
                if first:
                    script.ui(False)
                # the API builds the accordion again, for its defaults
                script.ui(False)
            ids = {block.elem_id: number for number, block in page.blocks.items() if getattr(block, "elem_id", None)}
            setting = [each for each in page.dependencies if each["outputs"] == [ids["txt2img_sampling"],
                       ids["txt2img_scheduler"]]]  # fmt: skip
            assert len(setting) == 1 and setting[0]["queue"] is False

    def test_questions_pass_the_queue_and_few_components_are_built(self, webui):
        with gr.Blocks() as page:
            webui.script.HPSamplerScript().ui(False)
        assert len(page.config["components"]) <= 46
        assert all(each["queue"] is False for each in page.dependencies if each["targets"][0])


def test_img2img_is_no_second_pass(host):
    settings = {"hires_recipe": "SD1.5 6 steps", "rho": 3.0}
    p = Img2Img(steps=6, denoising_strength=0.5, init_latent=torch.randn(1, 4, 8, 8))
    host.run(p, settings)
    assert p.extra_generation_params["HP Rho"] == 3.0 and "HP Hires recipe" not in p.extra_generation_params
