"""Files of statistics: our format (safetensors) and the published layout (``l.npz``, ``sb.npz``)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import numpy as np

from ..checks import abbreviated
from ..files import locked, rename_new, write_atomically
from ..noise import NoiseModel
from ..store import Reader, Store, StoreError, parse_json
from .coefficients import MAX_GRID, Provenance, Statistics, StatisticsError, check_form

__all__ = [
    "Opened",
    "add_statistics",
    "best_for",
    "convert_published",
    "find_statistics",
    "load_published",
    "load_statistics",
    "open_statistics",
    "provenances_of_model",
    "read_provenance",
    "rename_statistics",
    "save_statistics",
    "statistics_files",
    "statistics_label",
]

FORMAT, VERSION = "hpsampler-statistics", 1

MAX_BYTES = 2**31
"""Largest size of a file, and of an unpacked array, that is read."""

LARGE, MOST_UNFOLDED = 2**24, 20
"""An array of more bytes than that may unfold to so many times its size in the file. Measured numbers hardly do."""

PUBLISHED_NAME = re.compile(r"(\d+(?:\.\d+)?)_(\d+)_(\d+)")
"""Names of folders in the paper's repository: guidance scale, grid intervals, samples."""


def save_statistics(statistics: Statistics, path: Path, new: bool = False) -> None:
    """Write our format, a safetensors file with lambdas, l, s, b and their provenance.

    An interrupted write leaves an existing file as it was.

    Args:
        new: whether there may be no such file yet.

    Raises:
        FileExistsError: there is one although it should be new.
        OSError: the file cannot be written.
    """
    metadata = {"format": FORMAT, "version": VERSION, "source": statistics.source.known()}
    arrays = {"lambdas": statistics.lambdas, "l": statistics.l, "s": statistics.s, "b": statistics.b}
    write_arrays(path, arrays, metadata, new)


def add_statistics(statistics: Statistics, folder: Path, name: str) -> str:
    """Write statistics into a folder of them, under that name or, where it is taken, with the next free number.

    Returns:
        The name that they have.

    Raises:
        OSError: the folder cannot be written.
    """
    with locked(folder):
        taken = set(statistics_files(folder))
        while True:
            free = Store.free_name(name, taken, folded=True)
            try:
                save_statistics(statistics, folder / f"{free}.safetensors", new=True)
            except FileExistsError:
                taken.add(free)  # a program that knows nothing of locks was quicker, or it is a folder
            else:
                return free


def rename_statistics(folder: Path, name: str, new_name: str) -> None:
    """Rename statistics in a folder of them.

    Raises:
        StoreError: there are none of that name, or the new one is taken, in upper or lower case.
        OSError: the folder cannot be written.
    """
    with locked(folder):
        paths = statistics_files(folder)
        if name not in paths:
            raise StoreError(f"there are no statistics named {name!r}; there are: {', '.join(paths) or 'none yet'}")
        path = paths.pop(name)
        same = next((each for each in paths if each.casefold() == new_name.casefold()), None)
        if same is not None:
            raise StoreError(f"name must be a new one; there are statistics named {same!r} already")
        try:
            rename_new(path, folder / (new_name if path.is_dir() else f"{new_name}.safetensors"))
        except FileExistsError:
            raise StoreError(f"name must be a new one; there is a file named {new_name!r} already") from None


def load_statistics(path: Path) -> Statistics:
    """Load statistics from a file that :func:`save_statistics` wrote. No code in the file is executed.

    Raises:
        StatisticsError: what is wrong with the file, or that it cannot be read.
    """
    tensors, metadata = read_arrays(path, FORMAT, "statistics file", ("lambdas", "l", "s", "b"))
    with naming_file(path):
        source = Provenance.read(Reader(metadata).at("source"))
        return Statistics(tensors["lambdas"], tensors["l"], tensors["s"], tensors["b"], source)


def read_provenance(path: Path) -> tuple[Provenance, tuple[int, ...]]:
    """The provenance of statistics in either layout, and the shape of each of l, s and b, without reading the arrays.

    Of a folder in the published layout only the name is evaluated; its shape is then empty.

    Raises:
        StatisticsError: the file cannot be read, or its provenance is invalid.
    """
    if path.is_dir():
        return _provenance_in_name(path.name), ()
    with open_arrays(path, FORMAT, "statistics file", ("l",)) as (file, metadata):
        return Provenance.read(Reader(metadata).at("source")), tuple(file.get_slice("l").get_shape())


def _provenance_in_name(folder: str) -> Provenance:
    match = PUBLISHED_NAME.fullmatch(folder)
    return Provenance(cfg_scale=float(match[1]), samples=int(match[3])) if match else Provenance()


def load_published(folder: Path, noise: NoiseModel, source: Optional[Provenance] = None) -> Statistics:
    """Load statistics in the layout of the paper's repository: ``l.npz`` with l, ``sb.npz`` with s and b.

    The files do not contain their grid: it is uniform in lambda over the model's whole noise table. Pickled objects are
    refused, so no code in the files is executed.

    Args:
        folder: a name such as "7.5_250_1024" gives the guidance scale and the number of samples, provided that it
            agrees with the files.
        noise: the noise table of the model that was measured.
        source: what else is known about them; the folder's name takes precedence.

    Raises:
        StatisticsError: what is wrong with a file, or that it cannot be read.
    """
    arrays = {**_load_npz(folder / "l.npz", ("l",)), **_load_npz(folder / "sb.npz", ("s", "b"))}
    with naming_file(folder):
        points = len(arrays["l"]) if arrays["l"].ndim else 0
        if not 2 <= points <= MAX_GRID:
            raise StatisticsError(f"l must have 2 to {MAX_GRID} grid points, got shape {arrays['l'].shape}")
        grid = np.linspace(-math.log(noise.sigma_max), -math.log(noise.sigma_min), points)
        source = source or Provenance()
        match = PUBLISHED_NAME.fullmatch(folder.name)
        if match and int(match[2]) == points - 1:
            source = replace(source, cfg_scale=float(match[1]), samples=int(match[3]))
        if arrays["l"].ndim == 4 and arrays["l"].shape[2:] != (1, 1):
            height, width = arrays["l"].shape[2:]
            source = replace(source, height=height, width=width)
        return Statistics(grid, arrays["l"], arrays["s"], arrays["b"], source)


def convert_published(folder: Path, target: Path, noise: NoiseModel, source: Optional[Provenance] = None) -> Statistics:
    """Convert the layout of the paper's repository to our format; arguments as :func:`load_published`.

    Args:
        target: the file to write.

    Returns:
        The statistics.

    Raises:
        StatisticsError: what is wrong with a file, or that it cannot be read.
        OSError: ``target`` cannot be written.
    """
    statistics = load_published(folder, noise, source)
    save_statistics(statistics, target)
    return statistics


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Put the file's name before messages about its content."""
    try:
        yield
    except (StatisticsError, StoreError) as error:
        raise StatisticsError(f"{path.name}: {error}") from None


def _load_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        # what it unfolds to is checked before it is unfolded
        with zipfile.ZipFile(path) as archive, naming_file(path):
            members = {entry.filename: entry for entry in archive.infolist()}
            for name in names:
                if f"{name}.npy" not in members:
                    listed = ", ".join(abbreviated(entry) for entry in list(members)[:5]) or "nothing"
                    raise StatisticsError(f"it must hold an array {name}, it holds {listed}")
                _check_member(archive, members[f"{name}.npy"], name)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # numpy returns other members as bytes
            raise ValueError(f"{' and '.join(names)} must be in NumPy's own format")
        return arrays
    except StatisticsError:
        raise
    except FileNotFoundError:
        raise StatisticsError(f"{path.name}: there is no such file in {path.parent}") from None
    # zipfile and numpy raise all of these for truncated, forged or pickled archives and headers
    except (OSError, ValueError, EOFError, KeyError, MemoryError, SyntaxError, TypeError, NotImplementedError,
            RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        raise StatisticsError(f"{path.name}: not an .npz file of plain arrays: {str(error)[:120]}") from None


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> None:
    """Check what an array in an archive is, by its header, and what memory it would take.

    Raises:
        StatisticsError: it is none that a model can use, or unfolds to much more than measured numbers do.
        ValueError, OSError, ...: it is no array; see :func:`_load_npz`.
    """
    size, packed = member.file_size, max(member.compress_size, 1)
    if size > MAX_BYTES:
        raise StatisticsError(f"{name} must be at most {MAX_BYTES >> 30} GB")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        reads = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in reads:
            raise ValueError(f"{name} must be in NumPy's own format")
        shape, _, dtype = reads[version](file)
        begun = file.tell()
    if dtype.hasobject:
        return  # numpy refuses it, and says why
    if math.prod(shape) * dtype.itemsize != size - begun:
        raise ValueError(f"{name} is cut short")
    if not shape:
        raise StatisticsError(f"{name} must have 2 to {MAX_GRID} grid points, got shape ()")
    check_form(name, dtype, shape)
    if size > LARGE and size > MOST_UNFOLDED * packed:
        raise StatisticsError(f"{name} unfolds to {size // packed} times its size in the file, measured numbers do not")


def write_arrays(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, Any], new: bool = False) -> None:
    """Write a safetensors file; arguments and errors as :func:`~hpsampler.files.write_atomically`."""
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, {"about": json.dumps(metadata)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data, new)


def read_arrays(
    path: Path, form: str, kind: str, names: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of those names, and the file's metadata. Raises StatisticsError: see :func:`open_arrays`."""
    with open_arrays(path, form, kind, names) as (file, metadata):
        return {name: file.get_tensor(name) for name in names}, metadata


@contextlib.contextmanager
def open_arrays(path: Path, form: str, kind: str, names: tuple[str, ...]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a safetensors file and check that it has floating-point arrays of those names; yields it and its metadata.

    Args:
        form: the format that its metadata must name.
        kind: what messages call such a file.
        names: the arrays that it must have.

    Raises:
        StatisticsError: what is wrong with the file, also while it is read in the ``with`` block.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if path.stat().st_size > MAX_BYTES:
            raise StatisticsError(f"{path.name}: it must be at most {MAX_BYTES >> 30} GB")
        with safe_open(path, framework="numpy") as file, naming_file(path):
            metadata = parse_json((file.metadata() or {}).get("about", "{}"), kind, form, VERSION)
            missing = [name for name in names if name not in file.keys()]  # noqa: SIM118 - the file is not a mapping
            if missing:
                raise StatisticsError(f"it must hold {', '.join(names)}, it lacks {', '.join(missing)}")
            for name in names:
                if file.get_slice(name).get_dtype() not in ("F32", "F64"):
                    raise StatisticsError(f"{name} must be float32 or float64, got {file.get_slice(name).get_dtype()}")
            yield file, metadata
    except FileNotFoundError:
        raise StatisticsError(f"{path.name}: there is no such file in {path.parent}") from None
    except (OSError, SafetensorError) as error:
        raise StatisticsError(f"{path.name}: not a safetensors file: {str(error)[:120]}") from None


def statistics_files(folder: Path) -> dict[str, Path]:
    """The statistics in a folder, by name: our files, and folders in the published layout."""
    paths = {path.parent.name: path.parent for path in folder.glob("*/sb.npz")}
    paths.update((path.stem, path) for path in folder.glob("*.safetensors") if path.is_file())
    return dict(sorted(paths.items(), key=lambda item: item[0].lower()))


def open_statistics(path: Path, noise: NoiseModel) -> Statistics:
    """Load either layout. Raises StatisticsError: see :func:`load_statistics` and :func:`load_published`."""
    return load_published(path, noise) if path.is_dir() else load_statistics(path)


class Opened:
    """The files that a request has read, so that its further pictures and its second pass need not read them again.

    What solvers keep with statistics is then kept for the whole request too. A file that has changed is read anew.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[Path, int, int], tuple[Statistics, str]] = {}

    def open(self, path: Path, noise: NoiseModel) -> tuple[Statistics, str]:
        """The statistics in either layout, and the hash of their numbers. Raises StatisticsError."""
        try:
            at = path.stat()
        except OSError as error:
            raise StatisticsError(f"{path.name} cannot be read: {error}") from None
        key = (path, at.st_mtime_ns, at.st_size)
        if key in self._found:
            return self._found[key]
        statistics = open_statistics(path, noise)
        found = statistics, _digest(statistics)
        if not path.is_dir():
            # a folder's own time says nothing of the files in it
            self._found[key] = found
        return found


def statistics_label(name: str, statistics: Statistics) -> str:
    """The label by which a picture names statistics: ``my model 1a2b3c4d``, with a hash of their numbers."""
    return f"{name} {_digest(statistics)}"


def _digest(statistics: Statistics) -> str:
    digest = hashlib.sha256()
    for values in (statistics.lambdas, statistics.l, statistics.s, statistics.b):
        digest.update(np.ascontiguousarray(values, np.float64).tobytes())
    return digest.hexdigest()[:8]


def find_statistics(
    folder: Path, name_or_label: str, noise: NoiseModel, opened: Optional[Opened] = None
) -> tuple[str, Statistics]:
    """The statistics with a name, or with the label of a picture, and their label.

    Args:
        opened: what the request has read already.

    Raises:
        StatisticsError: there are none, they cannot be read, or they differ from the picture's.
    """
    paths = statistics_files(folder)
    opened = opened or Opened()
    if name_or_label in paths:
        statistics, digest = opened.open(paths[name_or_label], noise)
        return f"{name_or_label} {digest}", statistics
    name, _, wanted = name_or_label.rpartition(" ")
    is_label = re.fullmatch(r"[0-9a-f]{8}", wanted) is not None
    # a file that was renamed since is recognised by the hash of its numbers
    for stored_name in sorted(paths, key=lambda stored_name: stored_name != name) if is_label else ():
        with contextlib.suppress(StatisticsError):
            statistics, digest = opened.open(paths[stored_name], noise)
            if digest == wanted:
                return f"{stored_name} {digest}", statistics
    if is_label and name in paths:
        raise StatisticsError(f"the statistics {name!r} here are others than the picture's {name_or_label!r}")
    raise StatisticsError(
        f"there are no statistics {name_or_label!r} here; there are: {', '.join(paths) or 'none yet'}"
    )


def provenances_of_model(folder: Path, hashes: Collection[str]) -> tuple[dict[str, Provenance], list[str]]:
    """The provenance of every file of statistics of a model, by name, and a sentence for each file that is unreadable.

    Only metadata are read, not the arrays. Folders in the published layout do not name their model and are left out.
    """
    sources, problems = {}, []
    for name, path in statistics_files(folder).items():
        if path.is_dir():
            continue
        try:
            source, _ = read_provenance(path)
        except StatisticsError as error:
            problems.append(str(error))
            continue
        if source.model_hash in hashes:
            sources[name] = source
    return sources, problems


def best_for(
    folder: Path, hashes: Collection[str], cfg_scale: float, noise: NoiseModel, opened: Optional[Opened] = None
) -> tuple[Optional[tuple[str, Statistics]], list[str]]:
    """The model's statistics nearest in guidance scale with their label, and a sentence for each unreadable file.

    Args:
        opened: what the request has read already.
    """
    opened = opened or Opened()
    sources, problems = provenances_of_model(folder, hashes)

    def distance(name: str) -> float:
        measured_at = sources[name].cfg_scale
        return math.inf if measured_at is None else abs(measured_at - cfg_scale)

    for name in sorted(sources, key=lambda name: (distance(name), name)):
        try:
            statistics, digest = opened.open(statistics_files(folder)[name], noise)
        except StatisticsError as error:
            problems.append(str(error))
            continue
        return (f"{name} {digest}", statistics), problems
    return None, problems
