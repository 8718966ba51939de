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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Protocol

import torch

from ..checks import abbreviated, finite, whole
from ..devices import on_device

__all__ = [
    "MAX_ORDER",
    "Callback",
    "Model",
    "NoiseSampler",
    "Run",
    "Step",
    "analytical_output",
    "answer",
    "checked_order",
    "checked_share",
    "first_order",
    "log_step",
    "step_ratio",
]

MAX_ORDER = 3
"""Of the multistep solvers that have a choice."""

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

    def keeping(self, x: torch.Tensor, outputs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and a copy of the newest output, which a model that reuses its memory will overwrite.

        The copy comes with the scaling of x, in one operation where the device can do both at once.
        """
        if self.state in (0, 1):
            return self(x, outputs), outputs[0].clone()
        result, kept = torch._foreach_mul([x, outputs[0]], [self.state, 1.0])
        for output, weight in zip(outputs, self.outputs):
            result.add_(output, alpha=weight)
        return result, kept


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


def checked_share(name: str, value: Any) -> float:
    """A number from 0 to 1; True and False count as 1 and 0. Raises ValueError: naming the argument and the value."""
    number = float(value) if isinstance(value, bool) else finite(value)
    if number is None or not 0 <= number <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {abbreviated(value)}")
    return number


def checked_order(value: Any) -> int:
    """The order of a multistep solver. Raises ValueError: naming the argument and the value."""
    order = whole(value)
    if order is None or isinstance(value, float) or not 1 <= order <= MAX_ORDER:
        raise ValueError(f"order must be 1, 2 or 3, got {abbreviated(value)}")
    return order


def answer(
    model: Model, x: torch.Tensor, sigma: torch.Tensor, extra_args: Mapping[str, Any], name: str = "model"
) -> torch.Tensor:
    """``model(x, sigma, **extra_args)`` in the dtype of ``x``; a host may answer a half-precision x in float32.

    The tensor may be the model's own, which its next call overwrites: what is kept must be copied.

    Raises:
        ValueError: the answer is no tensor of the shape and on the device of ``x``.
    """
    denoised = model(x, sigma, **extra_args)
    if not isinstance(denoised, torch.Tensor):
        raise ValueError(f"{name} must return a tensor, got {abbreviated(denoised)}")
    if denoised.shape != x.shape:
        raise ValueError(f"{name} must return the shape of x, {tuple(x.shape)}, got {tuple(denoised.shape)}")
    if denoised.device != x.device:
        raise ValueError(f"{name} must return a tensor on the device of x, {x.device}, got {denoised.device}")
    return denoised if denoised.dtype == x.dtype else denoised.to(x.dtype)


@dataclass(frozen=True)
class Run:
    """The arguments of one sampling run, checked once.

    Attributes:
        model: the denoiser.
        sigmas: floats, ``steps + 1`` of them.
        rows: shape (steps + 1, batch), on the device and in the dtype of ``x``; row i is the model's sigma at step i.
        original: the sigmas as given, on the CPU, for the callback.
        extra_args: keyword arguments of the model.
        callback: called once per step, or None.
    """

    model: Model
    sigmas: list[float]
    rows: torch.Tensor
    original: torch.Tensor
    extra_args: Mapping[str, Any]
    callback: Optional[Callback]

    @classmethod
    def of(
        cls,
        model: Model,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: Optional[Mapping[str, Any]] = None,
        callback: Optional[Callback] = None,
    ) -> Run:
        """Check the arguments, and move the sigmas to the device of ``x``.

        Raises:
            ValueError: naming the argument, its value and what is allowed.
        """
        for name, function, needed in (("model", model, True), ("callback", callback, False)):
            if not callable(function) and (needed or function is not None):
                raise ValueError(f"{name} must be a function, got {abbreviated(function)}")
        if extra_args is not None and not isinstance(extra_args, Mapping):
            raise ValueError(f"extra_args must be a dictionary of keyword arguments, got {abbreviated(extra_args)}")
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.ndim < 1:
            found = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else abbreviated(x)
            raise ValueError(f"x must be a floating-point tensor of shape (batch, ...), got {found}")
        if not isinstance(sigmas, torch.Tensor) or sigmas.is_complex():
            raise ValueError(f"sigmas must be a tensor of real numbers, got {abbreviated(sigmas)}")
        if sigmas.ndim != 1 or len(sigmas) < 1:
            raise ValueError(f"sigmas must be one-dimensional and not empty, got shape {tuple(sigmas.shape)}")
        # at most one transfer (none where the host keeps its sigmas on the CPU); nothing after it waits for the device
        original = sigmas.detach().cpu()
        levels: list[float] = original.double().tolist()
        for i, level in enumerate(levels):
            if not math.isfinite(level) or level < 0 or (level == 0 and i < len(levels) - 1):
                raise ValueError(f"sigmas must be finite and above 0, except the last; got {level} at index {i}")
        rows = on_device(original.to(x.dtype), x.device)[:, None].expand(-1, x.shape[0]).contiguous()
        return cls(model, levels, rows, original, extra_args or {}, callback)

    def pairs(self) -> list[tuple[float, float]]:
        """(sigma, sigma') for every step."""
        return list(zip(self.sigmas, self.sigmas[1:]))

    def denoised(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """The model's answer at step i, see :func:`answer`. Raises ValueError."""
        return answer(self.model, x, self.rows[i], self.extra_args)

    def report(self, i: int, x: torch.Tensor, denoised: torch.Tensor) -> None:
        """Call k-diffusion's callback: once per step, before the update."""
        if self.callback is not None:
            sigma = self.original[i]
            self.callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
