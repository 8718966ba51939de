"""What all solvers share: exponential-integrator coefficients, and the loop's plumbing.

In VE form every solver here integrates, with lambda = -log sigma and h = lambda' - lambda::

    data prediction    x' = (sigma'/sigma) x + sigma' * integral exp(l) D dl
    noise prediction   x' = x - sigma' * integral exp(...) eps dl

and approximates the network's output by a polynomial through past outputs. Whatever the order, one step is then a
*linear* map of the state and of past outputs, whose weights depend on the sigmas alone. They are computed once per
run, in float64 on the CPU, by small pure functions; the loop only multiplies and adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Protocol

import torch

__all__ = [
    "Callback",
    "Model",
    "NoiseSampler",
    "Run",
    "Step",
    "analytical_output",
    "first_order",
    "log_step",
    "step_ratio",
]

MIN_STEP_RATIO = 1e-3
"""A past point nearer than this fraction of a step would give a slope of rounding noise, so the order drops instead."""


class Model(Protocol):
    """A k-diffusion denoiser: ``model(x, sigma, **extra_args) -> denoised``; sigma has shape (batch,)."""

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, /, **extra_args: Any) -> torch.Tensor: ...


Callback = Callable[[dict[str, Any]], object]

NoiseSampler = Callable[[float, float], torch.Tensor]
"""As in k-diffusion: ``noise_sampler(sigma, sigma_next)`` returns unit noise in the shape of x, seeded by image."""


class Step(NamedTuple):
    """One update as a linear map: ``x' = state * x + sum_k outputs[k] * m[k]``, newest output first."""

    state: float
    outputs: tuple[float, ...]

    def __call__(self, x: torch.Tensor, outputs: list[torch.Tensor]) -> torch.Tensor:
        terms = list(zip(outputs, self.outputs))
        if self.state == 0:
            output, weight = terms.pop(0)
            result = output * weight
        elif self.state == 1:
            output, weight = terms.pop(0)
            result = torch.add(x, output, alpha=weight)
        else:
            result = x * self.state
        for output, weight in terms:
            result.add_(output, alpha=weight)
        return result


def log_step(sigma: float, sigma_next: float) -> float:
    """h = lambda' - lambda = log(sigma / sigma'); infinite when the step goes to 0."""
    return math.inf if sigma_next == 0 else math.log(sigma / sigma_next)


def first_order(sigma: float, sigma_next: float) -> Step:
    """First-order DPM-Solver++, which equals DDIM and Euler (arXiv 2211.01095, eq. 9); a step to sigma 0 gives D.

    x' = (sigma'/sigma) x - expm1(-h) D
    """
    return Step(sigma_next / sigma, (-math.expm1(-log_step(sigma, sigma_next)),))


def analytical_output(sigma: float, share: float) -> float:
    """Weight w of the first output D = w x, which needs no model call (GENIE, arXiv 2210.05475, section 3).

    At the first sigma x is nearly pure noise, so the network's noise is taken to be ``share * x / sqrt(1 + sigma^2)``.
    arXiv 2510.02390 uses a share of 1, and 0.975 in its second script.
    """
    return 1 - share * sigma / math.sqrt(1 + sigma**2)


def step_ratio(h_past: float, h: float) -> Optional[float]:
    """Distance of a past point in units of the current step; None where that point cannot be used for a slope.

    Multistep formulas divide by zero or blow up at equal or rising neighbours and at a step to sigma 0.
    """
    if not math.isfinite(h) or h <= 0 or h_past / h < MIN_STEP_RATIO:
        return None
    return h_past / h


@dataclass(frozen=True)
class Run:
    """The sigmas of one sampling run, checked once: as floats for the coefficients, as rows for the model.

    Attributes:
        sigmas: floats, ``steps + 1`` of them.
        rows: shape (steps + 1, batch), on the device and in the dtype of ``x``; row i is the model's sigma at step i.
        original: the sigmas as given, on the CPU, for the callback.
        callback: called once per step, or None.
    """

    sigmas: list[float]
    rows: torch.Tensor
    original: torch.Tensor
    callback: Optional[Callback]

    @classmethod
    def of(cls, x: torch.Tensor, sigmas: torch.Tensor, callback: Optional[Callback]) -> Run:
        """Check the sigmas and move them to the device of ``x``.

        Raises:
            ValueError: the sigmas are not one-dimensional or not finite, or one before the last is not above 0.
        """
        if sigmas.ndim != 1 or len(sigmas) < 1:
            raise ValueError(f"sigmas must be one-dimensional and not empty, got shape {tuple(sigmas.shape)}")
        # at most one transfer (none where the host keeps its sigmas on the CPU); nothing after it waits for the device
        original = sigmas.detach().cpu()
        levels: list[float] = original.double().tolist()
        for i, level in enumerate(levels):
            if not math.isfinite(level) or level < 0 or (level == 0 and i < len(levels) - 1):
                raise ValueError(f"sigmas must be finite and above 0, except the last; got {level} at index {i}")
        rows = original.to(x.device, x.dtype, non_blocking=True)[:, None].expand(-1, x.shape[0]).contiguous()
        return cls(levels, rows, original, callback)

    def pairs(self) -> list[tuple[float, float]]:
        """(sigma, sigma') for every step."""
        return list(zip(self.sigmas, self.sigmas[1:]))

    def report(self, i: int, x: torch.Tensor, denoised: torch.Tensor) -> None:
        """Call k-diffusion's callback: once per step, before the update."""
        if self.callback is not None:
            sigma = self.original[i]
            self.callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
