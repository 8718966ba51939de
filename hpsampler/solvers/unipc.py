"""UniPC (arXiv 2302.04867): a multistep predictor, and a corrector that reuses the next model call and costs none.

In VE form, with h = log(sigma/sigma'), past outputs m_k at r_k = (lambda_k - lambda)/h < 0,
D1_k = (m_k - m_0)/r_k::

    base        data: (sigma'/sigma) x - expm1(-h) m_0          noise: x + (sigma' - sigma) m_0
    predictor   x' = base - w B(h) sum_k rho_k D1_k
    corrector   x' = base - w B(h) (sum_k rho_k D1_k + rho_last (m' - m_0))

where m' is the output at the predicted x', w is 1 (data) or sigma' (noise), and B(h) is hh (bh1) or expm1(hh) (bh2)
with hh = -h (data) or h (noise). The weights rho solve a small Vandermonde system.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Optional

import numpy as np
import torch

from ..checks import abbreviated
from ._core import (
    MAX_ORDER,
    MIN_STEP_RATIO,
    Callback,
    Model,
    NoiseSampler,
    Run,
    Step,
    analytical_output,
    checked_order,
    checked_share,
    first_order,
    log_step,
    step_ratio,
)

__all__ = ["MAX_ORDER", "PREDICTIONS", "VARIANTS", "sample_unipc", "unipc_steps"]

PREDICTIONS = ("data", "noise")
VARIANTS = ("bh1", "bh2")

EXTRAPOLATED_TO_ZERO = Step(0.0, (1.5, -0.5))
"""The step to sigma 0 as x0 = D + (D - D_prev)/2, where multistep solvers otherwise take x0 = D."""


class PredictorCorrector(NamedTuple):
    """Step i: the predictor's weights for (m_0, m_1, ...), and the corrector's for (m', m_0, m_1, ...) or None."""

    predictor: Step
    corrector: Optional[Step]


@torch.no_grad()
def sample_unipc(
    model: Model,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: Optional[dict[str, Any]] = None,
    callback: Optional[Callback] = None,
    disable: Optional[bool] = None,
    order: int = 2,
    prediction: str = "data",
    variant: str = "bh2",
    corrector: bool = True,
    extrapolate: bool = False,
    analytical_first_step: float = 0.0,
    noise_level: float = 0.0,
    noise_sampler: Optional[NoiseSampler] = None,
) -> torch.Tensor:
    """UniPC (arXiv 2302.04867); arguments as :func:`~hpsampler.solvers.sample_dpmpp_1s`.

    Args:
        order: 1 to 3; lower at the start and at the end of the run, where fewer past points or steps are left.
        prediction: ``"data"`` is stable under guidance; arXiv 2510.02390 uses ``"noise"`` with ``"bh1"``.
        variant: B(h), ``"bh1"`` or ``"bh2"``.
        corrector: correct each predicted point except the last, using the call that is made there anyway.
        extrapolate: a last step to sigma 0 gives D + (D - D_prev)/2 instead of D.
        analytical_first_step: above 0, no call is made at the first sigma: its noise is taken to be this share (1 or
            0.975) of x / sqrt(1 + sigma^2), which holds only where x is (nearly) pure noise. The saved call is best
            spent on an additional point, see :func:`~hpsampler.schedule.insert_first_midpoint`. The assumed output
            never enters the multistep history.
        noise_level: eta of the stochastic corrector (arXiv 2510.02390's code, "sample_mix"), 0 to 1: the corrected step
            from x_s to x_t becomes x_s + (1 + eta^2)(x_t - x_s) + eta sqrt(sigma_s^2 - sigma_t^2) z. The last step
            is not changed. That code has 1 + eta, which removes more noise than it adds: on Gaussian data, with eta
            0.1 and 20 steps, the samples' standard deviation falls from 0.96 to 0.71 of the data's; with the square
            it stays at 0.96.
        noise_sampler: returns z, seeded by image; required where ``noise_level`` is above 0.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    run = Run.of(model, x, sigmas, extra_args, callback)
    noise_level = checked_share("noise_level", noise_level)
    if noise_level and (not callable(noise_sampler) or not corrector):
        raise ValueError(f"noise_level={noise_level:g} needs a noise_sampler and the corrector")
    if noise_level and any(sigma_next > sigma for sigma, sigma_next in run.pairs()):
        raise ValueError(f"noise_level={noise_level:g} needs sigmas that do not rise, got {run.sigmas}")
    share = checked_share("analytical_first_step", analytical_first_step)
    steps = unipc_steps(run.sigmas, order, prediction, variant, corrector, extrapolate, share > 0)
    past: list[torch.Tensor] = []
    start = x
    for i, step in enumerate(steps):
        sigma = run.sigmas[i]
        denoised = x * analytical_output(sigma, share) if i == 0 and share else run.denoised(i, x)
        run.report(i, x, denoised)
        output = denoised if prediction == "data" else (x * (1 / sigma)).sub_(denoised, alpha=1 / sigma)
        if i > 0:
            corrector_step = steps[i - 1].corrector
            if corrector_step is not None:
                x = corrector_step(start, [output, *past])
                if noise_level and noise_sampler is not None:
                    x = _with_fresh_noise(start, x, run.sigmas[i - 1], sigma, noise_level, noise_sampler)
        past, start = [output, *past[: MAX_ORDER - 1]], x
        if prediction == "data" and _needed_later(steps, i):
            # noise was computed here, but the data are the model's own
            x, past[0] = step.predictor.keeping(start, past)
        else:
            x = step.predictor(start, past)
    return x


def _needed_later(steps: list[PredictorCorrector], i: int) -> bool:
    """Whether the output of step i counts after that step."""
    later = steps[i + 1 :]
    return steps[i].corrector is not None or any(len(step.predictor.outputs) > k for k, step in enumerate(later, 1))


def _with_fresh_noise(
    start: torch.Tensor, x: torch.Tensor, sigma: float, sigma_next: float, level: float, noise_sampler: NoiseSampler
) -> torch.Tensor:
    """The corrected point x, with the step from ``start`` made longer and the noise this removes drawn anew."""
    noise = noise_sampler(sigma, sigma_next).to(x)
    return torch.lerp(start, x, 1 + level**2).add_(noise, alpha=level * math.sqrt(sigma**2 - sigma_next**2))


def unipc_steps(
    sigmas: list[float],
    order: int,
    prediction: str,
    variant: str,
    corrector: bool = True,
    extrapolate: bool = False,
    analytical_first_step: bool = False,
) -> list[PredictorCorrector]:
    """The weights of every step, in float64. ``steps[i].corrector`` corrects the point that step i predicted.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    order = checked_order(order)
    for name, value, allowed in (("prediction", prediction, PREDICTIONS), ("variant", variant, VARIANTS)):
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {abbreviated(value)}")
    if extrapolate and prediction != "data":
        raise ValueError(f'extrapolate needs prediction="data", got {prediction!r}')

    count = len(sigmas) - 1
    first_output = 1 if analytical_first_step else 0
    steps = []
    for i in range(count):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        h = log_step(sigma, sigma_next)
        # the outputs used at point i: the one made there, and as many before it as there are and the order allows
        step_order = min(order, max(i + 1 - first_output, 1), count - i)
        ratios: list[float] = []
        for k in range(1, step_order):
            distance = step_ratio(log_step(sigmas[i - k], sigma), h)
            # two nodes must not lie too close together either
            if distance is None or (ratios and distance + ratios[-1] < MIN_STEP_RATIO):
                break
            ratios.append(-distance)

        if sigma_next == 0:
            extrapolates = extrapolate and i > first_output
            last = EXTRAPOLATED_TO_ZERO if extrapolates else _step_to_zero(sigma, prediction)
            steps.append(PredictorCorrector(last, None))
            continue
        predictor_step = _step(sigma, sigma_next, ratios, prediction, variant, is_corrector=False)
        corrector_step = None
        if corrector and i < count - 1:
            corrector_step = _step(sigma, sigma_next, ratios, prediction, variant, is_corrector=True)
        steps.append(PredictorCorrector(predictor_step, corrector_step))
    return steps


def _step(
    sigma: float, sigma_next: float, ratios: list[float], prediction: str, variant: str, is_corrector: bool
) -> Step:
    """Predictor or corrector of one step, with past points at ``ratios`` r_k (negative, nearest first)."""
    h = log_step(sigma, sigma_next)
    hh = -h if prediction == "data" else h
    b_of_h = hh if variant == "bh1" else math.expm1(hh)
    scale = 1.0 if prediction == "data" else sigma_next
    if prediction == "data":
        base = first_order(sigma, sigma_next)
        state, (newest,) = base.state, base.outputs
    else:
        state, newest = 1.0, sigma_next - sigma
    if h == 0:
        return Step(state, (0.0, newest) if is_corrector else (newest,))

    nodes = [*ratios, 1.0] if is_corrector else ratios
    weights = _rho(nodes, hh, b_of_h)
    slopes = [-scale * b_of_h * rho / node for rho, node in zip(weights, nodes)]
    newest -= sum(slopes)
    if is_corrector:
        return Step(state, (slopes[-1], newest, *slopes[:-1]))
    return Step(state, (newest, *slopes))


def _rho(nodes: list[float], hh: float, b_of_h: float) -> list[float]:
    """Weights of the differences at ``nodes``: solve sum_k nodes_k^(j-1) rho_k = j! hh phi_(j+1)(hh) / B(h), j = 1...

    A single node gets 1/2 (arXiv 2302.04867, after eq. 10): the order stays the same, and B(h) cancels less.
    """
    if not nodes:
        return []
    if len(nodes) == 1:
        return [0.5]
    right = [math.factorial(j) * hh * phi(j + 1, hh) / b_of_h for j in range(1, len(nodes) + 1)]
    matrix = np.vander(np.array(nodes), increasing=True).T
    return np.linalg.solve(matrix, np.array(right)).tolist()


def phi(k: int, h: float) -> float:
    """phi_k(h) = sum_j h^j / (j + k)!, so phi_1 = expm1(h)/h and phi_(k+1) = (phi_k - 1/k!)/h.

    For small h the recursion suffers from cancellation, so the series is summed instead.
    """
    if abs(h) < 1:
        return math.fsum(h**j / math.factorial(j + k) for j in range(20))
    value = math.expm1(h) / h
    for i in range(1, k):
        value = (value - 1 / math.factorial(i)) / h
    return value


def _step_to_zero(sigma: float, prediction: str) -> Step:
    """x0 = D, which is x - sigma eps in terms of the noise output."""
    return Step(0.0, (1.0,)) if prediction == "data" else Step(1.0, (-sigma,))
