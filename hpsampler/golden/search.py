"""Golden noise without a network: two calls of the model itself turn the first latent into a better one.

From x at sigma, one step with the guided denoiser G down to sigma' and one look from there with the plain denoiser P
(the positive prompt alone, guidance 1), in VE form with h = log(sigma / sigma')::

    x' = (sigma'/sigma) x - expm1(-h) G(x, sigma)           one DDIM step
    D' = P(x', sigma')

    form A   (x' + expm1(-h) D') / (sigma'/sigma)           the step taken back, with D' in place of G
    form B   G(x, sigma) + sigma (x' - D') / sigma'         what G removed, and the noise seen from x'

Put x' in, and both add the difference of the two outputs to x; they differ by how much of it::

    x + gain (G(x, sigma) - P(x', sigma'))       gain A = sigma/sigma' - 1       gain B = sigma/sigma'

which is what is computed: one addition, no cancelling of large numbers. Without guidance (G = P) the difference is
of the order of the step; A then changes x to second order in the step, B to first. Nothing is renormalised: the
method does not, and against sigma = 14.6 the change is small.

Cost: two calls of the model for either form, beyond those of the sampler.

Source: arXiv 2510.02390's code, "raw golden noise". A is what its SD 1.5 scripts do (guidance 1 in both calls), B its
SDXL scripts (guidance in the first). They step to sigma - 0.28, or to the schedule's second sigma. A with guidance is
the step back and forth that arXiv 2411.09502 makes its training pairs with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any, Optional, Protocol

import torch

from ..store import abbreviated

__all__ = ["CALLS", "SIGMA_GAP", "Form", "golden_latent", "sigma_below"]

CALLS = 2
"""What either form costs, in calls of the model."""

SIGMA_GAP = 0.28
"""sigma - sigma' in the reference's ODE scripts."""


STABLE_DIFFUSION_SIGMA = 14.614641
"""The largest of its noise table, where the reference starts."""


def sigma_below(sigma: float) -> float:
    """sigma' for a latent at ``sigma``: as far below, in proportion, as the reference's 14.61 - 0.28."""
    return sigma * (1 - SIGMA_GAP / STABLE_DIFFUSION_SIGMA)


class Model(Protocol):
    """A k-diffusion denoiser: ``model(x, sigma, **extra_args) -> denoised``; sigma has shape (batch,)."""

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, /, **extra_args: Any) -> torch.Tensor: ...


class Form(Enum):
    """The two forms; their values are the letters people choose by."""

    A = "A"
    """The step taken back: a small change, a few per cent of the difference."""

    B = "B"
    """New noise under what was seen: the whole difference."""

    def gain(self, sigma: float, sigma_next: float) -> float:
        """How much of G - P is added to x."""
        return (sigma - sigma_next) / sigma_next if self is Form.A else sigma / sigma_next


def golden_latent(
    form: Form,
    x: torch.Tensor,
    sigma: float,
    sigma_next: float,
    guided: Model,
    plain: Optional[Model] = None,
    *,
    extra_args: Optional[Mapping[str, Any]] = None,
    plain_args: Optional[Mapping[str, Any]] = None,
) -> torch.Tensor:
    """``x + gain (G(x, sigma) - P(x', sigma'))``, from a latent at sigma to one at sigma; two calls.

    Args:
        form: A or B, see the module.
        x: shape (batch, ...), at noise level ``sigma`` (not unit noise). Kept as it is.
        sigma: its noise level.
        sigma_next: sigma', where the second call looks; between 0 and ``sigma``.
        guided: G, called once as ``guided(x, (sigma, ...), **extra_args)``.
        plain: P, the denoiser without guidance (or whatever the change shall lead away from), called once as
            ``plain(x', (sigma', ...), **plain_args)``. Without it ``guided`` is called with ``plain_args``.
        extra_args, plain_args: what either call is given; ``plain`` without ``plain_args`` is given ``extra_args``.

    Returns:
        A new tensor of x's shape, dtype and device. Every image depends on its own row alone.

    Raises:
        ValueError: a form, a shape or noise levels that make no sense, neither ``plain`` nor ``plain_args``, or a
            model that returns another shape.
    """
    if not isinstance(form, Form):
        raise ValueError(f"form must be one of {', '.join(map(str, Form))}, got {abbreviated(form)}")
    if x.ndim < 1 or not x.is_floating_point():
        raise ValueError(f"x must be floating point of shape (batch, ...), got {x.dtype} of shape {tuple(x.shape)}")
    sigma, sigma_next = float(sigma), float(sigma_next)
    if not (math.isfinite(sigma) and 0 < sigma_next < sigma):
        raise ValueError(f"sigma_next must lie between 0 and sigma, got {sigma_next:g} and {sigma:g}")
    if plain is None and plain_args is None:
        # one guided denoiser for both calls would silently be another method
        raise ValueError("plain or plain_args must be given: the second call is made without guidance")
    extra_args = extra_args or {}
    plain_args = extra_args if plain_args is None else plain_args

    ratio = sigma_next / sigma
    seen = _called(guided, x, sigma, extra_args, "guided")
    lower = torch.add(x * ratio, seen, alpha=1 - ratio)
    seen_lower = _called(guided if plain is None else plain, lower, sigma_next, plain_args, "plain")
    return torch.add(x, seen - seen_lower, alpha=form.gain(sigma, sigma_next))


def _called(model: Model, x: torch.Tensor, sigma: float, extra_args: Mapping[str, Any], name: str) -> torch.Tensor:
    """One call, in x's dtype (hosts may answer a half in float)."""
    denoised = model(x, x.new_full((x.shape[0],), sigma), **extra_args)
    if denoised.shape != x.shape:
        raise ValueError(f"{name} must return the shape of x, {tuple(x.shape)}, got {tuple(denoised.shape)}")
    return denoised.to(x.dtype)
