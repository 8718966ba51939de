"""DPM-Solver++ (arXiv 2211.01095): data prediction, deterministic, one model call per step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Optional

import torch

from ..checks import abbreviated, finite
from ._core import Callback, Model, Run, Step, analytical_output, checked_share, first_order, log_step, step_ratio

__all__ = ["dpmpp_2m_steps", "sample_dpmpp_1s", "sample_dpmpp_2m"]


@torch.no_grad()
def sample_dpmpp_1s(
    model: Model,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: Optional[dict[str, Any]] = None,
    callback: Optional[Callback] = None,
    disable: Optional[bool] = None,
) -> torch.Tensor:
    """First-order DPM-Solver++ (arXiv 2211.01095, eq. 9), the "ode" solver of arXiv 2510.02390; equals DDIM and Euler.

    Args:
        model: k-diffusion denoiser, called once per step with ``sigma`` of shape (batch,).
        x: shape (batch, ...), noise at ``sigmas[0]``.
        sigmas: shape (steps + 1,), decreasing; the last may be 0 or above 0, which leaves that noise in the result.
        extra_args: keyword arguments of the model.
        callback: called once per step with x, i, sigma, sigma_hat, denoised.
        disable: part of k-diffusion's signature and ignored; these solvers show no progress bar.

    Returns:
        The state at ``sigmas[-1]``, shape and dtype of ``x``.

    Raises:
        ValueError: naming the argument, its value and what is allowed; or a model that returns another shape.
    """
    run = Run.of(model, x, sigmas, extra_args, callback)
    for i, (sigma, sigma_next) in enumerate(run.pairs()):
        denoised = run.denoised(i, x)
        run.report(i, x, denoised)
        x = first_order(sigma, sigma_next)(x, [denoised])
    return x


@torch.no_grad()
def sample_dpmpp_2m(
    model: Model,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: Optional[dict[str, Any]] = None,
    callback: Optional[Callback] = None,
    disable: Optional[bool] = None,
    extrapolate: bool = False,
    factors: Optional[Sequence[float]] = None,
    analytical_first_step: float = 0.0,
) -> torch.Tensor:
    """Second-order multistep DPM-Solver++ (arXiv 2211.01095, algorithm 2); arguments as :func:`sample_dpmpp_1s`.

    x' = (sigma'/sigma) x - expm1(-h) ((1 + 1/(2r)) D - 1/(2r) D_prev),  r = h_prev / h

    The first step and a step to sigma 0 are of first order. Where the schedule ends above 0, the last step is of
    second order, as in arXiv 2510.02390.

    Args:
        extrapolate: a last step to sigma 0 gives D + (D - D_prev)/2 instead of D, without another call. It improves
            the result at CFG 3 and below and harms it at 7.5.
        factors: one per step, scaling that step's second-order correction: 0 is first order, 1 the unscaled solver.
            At a step to sigma 0 the correction is that of ``extrapolate``, which ``factors`` overrides.
        analytical_first_step: above 0, the first step makes no call, see :func:`~hpsampler.solvers.sample_unipc`.
    """
    run = Run.of(model, x, sigmas, extra_args, callback)
    share = checked_share("analytical_first_step", analytical_first_step)
    steps = dpmpp_2m_steps(run.sigmas, extrapolate, factors, share > 0)
    previous: list[torch.Tensor] = []
    for i, step in enumerate(steps):
        denoised = x * analytical_output(run.sigmas[0], share) if i == 0 and share else run.denoised(i, x)
        run.report(i, x, denoised)
        if i + 1 < len(steps) and len(steps[i + 1].outputs) > 1:
            x, denoised = step.keeping(x, [denoised, *previous])
        else:
            x = step(x, [denoised, *previous])
        previous = [denoised]
    return x


def dpmpp_2m_steps(
    sigmas: list[float],
    extrapolate: bool = False,
    factors: Optional[Sequence[float]] = None,
    analytical_first_step: bool = False,
) -> list[Step]:
    """The weights of every step of DPM++ 2M on ``sigmas``, in float64.

    The output that an analytical first step assumes never enters the history.

    Raises:
        ValueError: the factors are not as many numbers as there are steps.
    """
    if factors is None:
        factors = [1.0] * (len(sigmas) - 2) + [1.0 if extrapolate or sigmas[-1] > 0 else 0.0]
    else:
        factors = _checked_factors(factors, len(sigmas) - 1)
    steps: list[Step] = []
    h_past = None
    for i, ((sigma, sigma_next), factor) in enumerate(zip(pairwise(sigmas), factors)):
        h = log_step(sigma, sigma_next)
        base = first_order(sigma, sigma_next)
        ratio = None if h_past is None else step_ratio(h_past, h)
        has_past_output = i > analytical_first_step
        if sigma_next == 0 and has_past_output:
            # the ratio is not defined there; half the last change is what helped in measurements
            correction = 0.5 * factor
        else:
            correction = 0.0 if ratio is None else factor / (2 * ratio)
        if correction:
            (weight,) = base.outputs
            steps.append(Step(base.state, (weight * (1 + correction), -weight * correction)))
        else:
            steps.append(base)
        # after an analytical first step there is no past output
        h_past = None if i == 0 and analytical_first_step else h
    return steps


def _checked_factors(factors: Any, steps: int) -> list[float]:
    try:
        given = list(factors)
    except TypeError:
        raise ValueError(f"factors must be {steps}, one per step, got {abbreviated(factors)}") from None
    if len(given) != steps:
        raise ValueError(f"factors must be {steps}, one per step, got {len(given)}")
    checked = [finite(factor) for factor in given]
    for factor, number in zip(given, checked):
        if number is None:
            raise ValueError(f"factors must be finite numbers, got {abbreviated(factor)}")
    return [number for number in checked if number is not None]
