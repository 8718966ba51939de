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
"""Past points nearer than this fraction of a step carry no slope, only rounding noise: the order drops instead."""


class Model(Protocol):
    """A k-diffusion denoiser: ``model(x, sigma, **extra_args) -> denoised``; sigma has shape (batch,)."""

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, /, **extra_args: Any) -> torch.Tensor: ...


Callback = Callable[[dict[str, Any]], object]

NoiseSampler = Callable[[float, float], torch.Tensor]
"""k-diffusion's: ``noise_sampler(sigma, sigma_next)`` gives unit noise in the shape of x, seeded by image."""


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
    """DPM-Solver++ of order 1, which is DDIM and Euler (arXiv 2211.01095, eq. 9): exact at both ends.

    x' = (sigma'/sigma) x - expm1(-h) D
    """
    return Step(sigma_next / sigma, (-math.expm1(-log_step(sigma, sigma_next)),))


def analytical_output(sigma: float, share: float) -> float:
    """Weight w of the first output D = w x that is made without a call (GENIE, arXiv 2210.05475, section 3).

    At the first sigma x is nearly pure noise, so the network's noise is taken to be ``share * x / sqrt(1 + sigma^2)``;
    share 1 is arXiv 2510.02390's, 0.975 that of its second script.
    """
    return 1 - share * sigma / math.sqrt(1 + sigma**2)


def step_ratio(h_past: float, h: float) -> Optional[float]:
    """Distance of a past point in units of the present step; None where that point cannot carry a slope.

    Equal or rising neighbours and a step to sigma 0 are where multistep formulas divide by zero or blow up.
    """
    if not math.isfinite(h) or h <= 0 or h_past / h < MIN_STEP_RATIO:
        return None
    return h_past / h


@dataclass(frozen=True)
class Run:
    """The sigmas of one sampling run, checked once: as floats for the coefficients, as rows for the model.

    Attributes:
        sigmas: floats, ``steps + 1`` of them.
        rows: shape (steps + 1, batch), on the device and in the dtype of ``x``; row i is the sigma of call i.
    """

    sigmas: list[float]
    rows: torch.Tensor
    original: torch.Tensor
    callback: Optional[Callback]

    @classmethod
    def of(cls, x: torch.Tensor, sigmas: torch.Tensor, callback: Optional[Callback]) -> Run:
        """Check and prepare.

        Raises:
            ValueError: sigmas that are not one-dimensional, not finite, negative, or 0 before the end.
        """
        if sigmas.ndim != 1 or len(sigmas) < 1:
            raise ValueError(f"sigmas must be one-dimensional and not empty, got shape {tuple(sigmas.shape)}")
        # one transfer, and none at all for the host's CPU sigmas; from here on nothing waits for the device
        original = sigmas.detach().cpu()
        levels: list[float] = original.double().tolist()
        for i, level in enumerate(levels):
            if not math.isfinite(level) or level < 0 or (level == 0 and i < len(levels) - 1):
                raise ValueError(f"sigmas must be finite, and above 0 but for the last; got {level} at index {i}")
        rows = original.to(x.device, x.dtype, non_blocking=True)[:, None].expand(-1, x.shape[0]).contiguous()
        return cls(levels, rows, original, callback)

    def pairs(self) -> list[tuple[float, float]]:
        """(sigma, sigma') of every step."""
        return list(zip(self.sigmas, self.sigmas[1:]))

    def report(self, i: int, x: torch.Tensor, denoised: torch.Tensor) -> None:
        """k-diffusion's callback, once per step, before the update."""
        if self.callback is not None:
            sigma = self.original[i]
            self.callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
