"""Files of statistics: ours (safetensors), the published layout (``l.npz``, ``sb.npz``), and which fit a model."""

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
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import numpy as np

from ..noise import NoiseModel
from ..store import Reader, StoreError, abbreviated, parse_json
from .coefficients import MAX_GRID, Provenance, Statistics, StatisticsError

__all__ = [
    "best_for",
    "convert_published",
    "find_statistics",
    "load_published",
    "load_statistics",
    "open_statistics",
    "provenances_of_model",
    "read_provenance",
    "save_statistics",
    "statistics_files",
    "statistics_label",
]

FORMAT, VERSION = "hpsampler-statistics", 1

MAX_BYTES = 2**31
"""A file, or what an archive unfolds to, beyond this is not read."""

PUBLISHED_NAME = re.compile(r"(\d+(?:\.\d+)?)_(\d+)_(\d+)")
"""Folders of the paper's repository: guidance, grid intervals, samples."""


def save_statistics(statistics: Statistics, path: Path) -> None:
    """Write our layout: a safetensors file with lambdas, l, s, b and their provenance. Whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    metadata = {"format": FORMAT, "version": VERSION, "source": statistics.source.known()}
    arrays = {"lambdas": statistics.lambdas, "l": statistics.l, "s": statistics.s, "b": statistics.b}
    write_arrays(path, arrays, metadata)


def load_statistics(path: Path) -> Statistics:
    """Statistics from a file that :func:`save_statistics` wrote. Nothing in the file is run.

    Raises:
        StatisticsError: what is wrong with the file, or that it cannot be read.
    """
    tensors, metadata = read_arrays(path, FORMAT, "statistics file", ("lambdas", "l", "s", "b"))
    with naming_file(path):
        source = Provenance.read(Reader(metadata).at("source"))
        return Statistics(tensors["lambdas"], tensors["l"], tensors["s"], tensors["b"], source)


def read_provenance(path: Path) -> tuple[Provenance, tuple[int, ...]]:
    """What statistics say of themselves, either layout: where they come from, and the shape of each of l, s and b.

    Their numbers are not read; a folder in the published layout says what its name says, and no shape.

    Raises:
        StatisticsError: the file cannot be read, or says it wrongly.
    """
    if path.is_dir():
        return _provenance_in_name(path.name), ()
    with open_arrays(path, FORMAT, "statistics file", ("l",)) as (file, said):
        return Provenance.read(Reader(said).at("source")), tuple(file.get_slice("l").get_shape())


def _provenance_in_name(folder: str) -> Provenance:
    named = PUBLISHED_NAME.fullmatch(folder)
    return Provenance(cfg_scale=float(named[1]), samples=int(named[3])) if named else Provenance()


def load_published(folder: Path, noise: NoiseModel, source: Optional[Provenance] = None) -> Statistics:
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
    with naming_file(folder):
        points = len(arrays["l"]) if arrays["l"].ndim else 0
        if not 2 <= points <= MAX_GRID:
            raise StatisticsError(f"l must have 2 to {MAX_GRID} grid points, got shape {arrays['l'].shape}")
        grid = np.linspace(-math.log(noise.sigma_max), -math.log(noise.sigma_min), points)
        source = source or Provenance()
        named = PUBLISHED_NAME.fullmatch(folder.name)
        if named and int(named[2]) == points - 1:
            source = replace(source, cfg_scale=float(named[1]), samples=int(named[3]))
        if arrays["l"].ndim == 4 and arrays["l"].shape[2:] != (1, 1):
            height, width = arrays["l"].shape[2:]
            source = replace(source, height=height, width=width)
        return Statistics(grid, arrays["l"], arrays["s"], arrays["b"], source)


def convert_published(folder: Path, target: Path, noise: NoiseModel, source: Optional[Provenance] = None) -> Statistics:
    """Read the layout of the paper's repository, write ours to ``target``; arguments as :func:`load_published`.

    Raises:
        StatisticsError: what is wrong with a file, or that it cannot be read.
        OSError: ``target`` cannot be written.
    """
    statistics = load_published(folder, noise, source)
    save_statistics(statistics, target)
    return statistics


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Names the file in what is said about its content."""
    try:
        yield
    except (StatisticsError, StoreError) as error:
        raise StatisticsError(f"{path.name}: {error}") from None


def _load_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {each.filename: each.file_size for each in archive.infolist()}
        with naming_file(path):
            for name in names:
                if f"{name}.npy" not in sizes:
                    listed = ", ".join(abbreviated(each) for each in list(sizes)[:5]) or "nothing"
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


def write_arrays(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, {"about": json.dumps(metadata)})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def read_arrays(
    path: Path, form: str, kind: str, names: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of those names, and what the file says of itself."""
    with open_arrays(path, form, kind, names) as (file, said):
        return {name: file.get_tensor(name) for name in names}, said


@contextlib.contextmanager
def open_arrays(path: Path, form: str, kind: str, names: tuple[str, ...]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The file, which holds numbers of those names, and what it says of itself.

    Raises:
        StatisticsError: what is wrong with the file, also by what is read of it meanwhile; or that it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if path.stat().st_size > MAX_BYTES:
            raise StatisticsError(f"{path.name}: it must be at most {MAX_BYTES >> 30} GB")
        with safe_open(path, framework="numpy") as file, naming_file(path):
            said = parse_json((file.metadata() or {}).get("about", "{}"), kind, form, VERSION)
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


def statistics_files(folder: Path) -> dict[str, Path]:
    """Statistics in a folder by name: our files, and folders in the published layout."""
    found = {path.parent.name: path.parent for path in folder.glob("*/sb.npz")}
    found.update((path.stem, path) for path in folder.glob("*.safetensors") if path.is_file())
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def open_statistics(path: Path, noise: NoiseModel) -> Statistics:
    """Either layout. Raises StatisticsError: see :func:`load_statistics` and :func:`load_published`."""
    return load_published(path, noise) if path.is_dir() else load_statistics(path)


def statistics_label(name: str, statistics: Statistics) -> str:
    """By which a picture names them: ``my model 1a2b3c4d``, with the start of a hash of their numbers."""
    whole = hashlib.sha256()
    for values in (statistics.lambdas, statistics.l, statistics.s, statistics.b):
        whole.update(np.ascontiguousarray(values, np.float64).tobytes())
    return f"{name} {whole.hexdigest()[:8]}"


def find_statistics(folder: Path, wanted: str, noise: NoiseModel) -> tuple[str, Statistics]:
    """Those of a name, or of a picture's label, and their label.

    Raises:
        StatisticsError: there are none, they cannot be read, or are others than the picture's.
    """
    kept = statistics_files(folder)
    if wanted in kept:
        found = open_statistics(kept[wanted], noise)
        return statistics_label(wanted, found), found
    name, _, digest = wanted.rpartition(" ")
    by_label = re.fullmatch(r"[0-9a-f]{8}", digest) is not None
    # what was renamed since is known by its numbers
    for each in sorted(kept, key=lambda each: each != name) if by_label else ():
        with contextlib.suppress(StatisticsError):
            found = open_statistics(kept[each], noise)
            if statistics_label(name, found) == wanted:
                return statistics_label(each, found), found
    if by_label and name in kept:
        raise StatisticsError(f"the statistics {name!r} here are others than the picture's {wanted!r}")
    raise StatisticsError(f"there are no statistics {wanted!r} here; there are: {', '.join(kept) or 'none yet'}")


def provenances_of_model(folder: Path, hashes: Collection[str]) -> tuple[dict[str, Provenance], list[str]]:
    """Where those of a model come from, by name, and a sentence for each file that does not say it.

    Only what files say of themselves is read, not their numbers. The published layout says nothing of its model.
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
    folder: Path, hashes: Collection[str], cfg_scale: float, noise: NoiseModel
) -> tuple[Optional[tuple[str, Statistics]], list[str]]:
    """Those of a model that were measured nearest to a guidance scale, and a sentence for each that cannot be read."""
    sources, problems = provenances_of_model(folder, hashes)

    def distance(name: str) -> float:
        own = sources[name].cfg_scale
        return math.inf if own is None else abs(own - cfg_scale)

    for name in sorted(sources, key=lambda name: (distance(name), name)):
        try:
            found = open_statistics(statistics_files(folder)[name], noise)
        except StatisticsError as error:
            problems.append(str(error))
            continue
        return (statistics_label(name, found), found), problems
    return None, problems
