"""k-diffusion's DPM++ 2M, which ours is measured against: its own, or the same operations where it is not installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .oracles_import import k_diffusion_sampling

__all__ = ["k_diffusion_dpmpp_2m", "like_k_diffusion"]


def k_diffusion_dpmpp_2m() -> Callable[..., torch.Tensor]:
    """``sample(model, x, sigmas)``."""
    try:
        sample = k_diffusion_sampling().sample_dpmpp_2m
    except ModuleNotFoundError:
        return like_k_diffusion
    return lambda model, x, sigmas: sample(model, x, sigmas, disable=True)


@torch.no_grad()
def like_k_diffusion(model: Callable[..., torch.Tensor], x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """DPM++ 2M (arXiv 2211.01095, algorithm 2) with tensors as coefficients, in k-diffusion's order of operations."""

    def log_snr(sigma: torch.Tensor) -> torch.Tensor:
        return sigma.log().neg()

    def sigma_of(t: torch.Tensor) -> torch.Tensor:
        return t.neg().exp()

    ones = x.new_ones([x.shape[0]])
    previous: Any = None
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * ones)
        t, t_next = log_snr(sigmas[i]), log_snr(sigmas[i + 1])
        h = t_next - t
        if previous is None or sigmas[i + 1] == 0:
            x = (sigma_of(t_next) / sigma_of(t)) * x - (-h).expm1() * denoised
        else:
            r = (t - log_snr(sigmas[i - 1])) / h
            slope = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * previous
            x = (sigma_of(t_next) / sigma_of(t)) * x - (-h).expm1() * slope
        previous = denoised
    return x
