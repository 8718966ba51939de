"""The coefficients l, s and b of a model for DPM-Solver-v3 (arXiv 2310.13268), on a grid of lambda.

Three arrays over a grid of lambda = -log sigma (VP's log(alpha / sigma)) hold the linear model around which
:func:`~hpsampler.solvers.sample_dpm_v3` integrates. They belong to one model at one guidance scale and latent size;
:mod:`~hpsampler.statistics.estimator` measures them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import numpy as np
import torch

from ..solvers.dpm_v3 import interpolated
from ..store import Reader, abbreviated

__all__ = ["Provenance", "Statistics", "StatisticsError", "check_form"]

MAX_GRID = 4096
MAX_CHANNELS, MAX_SIDE = 64, 1024
"""Of latents: more than any model has, and 8192 pixels."""

MAX_VALUE = 1e4
"""Largest absolute value of l, s and b; larger ones are wrong, and their exponentials would overflow."""


class StatisticsError(ValueError):
    """Statistics, or a file of them, that cannot be used; the message is meant for the user."""


@dataclass(frozen=True)
class Provenance:
    """Where statistics come from; unknown fields are left empty.

    Attributes:
        model_hash, model_name, family: the model that was measured.
        cfg_scale: guidance scale; 1 is no guidance.
        height, width: size of the latents.
        samples: number of trajectories.
    """

    model_hash: str = ""
    model_name: str = ""
    family: str = ""
    cfg_scale: Optional[float] = None
    height: Optional[int] = None
    width: Optional[int] = None
    samples: Optional[int] = None

    @classmethod
    def read(cls, reader: Reader) -> Provenance:
        """From parsed JSON. Raises StoreError: naming the field, its value and what is allowed."""
        given = reader.data
        if not isinstance(given, dict):
            raise reader.error("an object")
        values: dict[str, Any] = {
            name: reader.text(name) for name in ("model_hash", "model_name", "family") if name in given
        }
        if "cfg_scale" in given:
            values["cfg_scale"] = reader.number("cfg_scale", 0, 1000)
        for name, low, high in (("height", 1, 65536), ("width", 1, 65536), ("samples", 0, 2**53)):
            if name in given:
                values[name] = reader.whole(name, low, high)
        return cls(**values)

    def known(self) -> dict[str, Any]:
        """The fields that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != ""}


@dataclass(frozen=True, eq=False)
class Statistics:
    """l, s and b of one model; the arrays are checked, read-only copies.

    Attributes:
        lambdas: shape (grid,), float64, strictly increasing: -log sigma of every grid point.
        l, s, b: shape (grid, channels, height, width), where each of the last three may be 1; float32 or float64.
            b is in the units of x_0, s per unit of lambda.
        source: where they come from.
        weights: those of the schedules that were sampled with them, which the solver computes once and keeps here.

    Raises:
        StatisticsError: the shapes do not agree, values are not finite or too large, or the grid does not increase.
    """

    lambdas: np.ndarray
    l: np.ndarray  # noqa: E741 - the paper's name
    s: np.ndarray
    b: np.ndarray
    source: Provenance = field(default_factory=Provenance)
    weights: dict[tuple[Any, ...], Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lambdas", checked_grid(self.lambdas))
        for name in ("l", "s", "b"):
            object.__setattr__(self, name, _checked_values(name, getattr(self, name), len(self.lambdas)))
        if not self.l.shape == self.s.shape == self.b.shape:
            raise StatisticsError(f"l, s and b must have one shape, got {self.l.shape}, {self.s.shape}, {self.b.shape}")

    @property
    def size(self) -> Optional[tuple[int, int]]:
        """(height, width) of the latents they are for; None where they are the same for all pixels."""
        height, width = self.l.shape[2:]
        return None if height == width == 1 else (height, width)

    def at(self, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """l, s and b at a sigma, each of shape (channels, height, width), float64.

        Linear in lambda between grid points; beyond the grid s and b decay, see
        :func:`~hpsampler.solvers.dpm_v3.interpolated`. The reference moves every sigma of the schedule to the nearest
        grid point instead. The table shows the RMS error on a Gaussian problem with its exact statistics, for 5 steps
        of order 1 from 14.6 to 0.132 (DPM++ 2M: 0.05)::

            grid points               251      101      51       26
            linear                    1.8e-5   9.0e-5   3.5e-4   2.0e-3
            sigmas moved              1.7e-4   4.1e-4   5.1e-4   1.3e-3
            values of the nearest              1.5e-2   2.1e-2   8.7e-2

        At grid points interpolation changes nothing, so a schedule of grid points gives what the reference gives.

        Raises:
            StatisticsError: sigma is not a number above 0.
        """
        if not (math.isfinite(sigma) and sigma > 0):
            raise StatisticsError(f"sigma must be a finite number above 0, got {sigma!r}")
        return interpolated(self, -math.log(sigma))

    def resized(self, height: int, width: int) -> Statistics:
        """The statistics resized bilinearly to latents of another size; this is a guess, see :meth:`size_note`."""
        for name, value in (("height", height), ("width", width)):
            if type(value) is not int or not 1 <= value <= 65536:
                raise StatisticsError(f"{name} must be a whole number from 1 to 65536, got {abbreviated(value)}")
        if self.size in (None, (height, width)):
            return self
        l, s, b = (_resampled(values, height, width) for values in (self.l, self.s, self.b))  # noqa: E741
        return Statistics(self.lambdas, l, s, b, self.source)

    def size_note(self, height: int, width: int) -> str:
        """A note for the user where these are used for latents of another size than their own, else empty."""
        if self.size in (None, (height, width)):
            return ""
        measured_height, measured_width = self.size or (height, width)
        return (
            f"These statistics were measured on latents of {measured_width}x{measured_height} and are stretched to "
            f"{width}x{height}: a guess, the picture may be worse than without them."
        )


def checked_grid(lambdas: Any) -> np.ndarray:
    """The grid as a read-only float64 array. Raises StatisticsError."""
    grid = np.array(lambdas)
    if grid.dtype.kind not in "fiu" or grid.ndim != 1 or not 2 <= grid.size <= MAX_GRID:
        raise StatisticsError(
            f"lambdas must be one row of 2 to {MAX_GRID} numbers, got {grid.dtype} of shape {grid.shape}"
        )
    grid = grid.astype(np.float64)
    if not np.isfinite(grid).all():
        raise StatisticsError(f"lambdas must be finite, got {grid[~np.isfinite(grid)][0]}")
    if not (np.diff(grid) > 0).all():
        index = int(np.argmax(np.diff(grid) <= 0))
        raise StatisticsError(f"lambdas must rise, got {grid[index]:g} then {grid[index + 1]:g} at index {index}")
    grid.setflags(write=False)
    return grid


def check_form(name: str, dtype: Any, shape: tuple[int, ...]) -> None:
    """Check dtype and shape of l, s or b, which can be done before there is such an array.

    Raises:
        StatisticsError: no model can use one like that.
    """
    if dtype not in (np.float32, np.float64):
        raise StatisticsError(f"{name} must be float32 or float64, got {dtype}")
    points, *latent = (*shape, 1, 1, 1) if len(shape) == 1 else (shape or (0,))
    if len(latent) != 3 or 0 in shape:
        raise StatisticsError(
            f"{name} must have shape (points, channels, height, width), the first being the grid's, got {shape}"
        )
    for what, size, most in zip(("grid points", "channels", "rows", "columns"), (points, *latent),
                                (MAX_GRID, MAX_CHANNELS, MAX_SIDE, MAX_SIDE)):  # fmt: skip
        if size > most:
            raise StatisticsError(f"{name} must have at most {most} {what}, got shape {shape}")


def _checked_values(name: str, values: Any, points: int) -> np.ndarray:
    array = np.array(values, order="C")
    check_form(name, array.dtype, array.shape)
    if array.ndim == 1:
        array = array[:, None, None, None]
    if len(array) != points:
        raise StatisticsError(
            f"{name} must have shape ({points}, channels, height, width), the first being the grid's, got {array.shape}"
        )
    if not np.isfinite(array).all():
        raise StatisticsError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    if np.abs(array).max() > MAX_VALUE:
        raise StatisticsError(f"{name} must be from {-MAX_VALUE:g} to {MAX_VALUE:g}, got {np.abs(array).max():g}")
    array.setflags(write=False)
    return array


def _resampled(values: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(np.array(values)), (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.numpy()
