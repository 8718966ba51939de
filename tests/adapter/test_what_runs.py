"""What runs is what is used and said: renamed samplers, other spellings, scripts that draw in their own way."""

from __future__ import annotations

import importlib

import pytest
import torch

from hpsampler.statistics.files import save_statistics, statistics_label
from tests.adapter.host.processing import Host, Img2Img, Txt2Img
from tests.adapter.test_calibration import is_calibrated, sigmas_of
from tests.adapter.test_statistics import folder, statistics  # noqa: F401

NOTE = "HP note"


def note_of(p):
    return p.extra_generation_params.get(NOTE, "")


def hp_of(p):
    return {key for key in p.extra_generation_params if key.startswith("HP")}


@pytest.fixture
def renamed(webui):
    """A host beside an extension that gives the sampler another name while it draws (dynamic thresholding)."""
    samplers, common = webui.sd_samplers, importlib.import_module("modules.sd_samplers_common")

    def process_batch(p):
        before = samplers.all_samplers_map[p.sampler_name]
        p.sampler_name = f"{before.name}_dynthres1"
        samplers.all_samplers_map[p.sampler_name] = common.SamplerData(
            p.sampler_name, lambda model: before.constructor(model), before.aliases, before.options
        )

    host = Host(webui.script.HPSamplerScript(), process_batch)
    yield host
    assert not host.printed


def test_a_sampler_of_the_host_s_that_asks_nobody_for_a_schedule_is_told_of(webui, host):
    """As reForge's additional samplers, which know a few schedule types by name and draw any other with their own."""
    kdiffusion, common = (importlib.import_module(f"modules.sd_samplers_{name}") for name in ("kdiffusion", "common"))
    euler = webui.sd_samplers.sample_euler

    class Alter(kdiffusion.KDiffusionSampler):
        def get_sigmas(self, p, steps):
            return torch.linspace(10, 0, steps + 1)

    entry = common.SamplerData("DDPM", lambda model: Alter(euler, model), [], {})
    webui.sd_samplers.all_samplers_map["DDPM"] = entry
    webui.sd_samplers.all_samplers.append(entry)
    said = "the sampler DDPM makes its own schedule and ignores the type HP"
    for values in ({}, {"freeu": "On"}):
        p = Txt2Img(steps=5, sampler_name="DDPM", scheduler="HP")
        host.run(p, values)
        assert note_of(p).count(said) == 1 and sum(said in text for text in p.comments) == 1
    for usual in ({"sampler_name": "Euler", "scheduler": "HP"}, {"sampler_name": "DDPM", "scheduler": "Karras"}):
        p = Txt2Img(steps=5, **usual)
        host.run(p)
        assert note_of(p) == ""
    p = Txt2Img(steps=5, enable_hr=True, hr_sampler_name="DDPM", hr_scheduler="HP", hr_second_pass_steps=5)
    host.run(p)
    assert said in note_of(p)


def test_a_schedule_type_that_the_host_takes_away_is_told_of(webui, monkeypatch):
    """As reForge does for its additional samplers, before a script sees the request."""
    find = webui.sd_samplers.get_sampler_and_scheduler

    def found(sampler, scheduler, **options):
        name, label = find(sampler, scheduler, **options)
        return name, "Karras" if name == "Euler" else label

    monkeypatch.setattr(webui.sd_samplers, "get_sampler_and_scheduler", found)
    for asked in ("HP", "hp"):
        p = Txt2Img(steps=5, sampler_name="Euler", scheduler=asked)
        Host(webui.script.HPSamplerScript()).run(p)
        assert note_of(p) == "the sampler Euler makes its own schedule and ignores the type HP"
    p = Txt2Img(steps=5, sampler_name="Euler", scheduler="Karras")
    Host(webui.script.HPSamplerScript()).run(p)
    assert note_of(p) == ""


class TestRenamedWhileDrawing:
    def test_a_fitting_calibration_is_used(self, webui, renamed, made):
        p = Txt2Img(steps=5)
        assert is_calibrated(sigmas_of(webui, renamed, p))
        assert p.sampler_name == "HP Auto_dynthres1" and p.extra_generation_params["HP Calibration"].startswith("mine ")

    def test_golden_noise_is_made(self, webui, renamed):
        p = Txt2Img(steps=5)
        assert len(sigmas_of(webui, renamed, p, {"golden_noise": "A"})) == 7
        assert p.extra_generation_params["HP Golden noise"] == "A" and note_of(p) == ""

    def test_dpm_v3_finds_its_statistics(self, webui, renamed, noise, folder):  # noqa: F811
        kept = statistics(noise)
        save_statistics(kept, folder / "mine.safetensors")
        p = Txt2Img(steps=5, sampler_name="HP DPM-v3")
        renamed.run(p)
        assert p.extra_generation_params["HP Statistics"] == statistics_label("mine", kept) and note_of(p) == ""

    @pytest.mark.parametrize("sampler", ["HP Auto", "HP DPM++ 1S", "HP DPM++ 2M", "HP UniPC", "HP DPM-v3", "Euler"])
    @pytest.mark.parametrize("scheduler", ["Automatic", "HP", "Karras"])
    @pytest.mark.parametrize("settings", [{}, {"rho": 4.0, "ending": "Extrapolated", "order": 1}], ids=str)
    def test_picture_and_words_are_those_of_the_sampler(self, webui, renamed, sampler, scheduler, settings):
        if sampler == "Euler" and scheduler == "Automatic":
            pytest.skip("nothing of ours")
        plain, other = (Txt2Img(steps=5, sampler_name=sampler, scheduler=scheduler) for _ in range(2))
        drawn = Host(webui.script.HPSamplerScript()).run(plain, settings)
        assert torch.equal(renamed.run(other, settings), drawn)
        assert other.extra_generation_params == plain.extra_generation_params

    def test_in_the_second_pass_too(self, webui, renamed):
        plain, other = (Txt2Img(steps=5, enable_hr=True, scheduler="Karras") for _ in range(2))
        drawn = Host(webui.script.HPSamplerScript()).run(plain, {"rho": 4.0})
        assert torch.equal(renamed.run(other, {"rho": 4.0}), drawn)
        assert "HP Auto on the schedule type Karras" in note_of(other) and note_of(other) == note_of(plain)

    def test_a_sampler_of_the_host_under_our_name_is_not_ours(self, webui):
        """What runs counts, and not what was asked for."""
        euler = webui.sd_samplers.all_samplers_map["Euler"]

        def replace(p):
            webui.sd_samplers.all_samplers_map["HP Auto"] = euler

        host = Host(webui.script.HPSamplerScript(), replace)
        p = Txt2Img(steps=5)
        host.run(p, {"golden_noise": "A"})
        assert "golden noise A needs an HP sampler" in note_of(p)


class TestScheduleTypes:
    def hires(self, **own):
        return Txt2Img(**{"steps": 5, "enable_hr": True, "hr_second_pass_steps": 6, "denoising_strength": 0.7, **own})

    @pytest.mark.parametrize("asked", ["automatic", "Automatic", "hp", "HP", "Use same scheduler", "", None])
    def test_any_spelling_draws_the_same_second_pass(self, webui, host, asked):
        usual = host.run(self.hires(hr_scheduler="Automatic"))
        p = self.hires(hr_scheduler=asked)
        assert torch.equal(host.run(p), usual) and note_of(p) == ""

    def test_a_name_is_its_label(self, webui, host):
        usual = host.run(self.hires(hr_scheduler="Karras"))
        assert torch.equal(host.run(self.hires(hr_scheduler="karras")), usual)
        assert not torch.equal(host.run(self.hires()), usual)

    def test_one_that_is_unknown_is_automatic_and_told(self, webui, host):
        usual = host.run(self.hires())
        p = self.hires(hr_scheduler="Karas")
        assert torch.equal(host.run(p), usual)
        told = "there is no schedule type 'Karas' here, so the second pass uses Automatic"
        assert note_of(p) == told
        p = Txt2Img(steps=5, scheduler="Karas")
        assert torch.equal(host.run(p), host.run(Txt2Img(steps=5)))
        assert note_of(p) == "there is no schedule type 'Karas' here, so Automatic is used"

    def test_the_host_s_own_samplers_are_left_to_it(self, webui, host):
        for asked in ("automatic", "Karas"):
            p = self.hires(sampler_name="Euler", hr_scheduler=asked, scheduler=None)
            host.run(p)
            assert p.hr_scheduler == asked and note_of(p) == ""

    @pytest.mark.parametrize(("first", "second"), [("HP Auto", None), ("Euler", "HP Auto"), ("HP UniPC", "HP UniPC")])
    def test_a_second_pass_that_takes_over_another_type_is_told(self, host, first, second):
        p = self.hires(sampler_name=first, scheduler="Karras", hr_sampler_name=second)
        host.run(p)
        ran = second or first
        assert note_of(p) == f"the second pass runs {ran} on the schedule type Karras and not on HP"
        for own in ({"hr_sampler_name": "Euler"}, {"hr_scheduler": "HP"}):
            p = self.hires(**{"sampler_name": first, "scheduler": "Karras", "hr_sampler_name": second, **own})
            host.run(p)
            assert "second pass" not in note_of(p)


class TestAnotherScriptDraws:
    """As the host's *img2img alternative test* does, which puts its own ``sample`` in place of the request's."""

    def request(self, webui, **own):
        p = Img2Img(**{"steps": 6, "denoising_strength": 1.0, "init_latent": torch.ones(1, 4, 8, 8), **own})

        def sample(host, cond, uncond, args):
            sampler = webui.sd_samplers.create_sampler(p.sampler_name, webui.shared.sd_model)
            return sampler.sample_img2img(p, p.init_latent, torch.ones(1, 4, 8, 8), cond, uncond)

        p.sample = sample
        return p

    @pytest.mark.parametrize("sampler", ["HP Auto", "Euler"])
    @pytest.mark.parametrize("scheduler", ["HP", "Karras"])
    def test_what_is_set_holds(self, webui, host, sampler, scheduler):
        settings = {"rho": 4.0, "ending": "To zero", "freeu": "On", "freeu_first": 2}
        p, other = (self.request(webui, sampler_name=sampler, scheduler=scheduler) for _ in range(2))
        drawn = host.run(p, settings)
        assert not torch.equal(drawn, host.run(other, {**settings, "freeu": "Off"}))
        assert ("HP Rho" in p.extra_generation_params) == (scheduler == "HP")
        assert p.extra_generation_params["HP Free-U"] == "On" and "another script" not in note_of(p)

    @pytest.mark.parametrize("sampler", ["HP Auto", "Euler"])
    @pytest.mark.parametrize("scheduler", ["HP", "Karras"])
    def test_a_wrong_value_stops_it(self, webui, host, sampler, scheduler):
        with pytest.raises(ValueError, match=r"Rho \(rho\) must be a number from 0.1 to 50, or 0, got 99"):
            host.run(self.request(webui, sampler_name=sampler, scheduler=scheduler), {"rho": 99})

    def test_the_schedule_is_the_one_that_was_set(self, webui, host):
        first, second = ([*sigmas_of(webui, host, self.request(webui), {"rho": rho})] for rho in (3.0, 9.0))
        assert first != second

    def test_again_and_again_on_one_request(self, webui, host):
        p = self.request(webui)
        drawn = [host.run(p, {"rho": rho}) for rho in (3.0, 9.0, 3.0)]
        assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])

    def test_one_that_draws_past_all_of_it_claims_nothing(self, webui, host):
        p = self.request(webui)
        p.sample = lambda host, cond, uncond, args: torch.zeros(1, 4, 8, 8)
        host.run(p, {"rho": 4.0})
        assert hp_of(p) == {NOTE} and note_of(p) == "another script draws past HP Sampler, so what is set has no effect"

    def test_nothing_is_known_of_it_afterwards(self, webui, host):
        host.run(self.request(webui), {"rho": 4.0})
        request = importlib.import_module("hpsampler.webui.request")
        sampler = webui.sd_samplers.create_sampler("HP Auto", webui.shared.sd_model)
        assert request.pass_or_none(sampler.model_wrap) is None


class TestStrengthZero:
    """The host makes a schedule of no steps of it, and its own samplers draw."""

    @pytest.mark.parametrize("sampler", ["HP Auto", "HP DPM++ 1S", "HP DPM++ 2M", "HP UniPC", "HP DPM-v3", "Euler"])
    @pytest.mark.parametrize("settings", [{}, {"ending": "One more call"}, {"recipe": "SD1.5 5 steps"}], ids=str)
    def test_hires_fix_and_exact_steps_leave_the_picture_as_it_is(self, webui, host, sampler, settings):
        first = host.run(Txt2Img(steps=5, sampler_name=sampler, scheduler="HP"), settings)
        p = Txt2Img(steps=5, sampler_name=sampler, scheduler="HP", enable_hr=True, denoising_strength=0.0)
        larger = torch.nn.functional.interpolate(first, scale_factor=2)
        assert torch.equal(host.run(p, settings), larger)
        webui.shared.opts.img2img_fix_steps = True
        picture = torch.randn(1, 4, 8, 8)
        p = Img2Img(steps=5, sampler_name=sampler, scheduler="HP", denoising_strength=0.0, init_latent=picture.clone())
        assert torch.equal(host.run(p, settings), picture)
        webui.shared.opts.img2img_fix_steps = False

    @pytest.mark.parametrize("strength", [0.001, 0.01, 0.03])
    def test_and_hardly_any_strength_draws(self, host, strength):
        p = Txt2Img(steps=5, enable_hr=True, denoising_strength=strength)
        assert torch.isfinite(host.run(p)).all() and note_of(p) == ""


class TestNoEffect:
    @pytest.mark.parametrize(
        ("request_", "settings", "said"),
        [
            ({"sampler_name": "Euler", "scheduler": "Karras"}, {"rho": 6},
             "Rho has no effect, as Euler on the schedule type Karras uses nothing of it"),
            ({"sampler_name": "Euler", "scheduler": "Karras"}, {"recipe": "SD1.5 5 steps", "guidance": 0.5},
             "Recipe and Guidance have no effect, as Euler on the schedule type Karras uses nothing of it"),
            ({}, {"order": 2},
             "UniPC order has no effect, as it belongs to UniPC and DPM-v3, and another solver is in use"),
            ({}, {"b1": 1.2}, "Free-U b1 has no effect, as Free-U is not set to On"),
            ({"sampler_name": "Euler", "scheduler": "Karras"}, {}, ""),
            ({"sampler_name": "Euler", "scheduler": "Karras"}, {"calibration": "Off", "statistics": "Off"}, ""),
            ({"sampler_name": "HP UniPC"}, {"order": 2, "rho": 6}, ""),
            ({"sampler_name": "Euler", "scheduler": "Karras", "enable_hr": True, "hr_sampler_name": "HP Auto",
              "hr_scheduler": "HP"}, {"rho": 6}, ""),
        ],
    )  # fmt: skip
    def test_what_is_set_and_acts_in_no_pass_is_told(self, host, request_, settings, said):
        p = Txt2Img(steps=5, **request_)
        host.run(p, settings)
        assert note_of(p) == said
        if p.sampler_name == "Euler" and not p.enable_hr:
            assert hp_of(p) <= {NOTE}

    def test_no_steps_are_the_host_s_to_refuse(self, host):
        p = Txt2Img(steps=0, sampler_name="Euler", scheduler="Karras")
        assert torch.isfinite(host.run(p, {"rho": 6})).all()
        with pytest.raises(ValueError, match="steps must be"):
            host.run(Txt2Img(steps=0), {"rho": 6})

    def test_a_model_that_is_not_covered_is_drawn_by_the_host_all_the_same(self, webui, host):
        webui.shared.sd_model.is_sd1, webui.shared.sd_model.is_sd3 = False, True
        p = Txt2Img(steps=5, sampler_name="Euler", scheduler="Karras")
        host.run(p, {"rho": 6})
        assert "Rho has no effect" in note_of(p)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"freeu_first": 9}, "Free-U has no effect, as its first call is 9 and there are 5 UNet calls"),
            ({"freeu_first": 6, "ending": "One more call"}, ""),
            ({"freeu_first": 7, "ending": "One more call"},
             "Free-U has no effect, as its first call is 7 and there are 6 UNet calls"),
            ({"freeu_first": 5}, ""),
            ({}, ""),
        ],
    )  # fmt: skip
    def test_a_window_behind_the_last_call_is_told(self, host, settings, said):
        p = Txt2Img(steps=5)
        host.run(p, {"freeu": "On", **settings})
        assert note_of(p) == said
