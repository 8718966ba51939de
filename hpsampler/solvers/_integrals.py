"""The integrals of DPM-Solver-v3 over the steps of a schedule, see :mod:`~hpsampler.solvers.dpm_v3`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np

__all__ = ["Coefficients", "Integrals", "data_prediction", "integrals_of", "interpolated"]

WIDEST_CELL = 0.25
"""Largest width in lambda of a quadrature cell; the error of five Lobatto points is then below 1e-13."""

BLOCK = 2**16
"""Numbers that are worked on at once: few enough to stay in the processor's cache."""


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


def data_prediction() -> DataPrediction:
    one, zero = np.ones(2), np.zeros(2)
    return DataPrediction(np.array([-1e4, 1e4]), one, zero, zero)  # the logarithm of any float lies within


class Integrals(NamedTuple):
    """The integrals over one step: L, S and B at its end, C = integral exp(L + S) B, and the moments E_1, E_2, ...

    Each has the shape of one grid point's statistics; the moments have one axis more in front.
    """

    l: np.ndarray  # noqa: E741 - the paper's name
    s: np.ndarray
    b: np.ndarray
    c: np.ndarray
    moments: np.ndarray


def interpolated(statistics: Coefficients, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """l, s and b at lambda = ``level``, linear between grid points.

    Beyond the grid nothing was measured. With r = exp(-2 |distance to the grid|), 1 - l decays as r above the highest
    sigma and l as r below the lowest, as they do for any data of finite variance (a Gaussian has
    l = sigma^2 / (v + sigma^2)); s and b decay as r on both sides. So nothing jumps (f would, if l did) or grows.
    """
    at = _Levels.of(statistics.lambdas, np.array([level]), np.array([[level]]))
    low, high, first, second, constant = at.low[0], at.high[0], *(float(each[0, 0]) for each in at[2:])
    l, s, b = (  # noqa: E741
        first * values[low].astype(np.float64) + second * values[high].astype(np.float64)
        for values in (statistics.l, statistics.s, statistics.b)
    )
    return l + constant, s, b


class _Levels(NamedTuple):
    """Levels as weighted rows of the grid: ``first * values[low] + second * values[high]``, and for l ``+ constant``.

    Attributes:
        low, high: shape (cells,), one pair of grid points for all levels of a cell.
        first, second, constant: shape (cells, levels).
    """

    low: np.ndarray
    high: np.ndarray
    first: np.ndarray
    second: np.ndarray
    constant: np.ndarray

    @classmethod
    def of(cls, grid: np.ndarray, middle: np.ndarray, levels: np.ndarray) -> _Levels:
        """Of cells with that middle, in which no grid point lies; ``levels`` has shape (cells, levels)."""
        after = np.clip(np.searchsorted(grid, middle), 1, len(grid) - 1)
        share = (levels - grid[after - 1][:, None]) / (grid[after] - grid[after - 1])[:, None]
        above, below = middle < grid[0], middle > grid[-1]
        if not (above.any() or below.any()):
            return cls(after - 1, after, 1 - share, share, np.zeros_like(share))
        outside, end = above | below, np.where(above, 0, len(grid) - 1)
        decay = np.exp(-2 * np.abs(levels - grid[end][:, None]))
        column = outside[:, None]
        return cls(
            np.where(outside, end, after - 1), np.where(outside, end, after),
            np.where(column, decay, 1 - share), np.where(column, 0, share), np.where(above[:, None], 1 - decay, 0),
        )  # fmt: skip


def integrals_of(statistics: Coefficients, lambdas: Sequence[float], moments: int) -> list[Integrals]:
    """The integrals from each of ``lambdas`` to the next, with that number of moments.

    The steps are cut at grid points into cells, in which l, s and b are smooth; all cells are integrated side by side,
    a block of elements after the other, so that memory does not grow with the latent.
    """
    cells = [_cells(statistics.lambdas, start, end) for start, end in pairwise(lambdas)]
    if not cells:
        return []
    step_of = np.repeat(np.arange(len(cells)), [len(each) for each in cells])
    left, right = np.array([edges for each in cells for edges in each]).T
    width = right - left
    points, integrate = _lobatto()
    levels = left[:, None] + points * width[:, None]
    at = _Levels.of(statistics.lambdas, (left + right) / 2, levels)
    # from the cell's start to each of its points, and to its end
    cumulate = integrate * width[:, None, None]
    over_cell = cumulate[:, -1:]
    distance = levels - np.array(lambdas)[step_of, None]
    of_moments = over_cell * np.stack([distance**n / math.factorial(n) for n in range(moments)], axis=1)
    ends, pair = np.stack([at.first, at.second], axis=2), np.stack([at.low, at.high], axis=1)
    of_ends, of_constant = cumulate @ ends, cumulate @ at.constant[:, :, None]
    in_step = (np.arange(len(cells))[:, None] == step_of).astype(np.float64)
    longest = np.tri(max(map(len, cells)), k=-1)
    edges = np.searchsorted(step_of, np.arange(len(cells) + 1))

    def add_earlier_cells(big: np.ndarray) -> None:
        """Make integrals from the cell's start integrals from the step's."""
        for begin, end in pairwise(edges.tolist()):
            big[begin:end] += (longest[: end - begin, : end - begin] @ big[begin:end, -1])[:, None]

    shape = np.broadcast_shapes(statistics.l.shape[1:], statistics.s.shape[1:], statistics.b.shape[1:])
    rows = [_rows(values, shape) for values in (statistics.l, statistics.s, statistics.b)]
    elements = rows[0].shape[1]
    totals = np.empty((4 + moments, len(cells), elements))
    block = max(BLOCK // levels.size, 1)
    for begin in range(0, elements, block):
        part = slice(begin, begin + block)
        l, s, b = (values[:, part].take(pair, 0).astype(np.float64, copy=False) for values in rows)  # noqa: E741
        big_l, big_s = of_ends @ l, of_ends @ s
        big_l += of_constant
        slope = ends @ b
        for big, total in ((big_l, totals[0]), (big_s, totals[1])):
            total[:, part] = in_step @ big[:, -1]
            add_earlier_cells(big)
        slope *= np.exp(-big_s)
        big_b = cumulate @ slope
        totals[2, :, part] = in_step @ big_b[:, -1]
        add_earlier_cells(big_b)
        big_l += big_s
        kernel = np.exp(big_l, out=big_l)
        summed = in_step @ (of_moments @ kernel).reshape(len(left), -1)
        totals[4:, :, part] = summed.reshape(len(cells), moments, -1).swapaxes(0, 1)
        kernel *= big_b
        totals[3, :, part] = in_step @ (over_cell @ kernel)[:, 0]
    totals = totals.reshape(4 + moments, len(cells), *shape)
    return [Integrals(each[0], each[1], each[2], each[3], each[4:]) for each in totals.swapaxes(0, 1)]


def _rows(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Shape (grid, elements)."""
    return np.broadcast_to(values, (len(values), *shape)).reshape(len(values), -1)


def _lobatto() -> tuple[np.ndarray, np.ndarray]:
    """Five Gauss-Lobatto points on [0, 1], and the matrix that integrates their polynomial from 0 to each point."""
    root = math.sqrt(3 / 7)
    points = (np.array([-1.0, -root, 0.0, root, 1.0]) + 1) / 2
    powers = np.arange(5)
    integrated = points[:, None] ** (powers + 1) / (powers + 1)
    return points, integrated @ np.linalg.inv(points[:, None] ** powers)


def _cells(grid: np.ndarray, start: float, end: float) -> list[tuple[float, float]]:
    """The interval from ``start`` to ``end`` (in either direction), cut at grid points and at most WIDEST_CELL wide."""
    low, high = min(start, end), max(start, end)
    inner = grid[np.searchsorted(grid, low, "right") : np.searchsorted(grid, high)].tolist()
    edges = [low]
    for left, right in pairwise([low, *inner, high]):
        parts = math.ceil((right - left) / WIDEST_CELL)
        edges += [left + (right - left) * part / parts for part in range(1, parts)]
        edges.append(right)
    cells = list(pairwise(edges))
    return cells if start <= end else [(right, left) for left, right in reversed(cells)]
