"""Other people's solvers and Free-U, to hold ours to."""

from __future__ import annotations

from typing import Any

import torch

from bench.oracles_import import k_diffusion, k_diffusion_sampling

__all__ = ["fft_low_frequencies", "k_diffusion", "k_diffusion_sampling", "mixture_denoiser"]


def fft_low_frequencies(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Free-U's filter as its authors write it: FFT, the centre 2x2 of the shifted spectrum times ``scale``, back."""
    wide = x if x.dtype == torch.float64 else x.float()
    height, width = x.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fftn(wide, dim=(-2, -1)), dim=(-2, -1))
    mask = torch.ones_like(wide)
    rows, columns = height // 2, width // 2
    mask[..., max(rows - 1, 0) : rows + 1, max(columns - 1, 0) : columns + 1] = scale
    spectrum = torch.fft.ifftshift(spectrum * mask, dim=(-2, -1))
    return torch.fft.ifftn(spectrum, dim=(-2, -1)).real.to(x.dtype)


def mixture_denoiser(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
    """The denoiser of the reference numbers: elementwise posterior mean of two Gaussians at +-0.8, variance 0.05."""
    mean, variance = 0.8, 0.05
    sigma2 = sigma.to(x).view(-1, *[1] * (x.ndim - 1)) ** 2
    total = variance + sigma2
    return x * variance / total + sigma2 / total * mean * torch.tanh(mean * x / total)
