"""The adapter in the stand-in host: registration, requests, Free-U's life, messages. No WebUI is needed."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import torch

from hpsampler import freeu
from hpsampler.recipes import PRESETS, recipe_for
from hpsampler.settings import FIELDS, Settings
from tests.adapter.host.processing import Host, Img2Img, Txt2Img
from tests.conftest import sd_alphas_cumprod

OURS = ["HP Auto", "HP DPM++ 1S", "HP DPM++ 2M", "HP UniPC", "HP DPM-v3"]


@pytest.fixture
def host(webui):
    return Host(webui.script.HPSamplerScript())


def unet_of(webui):
    return webui.unet()


def sigmas_seen(webui, host, p, *args):
    """Every sigma at which the UNet was called."""
    seen = []
    webui.script_callbacks.on_cfg_denoiser(lambda params: seen.append(float(params.sigma[0])))
    latent = host.run(p, *args)
    return seen, latent


class TestRegistration:
    def test_samplers_and_schedule_come_last_in_the_host_s_own_lists(self, webui):
        assert [x.name for x in webui.sd_samplers.all_samplers] == ["Euler", *OURS]
        assert [each.label for each in webui.sd_schedulers.schedulers[-2:]] == ["HP", "HP calibrated"]
        assert webui.sd_schedulers.schedulers_map["hp"] is webui.sd_schedulers.schedulers_map["HP"]

    def test_five_reloads_change_nothing(self, webui):
        lists = (webui.sd_samplers.all_samplers, webui.sd_schedulers.schedulers)
        before = [[x.name for x in each] for each in lists]
        for _ in range(5):
            webui.load()
        assert [[x.name for x in each] for each in lists] == before
        assert webui.sd_samplers.all_samplers is lists[0] and webui.sd_schedulers.schedulers is lists[1]
        assert len(webui.script_callbacks.callbacks_cfg_denoiser) == 1

    def test_callbacks_are_added_by_our_file_from_a_short_call_stack(self, webui):
        """The host looks through all of it for each; from where it loads scripts that took most of our start."""
        names, depths = zip(*webui.script_callbacks.added)
        assert len(names) == 9 and {Path(name).name for name in names} == {"script.py"}
        assert all("webui" in Path(name).parts for name in names) and max(depths) < 8

    def test_unload_leaves_the_host_as_it_was(self, webui):
        webui.script_callbacks.script_unloaded_callback()
        assert [x.name for x in webui.sd_samplers.all_samplers] == ["Euler"]
        assert list(webui.sd_samplers.all_samplers_map) == ["Euler"]
        assert [x.name for x in webui.sd_schedulers.schedulers] == ["automatic", "karras"]
        assert "hp" not in webui.sd_schedulers.schedulers_map

    @pytest.mark.parametrize("name", OURS)
    def test_names_survive_the_host_s_suffix_parser(self, webui, name):
        find = webui.sd_samplers.get_sampler_and_scheduler
        assert find(name, "Automatic", convert_automatic=False) == (name, "Automatic")
        assert find(name, "HP") == (name, "Automatic")
        assert find("Euler", "hp") == ("Euler", "HP")


class TestPasses:
    @pytest.mark.parametrize("steps", [5, 6, 8])
    def test_auto_runs_the_paper_s_schedule_at_the_default_guidance(self, webui, host, noise, steps):
        seen, latent = sigmas_seen(webui, host, Txt2Img(steps=steps))
        expected = recipe_for("sd1", steps, 7.0).sigmas(noise)
        assert seen == pytest.approx(expected[:-1].tolist(), rel=1e-4)
        assert torch.isfinite(latent).all() and not host.printed

    @pytest.mark.parametrize("sampler", OURS)
    @pytest.mark.parametrize("scheduler", ["Automatic", "HP", "Karras"])
    def test_one_unet_call_a_step(self, webui, host, sampler, scheduler):
        seen, latent = sigmas_seen(webui, host, Txt2Img(steps=6, sampler_name=sampler, scheduler=scheduler))
        assert len(seen) == 6 and torch.isfinite(latent).all() and not host.printed

    def test_hp_auto_is_the_solver_of_the_recipe(self, host):
        for recipe, sampler in (("Auto", "2M"), ("SD1.5 5 steps", "1S"), ("SD1.5 8 steps", "2M")):
            drawn = host.run(Txt2Img(steps=5), {"recipe": recipe})
            same = {
                name: host.run(Txt2Img(steps=5, sampler_name=f"HP DPM++ {name}"), {"recipe": recipe})
                for name in ("1S", "2M")
            }
            assert [name for name, latent in same.items() if torch.equal(drawn, latent)] == [sampler]

    def test_the_family_of_the_loaded_model_decides(self, webui, host, noise):
        webui.shared.sd_model = webui.checkpoint("is_sdxl")
        seen, _ = sigmas_seen(webui, host, Txt2Img(steps=8))
        assert seen == pytest.approx(recipe_for("sdxl", 8, 7.0).sigmas(noise)[:-1].tolist(), rel=1e-4)

    def test_guidance_decides_too(self, webui, host):
        seen = [sigmas_seen(webui, host, Txt2Img(steps=5, cfg_scale=scale))[1] for scale in (3.0, 5.0, 7.0)]
        assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
        ending = {"ending": "To zero"}
        ended = [sigmas_seen(webui, host, Txt2Img(steps=5, cfg_scale=scale), ending)[1] for scale in (3.0, 5.0)]
        assert not torch.equal(ended[0], seen[0]), "extrapolated at low guidance"
        assert torch.equal(ended[1], seen[1])

    def test_hp_schedule_with_a_built_in_sampler(self, webui, host, noise):
        seen, _ = sigmas_seen(webui, host, Txt2Img(steps=5, sampler_name="Euler", scheduler="HP"))
        assert seen == pytest.approx(recipe_for("sd1", 5, 7.0).sigmas(noise)[:-1].tolist(), rel=1e-4)

    def test_img2img_runs_the_end_of_the_schedule(self, webui, host, noise):
        p = Img2Img(steps=6, denoising_strength=0.5, init_latent=torch.randn(1, 4, 8, 8))
        seen, latent = sigmas_seen(webui, host, p)
        recipe = recipe_for("sd1", 6, 7.0)
        assert seen == pytest.approx(recipe.sigmas(noise, first=2, strength=0.5)[2:-1].tolist(), rel=1e-4)
        # half of the warped time is where a schedule of very many steps would start
        half = noise.t_to_sigma((999 ** (1 / recipe.time_rho) / 2) ** recipe.time_rho)
        assert seen[0] == pytest.approx(float(half), rel=1e-4) and torch.isfinite(latent).all()

    @pytest.mark.parametrize("sampler", ["HP Auto", "HP UniPC", "Euler"])
    @pytest.mark.parametrize("steps", [4, 5, 8, 12])
    def test_img2img_changes_more_the_greater_the_strength(self, webui, host, sampler, steps):
        """From as good as unchanged at 0, without a jump; the host's slice alone has one start for many strengths."""
        picture, changes = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)), []
        for strength in (0.0, 0.1, 0.3, 0.5, 0.75, 1.0):
            p = Img2Img(
                steps=steps, denoising_strength=strength, init_latent=picture, sampler_name=sampler, scheduler="HP"
            )
            seen, _ = sigmas_seen(webui, host, p)
            changes.append(seen[0])
            if strength == 0:
                assert seen[0] < 0.03, "as good as unchanged"
        assert changes == sorted(changes) and len(set(changes)) == len(changes)

    def test_img2img_with_exact_steps_starts_at_its_strength_too(self, webui, host, noise):
        webui.shared.opts.img2img_fix_steps = True
        starts = []
        for strength in (0.3, 0.6, 0.9):
            p = Img2Img(steps=5, denoising_strength=strength, init_latent=torch.randn(1, 4, 8, 8))
            seen, _ = sigmas_seen(webui, host, p)
            assert len(seen) == 5
            starts.append(seen[0])
        webui.shared.opts.img2img_fix_steps = False
        for strength, start in zip((0.3, 0.6, 0.9), starts):
            p = Img2Img(steps=5, denoising_strength=strength, init_latent=torch.randn(1, 4, 8, 8))
            assert sigmas_seen(webui, host, p)[0][0] == pytest.approx(start, rel=1e-4), "one strength, one noise level"

    def test_hires_fix_has_a_recipe_of_its_own_for_each_pass(self, webui, host, noise):
        p = Txt2Img(steps=5, enable_hr=True, hr_second_pass_steps=6, denoising_strength=0.6)
        seen, latent = sigmas_seen(webui, host, p)
        # the host runs the end of ten steps, which begins at the sigma that the strength means
        second = recipe_for("sd1", 10, 7.0).sigmas(noise, first=4, strength=0.6)
        assert seen[5:] == pytest.approx(second[-7:-1].tolist(), rel=1e-4)
        assert latent.shape[-1] == 16 and torch.isfinite(latent).all() and not host.printed

    def test_a_batch_equals_its_images_alone(self, host):
        both = host.run(Txt2Img(steps=6, seeds=(3, 4)))
        for i, seed in enumerate((3, 4)):
            torch.testing.assert_close(both[i], host.run(Txt2Img(steps=6, seeds=(seed,)))[0], rtol=1e-4, atol=1e-4)

    def test_one_more_call_is_one_more_and_ends_clean(self, webui, host):
        seen, _ = sigmas_seen(webui, host, Txt2Img(steps=5), {"ending": "One more call"})
        assert len(seen) == 6 and seen[-1] == pytest.approx(0.132, abs=1e-3)

    def test_one_more_call_in_img2img(self, webui, host):
        p = Img2Img(steps=6, denoising_strength=0.5, init_latent=torch.zeros(1, 4, 8, 8))
        seen, _ = sigmas_seen(webui, host, p, {"ending": "One more call"})
        assert len(seen) == 5 and seen[-1] == pytest.approx(0.132, abs=1e-3)

    def test_a_noise_table_that_cannot_be_used_is_named(self, webui, host):
        table = torch.tensor(sd_alphas_cumprod(), dtype=torch.float32)
        webui.face.set_table(webui.shared.sd_model, torch.cat([table[:-1], torch.zeros(1)]))
        with pytest.raises(ValueError, match=r"HP Sampler cannot use the noise table of the loaded model.*finite"):
            host.run(Txt2Img(steps=5))

    def test_analytical_first_step_keeps_the_number_of_calls_and_of_progress(self, webui, host):
        p = Txt2Img(steps=6, sampler_name="HP UniPC")
        seen, _ = sigmas_seen(webui, host, p, {"analytical_first_step": "On"})
        assert len(seen) == 6 and seen[0] < 14 and seen[-1] > 0.3
        assert p.sampler.seen_steps == [0, 1, 2, 3, 4, 5]

    def test_analytical_first_step_is_left_out_of_img2img_with_a_word(self, webui, host):
        p = Img2Img(steps=6, sampler_name="HP UniPC", denoising_strength=0.5, init_latent=torch.zeros(1, 4, 8, 8))
        seen, _ = sigmas_seen(webui, host, p, {"analytical_first_step": "On"})
        assert len(seen) == 4 and any("analytical first step" in text for text in p.comments)

    def test_extrapolated_with_first_order_ends_at_zero_with_a_word(self, host):
        p = Txt2Img(steps=5, sampler_name="HP DPM++ 1S")
        extrapolated = host.run(p, {"ending": "Extrapolated"})
        assert any("Extrapolated" in text for text in p.comments)
        assert torch.equal(extrapolated, host.run(copy.copy(p), {"ending": "To zero"}))

    @pytest.mark.parametrize("sampler", ["HP DPM++ 1S", "HP DPM-v3"])
    def test_auto_s_own_extrapolation_is_not_held_against_another_sampler(self, host, sampler):
        p = Txt2Img(steps=5, sampler_name=sampler, cfg_scale=3.0)
        host.run(p, {"statistics": "Off"})
        assert not p.comments and "HP note" not in p.extra_generation_params

    def test_interrupt_gives_the_last_latent(self, webui, host):
        def interrupt(params):
            webui.shared.state.interrupted = params.denoiser.step == 2

        webui.script_callbacks.on_cfg_denoiser(interrupt)
        try:
            latent = host.run(Txt2Img(steps=6))
        finally:
            webui.shared.state.interrupted = False
        assert torch.isfinite(latent).all() and not webui.freeu_on()

    def test_a_caller_past_our_hooks_gets_the_auto_recipe(self, webui, noise):
        sampler = webui.sd_samplers.create_sampler("HP Auto", webui.shared.sd_model)
        p = Txt2Img(steps=5)
        assert sampler.get_sigmas(p, 5).tolist() == pytest.approx(
            recipe_for("sd1", 5, 7.0).sigmas(noise).tolist(), rel=1e-4
        )


LATE = {"recipe": "SD1.5 6 steps UniPC"}
"""A preset with Free-U from call 5 on."""


class TestFreeU:
    def calls_with_freeu(self, webui, host, p, *args):
        on = []
        unet = unet_of(webui)
        handle = unet.register_forward_pre_hook(lambda *_: on.append(webui.freeu_on()))
        host.run(p, *args)
        handle.remove()
        assert not webui.freeu_on()
        return [call for call, attached in enumerate(on) if attached]

    @pytest.mark.parametrize("steps", [4, 5, 6, 8, 12])
    def test_auto_leaves_it_off(self, webui, host, steps):
        assert self.calls_with_freeu(webui, host, Txt2Img(steps=steps)) == []

    @pytest.mark.parametrize(("steps", "calls"), [(5, [4]), (6, [4, 5]), (8, [4, 5, 6, 7]), (12, [8, 9, 10, 11])])
    def test_switched_on_it_is_late(self, webui, host, steps, calls):
        assert self.calls_with_freeu(webui, host, Txt2Img(steps=steps), {"freeu": "On"}) == calls

    def test_a_preset_brings_its_own(self, webui, host):
        assert self.calls_with_freeu(webui, host, Txt2Img(steps=6), LATE) == [4, 5]

    def test_what_the_filter_needs_is_made_once_a_pass(self, webui, host, monkeypatch):
        made, make = [], freeu._waves_for
        monkeypatch.setattr(freeu, "_waves_for", lambda x: made.append(tuple(x.shape[2:])) or make(x))
        assert self.calls_with_freeu(webui, host, Txt2Img(steps=8), {"freeu": "On"}) == [4, 5, 6, 7]
        assert made and len(made) == len(set(made))

    def test_it_works_with_any_sampler_and_schedule(self, webui, host):
        p = Txt2Img(steps=6, sampler_name="Euler", scheduler="Karras")
        args = {"freeu": "On", "freeu_first": 2, "freeu_last": 3}
        assert self.calls_with_freeu(webui, host, p, args) == [1, 2]

    def test_off_means_off(self, webui, host):
        assert self.calls_with_freeu(webui, host, Txt2Img(steps=6), {**LATE, "freeu": "Off"}) == []

    def test_the_recipe_s_freeu_needs_the_recipe_s_schedule(self, webui, host):
        assert self.calls_with_freeu(webui, host, Txt2Img(steps=6, scheduler="Karras"), LATE) == []

    def test_a_built_in_sampler_on_the_hp_schedule_gets_no_freeu_unless_the_accordion_is_on(self, webui, host):
        p = Txt2Img(steps=6, sampler_name="Euler", scheduler="HP")
        assert self.calls_with_freeu(webui, host, copy.copy(p)) == []
        assert self.calls_with_freeu(webui, host, copy.copy(p), LATE) == [4, 5]

    def test_in_img2img_late_is_late_in_the_part_that_runs(self, webui, host):
        p = Img2Img(steps=6, denoising_strength=0.5, init_latent=torch.zeros(1, 4, 8, 8))
        assert self.calls_with_freeu(webui, host, p, LATE) == [2, 3]

    @pytest.mark.parametrize(
        ("window", "calls"),
        [
            ({}, [2, 3]),
            ({"freeu_first": 2}, [1, 2, 3]),
            ({"freeu_last": 2}, [1]),
            ({"freeu_first": 1, "freeu_last": 1}, [0]),
        ],
    )
    def test_in_img2img_a_set_window_counts_the_calls_one_sees(self, webui, host, window, calls):
        p = Img2Img(steps=6, denoising_strength=0.5, init_latent=torch.zeros(1, 4, 8, 8))
        assert self.calls_with_freeu(webui, host, p, {"freeu": "On", **window}) == calls

    def test_a_unet_outside_torch_is_told_of(self, webui, host, monkeypatch):
        other = SimpleNamespace(option=SimpleNamespace(label="[TRT] tiny"))
        monkeypatch.setitem(sys.modules, "modules.sd_unet", SimpleNamespace(current_unet=other))
        p = Txt2Img(steps=6)
        assert self.calls_with_freeu(webui, host, p, LATE) == []
        said = "Free-U has no effect, as the UNet that runs is [TRT] tiny, which it cannot reach"
        assert p.extra_generation_params["HP note"] == said
        p = Txt2Img(steps=6)
        host.run(p)
        assert "HP note" not in p.extra_generation_params, "where none was asked for, none is missing"
        monkeypatch.setitem(sys.modules, "modules.sd_unet", SimpleNamespace(current_unet=None))
        assert self.calls_with_freeu(webui, host, Txt2Img(steps=6), LATE) == [4, 5]

    def test_an_exception_in_mid_sampling_leaves_nothing(self, webui, host):
        plain = Txt2Img(steps=6, sampler_name="Euler", scheduler="Karras")
        before = host.run(copy.copy(plain))
        unet = unet_of(webui)
        calls = []

        def fail(*_):
            calls.append(1)
            if len(calls) == 6:
                raise RuntimeError("out of memory")

        handle = unet.output_blocks[-1][0].register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            host.run(Txt2Img(steps=6), LATE)
        handle.remove()
        assert webui.freeu_on(), "the exception came while Free-U was on; else this test tests nothing"
        assert torch.equal(host.run(copy.copy(plain)), before)
        assert not webui.freeu_on()

    def test_the_refiner_s_unet_is_followed(self, webui, host):
        base, refiner = webui.shared.sd_model, webui.checkpoint(seed=5)
        seen = []
        for name, each in (("base", base), ("refiner", refiner)):
            unet = webui.face.unet(each)
            unet.register_forward_pre_hook(
                lambda *_, name=name, each=each: seen.append((name, webui.face.freeu_on(each)))
            )
        host.run(Txt2Img(steps=6, refiner=refiner, refiner_switch_step=5), LATE)
        assert seen == [("base", False)] * 4 + [("base", True), ("refiner", True)]
        assert not any(webui.face.freeu_on(each) for each in (base, refiner))


class TestUnused:
    def test_off_or_unused_changes_nothing(self, webui, host):
        plain = Txt2Img(steps=6, sampler_name="Euler", scheduler="Karras")
        enabled = copy.deepcopy(plain)
        webui.script_callbacks.script_unloaded_callback()
        webui.script_callbacks.clear_callbacks()
        without = Host(webui.scripts.Script()).run(copy.deepcopy(plain))
        webui.script = webui.load()
        host.script = webui.script.HPSamplerScript()
        assert torch.equal(host.run(plain, False), without)
        assert torch.equal(host.run(enabled, True), without)
        assert not [key for key in plain.extra_generation_params if key.startswith("HP")]
        assert not [key for key in enabled.extra_generation_params if key.startswith("HP")]

    def test_the_auto_recipe_needs_no_accordion(self, host):
        assert torch.equal(host.run(Txt2Img(steps=5), False), host.run(Txt2Img(steps=5), True))


class TestMessages:
    @pytest.mark.parametrize(
        ("args", "words"),
        [
            ({"rho": "seven"}, ["Rho", "seven", "0.1 to 50"]),
            ({"rho": None}, ["Rho", "None"]),
            ({"truncation_index": 9, "base_steps": 8}, ["Truncation index", "below Base steps = 8", "9"]),
            ({"truncation_index": 20}, ["Truncation index", "8", "20"]),
            ({"recipe": "nonsense"}, ["Recipe", "nonsense", "SD1.5 5 steps"]),
            ({"end_sigma": 0.01}, ["HP Sampler", "end_sigma", "0.02917", "0.01"]),
            ({"nonsense": 1}, ["nonsense", "truncation_index"]),
            ({"end_sigma": 0.2, "rho": 5}, ["End sigma", "rho"]),
            ("yes", ["Enabled", "yes", "true or false"]),
        ],
    )
    def test_a_wrong_value_stops_before_the_first_unet_call(self, webui, host, args, words):
        calls = []
        unet_of(webui).register_forward_pre_hook(lambda *_: calls.append(1))
        with pytest.raises(ValueError) as error:
            host.run(Txt2Img(steps=5), args)
        assert all(word in str(error.value) for word in words), str(error.value)
        assert not calls and not host.printed

    def test_a_flow_model_is_refused_in_one_sentence_before_the_first_call(self, webui, host):
        webui.shared.sd_model = webui.checkpoint("is_sd3")
        calls = []
        unet_of(webui).register_forward_pre_hook(lambda *_: calls.append(1))
        with pytest.raises(ValueError, match=r"SD 1\.x, SD 2\.x and SDXL"):
            host.run(Txt2Img(steps=5))
        assert not calls
        assert torch.isfinite(host.run(Txt2Img(steps=3, sampler_name="Euler", scheduler="Karras"))).all()

    def test_settings_that_the_schedule_type_leaves_idle_are_told(self, host):
        p = Txt2Img(steps=5, sampler_name="HP UniPC", scheduler="Karras")
        host.run(p, {"rho": 7, "ending": "To zero", "order": 3})
        assert p.extra_generation_params["HP note"] == (
            "Rho and Ending have no effect, as the schedule type is Karras and not HP"
        )

    def test_a_preset_at_another_step_count_says_so(self, host):
        p = Txt2Img(steps=7)
        host.run(p, {"recipe": "SD1.5 5 steps"})
        assert any("made for 5 steps" in text for text in p.comments)


class TestPage:
    def test_the_page_returns_a_component_for_every_setting_in_the_api_s_order(self, webui):
        script = webui.script.HPSamplerScript()
        with gr.Blocks():
            components = script.ui(True)
        assert [each.label for each in components] == ["HP Sampler", *(field.label for field in FIELDS)]
        assert Settings.of([each.value for each in components]) == Settings()
        assert Settings.of([True, *(each.value for each in components[1:])]) == Settings(enabled=True)

    def test_every_preset_can_be_chosen(self, webui):
        script = webui.script.HPSamplerScript()
        with gr.Blocks():
            components = script.ui(False)
        # gradio 4 keeps (label, value) pairs
        assert set(PRESETS) < {each if isinstance(each, str) else each[0] for each in components[1].choices}
