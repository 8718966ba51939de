"""The model's noise table, and the only place where sigma and timestep are converted into each other.

A diffusion model is trained on a table of T noise levels. With a_t = ``alphas_cumprod[t]``::

    x_t = sqrt(a_t) * x_0 + sqrt(1 - a_t) * noise          variance preserving (VP, diffusers)
    sigma_t = sqrt((1 - a_t) / a_t)                        variance exploding (VE, k-diffusion)

Everything in this package works in VE: ``x = x_0 + sigma * noise``. A timestep is a real index into the table, from 0
(nearly clean) to T - 1 (nearly pure noise).

The two directions interpolate differently on purpose, as in the code of arXiv 2510.02390: sigma -> t is linear in log
sigma, as in k-diffusion; t -> sigma is linear in ``alphas_cumprod``. They agree on the table's entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import numpy as np

from .checks import abbreviated

if TYPE_CHECKING:
    import torch

    ArrayLike = Union[np.ndarray, torch.Tensor, list[float], tuple[float, ...]]

__all__ = ["ALPHAS_CUMPROD_FLOOR", "ZERO_TERMINAL_SNR_SIGMA", "NoiseModel"]

ALPHAS_CUMPROD_FLOOR = 4.8973451890853435e-08
"""Replaces a last alphas_cumprod of zero, so that sigma stays finite (4518.8).
A1111 uses the same value, so both have the same schedule."""

ZERO_TERMINAL_SNR_SIGMA = 1000.0
"""A table whose largest sigma is above this was rescaled to (nearly) zero terminal SNR."""


def _as_float64(values: ArrayLike, name: str) -> np.ndarray:
    try:
        if hasattr(values, "detach"):
            values = values.detach().cpu().double().numpy()
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be a row of numbers, got {abbreviated(values)}") from None
    if array.ndim != 1 or array.size < 2:
        raise ValueError(f"{name} must be one-dimensional with at least 2 entries, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array


@dataclass(frozen=True, eq=False)
class NoiseModel:
    """A model's noise table in float64.

    Attributes:
        alphas_cumprod: shape (T,), strictly decreasing, in (0, 1).
        sigmas: shape (T,), strictly increasing, ``sqrt((1 - alphas_cumprod) / alphas_cumprod)``.

    Make one with :meth:`from_alphas_cumprod` or :meth:`from_sigmas`, which check the table.
    """

    alphas_cumprod: np.ndarray
    sigmas: np.ndarray

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: ArrayLike) -> NoiseModel:
        """From the cumulative product of alphas, any float type or device.

        A last entry of exactly 0 (zero terminal SNR) is replaced by a tiny number, see ``ALPHAS_CUMPROD_FLOOR``.

        Raises:
            ValueError: the values are not one-dimensional, finite, between 0 and 1, and strictly decreasing.
        """
        table = _as_float64(alphas_cumprod, "alphas_cumprod")
        if table[-1] == 0:
            table[-1] = min(ALPHAS_CUMPROD_FLOOR, table[-2] / 2)
        if table.min() <= 0 or table.max() >= 1:
            raise ValueError(f"alphas_cumprod must lie between 0 and 1, got {table.min()} to {table.max()}")
        if not (np.diff(table) < 0).all():
            index = int(np.argmax(np.diff(table) >= 0))
            raise ValueError(
                f"alphas_cumprod must strictly decrease, got {table[index]} then {table[index + 1]} at index {index}"
            )
        sigmas = np.sqrt((1 - table) / table)
        return cls(table, sigmas)

    @classmethod
    def of_stable_diffusion(cls) -> NoiseModel:
        """The table of every Stable Diffusion family: 1000 betas, their square roots linear, from 0.00085 to 0.012."""
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        return cls.from_alphas_cumprod(np.cumprod(1 - betas))

    @classmethod
    def from_sigmas(cls, sigmas: ArrayLike) -> NoiseModel:
        """From a model's VE sigmas in either order; a 0, which k-diffusion appends, is dropped.

        Raises:
            ValueError: the sigmas are not one-dimensional, finite, not negative, and strictly monotonic.
        """
        table = _as_float64(sigmas, "sigmas")
        if table[0] > table[-1]:
            table = table[::-1].copy()
        if table[0] == 0:
            table = table[1:]
        if table.size < 2 or table[0] <= 0:
            raise ValueError(f"sigmas must hold at least 2 positive entries, got {table.tolist()[:4]}")
        if not (np.diff(table) > 0).all():
            raise ValueError("sigmas must be strictly monotonic, got equal or unordered entries")
        return cls(1 / (1 + table**2), table)

    def __len__(self) -> int:
        return len(self.sigmas)

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the table reaches (nearly) pure noise, with a sigma in the thousands."""
        return self.sigma_max > ZERO_TERMINAL_SNR_SIGMA

    def sigma_to_t(self, sigma: ArrayLike | float) -> np.ndarray:
        """The timestep of a sigma: linear in log sigma between entries, not rounded, clamped to [0, T - 1].

        As k-diffusion's ``DiscreteSchedule.sigma_to_t(quantize=False)``. The result has the shape of ``sigma``.
        """
        values = _scalar_or_array(sigma)
        with np.errstate(divide="ignore"):
            log_sigma = np.log(np.maximum(values, 0))
        return np.interp(log_sigma, np.log(self.sigmas), np.arange(len(self), dtype=np.float64))

    def t_to_sigma(self, t: ArrayLike | float) -> np.ndarray:
        """The sigma of a real timestep: linear in ``alphas_cumprod`` between entries, clamped to [0, T - 1].

        As in the code of arXiv 2510.02390. The result has the shape of ``t``.
        """
        alphas_cumprod = np.interp(_scalar_or_array(t), np.arange(len(self), dtype=np.float64), self.alphas_cumprod)
        return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)

    def t_of_end(self, sigma: float) -> float:
        """The exact inverse of :meth:`t_to_sigma`, for schedules that must end at a given sigma."""
        return float(np.interp(-1 / (1 + sigma**2), -self.alphas_cumprod, np.arange(len(self), dtype=np.float64)))


def _scalar_or_array(values: ArrayLike | float) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)
