"""A model's statistics for DPM-Solver-v3 (arXiv 2310.13268): what they are, their files, and how they are measured.

Three arrays l, s, b over a grid of lambda = -log sigma (VP's log(alpha / sigma)) hold the linear model around which
:func:`~hpsampler.solvers.sample_dpm_v3` integrates. They belong to one model at one guidance and one latent size.
With N = x - D along the sampling trajectories, so dx/dlambda = -N (the paper's section 3.1)::

    l = E[diagonal of dN/dx]                 f = N - l x
    s = cov(f, f') / var(f)                  b = E[f'] - s E[f]                 ' = d/dlambda along a trajectory

element by element, or pooled over channels and pixels. As f' = N' + l N - l' x, running sums of x, N, N' and their
products are enough: they do not need l beforehand, and their size does not depend on how many samples were seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import threading
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from .noise import NoiseModel
from .shelf import Reader, ShelfError, parsed, shown
from .solvers.dpm_v3 import interpolated

__all__ = [
    "RESERVED",
    "Estimator",
    "Source",
    "Statistics",
    "StatisticsError",
    "about",
    "best_for",
    "calls_needed",
    "convert_published",
    "kept_in",
    "labelled",
    "load_published",
    "load_statistics",
    "opened",
    "pick",
    "sources_in",
]

FORMAT, VERSION = "hpsampler-statistics", 1
RESERVED = ("Auto", "Off")
"""Names that mean something else in menus."""

SUMS_FORMAT = "hpsampler-statistics-sums"

MAX_BYTES = 2**31
"""A file, or what an archive unfolds to, beyond this is not read."""

MAX_GRID = 4096
MAX_VALUE = 1e4
"""l, s and b beyond this are no measurement; their exponentials would overflow."""

PUBLISHED_NAME = re.compile(r"(\d+(?:\.\d+)?)_(\d+)_(\d+)")
"""Folders of the paper's repository: guidance, grid intervals, samples."""


class StatisticsError(ValueError):
    """Statistics, or a file of them, that cannot be used; the message is for people."""


@dataclass(frozen=True)
class Source:
    """Where statistics come from; what is not known is left empty.

    Attributes:
        model_hash, model_name, family: of the model that was measured.
        cfg_scale: its guidance; 1 is none.
        height, width: of the latents.
        samples: how many trajectories.
    """

    model_hash: str = ""
    model_name: str = ""
    family: str = ""
    cfg_scale: Optional[float] = None
    height: Optional[int] = None
    width: Optional[int] = None
    samples: Optional[int] = None

    @classmethod
    def read(cls, reader: Reader) -> Source:
        """Raises ShelfError: naming the field, its value and what is allowed."""
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
    """l, s and b of one model, checked; the arrays are copies that cannot be written.

    Attributes:
        lambdas: shape (grid,), float64, strictly rising: -log sigma of every grid point.
        l, s, b: shape (grid, channels, height, width), each of the last three may be 1; float32 or float64.
            b is in the units of x_0, s per unit of lambda.
        source: where they come from.

    Raises:
        StatisticsError: shapes that do not agree, values not finite or huge, a grid that does not rise.
    """

    lambdas: np.ndarray
    l: np.ndarray  # noqa: E741 - the paper's name
    s: np.ndarray
    b: np.ndarray
    source: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lambdas", _checked_grid(self.lambdas))
        for name in ("l", "s", "b"):
            object.__setattr__(self, name, _checked_values(name, getattr(self, name), len(self.lambdas)))
        if not self.l.shape == self.s.shape == self.b.shape:
            raise StatisticsError(f"l, s and b must have one shape, got {self.l.shape}, {self.s.shape}, {self.b.shape}")

    @property
    def size(self) -> Optional[tuple[int, int]]:
        """(height, width) of the latents they fit, None where they are the same all over the picture."""
        height, width = self.l.shape[2:]
        return None if height == width == 1 else (height, width)

    def at(self, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """l, s and b at a sigma, each of shape (channels, height, width), float64.

        Linear in lambda between grid points; beyond the grid s and b fade, see
        :func:`~hpsampler.solvers.dpm_v3.interpolated`. The reference instead moves every sigma of the schedule to
        the nearest grid point. Measured on a Gaussian problem with its exact statistics, 5 steps of order 1 from 14.6
        to 0.132, RMS to where the schedule should have led (DPM++ 2M: 0.05)::

            grid points               251      101      51       26
            linear                    1.8e-5   9.0e-5   3.5e-4   2.0e-3
            sigmas moved              1.7e-4   4.1e-4   5.1e-4   1.3e-3
            values of the nearest              1.5e-2   2.1e-2   8.7e-2

        On the grid's points linear is exact too, so a schedule that was moved by hand gives what the reference gives.

        Raises:
            StatisticsError: sigma not a number above 0.
        """
        if not (math.isfinite(sigma) and sigma > 0):
            raise StatisticsError(f"sigma must be a finite number above 0, got {sigma!r}")
        return interpolated(self, -math.log(sigma))

    def resized(self, height: int, width: int) -> Statistics:
        """For latents of another size: bilinear, averaging where it shrinks. A guess, see :meth:`size_note`."""
        for name, value in (("height", height), ("width", width)):
            if type(value) is not int or not 1 <= value <= 65536:
                raise StatisticsError(f"{name} must be a whole number from 1 to 65536, got {shown(value)}")
        if self.size in (None, (height, width)):
            return self
        l, s, b = (_resampled(values, height, width) for values in (self.l, self.s, self.b))  # noqa: E741
        return Statistics(self.lambdas, l, s, b, self.source)

    def size_note(self, height: int, width: int) -> str:
        """What people should know when these are used for latents of that size; empty where nothing."""
        if self.size in (None, (height, width)):
            return ""
        own_height, own_width = self.size or (height, width)
        return (
            f"These statistics were measured on latents of {own_width}x{own_height} and are stretched to "
            f"{width}x{height}: a guess, the picture may be worse than without them."
        )

    def save(self, path: Path) -> None:
        """Write our layout: a safetensors file with lambdas, l, s, b and the source. Whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        about = {"format": FORMAT, "version": VERSION, "source": self.source.known()}
        _save(path, {"lambdas": self.lambdas, "l": self.l, "s": self.s, "b": self.b}, about)


def _checked_grid(lambdas: Any) -> np.ndarray:
    grid = np.array(lambdas)
    if grid.dtype.kind not in "fiu" or grid.ndim != 1 or not 2 <= grid.size <= MAX_GRID:
        raise StatisticsError(
            f"lambdas must be one row of 2 to {MAX_GRID} numbers, got {grid.dtype} of shape {grid.shape}"
        )
    grid = grid.astype(np.float64)
    if not np.isfinite(grid).all():
        raise StatisticsError(f"lambdas must be finite, got {grid[~np.isfinite(grid)][0]}")
    if not (np.diff(grid) > 0).all():
        at = int(np.argmax(np.diff(grid) <= 0))
        raise StatisticsError(f"lambdas must rise, got {grid[at]:g} then {grid[at + 1]:g} at index {at}")
    grid.setflags(write=False)
    return grid


def _checked_values(name: str, values: Any, points: int) -> np.ndarray:
    array = np.array(values, order="C")
    if array.dtype not in (np.float32, np.float64):
        raise StatisticsError(f"{name} must be float32 or float64, got {array.dtype}")
    if array.ndim == 1:
        array = array[:, None, None, None]
    if array.ndim != 4 or len(array) != points or array.size == 0:
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
    grown = torch.nn.functional.interpolate(
        torch.from_numpy(np.array(values)), (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return grown.numpy()


# ---- files -----------------------------------------------------------------------------------------------------------


def load_statistics(path: Path) -> Statistics:
    """Statistics from a file that :meth:`Statistics.save` wrote. Nothing in the file is run.

    Raises:
        StatisticsError: what is wrong with the file, or that it cannot be read.
    """
    tensors, about = _load(path, FORMAT, "statistics file", ("lambdas", "l", "s", "b"))
    with _told_of(path):
        source = Source.read(Reader(about).at("source"))
        return Statistics(tensors["lambdas"], tensors["l"], tensors["s"], tensors["b"], source)


def about(path: Path) -> tuple[Source, tuple[int, ...]]:
    """What statistics say of themselves, either layout: where they come from, and the shape of each of l, s and b.

    Their numbers are not read; a folder in the published layout says what its name says, and no shape.

    Raises:
        StatisticsError: the file cannot be read, or says it wrongly.
    """
    if path.is_dir():
        return _named_source(path.name), ()
    with _open(path, FORMAT, "statistics file", ("l",)) as (file, said):
        return Source.read(Reader(said).at("source")), tuple(file.get_slice("l").get_shape())


def _named_source(folder: str) -> Source:
    named = PUBLISHED_NAME.fullmatch(folder)
    return Source(cfg_scale=float(named[1]), samples=int(named[3])) if named else Source()


def load_published(folder: Path, noise: NoiseModel, source: Optional[Source] = None) -> Statistics:
    """Statistics in the layout of the paper's repository: ``l.npz`` with l, ``sb.npz`` with s and b.

    The files do not hold their grid: it is uniform in lambda over the whole of the model's noise table. Nothing in
    them is run, pickled objects are refused.

    Args:
        folder: a name such as "7.5_250_1024" gives the guidance and the number of samples, where it agrees with
            the files.
        noise: the table of the model that was measured.
        source: what else is known; not used for what the folder's name gives.

    Raises:
        StatisticsError: what is wrong with a file, or that it cannot be read.
    """
    arrays = {**_load_npz(folder / "l.npz", ("l",)), **_load_npz(folder / "sb.npz", ("s", "b"))}
    with _told_of(folder):
        points = len(arrays["l"]) if arrays["l"].ndim else 0
        if not 2 <= points <= MAX_GRID:
            raise StatisticsError(f"l must have 2 to {MAX_GRID} grid points, got shape {arrays['l'].shape}")
        grid = np.linspace(-math.log(noise.sigma_max), -math.log(noise.sigma_min), points)
        source = source or Source()
        named = PUBLISHED_NAME.fullmatch(folder.name)
        if named and int(named[2]) == points - 1:
            source = replace(source, cfg_scale=float(named[1]), samples=int(named[3]))
        if arrays["l"].ndim == 4 and arrays["l"].shape[2:] != (1, 1):
            height, width = arrays["l"].shape[2:]
            source = replace(source, height=height, width=width)
        return Statistics(grid, arrays["l"], arrays["s"], arrays["b"], source)


def convert_published(folder: Path, target: Path, noise: NoiseModel, source: Optional[Source] = None) -> Statistics:
    """Read the layout of the paper's repository, write ours to ``target``; arguments as :func:`load_published`.

    Raises:
        StatisticsError: what is wrong with a file, or that it cannot be read.
        OSError: ``target`` cannot be written.
    """
    statistics = load_published(folder, noise, source)
    statistics.save(target)
    return statistics


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Names the file in what is said about its content."""
    try:
        yield
    except (StatisticsError, ShelfError) as error:
        raise StatisticsError(f"{path.name}: {error}") from None


def _load_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {each.filename: each.file_size for each in archive.infolist()}
        with _told_of(path):
            for name in names:
                if f"{name}.npy" not in sizes:
                    listed = ", ".join(shown(each) for each in list(sizes)[:5]) or "nothing"
                    raise StatisticsError(f"it must hold an array {name}, it holds {listed}")
                if sizes[f"{name}.npy"] > MAX_BYTES:
                    raise StatisticsError(f"{name} must be at most {MAX_BYTES >> 30} GB")
        with np.load(path, allow_pickle=False) as arrays:
            read = {name: arrays[name] for name in names}
        if not all(isinstance(array, np.ndarray) for array in read.values()):  # numpy gives other members as bytes
            raise ValueError(f"{' and '.join(names)} must be in NumPy's own format")
        return read
    except StatisticsError:
        raise
    except FileNotFoundError:
        raise StatisticsError(f"{path.name}: there is no such file in {path.parent}") from None
    # what zipfile and numpy raise for archives and headers that are cut, forged or pickled
    except (OSError, ValueError, EOFError, KeyError, MemoryError, SyntaxError, TypeError, NotImplementedError,
            RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        raise StatisticsError(f"{path.name}: not an .npz file of plain arrays: {str(error)[:120]}") from None


def _save(path: Path, tensors: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, {"about": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _load(path: Path, form: str, kind: str, names: tuple[str, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of those names, and what the file says of itself."""
    with _open(path, form, kind, names) as (file, said):
        return {name: file.get_tensor(name) for name in names}, said


@contextlib.contextmanager
def _open(path: Path, form: str, kind: str, names: tuple[str, ...]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The file, which holds numbers of those names, and what it says of itself.

    Raises:
        StatisticsError: what is wrong with the file, also by what is read of it meanwhile; or that it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if path.stat().st_size > MAX_BYTES:
            raise StatisticsError(f"{path.name}: it must be at most {MAX_BYTES >> 30} GB")
        with safe_open(path, framework="numpy") as file, _told_of(path):
            said = parsed((file.metadata() or {}).get("about", "{}"), kind, form, VERSION)
            missing = [name for name in names if name not in file.keys()]  # noqa: SIM118 - it is no mapping
            if missing:
                raise StatisticsError(f"it must hold {', '.join(names)}, it lacks {', '.join(missing)}")
            for name in names:
                if file.get_slice(name).get_dtype() not in ("F32", "F64"):
                    raise StatisticsError(f"{name} must be float32 or float64, got {file.get_slice(name).get_dtype()}")
            yield file, said
    except FileNotFoundError:
        raise StatisticsError(f"{path.name}: there is no such file in {path.parent}") from None
    except (OSError, SafetensorError) as error:
        raise StatisticsError(f"{path.name}: not a safetensors file: {str(error)[:120]}") from None


# ---- measuring -------------------------------------------------------------------------------------------------------

SUMS = ("x", "n", "slope", "x x", "n n", "x n", "n slope", "x slope", "diagonal")
"""What is summed per grid point and element: x, N = x - D, slope N' = dN/dlambda, their products, and v * (J v)."""


def calls_needed(samples: int, batch: int, points: int, exact: bool = False) -> int:
    """How many times the model is called for so many samples, known beforehand.

    Args:
        samples: trajectories.
        batch: trajectories walked at once.
        points: of the grid.
        exact: forward-mode derivatives, one (dearer) call per point; finite differences need two.
    """
    for name, value in (("samples", samples), ("batch", batch), ("points", points)):
        if type(value) is not int or value < 1:
            raise StatisticsError(f"{name} must be a whole number of at least 1, got {shown(value)}")
    return math.ceil(samples / batch) * points * (1 if exact else 2)


class Estimator:
    """Measures statistics from sampling trajectories; feed it batches with :meth:`add`, as many as wanted.

    Each batch is walked down the grid by DPM++ 2M on the grid's own points, which is as good as exact from some 50
    points on. At every point the model is called once for N, whose slope along the trajectory comes from the
    neighbouring points at no further call, and once more at x + step * v with random signs v (Hutchinson), for the
    diagonal of dN/dx. The memory it takes depends on the grid and on ``shape`` only: 72 bytes per grid point and
    element, twice while a batch is walked (Stable Diffusion 1.5, 251 points: 600 MB; per channel: 144 kB).

    Args:
        lambdas: shape (grid,), rising, at least 3 points. The trajectories start at its first (the highest sigma).
        shape: (channels, height, width) of the statistics; each may be 1, which pools over that axis: fewer samples
            are needed, and the statistics fit any size.
        source: of the statistics to come; the number of samples is filled in.
        seed: of the random signs, which depend on it and on the number of samples seen, on nothing else.
        probe_step: size of the finite difference in units of sigma; 0.01 suits half-precision models too.
        exact: forward-mode derivatives (torch.func.jvp) instead; the model must support them.

    Raises:
        StatisticsError: naming the argument, its value and what is allowed.
    """

    def __init__(
        self,
        lambdas: np.ndarray,
        shape: tuple[int, int, int],
        source: Optional[Source] = None,
        seed: int = 0,
        probe_step: float = 0.01,
        exact: bool = False,
    ) -> None:
        self.lambdas = _checked_grid(lambdas)
        if len(self.lambdas) < 3:
            raise StatisticsError(f"lambdas must be at least 3 to measure slopes, got {len(self.lambdas)}")
        if len(shape) != 3 or any(type(size) is not int or size < 1 for size in shape):
            raise StatisticsError(f"shape must be (channels, height, width), got {shown(shape)}")
        if not 1e-6 <= probe_step <= 1:
            raise StatisticsError(f"probe_step must be from 1e-06 to 1, got {probe_step!r}")
        if type(seed) is not int or not 0 <= seed < 2**31:
            raise StatisticsError(f"seed must be a whole number from 0 to {2**31 - 1}, got {shown(seed)}")
        self.shape, self.source, self.seed = shape, source or Source(), seed
        self.probe_step, self.exact = probe_step, exact
        self.samples = 0
        self.sums = np.zeros((len(SUMS), len(self.lambdas), *shape))

    @property
    def sigmas(self) -> list[float]:
        """Where the model is called, highest first."""
        return np.exp(-self.lambdas).tolist()

    @torch.no_grad()
    def add(
        self,
        model: Callable[..., torch.Tensor],
        x: torch.Tensor,
        extra_args: Optional[dict[str, Any]] = None,
        progress: Optional[Callable[[int], object]] = None,
    ) -> None:
        """Walk one batch down the grid and add it to the sums. If it is interrupted, they stay as they were.

        Args:
            model: k-diffusion denoiser, guidance and all, as it is sampled with.
            x: shape (batch, channels, height, width), the state at ``sigmas[0]``: unit noise times that sigma.
            extra_args: keyword arguments of the model, such as the batch's prompts.
            progress: told of the index of every grid point that is done.

        Raises:
            StatisticsError: a batch that does not fit ``shape``, or a model that gives what is not finite.
        """
        if x.ndim != 4 or any(ours not in (1, size) for ours, size in zip(self.shape, x.shape[1:])) or not len(x):
            raise StatisticsError(f"x must have shape (batch, *{self.shape}), got {tuple(x.shape)}")
        sums = np.zeros_like(self.sums)
        generator = torch.Generator().manual_seed((self.seed << 32) + self.samples)
        trail: list[tuple[torch.Tensor, torch.Tensor]] = []
        past: Optional[torch.Tensor] = None
        last = len(self.lambdas) - 1
        for i, sigma in enumerate(self.sigmas):
            signs = (torch.randint(0, 2, x.shape, generator=generator) * 2 - 1).to(x)
            denoised, along = self._probed(model, x, sigma, signs, extra_args or {})
            sums[SUMS.index("diagonal"), i] = self._pooled((1 - signs * along).cpu().double())
            # the slope at a point needs its neighbours; three points are kept, no trajectory
            trail = [*trail[-2:], (x.cpu().double(), (x - denoised).cpu().double())]
            if i >= 2:
                self._add_products(sums, i - 1, trail)
            if i < last:
                x, past = self._walked(x, denoised, past, i), denoised
            if progress is not None:
                progress(i)
        if not np.isfinite(sums).all():
            raise StatisticsError("the model must give finite numbers, got one that is not")
        self.sums += sums
        self.samples += len(x)

    def _probed(
        self, model: Callable[..., torch.Tensor], x: torch.Tensor, sigma: float, v: torch.Tensor, extra: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """D, and its derivative along v."""
        row = x.new_full((len(x),), sigma)
        if self.exact:
            both: tuple[torch.Tensor, torch.Tensor] = torch.func.jvp(
                lambda state: model(state, row, **extra), (x,), (v,)
            )  # type: ignore[assignment]  # three only with has_aux
            return both
        step = self.probe_step * sigma
        denoised = model(x, row, **extra)
        return denoised, (model(x + step * v, row, **extra) - denoised) / step

    def _walked(self, x: torch.Tensor, denoised: torch.Tensor, past: Optional[torch.Tensor], i: int) -> torch.Tensor:
        """DPM++ 2M from grid point i to the next."""
        h = self.lambdas[i + 1] - self.lambdas[i]
        lean = 0.0 if past is None else 0.5 * h / (self.lambdas[i] - self.lambdas[i - 1])
        target = denoised if past is None else torch.lerp(past, denoised, 1 + lean)
        return x * math.exp(-h) - math.expm1(-h) * target

    def _add_products(self, sums: np.ndarray, middle: int, trail: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """The products at grid point ``middle``, of whose neighbours N is known; and at the grid's ends beside it."""
        grid = self.lambdas
        h0, h1 = grid[middle] - grid[middle - 1], grid[middle + 1] - grid[middle]
        (_, before), (_, here), (_, after) = trail
        first, second = (here - before) / h0, (after - here) / h1
        curve = (second - first) / (h0 + h1)
        points = [(middle, 1, first + curve * h0)]
        if middle == 1:
            points.append((0, 0, first - curve * h0))
        if middle == len(grid) - 2:
            points.append((middle + 1, 2, second + curve * h1))
        for index, place, slope in points:
            x, n = trail[place]
            for row, value in enumerate((x, n, slope, x * x, n * n, x * n, n * slope, x * slope)):
                sums[row, index] = self._pooled(value)

    def _pooled(self, values: torch.Tensor) -> np.ndarray:
        """Sum over the batch, mean over the axes that are pooled."""
        axes = [axis for axis, size in enumerate(self.shape) if size == 1]
        total = values.sum(0)
        return (total.mean(axes, keepdim=True) if axes else total).numpy()

    def statistics(self, smoothing: int = 5) -> Statistics:
        """What the batches so far give.

        Args:
            smoothing: l is averaged over so many grid points (odd; the paper's 5, 1 is none), s and b are not.

        Raises:
            StatisticsError: fewer than 2 samples, or a smoothing that is no odd number.
        """
        if self.samples < 2:
            raise StatisticsError(f"samples must be at least 2 before statistics can be made, got {self.samples}")
        if type(smoothing) is not int or smoothing < 1 or smoothing % 2 == 0:
            raise StatisticsError(f"smoothing must be an odd whole number, got {shown(smoothing)}")
        mean = dict(zip(SUMS, self.sums / self.samples))
        l = _smoothed(mean["diagonal"], smoothing)  # noqa: E741 - the paper's name
        slope_l = np.gradient(l, self.lambdas, axis=0, edge_order=2)
        s, b = _least_squares(mean, l, slope_l)
        source = replace(self.source, samples=self.samples)
        return Statistics(self.lambdas, l, s, b, source)

    def save(self, path: Path) -> None:
        """Write the sums, so that another process can go on. Whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        about = {
            "format": SUMS_FORMAT, "version": VERSION, "source": self.source.known(), "samples": self.samples,
            "seed": self.seed, "probe_step": self.probe_step, "exact": self.exact,
        }  # fmt: skip
        _save(path, {"lambdas": self.lambdas, "sums": self.sums}, about)

    @classmethod
    def load(cls, path: Path) -> Estimator:
        """One that :meth:`save` wrote; further batches give what one run without a break would have given.

        Raises:
            StatisticsError: what is wrong with the file, or that it cannot be read.
        """
        tensors, about = _load(path, SUMS_FORMAT, "file of sums", ("lambdas", "sums"))
        with _told_of(path):
            reader, sums = Reader(about), tensors["sums"]
            if sums.ndim != 5 or sums.dtype != np.float64 or sums.shape[:2] != (len(SUMS), tensors["lambdas"].size):
                raise StatisticsError(f"sums must be {len(SUMS)} float64 per grid point, got {sums.dtype} {sums.shape}")
            if not np.isfinite(sums).all():
                raise StatisticsError("sums must be finite")
            made = cls(
                tensors["lambdas"],
                (sums.shape[2], sums.shape[3], sums.shape[4]),
                Source.read(reader.at("source")),
                reader.whole("seed", 0, 2**31 - 1),
                reader.number("probe_step", 1e-6, 1),
                _truth(reader.at("exact")),
            )
            made.samples = reader.whole("samples", 0, 2**53)
            made.sums = np.array(sums)
        return made


def _truth(reader: Reader) -> bool:
    if not isinstance(reader.data, bool):
        raise reader.error("true or false")
    return reader.data


def _smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean along the grid; at its ends over the symmetric part of the window that is there."""
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
    # where f is as good as constant there is nothing to fit but its mean
    moves = variance > 1e-9 * (mean["n n"] + l**2 * mean["x x"])
    s = np.where(moves, covariance / np.where(moves, variance, 1), 0.0)
    return s, slope - s * f


def kept_in(folder: Path) -> dict[str, Path]:
    """Statistics in a folder by name: our files, and folders in the published layout."""
    found = {path.parent.name: path.parent for path in folder.glob("*/sb.npz")}
    found.update((path.stem, path) for path in folder.glob("*.safetensors") if path.is_file())
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def opened(path: Path, noise: NoiseModel) -> Statistics:
    """Either layout. Raises StatisticsError: see :func:`load_statistics` and :func:`load_published`."""
    return load_published(path, noise) if path.is_dir() else load_statistics(path)


def labelled(name: str, statistics: Statistics) -> str:
    """By which a picture names them: ``my model 1a2b3c4d``, with the start of a hash of their numbers."""
    whole = hashlib.sha256()
    for values in (statistics.lambdas, statistics.l, statistics.s, statistics.b):
        whole.update(np.ascontiguousarray(values, np.float64).tobytes())
    return f"{name} {whole.hexdigest()[:8]}"


def pick(folder: Path, wanted: str, noise: NoiseModel) -> tuple[str, Statistics]:
    """Those of a name, or of a picture's label, and their label.

    Raises:
        StatisticsError: there are none, they cannot be read, or are others than the picture's.
    """
    kept = kept_in(folder)
    if wanted in kept:
        found = opened(kept[wanted], noise)
        return labelled(wanted, found), found
    name, _, digest = wanted.rpartition(" ")
    by_label = re.fullmatch(r"[0-9a-f]{8}", digest) is not None
    # what was renamed since is known by its numbers
    for each in sorted(kept, key=lambda each: each != name) if by_label else ():
        with contextlib.suppress(StatisticsError):
            found = opened(kept[each], noise)
            if labelled(name, found) == wanted:
                return labelled(each, found), found
    if by_label and name in kept:
        raise StatisticsError(f"the statistics {name!r} here are others than the picture's {wanted!r}")
    raise StatisticsError(f"there are no statistics {wanted!r} here; there are: {', '.join(kept) or 'none yet'}")


def sources_in(folder: Path, hashes: Collection[str]) -> tuple[dict[str, Source], list[str]]:
    """Where those of a model come from, by name, and a sentence for each file that does not say it.

    Only what files say of themselves is read, not their numbers. The published layout says nothing of its model.
    """
    sources, problems = {}, []
    for name, path in kept_in(folder).items():
        if path.is_dir():
            continue
        try:
            source, _ = about(path)
        except StatisticsError as error:
            problems.append(str(error))
            continue
        if source.model_hash in hashes:
            sources[name] = source
    return sources, problems


def best_for(
    folder: Path, hashes: Collection[str], cfg_scale: float, noise: NoiseModel
) -> tuple[Optional[tuple[str, Statistics]], list[str]]:
    """Those of a model that were measured nearest to a guidance scale, and a sentence for each that cannot be read."""
    sources, problems = sources_in(folder, hashes)

    def distance(name: str) -> float:
        own = sources[name].cfg_scale
        return math.inf if own is None else abs(own - cfg_scale)

    for name in sorted(sources, key=lambda name: (distance(name), name)):
        try:
            found = opened(kept_in(folder)[name], noise)
        except StatisticsError as error:
            problems.append(str(error))
            continue
        return (labelled(name, found), found), problems
    return None, problems
