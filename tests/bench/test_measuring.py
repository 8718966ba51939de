"""What times and counts are taken with: side by side, launches, and what ours is compared with."""

from __future__ import annotations

import pytest
import torch

from bench import theirs, timing
from bench.launches import CountOps, launches, launches_per_step
from bench.oracles_import import k_diffusion_sampling
from hpsampler.schedule import base_karras
from tests.oracles import mixture_denoiser

CPU = torch.device("cpu")


def test_both_are_called_in_turn_and_the_first_calls_do_not_count(monkeypatch):
    told, clock = [], iter([100.0, 100.0, 1.0, 10.0, 3.0, 30.0, 2.0, 20.0])
    monkeypatch.setattr(timing, "time_once", lambda function, device: (function(), next(clock))[1])
    found = timing.side_by_side(lambda: told.append("ours"), lambda: told.append("theirs"), CPU, 3)
    assert found == (2.0, 20.0) and told == ["ours", "theirs"] * 4


def test_the_count_sees_operations_and_no_views():
    x = torch.ones(2, 3)
    with CountOps() as mode:
        x[:, 0].detach().t().add_(1)
        torch.cat([x, x.clone()])
    assert mode.count == 3
    assert launches(lambda: x + 1, CPU) == 1


def test_the_start_of_a_run_does_not_count_for_a_step():
    x = torch.ones(3)

    def run(steps):
        x.exp().log()
        for _ in range(steps):
            x.add_(1).mul_(0.5)

    assert launches_per_step(run, CPU) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_k_diffusion_is_missing_its_numbers_and_operations_are_not(dtype, monkeypatch):
    sigmas = torch.tensor([*base_karras(7, 7.0, 0.03, 14.6), 0.0], dtype=dtype)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=dtype) * 14.6
    original = theirs.k_diffusion_dpmpp_2m()
    expected = k_diffusion_sampling().sample_dpmpp_2m(mixture_denoiser, x, sigmas, disable=True)
    assert torch.equal(original(mixture_denoiser, x, sigmas), expected)

    def nowhere():
        raise ModuleNotFoundError("k-diffusion is not installed")

    monkeypatch.setattr(theirs, "k_diffusion_sampling", nowhere)
    ours = theirs.k_diffusion_dpmpp_2m()
    assert ours is theirs.like_k_diffusion
    torch.testing.assert_close(ours(mixture_denoiser, x, sigmas), expected, rtol=1e-6, atol=1e-6)
    counts = [launches(lambda each=each: each(mixture_denoiser, x, sigmas), CPU) for each in (ours, original)]
    assert counts[0] == counts[1]
