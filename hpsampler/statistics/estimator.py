"""Measuring DPM-Solver-v3's coefficients from sampling trajectories (arXiv 2310.13268, section 3.1).

With N = x - D along the sampling trajectories, so dx/dlambda = -N::

    l = E[diagonal of dN/dx]                 f = N - l x
    s = cov(f, f') / var(f)                  b = E[f'] - s E[f]                 ' = d/dlambda along a trajectory

element by element, or pooled over channels and pixels. As f' = N' + l N - l' x, running sums of x, N, N' and their
products are enough: l is not needed beforehand, and their size does not depend on the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from ..checks import abbreviated
from ..solvers._core import answer
from ..store import Reader
from .coefficients import Provenance, Statistics, StatisticsError, checked_grid
from .files import VERSION, naming_file, read_arrays, write_arrays

__all__ = ["Estimator"]

SUMS_FORMAT = "hpsampler-statistics-sums"

SUMS = ("x", "n", "slope", "x x", "n n", "x n", "n slope", "x slope", "diagonal")
"""The sums for every grid point and element: x, N = x - D, slope N' = dN/dlambda, their products, and v * (J v)."""


class Estimator:
    """Measures statistics from sampling trajectories, which are added in batches with :meth:`add`.

    Each batch is sampled with DPM++ 2M on the grid's points, which from about 50 points on is practically exact. At
    every point the model is called once for N, whose slope along the trajectory follows from the neighbouring points
    without another call, and once more at x + step * v with random signs v (Hutchinson's estimator), for the diagonal
    of dN/dx. The memory depends only on the grid and on ``shape``: 72 bytes per grid point and element, and twice that
    while a batch is sampled (Stable Diffusion 1.5 with 251 points: 600 MB; per channel: 144 kB).

    Args:
        lambdas: shape (grid,), increasing, at least 3 points. The trajectories start at the first (the highest sigma).
        shape: (channels, height, width) of the statistics; each may be 1, which pools over that axis: fewer samples
            are needed, and the statistics fit any size.
        source: provenance of the statistics; the number of samples is filled in.
        seed: seed of the random signs, which depend only on it and on the number of earlier samples.
        probe_step: size of the finite difference in units of sigma; 0.01 also suits half-precision models.
        exact: use forward-mode derivatives (torch.func.jvp) instead, which the model must support.

    Raises:
        StatisticsError: naming the argument, its value and what is allowed.
    """

    def __init__(
        self,
        lambdas: np.ndarray,
        shape: tuple[int, int, int],
        source: Optional[Provenance] = None,
        seed: int = 0,
        probe_step: float = 0.01,
        exact: bool = False,
    ) -> None:
        self.lambdas = checked_grid(lambdas)
        if len(self.lambdas) < 3:
            raise StatisticsError(f"lambdas must be at least 3 to measure slopes, got {len(self.lambdas)}")
        if len(shape) != 3 or any(type(size) is not int or size < 1 for size in shape):
            raise StatisticsError(f"shape must be (channels, height, width), got {abbreviated(shape)}")
        if not 1e-6 <= probe_step <= 1:
            raise StatisticsError(f"probe_step must be from 1e-06 to 1, got {probe_step!r}")
        if type(seed) is not int or not 0 <= seed < 2**31:
            raise StatisticsError(f"seed must be a whole number from 0 to {2**31 - 1}, got {abbreviated(seed)}")
        self.shape, self.source, self.seed = shape, source or Provenance(), seed
        self.probe_step, self.exact = probe_step, exact
        self.samples = 0
        self.sums = np.zeros((len(SUMS), len(self.lambdas), *shape))

    @property
    def sigmas(self) -> list[float]:
        """The sigmas at which the model is called, highest first."""
        return np.exp(-self.lambdas).tolist()

    @torch.no_grad()
    def add(
        self,
        model: Callable[..., torch.Tensor],
        x: torch.Tensor,
        extra_args: Optional[dict[str, Any]] = None,
        progress: Optional[Callable[[int], object]] = None,
    ) -> None:
        """Sample one batch along the grid and add it to the sums, which stay unchanged if this is interrupted.

        Args:
            model: k-diffusion denoiser, with guidance, as it is used for sampling.
            x: shape (batch, channels, height, width), the state at ``sigmas[0]``: unit noise times that sigma.
            extra_args: keyword arguments of the model, such as the batch's prompts.
            progress: called with the index of every finished grid point.

        Raises:
            StatisticsError: a batch that does not fit ``shape``, or a model whose output is not finite.
            ValueError: a model that returns another shape than x has.
        """
        if x.ndim != 4 or any(own not in (1, size) for own, size in zip(self.shape, x.shape[1:])) or not len(x):
            raise StatisticsError(f"x must have shape (batch, *{self.shape}), got {tuple(x.shape)}")
        sums = np.zeros_like(self.sums)
        generator = torch.Generator().manual_seed((self.seed << 32) + self.samples)
        neighbours: list[tuple[torch.Tensor, torch.Tensor]] = []
        past: Optional[torch.Tensor] = None
        last = len(self.lambdas) - 1
        for i, sigma in enumerate(self.sigmas):
            signs = (torch.randint(0, 2, x.shape, generator=generator) * 2 - 1).to(x)
            denoised, derivative = self._denoise_with_derivative(model, x, sigma, signs, extra_args or {})
            sums[SUMS.index("diagonal"), i] = self._pooled((1 - signs * derivative).cpu().double())
            # the slope at a point needs its two neighbours, so only three points are kept in memory
            neighbours = [*neighbours[-2:], (x.cpu().double(), (x - denoised).cpu().double())]
            if i >= 2:
                self._add_products(sums, i - 1, neighbours)
            if i < last:
                x, past = self._step(x, denoised, past, i), denoised
            if progress is not None:
                progress(i)
        if not np.isfinite(sums).all():
            raise StatisticsError("the model's output must be finite, and it was not")
        self.sums += sums
        self.samples += len(x)

    def _denoise_with_derivative(
        self, model: Callable[..., torch.Tensor], x: torch.Tensor, sigma: float, v: torch.Tensor, extra: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """D, and its derivative in the direction v."""
        row = x.new_full((len(x),), sigma)
        if self.exact:
            output: tuple[torch.Tensor, torch.Tensor] = torch.func.jvp(
                lambda state: model(state, row, **extra), (x,), (v,)
            )  # type: ignore[assignment]  # it returns three only with has_aux
            return output
        step = self.probe_step * sigma
        # the second call may overwrite what the first returned
        denoised = answer(model, x, row, extra).clone()
        return denoised, (answer(model, x + step * v, row, extra) - denoised) / step

    def _step(self, x: torch.Tensor, denoised: torch.Tensor, past: Optional[torch.Tensor], i: int) -> torch.Tensor:
        """A step of DPM++ 2M from grid point i to the next."""
        h = self.lambdas[i + 1] - self.lambdas[i]
        if past is not None:
            correction = 0.5 * h / (self.lambdas[i] - self.lambdas[i - 1])
            denoised = torch.lerp(past, denoised, 1 + correction)
        return x * math.exp(-h) - math.expm1(-h) * denoised

    def _add_products(self, sums: np.ndarray, middle: int, neighbours: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Add the products at grid point ``middle``, and at a grid end beside it, given (x, N) at three points."""
        grid = self.lambdas
        h0, h1 = grid[middle] - grid[middle - 1], grid[middle + 1] - grid[middle]
        (_, before), (_, here), (_, after) = neighbours
        first, second = (here - before) / h0, (after - here) / h1
        curvature = (second - first) / (h0 + h1)
        points = [(middle, 1, first + curvature * h0)]
        if middle == 1:
            points.append((0, 0, first - curvature * h0))
        if middle == len(grid) - 2:
            points.append((middle + 1, 2, second + curvature * h1))
        for index, place, slope in points:
            x, n = neighbours[place]
            for row, value in enumerate((x, n, slope, x * x, n * n, x * n, n * slope, x * slope)):
                sums[row, index] = self._pooled(value)

    def _pooled(self, values: torch.Tensor) -> np.ndarray:
        """Sum over the batch, then mean over the pooled axes."""
        axes = [axis for axis, size in enumerate(self.shape) if size == 1]
        total = values.sum(0)
        return (total.mean(axes, keepdim=True) if axes else total).numpy()

    def statistics(self, smoothing: int = 5) -> Statistics:
        """The statistics of the batches so far.

        Args:
            smoothing: number of grid points over which l is averaged (odd; the paper's is 5, and 1 is none); s and b
                are not smoothed.

        Raises:
            StatisticsError: fewer than 2 samples, or a smoothing that is not an odd number.
        """
        if self.samples < 2:
            raise StatisticsError(f"samples must be at least 2 before statistics can be made, got {self.samples}")
        if type(smoothing) is not int or smoothing < 1 or smoothing % 2 == 0:
            raise StatisticsError(f"smoothing must be an odd whole number, got {abbreviated(smoothing)}")
        mean = dict(zip(SUMS, self.sums / self.samples))
        l = _smoothed(mean["diagonal"], smoothing)  # noqa: E741 - the paper's name
        slope_l = np.gradient(l, self.lambdas, axis=0, edge_order=2)
        s, b = _least_squares(mean, l, slope_l)
        source = replace(self.source, samples=self.samples)
        return Statistics(self.lambdas, l, s, b, source)

    def save(self, path: Path) -> None:
        """Write the sums, so that another process can continue; an interrupted write leaves an existing file as it was.

        Raises:
            OSError: the file cannot be written.
        """
        metadata = {
            "format": SUMS_FORMAT, "version": VERSION, "source": self.source.known(), "samples": self.samples,
            "seed": self.seed, "probe_step": self.probe_step, "exact": self.exact,
        }  # fmt: skip
        write_arrays(path, {"lambdas": self.lambdas, "sums": self.sums}, metadata)

    @classmethod
    def load(cls, path: Path) -> Estimator:
        """An estimator from a file that :meth:`save` wrote; further batches give the same as one uninterrupted run.

        Raises:
            StatisticsError: what is wrong with the file, or that it cannot be read.
        """
        tensors, metadata = read_arrays(path, SUMS_FORMAT, "file of sums", ("lambdas", "sums"))
        with naming_file(path):
            reader, sums = Reader(metadata), tensors["sums"]
            if sums.ndim != 5 or sums.dtype != np.float64 or sums.shape[:2] != (len(SUMS), tensors["lambdas"].size):
                raise StatisticsError(f"sums must be {len(SUMS)} float64 per grid point, got {sums.dtype} {sums.shape}")
            if not np.isfinite(sums).all():
                raise StatisticsError("sums must be finite")
            estimator = cls(
                tensors["lambdas"],
                (sums.shape[2], sums.shape[3], sums.shape[4]),
                Provenance.read(reader.at("source")),
                reader.whole("seed", 0, 2**31 - 1),
                reader.number("probe_step", 1e-6, 1),
                _boolean(reader.at("exact")),
            )
            estimator.samples = reader.whole("samples", 0, 2**53)
            estimator.sums = np.array(sums)
        return estimator


def _boolean(reader: Reader) -> bool:
    if not isinstance(reader.data, bool):
        raise reader.error("true or false")
    return reader.data


def _smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean along the grid; near the ends the window is shortened symmetrically."""
    count = len(values)
    total = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, 0)])
    half = np.minimum(window // 2, np.minimum(np.arange(count), np.arange(count)[::-1]))
    low, high = np.arange(count) - half, np.arange(count) + half + 1
    return (total[high] - total[low]) / (2 * half + 1).reshape(-1, *[1] * (values.ndim - 1))


def _least_squares(mean: dict[str, np.ndarray], l: np.ndarray, slope_l: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # noqa: E741
    """s and b of f' = s f + b, from the means of x, N, N' and their products (arXiv 2310.13268, section 3.1)."""
    f = mean["n"] - l * mean["x"]
    slope = mean["slope"] + l * mean["n"] - slope_l * mean["x"]
    f_f = mean["n n"] - 2 * l * mean["x n"] + l**2 * mean["x x"]
    f_slope = (
        mean["n slope"] - l * mean["x slope"]
        + l * (mean["n n"] - l * mean["x n"])
        - slope_l * (mean["x n"] - l * mean["x x"])
    )  # fmt: skip
    variance, covariance = f_f - f**2, f_slope - f * slope
    # where f is practically constant, only its mean can be fitted
    varies = variance > 1e-9 * (mean["n n"] + l**2 * mean["x x"])
    s = np.where(varies, covariance / np.where(varies, variance, 1), 0.0)
    return s, slope - s * f
