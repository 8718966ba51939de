"""Golden noise without a network: two calls of the model itself turn the initial latent into a better one.

From x at sigma, one step down to sigma' with the guided denoiser G, then one call there with the unguided denoiser P
(the positive prompt alone, guidance 1), in VE form with h = log(sigma / sigma')::

    x' = (sigma'/sigma) x - expm1(-h) G(x, sigma)           one DDIM step
    D' = P(x', sigma')

    form A   (x' + expm1(-h) D') / (sigma'/sigma)           the step taken back, with D' in place of G
    form B   G(x, sigma) + sigma (x' - D') / sigma'         G's output, with the noise that P sees at x'

With x' inserted, both add a multiple of the difference of the two outputs to x::

    x + gain (G(x, sigma) - P(x', sigma'))       gain A = sigma/sigma' - 1       gain B = sigma/sigma'

which is how it is computed: one addition, without cancellation of large numbers. Without guidance (G = P) the
difference is of the order of the step; A then changes x to second order in the step, B to first order. The result is
not renormalised: the published method does not do it either, and the change is small compared with sigma = 14.6.

Cost: two model calls for either form, in addition to those of the sampler.

Source: "raw golden noise" in the code of arXiv 2510.02390. Its SD 1.5 scripts use form A (guidance 1 in both calls),
its SDXL scripts form B (guidance in the first call). They step to sigma - 0.28, or to the schedule's second sigma. Form
A with guidance is the step back and forth with which arXiv 2411.09502 makes its training pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Optional

import torch

from ..checks import abbreviated, finite
from ..solvers import Model
from ..solvers._core import answer

__all__ = ["CALLS", "SIGMA_GAP", "GoldenForm", "golden_latent", "sigma_below"]

CALLS = 2
"""The cost of either form in model calls."""

SIGMA_GAP = 0.28
"""sigma - sigma' in the reference's ODE scripts."""

STABLE_DIFFUSION_SIGMA = 14.614641
"""Largest sigma of Stable Diffusion's noise table, where the reference starts."""


def sigma_below(sigma: float) -> float:
    """sigma' for a latent at ``sigma``, in the same proportion as the reference's 14.61 - 0.28 to 14.61."""
    return sigma * (1 - SIGMA_GAP / STABLE_DIFFUSION_SIGMA)


class GoldenForm(Enum):
    """The two forms; their values are the letters that users choose."""

    A = "A"
    """The step is taken back: a small change, a few per cent of the difference."""

    B = "B"
    """New noise is added to the guided output: a change by the whole difference."""

    def gain(self, sigma: float, sigma_next: float) -> float:
        """The factor with which G - P is added to x."""
        return (sigma - sigma_next) / sigma_next if self is GoldenForm.A else sigma / sigma_next


def golden_latent(
    form: GoldenForm,
    x: torch.Tensor,
    sigma: float,
    sigma_next: float,
    guided: Model,
    plain: Optional[Model] = None,
    *,
    extra_args: Optional[Mapping[str, Any]] = None,
    plain_args: Optional[Mapping[str, Any]] = None,
) -> torch.Tensor:
    """``x + gain (G(x, sigma) - P(x', sigma'))``, a new latent at the same sigma; two model calls.

    Args:
        form: A or B, see the module's docstring.
        x: shape (batch, ...), at noise level ``sigma`` (not unit noise). It is not modified.
        sigma: its noise level.
        sigma_next: sigma', the noise level of the second call; between 0 and ``sigma``.
        guided: G, called once as ``guided(x, (sigma, ...), **extra_args)``.
        plain: P, the denoiser without guidance (or whatever the change shall lead away from), called once as
            ``plain(x', (sigma', ...), **plain_args)``. Without it, ``guided`` is called with ``plain_args``.
        extra_args, plain_args: keyword arguments of the two calls; ``plain_args`` defaults to ``extra_args`` where
            ``plain`` is given.

    Returns:
        A new tensor of x's shape, dtype and device. Every image depends on its own row alone.

    Raises:
        ValueError: an invalid form, shape or noise level, neither ``plain`` nor ``plain_args``, or a model that returns
            another shape.
    """
    if not isinstance(form, GoldenForm):
        raise ValueError(f"form must be one of {', '.join(map(str, GoldenForm))}, got {abbreviated(form)}")
    if not isinstance(x, torch.Tensor) or x.ndim < 1 or not x.is_floating_point():
        found = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else abbreviated(x)
        raise ValueError(f"x must be floating point of shape (batch, ...), got {found}")
    first, second = finite(sigma), finite(sigma_next)
    if first is None or second is None or not 0 < second < first:
        got = [f"{each:g}" if isinstance(each, float) else abbreviated(each) for each in (sigma_next, sigma)]
        raise ValueError(f"sigma_next must lie between 0 and sigma, got {' and '.join(got)}")
    sigma, sigma_next = first, second
    if plain is None and plain_args is None:
        # with one guided denoiser for both calls this would silently be another method
        raise ValueError("plain or plain_args must be given: the second call is made without guidance")
    extra_args = extra_args or {}
    plain_args = extra_args if plain_args is None else plain_args

    ratio = sigma_next / sigma
    # the second call may overwrite what the first returned
    denoised = answer(guided, x, x.new_full((x.shape[0],), sigma), extra_args, "guided").clone()
    x_next = torch.add(x * ratio, denoised, alpha=1 - ratio)
    rows = x.new_full((x.shape[0],), sigma_next)
    denoised_next = answer(guided if plain is None else plain, x_next, rows, plain_args, "plain")
    return torch.add(x, denoised.sub_(denoised_next), alpha=form.gain(sigma, sigma_next))
