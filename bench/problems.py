"""Problems whose denoiser is known exactly, so that the error of a sampler can be measured without a trained model.

Each is a class-conditional mixture of diagonal Gaussians with equal weights. For noise level sigma the posterior mean
of mode m is ``mean + var / (var + sigma^2) (x - mean)``, and the denoiser weights the modes by their evidence::

    D(x, sigma, c)  over the modes of class c          conditional
    D(x, sigma)     over all modes                     unconditional
    guided          D_u + w (D_c - D_u)

"Latents" are 4 channels of 16x16 in an orthonormal DCT basis, so their covariances are diagonal there; f is the radial
DCT frequency and p_a(f) = (f + 1/2)^-a, scaled to mean 1. Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["PROBLEMS", "Problem", "reference_endpoint", "relative_error"]

LATENT = (4, 16, 16)


@dataclass(frozen=True)
class Problem:
    """A mixture of Gaussians; means and variances have shape (classes, modes, dims), float64."""

    name: str
    means: torch.Tensor
    variances: torch.Tensor

    @property
    def classes(self) -> int:
        return self.means.shape[0]

    @property
    def dims(self) -> int:
        return self.means.shape[2]

    def labels(self, batch: int) -> torch.Tensor:
        """The classes of a batch: all classes in turn."""
        return torch.arange(batch) % self.classes

    def noise(self, batch: int, seed: int) -> torch.Tensor:
        """Unit noise, shape (batch, dims)."""
        return torch.from_numpy(np.random.default_rng(seed).standard_normal((batch, self.dims)))

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor, cfg_scale: float) -> torch.Tensor:
        """The exact guided denoiser; x is (batch, dims), sigma and labels are (batch,)."""
        total = self.variances + sigma.to(x).view(-1, 1, 1, 1) ** 2
        difference = x[:, None, None, :] - self.means
        evidence = -0.5 * (difference**2 / total + total.log()).sum(-1)
        posterior = self.means + self.variances / total * difference
        chosen = torch.arange(len(x))
        conditional_weights = evidence[chosen, labels].softmax(-1)
        conditional = (conditional_weights[..., None] * posterior[chosen, labels]).sum(1)
        if cfg_scale == 1:
            return conditional
        weights = evidence.flatten(1).softmax(-1)
        unconditional = (weights[..., None] * posterior.flatten(1, 2)).sum(1)
        return unconditional + cfg_scale * (conditional - unconditional)

    def model(self, labels: torch.Tensor, cfg_scale: float) -> Callable[..., torch.Tensor]:
        """The denoiser in k-diffusion's form, ``model(x, sigma)``; ``cond_scale`` is the guidance of one call."""

        def denoiser(x: torch.Tensor, sigma: torch.Tensor, cond_scale: float = cfg_scale, **_: Any) -> torch.Tensor:
            return self.denoise(x, sigma, labels, cond_scale)

        return denoiser


def reference_endpoint(problem: Problem, noise: torch.Tensor, cfg_scale: float, sigma_max: float) -> torch.Tensor:
    """The guided probability-flow ODE's endpoint from ``noise * sigma_max``: 400 Heun steps to 0.03, then one call."""
    model = problem.model(problem.labels(len(noise)), cfg_scale)
    levels = torch.logspace(math.log10(sigma_max), math.log10(0.03), 401, dtype=torch.float64)
    x = noise * sigma_max
    for sigma, sigma_next in zip(levels.tolist(), levels[1:].tolist()):
        slope = (x - model(x, torch.full((len(x),), sigma))) / sigma
        euler = x + (sigma_next - sigma) * slope
        slope_next = (euler - model(euler, torch.full((len(x),), sigma_next))) / sigma_next
        x = x + (sigma_next - sigma) * (slope + slope_next) / 2
    return model(x, torch.full((len(x),), 0.03))


def relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    """RMSE to the reference endpoints relative to the RMS of the reference."""
    return float(((result - reference) ** 2).mean().sqrt() / (reference**2).mean().sqrt())


def _power_spectrum(exponent: float) -> np.ndarray:
    """p_a(f) over the flattened latent."""
    _, height, width = LATENT
    f = np.hypot(np.arange(height)[:, None], np.arange(width)[None, :])
    p = (f + 0.5) ** -exponent
    return np.broadcast_to(p / p.mean(), LATENT).reshape(-1)


def _problem(name: str, means: np.ndarray, variances: np.ndarray | float) -> Problem:
    variances = np.broadcast_to(variances, means.shape).copy()
    return Problem(name, torch.from_numpy(means), torch.from_numpy(variances))


def gauss1f2() -> Problem:
    rng, p = np.random.default_rng(101), _power_spectrum(2)
    means = 0.5 * np.sqrt(p) * rng.standard_normal((8, 1, p.size))
    spread = np.exp(0.4 * rng.standard_normal((8, 1, 1)) + 0.5 * rng.standard_normal((8, 1, p.size)))
    return _problem("gauss1f2", means, 0.75 * p * spread)


def gauss1f1() -> Problem:
    rng, p = np.random.default_rng(102), _power_spectrum(1)
    means = 0.35 * np.sqrt(p) * rng.standard_normal((8, 1, p.size))
    spread = np.exp(0.3 * rng.standard_normal((8, 1, 1)) + 0.7 * rng.standard_normal((8, 1, p.size)))
    return _problem("gauss1f1", means, 0.75 * p * spread + 1e-4)


def lowrank() -> Problem:
    rng, p = np.random.default_rng(103), _power_spectrum(1)
    means = 0.3 * np.sqrt(p) * rng.standard_normal((8, 1, p.size))
    variances = np.full((8, 1, p.size), 1e-5)
    for label in range(8):
        dims = rng.choice(p.size, 96, replace=False, p=p / p.sum())
        variances[label, 0, dims] += 0.3 * p[dims] * p.size / 96
    return _problem("lowrank", means, variances)


def mix8() -> Problem:
    rng, p = np.random.default_rng(104), _power_spectrum(1.5)
    means = 0.75 * np.sqrt(p) * rng.standard_normal((4, 2, p.size))
    return _problem("mix8", means, 0.4 * p * np.exp(0.6 * rng.standard_normal((4, 2, p.size))))


def mix64() -> Problem:
    rng = np.random.default_rng(105)
    means = 0.7 * rng.standard_normal((8, 1, 64)) + 0.7 * rng.standard_normal((8, 8, 64))
    return _problem("mix64", means, 0.08**2)


def toy2d() -> Problem:
    turn = np.linspace(0, 1, 64)
    angle, radius = 2 * 2 * np.pi * turn, 0.25 + 1.5 * turn
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    return _problem("toy2d", points.reshape(8, 8, 2), 0.04**2)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    make.__name__: make for make in (gauss1f2, gauss1f1, lowrank, mix8, mix64, toy2d)
}
"""The six problems by name; every call builds the same problem again."""
