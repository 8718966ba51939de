"""What must hold on a GPU: every solver, Free-U and golden noise, each in every precision.

A check is given a place and returns the largest difference of its result from the CPU's, relative to the result's RMS.
It raises ``AssertionError`` where something does not hold. The same checks run in the tests, on a stand-in for a GPU.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from hpsampler.freeu import FreeU, FreeUPlan, Waves, scale_low_frequencies
from hpsampler.golden.npnet import SIZE, TOKENS, NPNet
from hpsampler.golden.search import GoldenForm, golden_latent, sigma_below
from hpsampler.guidance import with_guidance
from hpsampler.solvers import SOLVERS, sample_unipc
from hpsampler.statistics.coefficients import Statistics

from .place import Between, Place
from .unet import UNet, UNetSize

__all__ = ["PRECISIONS", "SMALL_UNET", "Check", "apart", "checks", "guided"]

PRECISIONS = MappingProxyType({"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16})

TOLERANCES: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 0.15}
)
"""Largest RMS difference from the CPU, relative to the result's RMS. It is ten times what another rounding inside the
model makes on a CPU, and more for float32, as other kernels have other exponentials."""

TF32_TOLERANCE = 1e-2
"""The same where a GPU's convolutions may round what they multiply to TF32, as torch lets them by itself."""

SMALL_UNET = UNetSize(16, (1, 2, 4), (1, 1, 0), 32, heads=2, groups=8)
SHAPE = (2, 4, 16, 16)

KEPT = (14.6146, 4.5188, 1.9615, 1.0010, 0.5015, 0.1320)
TO_ZERO = (14.6146, 6.5, 3.4, 1.7, 0.8, 0.3, 0.0)


@dataclass(frozen=True)
class Check:
    """Something that must hold.

    Attributes:
        run: returns the difference from the CPU.
        tolerance: that it may have.
        needs: packages without which it cannot run.
    """

    name: str
    run: Callable[[Place], float]
    tolerance: float
    needs: tuple[str, ...] = ()


def guided(x: torch.Tensor, sigma: torch.Tensor, /, cond_scale: float = 3.0, **_: Any) -> torch.Tensor:
    """The guided denoiser of data that are +-0.8, with a prompt that asks for 0.8, in the precision of x."""
    variance = sigma.to(x).view(-1, 1, 1, 1) ** 2
    total = 0.05 + variance
    own, prior = x * 0.05 / total, variance / total * 0.8
    unconditional, conditional = own + prior * torch.tanh(0.8 * x / total), own + prior
    return unconditional + cond_scale * (conditional - unconditional)


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """RMS difference relative to the RMS of ``theirs``, which is on the CPU; whether both are finite is checked."""
    one, other = ours.detach().cpu().double(), theirs.detach().double()
    assert bool(torch.isfinite(one).all()), "the result is not finite"
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, f"{ours.dtype} of {tuple(ours.shape)}"
    return float((one - other).square().mean().sqrt() / other.square().mean().sqrt().clamp_min(1e-12))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- solvers ---------------------------------------------------------------------------------------------------------


def statistics(*shape: int) -> Statistics:
    """Made-up statistics of that shape, near those of real data."""
    lambdas = -np.log(np.geomspace(15, 0.03, 26))
    share = 1 / (1 + 0.4 * np.exp(2 * lambdas))
    spread = 1 + 0.1 * np.random.default_rng(0).standard_normal((1, *shape))
    l, b = ((spread * part[:, None, None, None]).astype(np.float32) for part in (share, 0.05 * share))  # noqa: E741
    return Statistics(lambdas, l, 0.1 * l, b)


def solver_cases() -> dict[str, tuple[str, dict[str, Any], tuple[float, ...]]]:
    """By name: the solver, its arguments, and the sigmas."""
    cases: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
        "1S": ("dpmpp_1s", {}, KEPT),
        "2M": ("dpmpp_2m", {}, KEPT),
        "2M, extrapolated": ("dpmpp_2m", {"extrapolate": True}, TO_ZERO),
        "2M, calibrated factors": ("dpmpp_2m", {"factors": (0.0, 1.2, 0.8, 1.0, 0.9, 0.4)}, TO_ZERO),
        "2M, analytical first step": ("dpmpp_2m", {"analytical_first_step": 1.0}, TO_ZERO),
        "UniPC, no corrector": ("unipc", {"corrector": False}, TO_ZERO),
        "UniPC, extrapolated": ("unipc", {"extrapolate": True}, TO_ZERO),
    }
    for order in (1, 2, 3):
        for prediction, variant in (("data", "bh2"), ("noise", "bh1")):
            options = {"order": order, "prediction": prediction, "variant": variant}
            cases[f"UniPC-{order}, {prediction}"] = ("unipc", options, KEPT)
        for label, found in (
            ("no statistics", None),
            ("statistics by channel", statistics(SHAPE[1], 1, 1)),
            ("statistics by element", statistics(*SHAPE[1:])),
        ):
            cases[f"DPM-v3-{order}, {label}"] = ("dpm_v3", {"order": order, "statistics": found}, TO_ZERO)
    return cases


def solver_check(
    solver: str, options: dict[str, Any], sigmas: tuple[float, ...], dtype: torch.dtype, place: Place
) -> float:
    """A solver with guidance per call; between two calls the host does not wait."""
    levels = torch.tensor(sigmas)
    x = (draw(*SHAPE) * sigmas[0]).to(dtype)
    scales = [3.0 - 0.3 * index for index in range(len(sigmas) - 1)]

    def run(x: torch.Tensor, model: Callable[..., torch.Tensor]) -> torch.Tensor:
        return SOLVERS[solver](with_guidance(model, scales), x, levels, **options)

    there = x.to(place.device)
    with Between(guided, lambda call: place.without_waiting()) as model:
        result = run(there, model)
    assert result.device == there.device, f"the result is on {result.device}"
    return apart(result, run(x, guided))


def fresh_noise_check(dtype: torch.dtype, place: Place) -> float:
    """UniPC's stochastic corrector, with noise drawn on the device."""
    levels, x = torch.tensor(KEPT), (draw(*SHAPE) * KEPT[0]).to(dtype)

    def run(x: torch.Tensor, model: Callable[..., torch.Tensor]) -> torch.Tensor:
        drawn = iter([draw(*SHAPE, seed=call).to(x) for call in range(len(KEPT))])
        return sample_unipc(model, x, levels, noise_level=0.5, noise_sampler=lambda *_: next(drawn))

    with Between(guided, lambda call: place.without_waiting()) as model:
        result = run(x.to(place.device), model)
    return apart(result, run(x, guided))


def graph_check(solver: str, options: dict[str, Any], sigmas: tuple[float, ...], place: Place) -> float:
    """A CUDA graph of all that a solver does between its third and its fourth call, in place of the doing."""
    levels, x = torch.tensor(sigmas), (draw(*SHAPE) * sigmas[0]).to(place.device)

    @contextlib.contextmanager
    def captured(call: int) -> Iterator[None]:
        if call != 2:
            yield
            return
        graph = torch.cuda.CUDAGraph()
        kept.append(graph)
        with torch.cuda.graph(graph):
            yield
        graph.replay()

    kept: list[Any] = []
    with Between(guided, captured) as model:
        result = SOLVERS[solver](model, x, levels, **options)
    return apart(result, SOLVERS[solver](guided, x, levels, **options).cpu())


# ---- Free-U ----------------------------------------------------------------------------------------------------------


def small_unet() -> tuple[UNet, tuple[torch.Tensor, ...]]:
    """A small UNet in Stable Diffusion's layout, and what it is called with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet(SMALL_UNET).eval().requires_grad_(False)
    return unet, (draw(*SHAPE), torch.tensor([900.0, 30.0]), draw(2, TOKENS, SMALL_UNET.context))


def freeu_check(version: int, dtype: torch.dtype, place: Place) -> float:
    """Free-U in a UNet's forward; where its waves are there already, the host does not wait."""
    unet, given = small_unet()
    there = copy.deepcopy(unet).to(place.device, dtype)
    own = [each.to(place.device, dtype) for each in given]
    waves: Waves = {}
    plan = FreeUPlan(0, b1=1.3, b2=1.4, s1=0.9, s2=0.2, version=version)
    for watched in (False, True):
        with place.without_waiting() if watched else contextlib.nullcontext():
            FreeU.attach(there, plan, waves)
            result = there(*own)
            FreeU.detach(there)
    # a CPU has no kernels in half precision for all of it, so the reference is in float32 there
    FreeU.attach(unet, plan)
    return apart(result.float(), unet(*given))


def freeu_autocast_check(place: Place) -> float:
    """Free-U on maps in float32 and in half precision under automatic mixed precision."""
    device, dtype = place.autocast()
    worst = 0.0
    for precision in (torch.float32, dtype):
        x = draw(2, 8, 32, 32).to(precision)
        with torch.autocast(device.type, dtype):
            result = scale_low_frequencies(x.to(device), 0.2)
        worst = max(worst, apart(result, scale_low_frequencies(x, 0.2)))
    return worst


# ---- golden noise ----------------------------------------------------------------------------------------------------


def golden_check(form: GoldenForm, dtype: torch.dtype, place: Place) -> float:
    """Golden noise by two calls of the model, between which the host does not wait."""
    sigma = KEPT[0]
    x = (draw(*SHAPE) * sigma).to(dtype)
    plain = {"cond_scale": 1.0}

    def run(x: torch.Tensor, model: Callable[..., torch.Tensor]) -> torch.Tensor:
        return golden_latent(form, x, sigma, sigma_below(sigma), model, plain_args=plain)

    def context(call: int) -> AbstractContextManager[Any]:
        return place.without_waiting() if call == 0 else contextlib.nullcontext()

    with Between(guided, context) as model:
        result = run(x.to(place.device), model)
    return apart(result, run(x, guided))


def npnet_check(dtype: torch.dtype, place: Place) -> float:
    """NPNet with random weights; it computes in float32 whatever the noise's precision."""
    width = 64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NPNet(width).eval().requires_grad_(False)
    network.alpha.fill_(1)
    network.beta.fill_(1)
    noise, prompt = draw(1, 4, SIZE, SIZE).to(dtype), draw(1, TOKENS, width, seed=1).to(dtype)
    there = copy.deepcopy(network).to(place.device)
    return apart(there(noise.to(place.device), prompt.to(place.device)), network(noise, prompt))


# ---- all of them -----------------------------------------------------------------------------------------------------


def checks(graphs: bool = False) -> list[Check]:
    """All checks but those of jobs.

    Args:
        graphs: whether CUDA graphs are checked too, which need a GPU.
    """
    found: list[Check] = []
    for precision, dtype in PRECISIONS.items():
        tolerance = TOLERANCES[dtype]
        for name, case in solver_cases().items():
            found.append(Check(f"{name}; {precision}", partial(solver_check, *case, dtype), tolerance))
        found.append(Check(f"UniPC, fresh noise; {precision}", partial(fresh_noise_check, dtype), tolerance))
        for version in (1, 2):
            found.append(
                Check(
                    f"Free-U version {version}; {precision}",
                    partial(freeu_check, version, dtype),
                    max(tolerance, TF32_TOLERANCE),
                )
            )
        for form in GoldenForm:
            found.append(
                Check(f"golden noise {form.value}; {precision}", partial(golden_check, form, dtype), tolerance)
            )
        found.append(Check(f"NPNet; {precision}", partial(npnet_check, dtype), max(tolerance, TF32_TOLERANCE)))
    found.append(Check("Free-U under autocast", freeu_autocast_check, TOLERANCES[torch.bfloat16]))
    if graphs:
        for name, case in solver_cases().items():
            found.append(Check(f"CUDA graph of a step: {name}", partial(graph_check, *case), TOLERANCES[torch.float32]))
    return found
