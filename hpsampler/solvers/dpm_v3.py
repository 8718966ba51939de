"""DPM-Solver-v3 (arXiv 2310.13268): exponential integration around a linear model whose coefficients were measured.

With lambda = -log sigma, N = x - D and statistics l, s, b of one model (functions of lambda, per channel or pixel)::

    dx/dlambda = -N = -(l x + f)            f = N - l x = (1 - l) x - D
    df/dlambda = s f + b + remainder        g = exp(-S) f - B

where L, S = integral l, s and B = integral exp(-S) b, all from the step's start. The remainder is small, so g
hardly changes, and a step interpolates g by a polynomial through past points::

    x' = exp(-L) (x - integral exp(L + S) B dl - sum_n g^(n) E_(n+1))     E_(n+1) = integral exp(L + S) d^n / n! dl

with d the distance from the start (the paper's sections 3.1 and 3.2; its alphas cancel in VE form, where f and b are
in the units of x_0). Past values of g are moved from one step's start to the next: g becomes exp(S) (g + B).
All of that is linear in x and f, so a step is one product for x, one for each f, and one for f itself. The weights are
computed in float64 on the CPU, once for a schedule: what statistics remember it are kept with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Optional

import numpy as np
import torch

from ..checks import abbreviated
from ..devices import on_device
from ._core import Callback, Model, Run, analytical_output, checked_order, checked_share, step_ratio
from ._integrals import Coefficients, Integrals, data_prediction, integrals_of, interpolated

__all__ = ["PSEUDO_ORDERS", "Coefficients", "dpm_v3_steps", "interpolated", "sample_dpm_v3"]

PSEUDO_ORDERS = ("off", "corrector", "both")

KEPT_SCHEDULES = 2
"""Schedules whose weights statistics keep: a picture's, and that of the second pass of hires. fix."""

Weight = Any
"""A number, or one per element of (channels, height, width): an array, and a tensor where the device has it."""


class Update(NamedTuple):
    """``x' = state * x + shift + sum_k outputs[k] * g[k]``; its weights are all numbers, or all one per element."""

    state: Weight
    shift: Weight
    outputs: tuple[Weight, ...]

    def __call__(self, x: torch.Tensor, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        if isinstance(self.state, torch.Tensor):
            result = torch.addcmul(self.shift, x, self.state)
            for output, weight in zip(outputs, self.outputs):
                result.addcmul_(output, weight)
            return result
        result = x * self.state
        if self.shift:
            result += self.shift
        for output, weight in zip(outputs, self.outputs):
            result.add_(output, alpha=weight)
        return result


class Carry(NamedTuple):
    """Moves the origin of g from a step's start to its end: ``g' = scale * g + shift``."""

    scale: Weight
    shift: Weight


class StepV3(NamedTuple):
    """Step i.

    Attributes:
        one_minus_l: 1 - l at its start, for f = (1 - l) x - D.
        predictor: weights of (g_i, g_(i-1), ...); None for a step to sigma 0, where x' = D.
        corrector: weights of (f', g_i, g_(i-1), ...) with f' computed at the predicted point; None: not corrected.
        carry: moves past values of g to the end of the step.
    """

    one_minus_l: Weight
    predictor: Optional[Update]
    corrector: Optional[Update]
    carry: Optional[Carry]


class Operations(NamedTuple):
    """Step i as it is carried out: the updates' weights are of -f_i, -f_(i-1), ..., wherever these were computed."""

    one_minus_l: Weight
    predictor: Optional[Update]
    corrector: Optional[Update]

    def minus_f(self, x: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """-f = D - (1 - l) x, a new tensor."""
        if isinstance(self.one_minus_l, torch.Tensor):
            return torch.addcmul(denoised, x, self.one_minus_l, value=-1)
        return torch.sub(denoised, x, alpha=self.one_minus_l) if self.one_minus_l else denoised.clone()


@torch.no_grad()
def sample_dpm_v3(
    model: Model,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: Optional[dict[str, Any]] = None,
    callback: Optional[Callback] = None,
    disable: Optional[bool] = None,
    order: int = 2,
    statistics: Optional[Coefficients] = None,
    corrector: bool = True,
    pseudo_order: str = "corrector",
    analytical_first_step: float = 0.0,
) -> torch.Tensor:
    """DPM-Solver-v3 (arXiv 2310.13268, section 3); arguments as :func:`~hpsampler.solvers.sample_dpmpp_1s`.

    Without statistics, l = 1 and s = b = 0, which is data prediction. Order 1 without the corrector is then exactly
    :func:`~hpsampler.solvers.sample_dpmpp_1s`; order 2 is DPM-Solver++ 2M in its "heun" form (the linear polynomial
    is integrated exactly, where :func:`~hpsampler.solvers.sample_dpmpp_2m` takes half the step), and a step of order 3
    is UniPC's predictor of order 3 on data.

    Args:
        order: of the predictor, 1 to 3; lower at the start and at the end of the run, where fewer past points or
            steps are left. A step to sigma 0 gives x0 = D.
        statistics: l, s and b of this model at this guidance scale, see
            :class:`~hpsampler.statistics.coefficients.Statistics`; linear in lambda between grid points, and
            extended beyond the grid as :func:`interpolated` says.
        corrector: correct each predicted point except the last, using the call that is made there anyway; it has one
            node more than the predictor.
        pseudo_order: where divided differences stand for the derivatives of g (the paper's section 3.3): ``"off"``,
            ``"corrector"`` (the paper's advice) or ``"both"``. From three nodes on they differ from the interpolating
            polynomial's derivatives: they are of second order only, but more stable with few steps. On three problems
            of bench/problems.py, at guidance 1 to 7.5 and 5 to 10 steps, "off" had about 20 % less error with
            statistics per element, and "corrector" about 25 % less with statistics per channel.
        analytical_first_step: above 0, the first step makes no call, see :func:`~hpsampler.solvers.sample_unipc`; the
            output it assumes enters neither the corrector nor the history.

    With statistics measured at guidance 7.5, 5 steps on those problems have an error of 0.08 to 0.24 of the data's
    RMS, where DPM++ 2M has 1.8 to 3.6. Order 3 is meant for unguided sampling: at guidance 3 and above it can blow up.

    Raises:
        ValueError: naming the argument, its value and what is allowed, or where the statistics do not fit the latent.
    """
    run = Run.of(model, x, sigmas, extra_args, callback)
    share = checked_share("analytical_first_step", analytical_first_step)
    order = checked_order(order)
    if statistics is not None:
        _check_shape(statistics, x)

    def weigh() -> list[Operations]:
        steps = dpm_v3_steps(run.sigmas, order, statistics, corrector, pseudo_order, share > 0)
        return _like(_operations(steps), x)

    # on the device before the first call, as a copy between calls would wait for it
    key = (tuple(run.sigmas), order, bool(corrector), pseudo_order, share > 0, x.dtype, x.device)
    steps = _kept(statistics, key, weigh)
    past: list[torch.Tensor] = []
    start = x
    corrected: Optional[Update] = None
    for i, step in enumerate(steps):
        denoised = x * analytical_output(run.sigmas[0], share) if i == 0 and share else run.denoised(i, x)
        run.report(i, x, denoised)
        if step.predictor is None:
            # the model may overwrite what it returned
            return denoised.clone()
        # the analytical first step's f, which is assumed, serves that step alone: no later one has weights for it
        past = [step.minus_f(x, denoised), *past[:order]]
        if corrected is not None:
            # f keeps its value at the predicted point: the model is not called again at the corrected one
            x = corrected(start, past)
        start, corrected = x, step.corrector
        x = step.predictor(start, past)
    return x


def _kept(statistics: Optional[Coefficients], key: tuple[Any, ...], weigh: Callable[[], Any]) -> Any:
    """What ``weigh`` returns, made once for a key where the statistics have a place for it."""
    kept = getattr(statistics, "weights", None)
    if not isinstance(kept, dict):
        return weigh()
    if key not in kept:
        found = weigh()
        while len(kept) >= KEPT_SCHEDULES:
            del kept[next(iter(kept))]
        kept[key] = found
    return kept[key]


def _check_shape(statistics: Coefficients, x: torch.Tensor) -> None:
    for name in ("lambdas", "l", "s", "b"):
        if not isinstance(getattr(statistics, name, None), np.ndarray):
            raise ValueError(f"statistics must have the arrays lambdas, l, s and b, got {abbreviated(statistics)}")
    shape, latent = tuple(statistics.l.shape[1:]), tuple(x.shape[1:])
    fits = len(shape) <= len(latent) and all(
        size in (1, needed) for size, needed in zip(reversed(shape), reversed(latent))
    )
    if not fits:
        raise ValueError(
            f"statistics must fit a latent of shape {latent}, got statistics of shape {shape}; "
            "resized(height, width) adapts them to another size"
        )


def dpm_v3_steps(
    sigmas: list[float],
    order: int,
    statistics: Optional[Coefficients] = None,
    corrector: bool = True,
    pseudo_order: str = "corrector",
    analytical_first_step: bool = False,
) -> list[StepV3]:
    """The weights of every step, in float64. ``steps[i].corrector`` corrects the point that step i predicted.

    Raises:
        ValueError: naming the argument, its value and what is allowed, or where weights are not finite.
    """
    order = checked_order(order)
    if not isinstance(pseudo_order, str) or pseudo_order not in PSEUDO_ORDERS:
        raise ValueError(f"pseudo_order must be one of {', '.join(PSEUDO_ORDERS)}, got {abbreviated(pseudo_order)}")
    coefficients = statistics if statistics is not None else data_prediction()
    count = len(sigmas) - 1
    lambdas = [-math.log(sigma) if sigma > 0 else math.inf for sigma in sigmas]
    finite = lambdas if math.isfinite(lambdas[-1]) else lambdas[:-1]
    integrals = integrals_of(coefficients, finite, order + 1)
    if not all(np.isfinite(part).all() for each in integrals for part in each):
        raise _overflow(coefficients, finite)
    steps = []
    for i in range(count):
        start, end = lambdas[i], lambdas[i + 1]
        one_minus_l = _as_weight(1 - interpolated(coefficients, start)[0])
        if math.isinf(end):
            steps.append(StepV3(one_minus_l, None, None, None))
            continue
        h, over = end - start, integrals[i]
        # the outputs used at point i: the one made there, and as many before it as there are and the order allows
        nodes = [0.0]
        for k in range(1, min(order, i + 1 - analytical_first_step, count - i)):
            distance = step_ratio(start - lambdas[i - k], h)
            # two nodes must not lie too close together either
            if distance is None or step_ratio(lambdas[i - k + 1] - lambdas[i - k], h) is None:
                break
            nodes.append(-distance * h)
        decay, scale = np.exp(-over.l), np.exp(over.s)
        predictor_step = _predictor(over, decay, nodes, pseudo_order == "both")
        corrector_step = None
        if corrector and i < count - 1 and h > 0 and not (i == 0 and analytical_first_step):
            corrector_step = _corrector(over, decay, scale, [0.0, h, *nodes[1:]], pseudo_order != "off")
        carry = Carry(_as_weight(scale), _as_weight(scale * over.b))
        steps.append(StepV3(one_minus_l, predictor_step, corrector_step, carry))
    return steps


def _overflow(coefficients: Coefficients, lambdas: Sequence[float]) -> ValueError:
    """What to say of statistics whose integrals overflow in some step: the first such step, taken by itself."""
    for start, end in pairwise(lambdas):
        if not all(np.isfinite(part).all() for part in integrals_of(coefficients, (start, end), 1)[0]):
            break
    return ValueError(
        f"statistics are too large: the step from sigma {math.exp(-start):g} to {math.exp(-end):g} overflows"
    )


def _predictor(integrals: Integrals, decay: np.ndarray, nodes: list[float], pseudo: bool) -> Update:
    """x' = exp(-L) (x - C - sum_k w_k g_k)."""
    weights = decay * _weights(nodes, integrals.moments, pseudo)
    return Update(_as_weight(decay), _as_weight(-decay * integrals.c), tuple(_as_weight(-each) for each in weights))


def _corrector(integrals: Integrals, decay: np.ndarray, scale: np.ndarray, nodes: list[float], pseudo: bool) -> Update:
    """The predictor's formula with the end of the step as second node, where g' = exp(-S) f' - B; f' comes first."""
    newest, predicted, *past = -decay * _weights(nodes, integrals.moments, pseudo)
    shift = -decay * integrals.c - predicted * integrals.b
    outputs = (predicted / scale, newest, *past)
    return Update(_as_weight(decay), _as_weight(shift), tuple(_as_weight(weight) for weight in outputs))


def _weights(nodes: list[float], moments: np.ndarray, pseudo: bool) -> np.ndarray:
    """w_k such that sum_k w_k g_k = sum_n g^(n) E_(n+1), with g_k at the ``nodes`` (distances, 0 first).

    Either the derivatives are those of the polynomial through all nodes (sum_k w_k d_k^n / n! = E_(n+1)), or
    g^(n) = n! g[d_0, ..., d_n], the divided difference over the first nodes alone (pseudo-order).
    """
    count = len(nodes)
    if count == 1:
        return moments[:1]
    # scaled by the farthest node, so that small steps give no extreme numbers
    unit = max(abs(node) for node in nodes)
    d = [node / unit for node in nodes]
    inverse = np.array([_differences(d, k) if pseudo else _lagrange(d, k) for k in range(count)])
    inverse *= [math.factorial(n) / unit**n for n in range(count)]
    return np.tensordot(inverse, moments[:count], 1)


def _differences(d: list[float], k: int) -> list[float]:
    """What g_k counts in the divided differences over the first 1, 2, ... nodes."""
    count = len(d)
    return [
        1 / math.prod(d[k] - d[j] for j in range(n + 1) if j != k) if k <= n else 0.0
        for n in range(count)
    ]  # fmt: skip


def _lagrange(d: list[float], k: int) -> list[float]:
    """Coefficients of the polynomial that is 1 at node k and 0 at the others, the constant first."""
    coefficients = [1.0]
    for j, node in enumerate(d):
        if j != k:
            divisor = d[k] - node
            shifted, scaled = [0.0, *coefficients], [*(node * each for each in coefficients), 0.0]
            coefficients = [(high - low) / divisor for high, low in zip(shifted, scaled)]
    return coefficients


def _as_weight(weight: np.ndarray) -> Weight:
    """A Python number where the array has one element, else the array."""
    return float(weight.reshape(())) if weight.size == 1 else weight


def _operations(steps: list[StepV3]) -> list[Operations]:
    """The steps with weights of -f, past values of which stay as they are: what carries them is in the weights."""
    found: list[Operations] = []
    origins = [Carry(1.0, 0.0)]
    for i, step in enumerate(steps):
        before = steps[i - 1].carry if i > 0 else None
        wanted = len(step.predictor.outputs) - 1 if step.predictor is not None else 0
        carried = [
            Carry(before.scale * each.scale, before.scale * each.shift + before.shift)
            for each in origins[:wanted]
            if before is not None
        ]
        origins = [Carry(1.0, 0.0), *carried]
        predictor = step.predictor and _of_f(step.predictor, origins)
        corrector = step.corrector and _of_f(step.corrector, [Carry(1.0, 0.0), *origins])
        found.append(Operations(step.one_minus_l, predictor, corrector))
    return found


def _of_f(update: Update, origins: list[Carry]) -> Update:
    """The update of g as one of -f, with g = scale f + shift."""
    shift, outputs = update.shift, []
    for weight, origin in zip(update.outputs, origins):
        outputs.append(-weight * origin.scale)
        if not isinstance(origin.shift, float) or origin.shift:
            shift = shift + weight * origin.shift
    return Update(update.state, shift, tuple(outputs))


def _like(steps: list[Operations], x: torch.Tensor) -> list[Operations]:
    """The same with all weights that are arrays on the device and in the dtype of ``x``, by one transfer."""
    arrays: list[np.ndarray] = []

    def visit(weight: Weight, place: Callable[[np.ndarray], Weight]) -> Weight:
        return place(weight) if isinstance(weight, np.ndarray) else weight

    def mapped(place: Callable[[np.ndarray], Weight]) -> list[Operations]:
        def update(each: Optional[Update]) -> Optional[Update]:
            if each is None:
                return None
            outputs = tuple(visit(weight, place) for weight in each.outputs)
            return Update(visit(each.state, place), visit(each.shift, place), outputs)

        return [
            Operations(visit(step.one_minus_l, place), update(step.predictor), update(step.corrector))
            for step in steps
        ]  # fmt: skip

    def collect(weight: np.ndarray) -> Weight:
        arrays.append(weight)
        return weight

    mapped(collect)
    if not arrays:
        return steps
    together = np.stack(arrays, dtype=np.float64 if x.dtype == torch.float64 else np.float32, casting="same_kind")
    weights = iter(on_device(torch.from_numpy(together).to(x.dtype), x.device).unbind())
    return mapped(lambda weight: next(weights))
