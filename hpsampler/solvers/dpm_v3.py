"""DPM-Solver-v3 (arXiv 2310.13268): exponential integration around a linear model whose coefficients were measured.

With lambda = -log sigma, N = x - D and statistics l, s, b of one model (functions of lambda, per channel or pixel)::

    dx/dlambda = -N = -(l x + f)            f = N - l x = (1 - l) x - D
    df/dlambda = s f + b + remainder        g = exp(-S) f - B

where L, S = integral l, s and B = integral exp(-S) b, all from the step's start. The remainder is small, so g
hardly changes, and a step interpolates g by a polynomial through past points::

    x' = exp(-L) (x - integral exp(L + S) B dl - sum_n g^(n) E_(n+1))     E_(n+1) = integral exp(L + S) d^n / n! dl

with d the distance from the start (the paper's sections 3.1 and 3.2; its alphas cancel in VE form, where f and b are
in the units of x_0). Past values of g are moved from one step's start to the next: g becomes exp(S) (g + B).
The weights are computed once per run in float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Optional, Protocol, Union

import numpy as np
import torch

from ._core import Callback, Model, Run, analytical_output, step_ratio
from .unipc import MAX_ORDER

__all__ = ["PSEUDO_ORDERS", "Coefficients", "dpm_v3_steps", "interpolated", "sample_dpm_v3"]

PSEUDO_ORDERS = ("off", "corrector", "both")

WIDEST_CELL = 0.25
"""Largest width in lambda of a quadrature cell; the error of five Lobatto points is then below 1e-13."""


class Coefficients(Protocol):
    """The statistics that the solver uses: a rising grid, and arrays per grid point that broadcast to a latent."""

    @property
    def lambdas(self) -> np.ndarray: ...

    @property
    def l(self) -> np.ndarray: ...  # noqa: E743 - the paper's name

    @property
    def s(self) -> np.ndarray: ...

    @property
    def b(self) -> np.ndarray: ...


class DataPrediction(NamedTuple):
    """l = 1, s = b = 0: f = -D, so that the polynomial runs through the denoised outputs themselves."""

    lambdas: np.ndarray
    l: np.ndarray  # noqa: E741 - the paper's name
    s: np.ndarray
    b: np.ndarray


Weight = Union[float, torch.Tensor]
"""A number, or one per element of (channels, height, width)."""


class Update(NamedTuple):
    """``x' = state * x + shift + sum_k outputs[k] * g[k]``; every weight is a number or a tensor."""

    state: Weight
    shift: Weight
    outputs: tuple[Weight, ...]

    def __call__(self, x: torch.Tensor, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        result = x * self.state
        if not isinstance(self.shift, float) or self.shift:
            result += self.shift
        for output, weight in zip(outputs, self.outputs):
            if isinstance(weight, float):
                result.add_(output, alpha=weight)
            else:
                result.addcmul_(output, weight)
        return result

    def like(self, x: torch.Tensor) -> Update:
        return Update(_like(self.state, x), _like(self.shift, x), tuple(_like(weight, x) for weight in self.outputs))


class Carry(NamedTuple):
    """Moves the origin of g from a step's start to its end: ``g' = scale * g + shift``."""

    scale: Weight
    shift: Weight

    def __call__(self, g: torch.Tensor) -> torch.Tensor:
        if isinstance(self.scale, float) and self.scale == 1 and isinstance(self.shift, float) and self.shift == 0:
            return g
        return g * self.scale + self.shift

    def like(self, x: torch.Tensor) -> Carry:
        return Carry(_like(self.scale, x), _like(self.shift, x))


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

    def like(self, x: torch.Tensor) -> StepV3:
        """The same with its weights on the device and in the dtype of ``x``."""
        predictor, corrector = (update and update.like(x) for update in (self.predictor, self.corrector))
        return StepV3(_like(self.one_minus_l, x), predictor, corrector, self.carry and self.carry.like(x))


def _like(weight: Weight, x: torch.Tensor) -> Weight:
    # the dtype first, as not every device has float64
    return weight.to(x.dtype).to(x.device, non_blocking=True) if isinstance(weight, torch.Tensor) else weight


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
    run = Run.of(x, sigmas, callback)
    extra_args = extra_args or {}
    if statistics is not None:
        _check_shape(statistics, x)
    # all weights are copied before the first call, as a copy between calls would wait for the device
    analytical = bool(analytical_first_step)
    weights = dpm_v3_steps(run.sigmas, order, statistics, corrector, pseudo_order, analytical)
    steps = [step.like(x) for step in weights]
    past: list[torch.Tensor] = []
    start = x
    corrector_step: Optional[Update] = None
    carry: Optional[Carry] = None
    for i, step in enumerate(steps):
        if i == 0 and analytical:
            denoised = x * analytical_output(run.sigmas[0], analytical_first_step)
        else:
            denoised = model(x, run.rows[i], **extra_args)
        run.report(i, x, denoised)
        f = (x * step.one_minus_l).sub_(denoised)
        if corrector_step is not None:
            # f keeps its value at the predicted point: the model is not called again at the corrected one
            x = corrector_step(start, [f, *past])
        if carry is not None:
            past = [carry(g) for g in past[: order - 1]]
        past = [f, *past] if i != 1 or not analytical else [f]
        start, corrector_step, carry = x, step.corrector, step.carry
        x = denoised if step.predictor is None else step.predictor(start, past)
    return x


def _check_shape(statistics: Coefficients, x: torch.Tensor) -> None:
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
    if type(order) is not int or not 1 <= order <= MAX_ORDER:
        raise ValueError(f"order must be 1, 2 or 3, got {order!r}")
    if pseudo_order not in PSEUDO_ORDERS:
        raise ValueError(f"pseudo_order must be one of {', '.join(PSEUDO_ORDERS)}, got {pseudo_order!r}")
    coefficients = statistics if statistics is not None else _data_prediction()
    count = len(sigmas) - 1
    lambdas = [-math.log(sigma) if sigma > 0 else math.inf for sigma in sigmas]
    steps = []
    for i in range(count):
        start, end = lambdas[i], lambdas[i + 1]
        one_minus_l = _as_weight(1 - interpolated(coefficients, start)[0])
        if math.isinf(end):
            steps.append(StepV3(one_minus_l, None, None, None))
            continue
        h = end - start
        # the outputs used at point i: the one made there, and as many before it as there are and the order allows
        nodes = [0.0]
        for k in range(1, min(order, i + 1 - analytical_first_step, count - i)):
            distance = step_ratio(start - lambdas[i - k], h)
            # two nodes must not lie too close together either
            if distance is None or step_ratio(lambdas[i - k + 1] - lambdas[i - k], h) is None:
                break
            nodes.append(-distance * h)
        integrals = _integrals(coefficients, start, end, len(nodes) + 1)
        predictor_step = _predictor(integrals, nodes, pseudo_order == "both")
        corrector_step = None
        if corrector and i < count - 1 and h > 0 and not (i == 0 and analytical_first_step):
            corrector_step = _corrector(integrals, [0.0, h, *nodes[1:]], pseudo_order != "off")
        scale = np.exp(integrals.s)
        carry = Carry(_as_weight(scale), _as_weight(scale * integrals.b))
        if not all(np.isfinite(part).all() for part in (integrals.l, integrals.b, integrals.c, *integrals.moments)):
            raise ValueError(
                f"statistics are too large: the step from sigma {sigmas[i]:g} to {sigmas[i + 1]:g} overflows"
            )
        steps.append(StepV3(one_minus_l, predictor_step, corrector_step, carry))
    return steps


def _data_prediction() -> DataPrediction:
    one, zero = np.ones(2), np.zeros(2)
    return DataPrediction(np.array([-1e4, 1e4]), one, zero, zero)  # the logarithm of any float lies within


def interpolated(statistics: Coefficients, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """l, s and b at lambda = ``level``, linear between grid points.

    Beyond the grid nothing was measured. With r = exp(-2 |distance to the grid|), 1 - l decays as r above the highest
    sigma and l as r below the lowest, as they do for any data of finite variance (a Gaussian has
    l = sigma^2 / (v + sigma^2)); s and b decay as r on both sides. So nothing jumps (f would, if l did) or grows.
    """
    l, s, b = _along(statistics, level, level, np.zeros(1))  # noqa: E741
    return l[0], s[0], b[0]


def _along(statistics: Coefficients, left: float, right: float, points: np.ndarray) -> list[np.ndarray]:
    """l, s and b at ``left + points * (right - left)``, where no grid point lies between the two."""
    grid, middle = statistics.lambdas, (left + right) / 2
    arrays = (statistics.l, statistics.s, statistics.b)
    column = (slice(None), *[None] * (statistics.l.ndim - 1))
    if grid[0] <= middle <= grid[-1]:
        after = min(max(int(np.searchsorted(grid, middle)), 1), len(grid) - 1)
        levels = left + points * (right - left)
        share = ((levels - grid[after - 1]) / (grid[after] - grid[after - 1]))[column]
        ends = [values[after - 1 : after + 1].astype(np.float64) for values in arrays]
        return [low + share * (high - low) for low, high in ends]
    end = 0 if middle < grid[0] else -1
    decay = np.exp(-2 * np.abs(left + points * (right - left) - grid[end]))[column]
    l, s, b = (decay * values[end].astype(np.float64) for values in arrays)  # noqa: E741
    return [l + (1 - decay) if end == 0 else l, s, b]


class Integrals(NamedTuple):
    """The integrals over one step: L, S and B at its end, C = integral exp(L + S) B, and the moments E_1, E_2, ..."""

    l: np.ndarray  # noqa: E741 - the paper's name
    s: np.ndarray
    b: np.ndarray
    c: np.ndarray
    moments: list[np.ndarray]


def _lobatto() -> tuple[np.ndarray, np.ndarray]:
    """Five Gauss-Lobatto points on [0, 1], and the matrix that integrates their polynomial from 0 to each point."""
    root = math.sqrt(3 / 7)
    points = (np.array([-1.0, -root, 0.0, root, 1.0]) + 1) / 2
    powers = np.arange(5)
    integrated = points[:, None] ** (powers + 1) / (powers + 1)
    return points, integrated @ np.linalg.inv(points[:, None] ** powers)


def _integrals(statistics: Coefficients, start: float, end: float, moments: int) -> Integrals:
    """Integrate from lambda = ``start`` to ``end``.

    This goes cell by cell, in each of which l, s and b are smooth, so memory does not grow with the grid.
    """
    points, integrate = _lobatto()
    shape = np.broadcast_shapes(statistics.l.shape[1:], statistics.s.shape[1:], statistics.b.shape[1:])
    sum_l, sum_s, sum_b, sum_c = (np.zeros(shape) for _ in range(4))
    sums = [np.zeros(shape) for _ in range(moments)]
    column = (slice(None), *[None] * len(shape))

    def cumulative(values: np.ndarray) -> np.ndarray:
        return np.tensordot(integrate, values, 1) * width

    for left, right in _cells(statistics.lambdas, start, end):
        width = right - left
        l, s, b = _along(statistics, left, right, points)  # noqa: E741
        big_l = sum_l + cumulative(l)
        big_s = sum_s + cumulative(s)
        big_b = sum_b + cumulative(np.exp(-big_s) * b)
        kernel = np.exp(big_l + big_s)
        sum_c = sum_c + cumulative(kernel * big_b)[-1]
        distance = (left - start + points * width)[column]
        for n in range(moments):
            sums[n] = sums[n] + cumulative(kernel)[-1]
            kernel = kernel * distance / (n + 1)
        sum_l, sum_s, sum_b = big_l[-1], big_s[-1], big_b[-1]
    return Integrals(sum_l, sum_s, sum_b, sum_c, sums)


def _cells(grid: np.ndarray, start: float, end: float) -> list[tuple[float, float]]:
    """The interval from ``start`` to ``end`` (in either direction), cut at grid points and at most WIDEST_CELL wide."""
    low, high = min(start, end), max(start, end)
    cuts = [low, *grid[(grid > low) & (grid < high)].tolist(), high]
    edges: list[float] = [low]
    for left, right in pairwise(cuts):
        edges += np.linspace(left, right, math.ceil((right - left) / WIDEST_CELL) + 1)[1:].tolist()
    cells = list(pairwise(edges))
    return cells if start <= end else [(right, left) for left, right in reversed(cells)]


def _predictor(integrals: Integrals, nodes: list[float], pseudo: bool) -> Update:
    """x' = exp(-L) (x - C - sum_k w_k g_k)."""
    decay = np.exp(-integrals.l)
    weights = _weights(nodes, integrals.moments, pseudo)
    outputs = tuple(_as_weight(-decay * weight) for weight in weights)
    return Update(_as_weight(decay), _as_weight(-decay * integrals.c), outputs)


def _corrector(integrals: Integrals, nodes: list[float], pseudo: bool) -> Update:
    """The predictor's formula with the end of the step as second node, where g' = exp(-S) f' - B; f' comes first."""
    decay = np.exp(-integrals.l)
    newest, predicted, *past = (-decay * weight for weight in _weights(nodes, integrals.moments, pseudo))
    shift = -decay * integrals.c - predicted * integrals.b
    outputs = (predicted * np.exp(-integrals.s), newest, *past)
    return Update(_as_weight(decay), _as_weight(shift), tuple(_as_weight(weight) for weight in outputs))


def _weights(nodes: list[float], moments: list[np.ndarray], pseudo: bool) -> list[np.ndarray]:
    """w_k such that sum_k w_k g_k = sum_n g^(n) E_(n+1), with g_k at the ``nodes`` (distances, 0 first).

    Either the derivatives are those of the polynomial through all nodes (sum_k w_k d_k^n / n! = E_(n+1)), or
    g^(n) = n! g[d_0, ..., d_n], the divided difference over the first nodes alone (pseudo-order).
    """
    count = len(nodes)
    if count == 1:
        return [moments[0]]
    # scaled by the farthest node, so that small steps do not make the system singular
    unit = max(abs(node) for node in nodes)
    d = np.array(nodes) / unit
    right = np.stack([moments[n] * math.factorial(n) / unit**n for n in range(count)])
    if pseudo:
        inverse = np.zeros((count, count))
        for n in range(count):
            for k in range(n + 1):
                inverse[k, n] = 1 / np.prod([d[k] - d[j] for j in range(n + 1) if j != k])
    else:
        inverse = np.linalg.inv(np.vander(d, increasing=True).T)
    return list(np.tensordot(inverse, right, 1))


def _as_weight(weight: np.ndarray) -> Weight:
    """A Python number where the array has one element, else a tensor."""
    return float(weight.reshape(())) if weight.size == 1 else torch.from_numpy(np.ascontiguousarray(weight))
