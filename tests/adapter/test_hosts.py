"""What hosts differ in, on both faces of the stand-in: what was measured to fail in forks, and how we meet it."""

from __future__ import annotations

import copy
import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hpsampler.freeu import FreeU, FreeUPlan, output_block_patch
from hpsampler.guidance import effective_guidance
from hpsampler.noise import NoiseModel
from hpsampler.panel import Page
from hpsampler.panel.view import view
from hpsampler.recipes import recipe_for
from tests.adapter.host.faces import Layered
from tests.adapter.host.processing import Txt2Img
from tests.conftest import sd_alphas_cumprod, zero_terminal_snr
from tests.small_unet import tiny_unet

FREEU = {"freeu": "On", "freeu_first": 1}
EULER = {"steps": 4, "sampler_name": "Euler", "scheduler": "Karras"}


@pytest.fixture
def boundary(webui):
    return importlib.import_module("hpsampler.webui.host")


def wrapped(unet):
    """As an extension does that shrinks what goes through some blocks: each in a module that is no list."""

    class Scaler(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x, *args):
            return self.block(x, *args)

    for blocks in (unet.input_blocks, unet.output_blocks):
        blocks[3] = Scaler(blocks[3])


def guided(webui, scale):
    """As perturbed-attention guidance does: a call of its own in each step, and what the prompt's differs from it more.

    Returns:
        A list that gets an entry with each of its calls.
    """
    calls, now = [], []

    def own(x, sigma, cond, *options):
        calls.append(1)
        return now[0].denoiser.inner_model(x, sigma, cond, *options)

    def after_guidance(args):
        options = webui.shared.sd_model.forge_objects.unet.model_options["transformer_options"]
        perturbed = own(args["input"], args["sigma"], args["cond"], options)
        return args["denoised"] + scale * (args["cond_denoised"] - perturbed)

    def before_guidance(params):
        prompted = params.x[: len(params.x) // 2]
        before = now[0]
        prompted += scale * (prompted - own(before.x, before.sigma, before.denoiser.p.c))

    webui.script_callbacks.on_cfg_denoiser(lambda params: now.__setitem__(slice(None), [params]))
    if webui.face.has_backend:
        objects = webui.shared.sd_model.forge_objects_after_applying_lora
        objects.unet = objects.unet.clone()
        objects.unet.set_model_sampler_post_cfg_function(after_guidance)
    else:
        webui.script_callbacks.on_cfg_denoised(before_guidance)
    return calls


class TestModel:
    def test_what_stands_in_for_a_model_is_none(self, webui, boundary):
        assert boundary.loaded() is webui.shared.sd_model
        webui.shared.sd_model = webui.face.nothing()
        assert boundary.loaded() is None
        known = importlib.import_module("hpsampler.webui.page").known()
        assert known.model == "" and known.problem == ""

    def test_the_noise_table_of_the_next_request(self, webui, boundary, noise):
        assert boundary.table(webui.shared.sd_model).sigmas == pytest.approx(noise.sigmas, rel=1e-4)
        webui.shared.opts.sd_noise_schedule = "Zero Terminal SNR"
        expected = NoiseModel.from_alphas_cumprod(zero_terminal_snr(sd_alphas_cumprod()))
        assert boundary.table(webui.shared.sd_model).sigmas[:-1] == pytest.approx(expected.sigmas[:-1], rel=1e-3)
        assert boundary.table(webui.shared.sd_model).zero_terminal_snr

    def test_a_checkpoint_may_ask_for_zero_terminal_snr_by_itself(self, webui, boundary):
        webui.shared.sd_model.model_config = SimpleNamespace(ztsnr=True)
        assert boundary.table(webui.shared.sd_model).zero_terminal_snr

    @pytest.mark.parametrize("family", ["is_sdxl", "is_sd1"])
    def test_a_flow_model_is_one_whatever_it_calls_itself(self, webui, host, family):
        model = webui.shared.sd_model = webui.checkpoint(family)
        core = model.forge_objects.unet.model if webui.face.has_backend else model.model
        core.predictor = SimpleNamespace(prediction_type="const", sigmas=torch.linspace(0.001, 1, 1000))
        calls = []
        webui.unet().register_forward_pre_hook(lambda *_: calls.append(1))
        with pytest.raises(ValueError, match="the loaded model is a flow model"):
            host.run(Txt2Img(steps=5))
        assert not calls and "flow model" in importlib.import_module("hpsampler.webui.page").known().problem


class TestFreeU:
    def test_both_ways_are_the_same(self):
        """Hooks on a UNet, and the patch in one that runs its blocks layer by layer."""
        plan = FreeUPlan(first=0, b1=1.3, b2=1.4, s1=0.9, s2=0.2)
        hooked, layered = tiny_unet(), tiny_unet()
        layered.__class__ = Layered
        x, t, context = torch.randn(2, 4, 8, 8), torch.full((2,), 500.0), torch.randn(2, 4, 32)
        plain = hooked(x, t, context=context)
        torch.testing.assert_close(layered(x, t, context=context), plain)
        FreeU.attach(hooked, plan)
        patches = {"patches": {"output_block_patch": [output_block_patch(plan, 32)]}}
        there = layered(x, t, context=context, transformer_options=patches)
        torch.testing.assert_close(there, hooked(x, t, context=context))
        assert not torch.allclose(there, plain, atol=1e-2)

    def test_it_changes_the_picture_and_the_next_is_as_before(self, webui, host):
        plain = host.run(Txt2Img(**EULER))
        changed = host.run(Txt2Img(**EULER), FREEU)
        assert not torch.allclose(changed, plain, atol=1e-2)
        assert torch.equal(host.run(Txt2Img(**EULER)), plain) and not webui.freeu_on()

    def test_it_acts_in_blocks_that_another_extension_wrapped(self, webui, host):
        plain, changed = host.run(Txt2Img(**EULER)), host.run(Txt2Img(**EULER), FREEU)
        wrapped(webui.unet())
        p = Txt2Img(**EULER)
        torch.testing.assert_close(host.run(p, FREEU), changed)
        assert "HP note" not in p.extra_generation_params
        torch.testing.assert_close(host.run(Txt2Img(**EULER)), plain)

    def test_a_unet_that_it_cannot_be_put_on_is_told_of(self, webui, host, boundary, monkeypatch):
        def fail(*_):
            raise TypeError("'Scaler' object is not subscriptable")

        plain = host.run(Txt2Img(**EULER))
        monkeypatch.setattr(boundary, "_patch" if webui.face.has_backend else "FreeU", fail)
        if not webui.face.has_backend:
            monkeypatch.setattr(boundary, "FreeU", SimpleNamespace(attach=fail, detach=lambda _: None))
        p = Txt2Img(**EULER)
        assert torch.equal(host.run(p, FREEU), plain)
        assert "Free-U has no effect, as it could not be put on this UNet" in p.extra_generation_params["HP note"]
        assert not webui.script_callbacks.reported

    def test_a_compiled_unet_is_told_of_where_it_cannot_act(self, webui, host):
        plain, changed = host.run(Txt2Img(**EULER)), host.run(Txt2Img(**EULER), FREEU)
        core = webui.shared.sd_model.forge_objects.unet.model if webui.face.has_backend else webui.shared.sd_model.model
        core.diffusion_model = torch.compile(core.diffusion_model, backend="eager")
        p = Txt2Img(**EULER)
        drawn = host.run(p, FREEU)
        if webui.face.has_backend:
            torch.testing.assert_close(drawn, changed)
            assert "HP note" not in p.extra_generation_params
        else:
            torch.testing.assert_close(drawn, plain)
            assert p.extra_generation_params["HP note"] == (
                "Free-U has no effect, as the UNet is compiled, and a compiled one does not see it"
            )

    def test_it_stays_on_for_calls_that_another_extension_makes_in_the_same_step(self, webui, host):
        """Else the difference of the two kinds of calls is amplified by that extension's guidance."""
        seen = []
        if webui.face.has_backend:
            network = webui.unet()
            network.register_forward_hook(lambda *_: seen.append(webui.freeu_on()))
        else:
            webui.script_callbacks.on_cfg_denoised(lambda params: seen.append(webui.freeu_on()))
        host.run(Txt2Img(**EULER), FREEU)
        assert seen == [True] * 4 and not webui.freeu_on()

    def test_guidance_that_another_extension_adds_with_a_call_of_its_own_is_not_multiplied(self, webui, host):
        """Its call differs from the prompt's in nothing here, so what it adds is nothing, with Free-U as without."""
        plain, changed = host.run(Txt2Img(**EULER)), host.run(Txt2Img(**EULER), FREEU)
        calls = guided(webui, 3.0)
        # one prompt is rounded otherwise than two in one call
        torch.testing.assert_close(host.run(Txt2Img(**EULER)), plain, rtol=0, atol=2e-3)
        torch.testing.assert_close(host.run(Txt2Img(**EULER), FREEU), changed, rtol=0, atol=2e-3)
        assert len(calls) == 8 and not torch.allclose(changed, plain, rtol=0, atol=2e-2)

    def test_nothing_is_left_when_the_extension_is_switched_off(self, webui, host):
        plain = host.run(Txt2Img(**EULER))
        unet = webui.unet()

        def fail(*_):
            raise RuntimeError("out of memory")

        handle = unet.out.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            host.run(Txt2Img(**EULER), FREEU)
        handle.remove()
        assert webui.freeu_on()
        webui.script_callbacks.script_unloaded_callback()
        webui.script_callbacks.clear_callbacks()
        assert not webui.freeu_on()
        host.script = webui.scripts.Script()
        assert torch.equal(host.run(Txt2Img(**EULER)), plain)


class TestBackend:
    @pytest.fixture
    def face(self):
        from tests.adapter.host.faces import Forked

        return Forked()

    def test_our_patch_is_taken_from_a_clone_that_another_extension_made_of_ours(self, webui, boundary):
        plan, objects = FreeUPlan(first=0), webui.shared.sd_model.forge_objects
        before = objects.unet
        assert boundary.freeu(plan) == "" and webui.freeu_on() and objects.unet is not before
        theirs = objects.unet = objects.unet.clone()
        theirs.set_model_output_block_patch(lambda h, skip, options: (h, skip))
        boundary.freeu(None)
        assert objects.unet is theirs and not webui.freeu_on()
        patches = theirs.model_options["transformer_options"]["patches"]["output_block_patch"]
        assert len(patches) == 1, "theirs stays"

    def test_the_unet_itself_is_not_touched(self, webui, boundary):
        before = copy.deepcopy(webui.shared.sd_model.forge_objects.unet.model_options)
        plain = webui.shared.sd_model.forge_objects.unet
        boundary.freeu(FreeUPlan(first=0))
        boundary.freeu(None)
        assert webui.shared.sd_model.forge_objects.unet is plain and plain.model_options == before

    def test_the_second_pass_has_the_recipe_and_the_guidance_of_its_own_scale(self, webui, host, noise):
        scales, sigmas = [], []

        def look(params):
            p = params.denoiser.p
            scales.append(p.hr_cfg if p.is_hr_pass else None)
            sigmas.append(float(params.sigma[0]))

        webui.script_callbacks.on_cfg_denoiser(look)
        p = Txt2Img(steps=5, cfg_scale=7.0, enable_hr=True, hr_second_pass_steps=5, denoising_strength=1.0)
        p.hr_cfg = 4.0
        host.run(p)
        assert scales[5:] == pytest.approx([effective_guidance(4.0, 5)] * 5) and p.hr_cfg == 4.0
        assert sigmas[5:] == pytest.approx(recipe_for("sd1", 5, 4.0).sigmas(noise)[:-1].tolist(), rel=1e-3)

    @pytest.mark.parametrize(("scale", "expected"), [(2.0, 2.0), (0, 7.0), (None, 7.0)])
    def test_the_panel_shows_the_second_pass_at_the_scale_of_its_own(self, webui, host, scale, expected):
        page, sigmas = importlib.import_module("hpsampler.webui.page"), []
        # what the page's script sends, under the names of the controls that it was told to read
        assert page.PAGE["txt2img"]["hr_cfg"] == "#txt2img_hr_cfg"
        read = {"sampler": "HP Auto", "schedule": "Automatic", "steps": 5, "cfg": 7, "width": 64, "height": 64}
        read |= {"hires": True, "hr_steps": 5, "denoising": 1.0, "hr_cfg": scale}
        second = view({"enabled": True}, Page.of(read), page.known()).second
        webui.script_callbacks.on_cfg_denoiser(lambda params: sigmas.append(float(params.sigma[0])))
        p = Txt2Img(steps=5, cfg_scale=7.0, enable_hr=True, hr_second_pass_steps=5, denoising_strength=1.0)
        p.hr_cfg = expected
        host.run(p)
        assert second.sigmas[second.skipped :][:5] == pytest.approx(sigmas[5:], rel=1e-3)
        assert [*set(second.guidance or [expected])] == pytest.approx([effective_guidance(expected, 5)])

    @pytest.mark.parametrize("sampler", ["HP Auto", "HP UniPC", "HP DPM-v3"])
    @pytest.mark.parametrize("values", [{}, {"golden_noise": "A"}])
    def test_at_cfg_1_there_is_no_negative_prompt(self, host, sampler, values):
        assert torch.isfinite(host.run(Txt2Img(steps=5, cfg_scale=1.0, sampler_name=sampler), values)).all()


class TestOutsideARequest:
    """Calibrations and statistics call the host's denoiser by themselves."""

    @pytest.fixture
    def denoiser(self, webui):
        def make(scale=6.0):
            source = importlib.import_module("hpsampler.webui.source")
            config = importlib.import_module("hpsampler.calibration.config").CalibrationConfig
            values = {"name": "x", "steps": [4], "width": 64, "height": 64, "prompts": "a\nb\nc\nd\ne", "batch": 2}
            checkpoint = source.Checkpoint(config.of(values))
            return checkpoint, checkpoint.denoiser(["a", "b"], "", scale)

        return make

    def call(self, found):
        checkpoint, denoiser = found
        return denoiser(5 * checkpoint.start([1, 2], 64, 64), torch.full((2,), 5.0))

    def test_a_model_that_is_not_loaded_yet_is_loaded(self, webui, denoiser):
        model, webui.shared.sd_model = webui.shared.sd_model, webui.face.nothing()
        if webui.face.has_backend:
            webui.face.to_load = model
        else:
            webui.shared.sd_model = model
        checkpoint, _ = denoiser()
        assert checkpoint.model_name == "tiny"

    def test_weights_that_were_moved_away_meanwhile_are_moved_back(self, webui, denoiser):
        found = denoiser()
        first = self.call(found)
        if webui.face.has_backend:
            webui.face.move_away()
        again = self.call(found)
        assert torch.equal(again, first) and not again.is_inference()

    def test_at_guidance_1_it_is_the_prompt_s_alone(self, denoiser):
        """Some hosts have no negative condition then."""
        alone, without, guided = (self.call(denoiser(scale)) for scale in (1.0, 0.0, 3.0))
        torch.testing.assert_close(guided, without + 3 * (alone - without), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(alone, without, atol=1e-2)

    def test_networks_of_the_last_picture_do_not_act(self, webui, denoiser):
        clean = self.call(denoiser())
        if webui.face.has_backend:
            objects = webui.shared.sd_model.forge_objects
            objects.unet = objects.unet.clone()
            objects.unet.set_model_output_block_patch(lambda h, skip, options: (2 * h, skip))
            webui.shared.sd_model.forge_objects_after_applying_lora = objects.shallow_copy()
        assert torch.equal(self.call(denoiser()), clean)
