"""What guidance scale reaches the host's own denoiser, call by call, in a running A1111 v1.10.1."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hpsampler.guidance import effective_guidance
from tests.webui.hosts import refusal
from tests.webui.test_accordion import grid
from tests.webui.test_api import SAMPLERS, from_infotext, hp

FIVE = effective_guidance(7, 5)
CFG_7 = {"cfg_scale": 7, "steps": 5}


@pytest.fixture
def counted(server):
    """Draws by the API, and gives pictures, info and the guidance scale of every call."""

    def draw(args=None, **payload):
        server.get("/hps-probe/guidance")
        images, info = server.txt2img(**hp(args, **{**CFG_7, **payload}))
        return images, info, server.get("/hps-probe/guidance")

    return draw


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_of_ours_sends_the_recipe_s_guidance(counted, sampler):
    assert counted(sampler_name=sampler)[2] == pytest.approx([FIVE] * 5)
    assert counted({"guidance": "As set"}, sampler_name=sampler)[2] == [7] * 5
    assert counted({"guidance": 0.6}, sampler_name=sampler)[2] == pytest.approx([4.2] * 5)
    assert counted(sampler_name=sampler, steps=14)[2] == [7] * 14, "from twice the CFG scale on nothing changes"


@pytest.mark.parametrize("payload", [{"scheduler": "HP"}, {"scheduler": "Karras"}], ids=["on HP", "on Karras"])
def test_a_sampler_of_the_host_s_is_untouched(counted, payload):
    assert counted({"guidance": 0.6}, sampler_name="DPM++ 2M", **payload)[2] == [7] * 5


def test_the_paper_s_presets_take_guidance_as_set(counted):
    assert counted({"recipe": "SD1.5 5 steps"})[2] == [7] * 5


def test_hires_fix_counts_the_steps_of_the_whole_schedule(counted):
    second = {"hr_scale": 2, "hr_second_pass_steps": 6, "denoising_strength": 0.6}
    # forks have a scale of its own for the second pass, which is 1 where nothing is said
    _, _, scales = counted(enable_hr=True, **second, hr_cfg=7)
    # the host runs the last six of ten steps
    assert scales == pytest.approx([FIVE] * 5 + [effective_guidance(7, 10)] * 6)


def test_img2img_counts_the_steps_of_the_whole_schedule(server):
    (init,), _ = server.txt2img(**hp())
    server.get("/hps-probe/guidance")
    server.img2img(init, **hp(**CFG_7, denoising_strength=0.5))
    scales = server.get("/hps-probe/guidance")
    assert 2 <= len(scales) < 5 and scales == pytest.approx([FIVE] * len(scales))


def test_the_host_s_own_settings_of_guidance_still_act(counted):
    """The host passes scale 1 where it leaves the unconditional half out."""
    _, info, scales = counted(override_settings={"skip_early_cond": 0.4})
    # a fork begins with the second call
    assert any(scales == pytest.approx([first, 1, 1, FIVE, FIVE]) for first in (1, FIVE)), info["infotexts"]
    # the host puts back only what its configuration names, so the first setting is put back here
    _, _, scales = counted(override_settings={"skip_early_cond": 0.0, "s_min_uncond": 3.0})
    left_out = ([FIVE, FIVE, FIVE, 1, FIVE], [FIVE, FIVE, 1, FIVE, 1])
    assert any(scales == pytest.approx(each) for each in left_out), f"in every second call: {scales}"


def test_a_batch_is_its_pictures_and_a_preview_changes_nothing(counted):
    batch, _, _ = counted(batch_size=3, seed=7)
    for index in range(3):
        (alone,), _, _ = counted(seed=7 + index)
        assert np.abs(alone.astype(int) - batch[-3 + index]).max() <= 1
    on, off = (counted(override_settings={"live_previews_enable": shown})[0][0] for shown in (True, False))
    assert np.array_equal(on, off)


def test_and_prompts_the_refiner_and_a_missing_lora(counted):
    (plain,), _, _ = counted(prompt="a red star")
    (both,), _, scales = counted(prompt="a red star AND a blue moon :0.7")
    assert not np.array_equal(plain, both) and scales == pytest.approx([FIVE] * 5)
    _, info, scales = counted(refiner_checkpoint="hps-tiny-sd15-v.safetensors", refiner_switch_at=0.5)
    assert "Refiner" in info["infotexts"][0] and scales == pytest.approx([FIVE] * 5)
    assert counted(prompt="a red star <lora:none:1>")[2] == pytest.approx([FIVE] * 5)


def test_over_an_axis_and_from_the_infotext(server, counted):
    _, info = grid(server, ("[HP] Guidance", "Recipe, As set, 0.6"), steps=5, cfg_scale=7)
    cells = info["infotexts"][-3:]
    assert [re.findall(r"HP Guidance: ([^,\n]+)", text) for text in cells] == [[], ["As set"], ["0.6"]]
    (image,), info, scales = counted({"guidance": "0.60", "bend": 0.2})
    assert "HP Guidance: 0.6, HP Bend: 0.2" in info["infotexts"][0] and scales == pytest.approx([4.2] * 5)
    server.get("/hps-probe/guidance")
    assert np.array_equal(from_infotext(server, info["infotexts"][0])[0], image)
    assert server.get("/hps-probe/guidance") == scales


@pytest.mark.parametrize("wrong", [{"guidance": 3}, {"guidance": "half"}, {"bend": 1.5}])
def test_a_wrong_value_stops_before_the_first_call(server, wrong):
    server.get("/hps-probe/guidance")
    status, answer = server.post("/sdapi/v1/txt2img", {"width": 64, "height": 64, **hp(wrong)})
    assert status == 500 and f"({next(iter(wrong))}) must be Recipe" in refusal(answer), answer
    assert server.get("/hps-probe/guidance") == []
