"""DPM-Solver-v3 (arXiv 2310.13268): exponential integration around a linear model that was measured beforehand.

With lambda = -log sigma, N = x - D and statistics l, s, b of one model (functions of lambda, per channel or pixel)::

    dx/dlambda = -N = -(l x + f)            f = N - l x = (1 - l) x - D
    df/dlambda = s f + b + what is left     g = exp(-S) f - B

where L, S = integral l, s and B = integral exp(-S) b, all from the step's start. What is left is small, so g hardly
moves, and a step interpolates g by a polynomial through past points::

    x' = exp(-L) (x - integral exp(L + S) B dl - sum_n g^(n) E_(n+1))     E_(n+1) = integral exp(L + S) d^n / n! dl

with d the distance from the start (the paper's sections 3.1 and 3.2, whose alphas fall out in VE form: f and b are in
the units of x_0). Past values of g are carried from one step's start to the next: g becomes exp(S) (g + B).
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
"""Quadrature cells are no wider than this in lambda: the error of five Lobatto points is then below 1e-13."""


class Coefficients(Protocol):
    """What the solver asks of statistics: a rising grid, and per grid point arrays that broadcast to a latent."""

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
    """``x' = state * x + shift + sum_k outputs[k] * g[k]``; a tensor's worth of weights each, or numbers."""

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

    def on(self, x: torch.Tensor) -> Update:
        return Update(_on(self.state, x), _on(self.shift, x), tuple(_on(weight, x) for weight in self.outputs))


class Carry(NamedTuple):
    """Moves the origin of g from a step's start to its end: g becomes ``scale * g + shift``."""

    scale: Weight
    shift: Weight

    def __call__(self, g: torch.Tensor) -> torch.Tensor:
        if isinstance(self.scale, float) and self.scale == 1 and isinstance(self.shift, float) and self.shift == 0:
            return g
        return g * self.scale + self.shift

    def on(self, x: torch.Tensor) -> Carry:
        return Carry(_on(self.scale, x), _on(self.shift, x))


class StepV3(NamedTuple):
    """Step i.

    Attributes:
        rest: 1 - l at its start, of f = (1 - l) x - D.
        predictor: weights of (g_i, g_(i-1), ...); None for a step to sigma 0, where x' = D.
        corrector: weights of (f', g_i, g_(i-1), ...) with f' found at the predicted point; None: not corrected.
        carry: moves past g to the end of the step.
    """

    rest: Weight
    predictor: Optional[Update]
    corrector: Optional[Update]
    carry: Optional[Carry]

    def on(self, x: torch.Tensor) -> StepV3:
        """With its weights on the device and in the dtype of ``x``."""
        predictor, corrector = (update and update.on(x) for update in (self.predictor, self.corrector))
        return StepV3(_on(self.rest, x), predictor, corrector, self.carry and self.carry.on(x))


def _on(weight: Weight, x: torch.Tensor) -> Weight:
    # the dtype first: not every device knows float64
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

    Without statistics l = 1 and s = b = 0, which is data prediction. Order 1 without the corrector is then exactly
    :func:`~hpsampler.solvers.sample_dpmpp_1s`; order 2 is DPM-Solver++ 2M in its "heun" form (the linear polynomial
    is integrated exactly, where :func:`~hpsampler.solvers.sample_dpmpp_2m` takes half the step), and a step of order 3
    is UniPC's predictor of order 3 on data.

    Args:
        order: of the predictor, 1 to 3; falls at the start and the end of the run, where fewer past points or steps
            remain. A step to sigma 0 is x0 = D.
        statistics: l, s, b of this model at this guidance, see :class:`~hpsampler.statistics.Statistics`; linear in
            lambda between its grid points, beyond them see :func:`interpolated`.
        corrector: correct each predicted point but the last with the call made there anyway; it has one node more
            than the predictor.
        pseudo_order: who takes divided differences for the derivatives of g (the paper's section 3.3), which differ
            from the interpolating polynomial's from three nodes on: of second order, but less nervous with few steps.
            ``"off"``, ``"corrector"`` (the paper's advice) or ``"both"``. Over three problems of demo/problems.py,
            guidance 1 to 7.5 and 5 to 10 steps, "off" had some 20 % less error with statistics per element,
            "corrector" some 25 % less with those per channel.
        analytical_first_step: above 0 the first step makes no call, see :func:`~hpsampler.solvers.sample_unipc`; what
            its output is taken to be is neither corrected with nor kept.

    With statistics measured at that guidance, 5 steps at 7.5 on those problems have an error of 0.08 to 0.24 of the
    data's RMS where DPM++ 2M has 1.8 to 3.6. Order 3 is for no guidance: at 3 and above it can blow up.

    Raises:
        ValueError: naming the argument, its value and what is allowed; statistics that do not fit the latent.
    """
    run = Run.of(x, sigmas, callback)
    extra_args = extra_args or {}
    if statistics is not None:
        _check_fit(statistics, x)
    # all weights travel before the first call: a copy between calls would wait for the device
    analytical = bool(analytical_first_step)
    weights = dpm_v3_steps(run.sigmas, order, statistics, corrector, pseudo_order, analytical)
    steps = [step.on(x) for step in weights]
    past: list[torch.Tensor] = []
    start = x
    correct: Optional[Update] = None
    carry: Optional[Carry] = None
    for i, step in enumerate(steps):
        if i == 0 and analytical:
            denoised = x * analytical_output(run.sigmas[0], analytical_first_step)
        else:
            denoised = model(x, run.rows[i], **extra_args)
        run.report(i, x, denoised)
        f = (x * step.rest).sub_(denoised)
        if correct is not None:
            # f stays what it is at the predicted point: it holds the network's output, which is not asked again
            x = correct(start, [f, *past])
        if carry is not None:
            past = [carry(g) for g in past[: order - 1]]
        past = [f, *past] if i != 1 or not analytical else [f]
        start, correct, carry = x, step.corrector, step.carry
        x = denoised if step.predictor is None else step.predictor(start, past)
    return x


def _check_fit(statistics: Coefficients, x: torch.Tensor) -> None:
    shape, latent = tuple(statistics.l.shape[1:]), tuple(x.shape[1:])
    fits = len(shape) <= len(latent) and all(
        ours in (1, theirs) for ours, theirs in zip(reversed(shape), reversed(latent))
    )
    if not fits:
        raise ValueError(
            f"statistics must fit a latent of shape {latent}, got them for {shape}; "
            "their resized(height, width) fits them to another size"
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
        ValueError: naming the argument, its value and what is allowed; weights that are not finite.
    """
    if type(order) is not int or not 1 <= order <= MAX_ORDER:
        raise ValueError(f"order must be 1, 2 or 3, got {order!r}")
    if pseudo_order not in PSEUDO_ORDERS:
        raise ValueError(f"pseudo_order must be one of {', '.join(PSEUDO_ORDERS)}, got {pseudo_order!r}")
    known = statistics if statistics is not None else _data_prediction()
    count = len(sigmas) - 1
    lambdas = [-math.log(sigma) if sigma > 0 else math.inf for sigma in sigmas]
    steps = []
    for i in range(count):
        here, target = lambdas[i], lambdas[i + 1]
        rest = _number(1 - interpolated(known, here)[0])
        if math.isinf(target):
            steps.append(StepV3(rest, None, None, None))
            continue
        h = target - here
        # outputs known at point i: its own, and those before it as far as the order reaches
        nodes = [0.0]
        for k in range(1, min(order, i + 1 - analytical_first_step, count - i)):
            distance = step_ratio(here - lambdas[i - k], h)
            # each node must also lie apart from the one before it
            if distance is None or step_ratio(lambdas[i - k + 1] - lambdas[i - k], h) is None:
                break
            nodes.append(-distance * h)
        integrals = _integrals(known, here, target, len(nodes) + 1)
        predict = _predictor(integrals, nodes, pseudo_order == "both")
        correct = None
        if corrector and i < count - 1 and h > 0 and not (i == 0 and analytical_first_step):
            correct = _corrector(integrals, [0.0, h, *nodes[1:]], pseudo_order != "off")
        scale = np.exp(integrals.s)
        step = StepV3(rest, predict, correct, Carry(_number(scale), _number(scale * integrals.b)))
        if not all(np.isfinite(part).all() for part in (integrals.l, integrals.b, integrals.c, *integrals.moments)):
            raise ValueError(f"statistics must be smaller: the step from {sigmas[i]:g} to {sigmas[i + 1]:g} overflows")
        steps.append(step)
    return steps


def _data_prediction() -> DataPrediction:
    one, zero = np.ones(2), np.zeros(2)
    return DataPrediction(np.array([-1e4, 1e4]), one, zero, zero)  # a grid that no float's logarithm leaves


def interpolated(statistics: Coefficients, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """l, s and b at lambda = ``level``, linear between grid points.

    Beyond the grid nothing was measured. With r = exp(-2 |distance to the grid|), 1 - l falls as r above the highest
    sigma and l as r below the lowest, as they do for any data of finite variance (l = sigma^2 / (v + sigma^2) of a
    Gaussian); s and b fall as r on both sides. So nothing jumps (f would, with l) and nothing grows.
    """
    l, s, b = _along(statistics, level, level, np.zeros(1))  # noqa: E741
    return l[0], s[0], b[0]


def _along(statistics: Coefficients, left: float, right: float, points: np.ndarray) -> list[np.ndarray]:
    """l, s and b at ``left + points * (right - left)``, where no grid point lies between the two."""
    grid, middle = statistics.lambdas, (left + right) / 2
    known = (statistics.l, statistics.s, statistics.b)
    column = (slice(None), *[None] * (statistics.l.ndim - 1))
    if grid[0] <= middle <= grid[-1]:
        after = min(max(int(np.searchsorted(grid, middle)), 1), len(grid) - 1)
        levels = left + points * (right - left)
        share = ((levels - grid[after - 1]) / (grid[after] - grid[after - 1]))[column]
        ends = [values[after - 1 : after + 1].astype(np.float64) for values in known]
        return [low + share * (high - low) for low, high in ends]
    end = 0 if middle < grid[0] else -1
    decay = np.exp(-2 * np.abs(left + points * (right - left) - grid[end]))[column]
    l, s, b = (decay * values[end].astype(np.float64) for values in known)  # noqa: E741
    return [l + (1 - decay) if end == 0 else l, s, b]


class Integrals(NamedTuple):
    """Over one step, from its start: L, S, B at its end, C = integral exp(L+S) B, and E_1, E_2, ..."""

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


def _integrals(statistics: Coefficients, here: float, target: float, moments: int) -> Integrals:
    """Cell by cell, so that memory does not grow with the grid; l, s and b are smooth in each cell."""
    points, integrate = _lobatto()
    shape = np.broadcast_shapes(statistics.l.shape[1:], statistics.s.shape[1:], statistics.b.shape[1:])
    sum_l, sum_s, sum_b, sum_c = (np.zeros(shape) for _ in range(4))
    sums = [np.zeros(shape) for _ in range(moments)]
    column = (slice(None), *[None] * len(shape))

    def cumulative(values: np.ndarray) -> np.ndarray:
        return np.tensordot(integrate, values, 1) * width

    for left, right in _cells(statistics.lambdas, here, target):
        width = right - left
        l, s, b = _along(statistics, left, right, points)  # noqa: E741
        big_l = sum_l + cumulative(l)
        big_s = sum_s + cumulative(s)
        big_b = sum_b + cumulative(np.exp(-big_s) * b)
        kernel = np.exp(big_l + big_s)
        sum_c = sum_c + cumulative(kernel * big_b)[-1]
        distance = (left - here + points * width)[column]
        for n in range(moments):
            sums[n] = sums[n] + cumulative(kernel)[-1]
            kernel = kernel * distance / (n + 1)
        sum_l, sum_s, sum_b = big_l[-1], big_s[-1], big_b[-1]
    return Integrals(sum_l, sum_s, sum_b, sum_c, sums)


def _cells(grid: np.ndarray, here: float, target: float) -> list[tuple[float, float]]:
    """The way from ``here`` to ``target``, either direction, cut at every grid point and into no wide pieces."""
    low, high = min(here, target), max(here, target)
    cuts = [low, *grid[(grid > low) & (grid < high)].tolist(), high]
    fine: list[float] = [low]
    for left, right in pairwise(cuts):
        fine += np.linspace(left, right, math.ceil((right - left) / WIDEST_CELL) + 1)[1:].tolist()
    cells = list(pairwise(fine))
    return cells if here <= target else [(right, left) for left, right in reversed(cells)]


def _predictor(integrals: Integrals, nodes: list[float], pseudo: bool) -> Update:
    """x' = exp(-L) (x - C - sum_k w_k g_k)."""
    decay = np.exp(-integrals.l)
    weights = _weights(nodes, integrals.moments, pseudo)
    outputs = tuple(_number(-decay * weight) for weight in weights)
    return Update(_number(decay), _number(-decay * integrals.c), outputs)


def _corrector(integrals: Integrals, nodes: list[float], pseudo: bool) -> Update:
    """The predictor's formula with the target as second node, where g' = exp(-S) f' - B; f' comes first."""
    decay = np.exp(-integrals.l)
    newest, target, *past = (-decay * weight for weight in _weights(nodes, integrals.moments, pseudo))
    shift = -decay * integrals.c - target * integrals.b
    outputs = (target * np.exp(-integrals.s), newest, *past)
    return Update(_number(decay), _number(shift), tuple(_number(weight) for weight in outputs))


def _weights(nodes: list[float], moments: list[np.ndarray], pseudo: bool) -> list[np.ndarray]:
    """w_k such that sum_k w_k g_k = sum_n g^(n) E_(n+1), with g at the ``nodes`` (distances, the start's 0 first).

    Either the derivatives are those of the polynomial through all nodes (sum_k w_k d_k^n / n! = E_(n+1)), or
    g^(n) = n! g[d_0, ..., d_n], the divided difference over the first nodes alone (pseudo-order).
    """
    count = len(nodes)
    if count == 1:
        return [moments[0]]
    # in units of the farthest node, so that small steps do not make the system singular
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


def _number(weight: np.ndarray) -> Weight:
    """A Python number where one does for all elements."""
    return float(weight.reshape(())) if weight.size == 1 else torch.from_numpy(np.ascontiguousarray(weight))
