"""Free-U: the filter compared with an FFT, the hooks with a UNet whose concatenations are patched."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ldm.modules.diffusionmodules import openaimodel
from torch import nn

from hpsampler import freeu
from hpsampler.freeu import FreeU, FreeUPlan, scale_backbone_, scale_low_frequencies
from tests.oracles import fft_low_frequencies
from tests.small_unet import tiny_unet

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def random_maps(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rounding(dtype):
    """Allowed difference of two computations on numbers of size 1; half precision rounds twice."""
    return {torch.float32: 1e-5, torch.float64: 1e-10}.get(dtype, 4 * torch.finfo(dtype).eps)


# ---- the filter ------------------------------------------------------------------------------------------------------


def test_every_reference_filter(vectors, device):
    assert len(vectors["freeu_filter"]) == 10
    for case in vectors["freeu_filter"]:
        assert case["threshold"] == 1
        x = torch.tensor(case["input"], dtype=torch.float32).view(case["shape"])
        ours = scale_low_frequencies(x.to(device), case["scale"]).cpu()
        np.testing.assert_allclose(
            ours.flatten(), case["output"], rtol=1e-5, atol=1e-5, err_msg=f"{case['shape']} * {case['scale']}"
        )


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES),
    height=st.integers(1, 33),
    width=st.integers(1, 33),
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    scale=st.floats(0, 3),
)
@example(dtype=torch.float32, height=1, width=1, batch=1, channels=1, scale=0.2)
@example(dtype=torch.float32, height=1, width=7, batch=2, channels=2, scale=0.9)
@example(dtype=torch.float16, height=96, width=64, batch=1, channels=2, scale=0.2)
@example(dtype=torch.float32, height=64, width=64, batch=2, channels=3, scale=0.2)
@example(dtype=torch.float32, height=47, width=33, batch=1, channels=2, scale=2.5)
@example(dtype=torch.float64, height=3, width=400, batch=2, channels=2, scale=0.9)
@example(dtype=torch.float32, height=600, width=2, batch=1, channels=2, scale=0.9)
def test_the_filter_agrees_with_an_fft_for_every_size_and_dtype(device, dtype, height, width, batch, channels, scale):
    x = random_maps(batch, channels, height, width, seed=height * 37 + width, dtype=dtype).to(device)
    ours = scale_low_frequencies(x, scale)
    assert ours.shape == x.shape and ours.dtype == dtype
    difference = (ours.double() - fft_low_frequencies(x, scale).double()).abs().max()
    assert difference < rounding(dtype) * max(1.0, float(x.abs().max())) * max(1.0, scale)


VIEWS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other channel": lambda x: x[:, ::2],
    "last channels": lambda x: x[:, 3:],
    "cropped": lambda x: x[..., 1:-2, 2:],
    "transposed": lambda x: x.transpose(2, 3),
    "expanded": lambda x: x[:1].expand(4, -1, -1, -1),
    "last channels of channels last": lambda x: x.contiguous(memory_format=torch.channels_last)[:, 3:],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("size", [(9, 8), (40, 36)], ids=["by pixels", "by row and column"])
def test_the_filter_of_a_view_does_not_change_the_original(view, dtype, device, size):
    whole = random_maps(2, 6, *size, dtype=dtype).to(device)
    x = view(whole)
    before, whole_before = x.clone(), whole.clone()
    ours = scale_low_frequencies(x, 0.3)
    assert torch.equal(x, before) and torch.equal(whole, whole_before)
    torch.testing.assert_close(ours, fft_low_frequencies(before, 0.3), rtol=0, atol=4 * rounding(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(8, 8), (40, 36)], ids=["by pixels", "by row and column"])
def test_automatic_mixed_precision_changes_no_bit(dtype, size):
    """A WebUI samples under autocast, which would take the sums in half precision, or refuse to."""
    x = random_maps(2, 6, *size, dtype=dtype)
    expected = scale_low_frequencies(x, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scale_low_frequencies(x, 0.3), expected)


def test_scale_1_is_the_identity_and_scale_0_removes_the_mean():
    x = random_maps(2, 3, 8, 8)
    assert torch.equal(scale_low_frequencies(x, 1.0), x)
    assert scale_low_frequencies(x + 5, 0.0).mean((2, 3)).abs().max() < 1e-5


# ---- the backbone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_the_second_half_of_the_backbone_stays(version):
    x = random_maps(2, 6, 4, 4)
    scaled = x.clone()
    scale_backbone_(scaled, 1.4, version)
    assert torch.equal(scaled[:, 3:], x[:, 3:]) and not torch.equal(scaled[:, :3], x[:, :3])


def test_version_1_scales_evenly_and_version_2_by_the_normalised_mean():
    x = random_maps(2, 6, 4, 5)
    one, two = x.clone(), x.clone()
    scale_backbone_(one, 1.4, 1)
    scale_backbone_(two, 1.4, 2)
    torch.testing.assert_close(one[:, :3], 1.4 * x[:, :3])
    mean = x.mean(1, keepdim=True)
    flat = mean.flatten(1)
    low, high = flat.min(1).values.view(-1, 1, 1, 1), flat.max(1).values.view(-1, 1, 1, 1)
    torch.testing.assert_close(two[:, :3], (1 + 0.4 * (mean - low) / (high - low)) * x[:, :3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
@pytest.mark.parametrize("size", [(1, 1), (4, 4)])
def test_version_2_on_a_constant_map_changes_nothing(dtype, value, size):
    """A 1x1 map, the deepest of a 64 pixel image, is constant, and the formula gives 0/0 there."""
    x = torch.full((2, 4, *size), value, dtype=dtype)
    scaled = x.clone()
    scale_backbone_(scaled, 1.4, 2)
    assert torch.equal(scaled, x)


# ---- the hooks -------------------------------------------------------------------------------------------------------

PLANS = {
    "paper": FreeUPlan(0),
    "strong": FreeUPlan(0, b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "version 2": FreeUPlan(0, b1=1.3, b2=1.4, s1=0.9, s2=0.2, version=2),
    "backbone of stage 1": FreeUPlan(0, b1=1.3, b2=1, s1=1, s2=1),
    "skips of stage 2": FreeUPlan(0, b1=1, b2=1, s1=1, s2=0.4),
}
SIZES = {"even": (16, 16), "odd deepest map": (24, 40), "1x1 deepest map": (8, 8)}


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture(autouse=True)
def nothing_left_attached(unet):
    yield
    FreeU.detach(unet)


def run(unet, size=(16, 16), memory_format=torch.contiguous_format):
    x = random_maps(2, 4, *size, seed=1).contiguous(memory_format=memory_format)
    with torch.no_grad():
        return unet(x, torch.tensor([500.0, 20.0]), context=random_maps(2, 7, 32, seed=2))


def run_with_edited_concatenations(unet, plan, size, monkeypatch):
    """Free-U as its authors write it: ``th.cat`` of the UNet's module replaced, the filter by FFT."""
    seen = []

    def cat(tensors, dim=0):
        hidden, skip = tensors
        multiple = hidden.shape[1] / unet.model_channels
        seen.append(multiple)
        if multiple in (4, 2):
            b, s = (plan.b1, plan.s1) if multiple == 4 else (plan.b2, plan.s2)
            half = hidden.shape[1] // 2
            factor = torch.tensor(b)
            if plan.version == 2:
                mean = hidden.mean(1, keepdim=True)
                low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
                factor = 1 + (b - 1) * torch.nan_to_num((mean - low) / (high - low))
            hidden = torch.cat([hidden[:, :half] * factor, hidden[:, half:]], 1)
            skip = fft_low_frequencies(skip, s)
        return torch.cat([hidden, skip], dim)

    names = {name: getattr(torch, name) for name in dir(torch) if not name.startswith("__")}
    with monkeypatch.context() as patch:
        patch.setattr(openaimodel, "th", SimpleNamespace(**{**names, "cat": cat}))
        result = run(unet, size)
    assert seen.count(4) == 7 and seen.count(2) == 3, "Stable Diffusion 1.5's decoder"
    return result


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_hooked_unet_agrees_with_edited_concatenations(unet, plan, size, monkeypatch):
    plain = run(unet, size)
    expected = run_with_edited_concatenations(unet, plan, size, monkeypatch)
    FreeU.attach(unet, plan)
    hooked = run(unet, size)
    scale = float(expected.abs().max())
    assert torch.isfinite(hooked).all()
    assert (hooked - expected).abs().max() < 1e-5 * scale
    assert (hooked - plain).abs().max() > 1e-3 * scale, "or this UNet shows nothing"


def test_the_hooks_work_in_channels_last(monkeypatch):
    unet = tiny_unet().to(memory_format=torch.channels_last)
    expected = run_with_edited_concatenations(unet, PLANS["strong"], (16, 16), monkeypatch)
    FreeU.attach(unet, PLANS["strong"])
    hooked = run(unet, memory_format=torch.channels_last)
    torch.testing.assert_close(hooked, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def hooked_blocks(unet):
    return [i for i, block in enumerate(unet.output_blocks) if block._forward_pre_hooks]


def test_only_blocks_of_four_and_two_times_the_model_channels_are_hooked(unet):
    FreeU.attach(unet, FreeUPlan(0))
    assert hooked_blocks(unet) == list(range(10)), "blocks 10 and 11 take 320 channels in SD 1.5"
    others = [module for module in unet.modules() if module not in set(unet.output_blocks)]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in others)


def test_the_layout_of_sdxl():
    """Three levels, no attention at the first: 4 concatenations at 1280 channels, 3 at 640, 2 at 320."""
    unet = openaimodel.UNetModel(
        image_size=8, in_channels=4, out_channels=4, model_channels=32, attention_resolutions=[4, 2],
        num_res_blocks=2, channel_mult=[1, 2, 4], num_heads=4, use_spatial_transformer=True, context_dim=32,
        legacy=False,
    )  # fmt: skip
    FreeU.attach(unet, FreeUPlan(0, b1=1.5, b2=1, s1=1, s2=1))
    assert hooked_blocks(unet) == list(range(7))
    seen = []
    for i in (3, 4):
        unet.output_blocks[i].register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    concatenations = []

    def spy(module, args):
        concatenations.append(args[0].clone())

    for i in (3, 4):
        unet.output_blocks[i].register_forward_pre_hook(spy, prepend=True)
    run(unet)
    assert not torch.equal(seen[0], concatenations[0]), "block 3 is stage 1, whose b is 1.5"
    assert torch.equal(seen[1], concatenations[1]), "block 4 is stage 2, whose b is 1"


def test_neutral_constants_change_no_bit(unet):
    plain = run(unet)
    FreeU.attach(unet, FreeUPlan(0, b1=1, b2=1, s1=1, s2=1))
    assert torch.equal(run(unet), plain)


def test_attaching_twice_is_attaching_once(unet):
    FreeU.attach(unet, PLANS["strong"])
    once = run(unet)
    FreeU.attach(unet, PLANS["paper"])
    FreeU.attach(unet, PLANS["strong"])
    assert torch.equal(run(unet), once)
    assert all(len(block._forward_pre_hooks) == 1 for block in list(unet.output_blocks)[:10])


def test_waves_that_are_kept_are_made_once_and_change_no_bit(unet, monkeypatch):
    FreeU.attach(unet, PLANS["strong"])
    expected = run(unet)
    made, make = [], freeu._waves_for
    monkeypatch.setattr(freeu, "_waves_for", lambda x: made.append(tuple(x.shape[2:])) or make(x))
    waves = {}
    for _ in range(3):
        FreeU.attach(unet, PLANS["strong"], waves)
        assert torch.equal(run(unet), expected)
        FreeU.detach(unet)
    assert made and len(made) == len(set(made)) == len(waves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_unet_under_autocast_is_drawn_with(unet, dtype):
    """Hidden maps and skips come in either precision there."""
    FreeU.attach(unet, PLANS["strong"])
    expected = run(unet)
    hooked = unet.output_blocks[0].register_forward_pre_hook(
        lambda m, args: (args[0].to(dtype), *args[1:]), prepend=True
    )
    try:
        with torch.autocast("cpu", torch.bfloat16):
            result = run(unet).float()
    finally:
        hooked.remove()
    assert (result - expected).square().mean().sqrt() < 0.05 * expected.square().mean().sqrt()


def test_detaching_restores_every_bit_and_may_be_repeated(unet):
    plain = run(unet)
    FreeU.detach(unet)
    FreeU.attach(unet, PLANS["strong"])
    assert FreeU.attached(unet) and not torch.equal(run(unet), plain)
    for _ in range(2):
        FreeU.detach(unet)
        assert not FreeU.attached(unet) and not hooked_blocks(unet)
        assert torch.equal(run(unet), plain)


def test_detaching_leaves_the_hooks_of_others(unet):
    calls = []
    handle = unet.output_blocks[0].register_forward_pre_hook(lambda module, args: calls.append(1))
    try:
        FreeU.attach(unet, PLANS["paper"])
        FreeU.detach(unet)
        run(unet)
    finally:
        handle.remove()
    assert calls == [1]


@pytest.mark.parametrize("where", [0, 5, 11])
def test_detaching_after_an_exception_inside_the_unet_restores_every_bit(unet, where):
    plain = run(unet)

    def interrupt(module, args):
        raise KeyboardInterrupt

    FreeU.attach(unet, PLANS["strong"])
    handle = unet.output_blocks[where].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(unet)
    handle.remove()
    FreeU.detach(unet)
    assert torch.equal(run(unet), plain)


def test_two_unets_do_not_share_their_state(unet):
    other = tiny_unet()
    plain = run(unet)
    FreeU.attach(other, PLANS["strong"])
    assert torch.equal(run(unet), plain) and not torch.equal(run(other), plain)
    FreeU.detach(unet)
    assert FreeU.attached(other)


class Transformer(nn.Module):
    """A model with a width but no decoder, as flow models are."""

    def __init__(self):
        super().__init__()
        self.model_channels = 32
        self.middle_block = nn.ModuleList([nn.Linear(3, 3)])


@pytest.mark.parametrize("module", [nn.Linear(3, 3), nn.Module(), nn.Sequential(nn.ReLU()), Transformer()])
def test_another_module_is_refused_with_a_message_and_not_changed(module):
    with pytest.raises(ValueError, match=rf"Stable Diffusion UNet.*{type(module).__name__}"):
        FreeU.attach(module, FreeUPlan(0))
    assert not FreeU.attached(module)
    FreeU.detach(module)


# ---- the plan --------------------------------------------------------------------------------------------------------


@given(first=st.integers(0, 20), last=st.none() | st.integers(0, 20), call=st.integers(0, 20))
def test_a_plan_covers_first_to_last_inclusive(first, last, call):
    end = math.inf if last is None else last
    assert FreeUPlan(first, last).covers(call) == (first <= call <= end)
