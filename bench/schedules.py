"""The WebUI's schedule types (A1111 v1.10.1), for comparison, and Stable Diffusion's noise table.

They are written from the published formulas; a test in a running WebUI compares them with its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from scipy.stats import beta

from hpsampler.noise import NoiseModel
from hpsampler.schedule import base_karras

__all__ = ["SCHEDULES", "stable_diffusion_noise"]

Schedule = Callable[[NoiseModel, int], torch.Tensor]

ALIGN_YOUR_STEPS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
"""The sigmas for SD 1.5 as published by its authors (arXiv 2404.14507)."""


def stable_diffusion_noise() -> NoiseModel:
    """Stable Diffusion's noise table: scaled-linear betas from 0.00085 to 0.012."""
    return NoiseModel.of_stable_diffusion()


def _to_zero(sigmas: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.append(sigmas, 0.0), dtype=torch.float32)


def _log_linear(noise: NoiseModel, timesteps: np.ndarray) -> np.ndarray:
    """k-diffusion's timestep to sigma: linear in log sigma."""
    return np.exp(np.interp(timesteps, np.arange(len(noise)), np.log(noise.sigmas)))


def karras(noise: NoiseModel, steps: int) -> torch.Tensor:
    if steps == 1:
        return _to_zero(np.array([noise.sigma_max]))
    return _to_zero(np.array(base_karras(steps, 7.0, noise.sigma_min, noise.sigma_max)))


def exponential(noise: NoiseModel, steps: int) -> torch.Tensor:
    return _to_zero(np.exp(np.linspace(np.log(noise.sigma_max), np.log(noise.sigma_min), steps)))


def sgm_uniform(noise: NoiseModel, steps: int) -> torch.Tensor:
    return _to_zero(_log_linear(noise, np.linspace(len(noise) - 1, 0, steps + 1)[:-1]))


def align_your_steps(noise: NoiseModel, steps: int) -> torch.Tensor:
    positions = np.linspace(0, 1, len(ALIGN_YOUR_STEPS))
    return _to_zero(np.exp(np.interp(np.linspace(0, 1, steps), positions, np.log(ALIGN_YOUR_STEPS))))


def simple(noise: NoiseModel, steps: int) -> torch.Tensor:
    stride = len(noise) / steps
    return _to_zero(noise.sigmas[[-(1 + int(i * stride)) for i in range(steps)]])


def beta_06(noise: NoiseModel, steps: int) -> torch.Tensor:
    """The beta distribution's quantiles (arXiv 2407.12173), alpha and beta at the WebUI's default 0.6."""
    share = beta.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6)
    return _to_zero(noise.sigma_min + share * (noise.sigma_max - noise.sigma_min))


def kl_optimal(noise: NoiseModel, steps: int) -> torch.Tensor:
    """Even steps in arctan sigma (arXiv 2404.14507); ends at the smallest sigma, not at 0."""
    share = np.arange(steps + 1) / steps
    angle = share * np.arctan(noise.sigma_min) + (1 - share) * np.arctan(noise.sigma_max)
    return torch.tensor(np.tan(angle), dtype=torch.float32)


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        "Karras": karras,
        "Exponential": exponential,
        "SGM Uniform": sgm_uniform,
        "Align Your Steps": align_your_steps,
        "Simple": simple,
        "Beta": beta_06,
        "KL Optimal": kl_optimal,
    }
)
"""The schedules by the WebUI's names."""
