"""The bench on the small models: every cell draws the same seeds and captions, and a few figures of them are stored.

A job is one guidance scale and one batch of seeds. Its results go to a file, so that an interrupted run continues where
it stopped. Within a job, equal calls of the network (same latents, sigma and Free-U) are made once: all schedules start
at one sigma, and endings differ in the last step only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from tiny_model.description import Captioned, Pictures
from tiny_model.model import Denoiser, TinyModel, seeded_noise
from tiny_model.networks import TINY

from .grid import BATCH, COMMON, Cell, Selection, cells
from .methods import Plan
from .metrics import Estimate, Moments, frechet, relative_rmse, share
from .models import load
from .pool import processes
from .runs import reference_endpoint
from .schedules import stable_diffusion_noise

__all__ = [
    "CachedDenoiser",
    "Reference",
    "Score",
    "caption_read",
    "draw_job",
    "figures_of",
    "jobs_left",
    "measure",
    "real_pictures",
    "scores",
]

FIRST_SEED = 10_000
REAL_SEED = 78
PIXEL_SIDE = 8
"""Side of the pooled pictures whose pixels are features too: 3 * 8 * 8 of them."""

REAL_PICTURES = 8192
FIGURES = ("features", "pixels", "right", "error")
"""The figures that are stored of each picture; the error only where there is a reference endpoint."""


class CachedDenoiser:
    """A denoiser that takes the results of repeated calls from a cache."""

    def __init__(self, denoiser: Denoiser, memory: dict[Any, torch.Tensor]) -> None:
        self.denoiser, self.memory, self.calls = denoiser, memory, 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, cond_scale: float | None = None, **_: Any) -> torch.Tensor:
        plan = self.denoiser.plan_of(self.calls)
        scale = self.denoiser.cfg_scale if cond_scale is None else cond_scale
        key = (float(sigma[0]), scale, plan, hashlib.blake2b(x.cpu().numpy().tobytes(), digest_size=16).digest())
        if key not in self.memory:
            self.denoiser.calls = self.calls
            self.memory[key] = self.denoiser(x, sigma, cond_scale=scale)
        self.calls += 1
        return self.memory[key]


def _key(cell: Cell, plan: Plan) -> str:
    """The key of a cell's figures: its name, and a hash of its plan, which may change while the name stays."""
    plan_text = repr((plan.sigmas.tolist(), plan.recipe, plan.freeu))
    return f"{cell.method.name}|{cell.nfe}|{hashlib.blake2b(plan_text.encode(), digest_size=6).hexdigest()}"


def _planned(chosen: Sequence[Cell], cfg_scale: float, batch: int) -> list[tuple[Cell, Plan, str]]:
    """The cells with samples in a batch of one guidance scale, with their plans and keys."""
    table = stable_diffusion_noise()
    planned = []
    for cell in chosen:
        if cell.cfg_scale == cfg_scale and batch * BATCH < cell.samples:
            plan = cell.method.plan(table, cell.nfe, cfg_scale)
            if plan is not None:
                planned.append((cell, plan, _key(cell, plan)))
    return planned


def _stored(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path) as file:
        return dict(file)


def _missing(planned: Sequence[tuple[Cell, Plan, str]], stored: Mapping[str, Any]) -> list[tuple[Cell, Plan, str]]:
    return [(cell, plan, key) for cell, plan, key in planned if f"{key}|right" not in stored]


def draw_job(selection: Selection, cfg_scale: float, batch: int, path: Path, weights: Path, device: str) -> Path:
    """Draw one batch of one guidance scale with every cell that has samples in it and is not drawn yet."""
    if device == "cpu":
        torch.set_num_threads(1)
    model = load(selection.model, weights, device)
    first, end = batch * BATCH, min((batch + 1) * BATCH, selection.most)
    descriptions = model.description.pictures.captioned(end)[first:]
    seeds = range(FIRST_SEED + first, FIRST_SEED + end)
    noise = seeded_noise(seeds, model.description.latent).to(device)
    denoiser = partial(model.denoiser, [picture.caption() for picture in descriptions], cfg_scale)
    results: dict[str, Any] = _stored(path)
    if first < COMMON and "aim" not in results:
        results["aim"] = reference_endpoint(model, denoiser(), noise).cpu().numpy()
    reference = torch.from_numpy(results["aim"]).to(device) if "aim" in results else None
    memory: dict[Any, torch.Tensor] = {}
    key_of_latents: dict[bytes, str] = {}
    # the cells are made again here, as their functions cannot be passed between processes
    for cell, plan, key in _missing(_planned(cells(selection), cfg_scale, batch), results):
        counted = CachedDenoiser(denoiser(freeu=plan.freeu), memory)
        latents = plan.run(counted, noise, seeds)
        if counted.calls != cell.nfe:
            raise RuntimeError(f"{key}: {counted.calls} calls instead of {cell.nfe}")
        equal = key_of_latents.setdefault(hashlib.blake2b(latents.cpu().numpy().tobytes()).digest(), key)
        if equal == key:
            figures = figures_of(model, latents, descriptions, reference)
        else:
            figures = {name: results[f"{equal}|{name}"] for name in FIGURES if f"{equal}|{name}" in results}
        results.update({f"{key}|{name}": values for name, values in figures.items()})
    partial_path = path.with_suffix(".part.npz")
    np.savez(partial_path, **results)
    partial_path.replace(path)
    return path


def figures_of(
    model: TinyModel, latents: torch.Tensor, descriptions: Sequence[Captioned], reference: torch.Tensor | None
) -> dict[str, np.ndarray]:
    """The figures of drawn latents that are stored, one row per sample."""
    finite = latents.nan_to_num(0, 0, 0)
    pictures = model.decode(finite)
    features = model.features(pictures)
    right = model.right(features, descriptions)
    figures = {
        "features": features.cpu().numpy().astype(np.float32),
        "pixels": F.adaptive_avg_pool2d(pictures, PIXEL_SIDE).flatten(1).cpu().numpy().astype(np.float32),
        "right": torch.stack([right[name] for name in sorted(right)], 1).numpy(),
    }
    if reference is not None:
        figures["error"] = (finite - reference).square().sum((1, 2, 3)).cpu().numpy()
    return figures


def caption_read(right: np.ndarray, pictures: Pictures = TINY.pictures) -> np.ndarray:
    """Whether the subject (colour and shape) was read as in the caption, from ``"right"`` of :func:`figures_of`."""
    names = sorted(pictures.answers())
    return np.asarray(right[:, [names.index(name) for name in pictures.subject]].all(1))


def jobs_left(selection: Selection, folder: Path) -> list[tuple[float, int, Path]]:
    """Guidance scale, batch and file of every job that is not complete."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = cells(selection)
    jobs = []
    for cfg_scale in sorted({cell.cfg_scale for cell in chosen}):
        longest = max(cell.samples for cell in chosen if cell.cfg_scale == cfg_scale)
        for batch in range(-(-longest // BATCH)):
            path = _path(folder, cfg_scale, batch)
            if _missing(_planned(chosen, cfg_scale, batch), _stored(path)):
                jobs.append((cfg_scale, batch, path))
    # long jobs first, so that no worker is left with one at the end
    return sorted(jobs, key=lambda job: job[1])


def measure(selection: Selection, folder: Path, weights: Path, device: str, workers: int) -> None:
    """Run all jobs that are not complete."""
    jobs = jobs_left(selection, folder)
    if not jobs:
        return
    with processes(workers) as pool:
        running = [pool.submit(draw_job, selection, *job, weights, device) for job in jobs]
        for done in tqdm(running, desc="drawing", unit=" batches"):
            done.result()


def _path(folder: Path, cfg_scale: float, batch: int) -> Path:
    return folder / f"cfg{cfg_scale:g}-{batch:02d}.npz"


@dataclass(frozen=True)
class Reference:
    """Moments of real pictures, from which Fréchet distances are measured."""

    features: Moments
    pixels: Moments


def real_pictures(model: TinyModel, count: int = REAL_PICTURES) -> Reference:
    """From newly drawn pictures, which are neither of the training set nor of the bench's captions."""
    drawn = model.description.pictures
    rng = np.random.default_rng(REAL_SEED)
    features, pixels = [], []
    for _ in tqdm(range(count // 256), desc="real pictures", unit="x256", disable=count <= 256):
        pictures = drawn.draw([drawn.random(rng) for _ in range(256)], rng).to(model.device)
        features.append(model.features(pictures).cpu().numpy())
        pixels.append(F.adaptive_avg_pool2d(pictures, PIXEL_SIDE).flatten(1).cpu().numpy())
    return Reference(Moments.of(np.concatenate(features)), Moments.of(np.concatenate(pixels)))


@dataclass(frozen=True)
class Score:
    """One row of the table: a cell, on its first ``samples`` samples."""

    sampler: str
    schedule: str
    ending: str
    freeu: str
    nfe: int
    cfg_scale: float
    samples: int
    distance: Estimate
    frechet: Estimate
    frechet_pixels: Estimate
    accuracy: Estimate
    whole_caption: Estimate


def scores(chosen: Sequence[Cell], folder: Path, real: Reference, pictures: Pictures = TINY.pictures) -> list[Score]:
    """The rows from the results of :func:`measure`; cells with more than ``COMMON`` samples have a second row."""
    rows = []
    for cfg_scale in sorted({cell.cfg_scale for cell in chosen}):
        longest = max(cell.samples for cell in chosen if cell.cfg_scale == cfg_scale)
        files = [_stored(_path(folder, cfg_scale, batch)) for batch in range(-(-longest // BATCH))]
        sizes = np.concatenate([np.square(file["aim"]).sum((1, 2, 3)) for file in files if "aim" in file])
        for cell, _, key in _planned(chosen, cfg_scale, 0):
            drawn = [file for file in files if f"{key}|right" in file]
            columns = {
                name: np.concatenate([f[f"{key}|{name}"] for f in drawn if f"{key}|{name}" in f]) for name in FIGURES
            }
            for samples in sorted({min(COMMON, cell.samples), cell.samples}):
                rows.append(
                    _score(cell, {name: rows[:samples] for name, rows in columns.items()}, sizes, real, pictures)
                )
    return rows


def _score(
    cell: Cell, columns: Mapping[str, np.ndarray], sizes: np.ndarray, real: Reference, pictures: Pictures
) -> Score:
    right, errors, method = columns["right"], columns["error"], cell.method
    return Score(
        method.sampler, method.schedule, method.ending, method.freeu, cell.nfe, cell.cfg_scale, len(right),
        distance=relative_rmse(errors, sizes[: len(errors)]),
        frechet=frechet(columns["features"], real.features),
        frechet_pixels=frechet(columns["pixels"], real.pixels),
        accuracy=share(caption_read(right, pictures)),
        whole_caption=share(np.asarray(right.all(1))),
    )  # fmt: skip
