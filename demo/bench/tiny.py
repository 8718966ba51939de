"""The bench on the tiny model: every cell draws the same seeds and captions; what it drew is kept as small figures.

A job is one guidance scale and one batch of seeds. Its results go to a file of their own, so that an interrupted run
goes on where it stopped. Within a job equal calls of the network (same latents, sigma and Free-U) are made once: all
schedules start at one sigma, and endings differ in the last step only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..runs import reference_endpoint
from ..tiny.model import Denoiser, TinyModel, seeded_noise
from ..tiny.pictures import Picture, captioned, draw, random_picture
from .grid import AIMED, BATCH, COMMON, Cell, cells
from .metrics import Estimate, Moments, frechet, relative_rmse, share

__all__ = ["Reference", "Score", "measure", "real_pictures", "scores"]

FIRST_SEED = 10_000
REAL_SEED = 78
PIXEL_SIDE = 8
"""Side of the pooled pictures whose pixels are features too: 3 * 8 * 8 of them."""

REAL_PICTURES = 8192


class _Remembering:
    """A denoiser that answers equal calls from memory."""

    def __init__(self, denoiser: Denoiser, memory: dict[Any, torch.Tensor]) -> None:
        self.denoiser, self.memory, self.calls = denoiser, memory, 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
        plan = self.denoiser.plan_of(self.calls)
        key = (float(sigma[0]), plan, hashlib.blake2b(x.cpu().numpy().tobytes(), digest_size=16).digest())
        if key not in self.memory:
            self.denoiser.calls = self.calls
            self.memory[key] = self.denoiser(x, sigma)
        self.calls += 1
        return self.memory[key]


def _job(full: bool, cfg_scale: float, batch: int, path: Path, weights: Path, device: str) -> Path:
    """Draw one batch of one guidance scale with every cell that reaches so far."""
    if device == "cpu":
        torch.set_num_threads(1)
    model = TinyModel.load(weights, device)
    first = batch * BATCH
    told = captioned(first + BATCH)[first:]
    seeds = range(FIRST_SEED + first, FIRST_SEED + first + BATCH)
    noise = seeded_noise(seeds).to(device)
    prompts = [picture.caption() for picture in told]
    denoiser = partial(model.denoiser, prompts, cfg_scale)
    found: dict[str, np.ndarray] = {}
    aim = None
    if first < AIMED:
        aim = reference_endpoint(model, denoiser(), noise)
        found["reference"] = aim.square().sum((1, 2, 3)).cpu().numpy()
    memory: dict[Any, torch.Tensor] = {}
    seen: dict[bytes, str] = {}
    # chosen here anew: a method is made of functions, which do not travel between processes
    for cell in cells(full):
        if cell.cfg_scale != cfg_scale or first >= cell.samples:
            continue
        plan = cell.method.plan(model.noise, cell.nfe, cfg_scale)
        if plan is None:
            continue
        counted = _Remembering(denoiser(freeu=plan.freeu), memory)
        latents = plan.run(counted, noise, seeds)
        if counted.calls != cell.nfe:
            raise RuntimeError(f"{cell.key}: {counted.calls} calls instead of {cell.nfe}")
        own = hashlib.blake2b(latents.cpu().numpy().tobytes()).digest()
        twin = seen.setdefault(own, cell.key)
        names = [name for name in found if name.startswith(f"{twin}|")] if twin != cell.key else []
        for name in names:
            found[cell.key + name[len(twin) :]] = found[name]
        if not names:
            for name, values in _look(model, latents, told, aim).items():
                found[f"{cell.key}|{name}"] = values
    partial_path = path.with_suffix(".part.npz")
    np.savez(partial_path, **found)
    partial_path.replace(path)
    return path


def _look(
    model: TinyModel, latents: torch.Tensor, told: Sequence[Picture], aim: torch.Tensor | None
) -> dict[str, np.ndarray]:
    """What is kept of drawn latents, one row per sample."""
    finite = latents.nan_to_num(0, 0, 0)
    pictures = model.decode(finite)
    features = model.features(pictures)
    right = model.right(features, told)
    kept = {
        "features": features.cpu().numpy().astype(np.float32),
        "pixels": F.adaptive_avg_pool2d(pictures, PIXEL_SIDE).flatten(1).cpu().numpy().astype(np.float32),
        "right": torch.stack([right[name] for name in sorted(right)], 1).numpy(),
    }
    if aim is not None:
        kept["error"] = (finite - aim).square().sum((1, 2, 3)).cpu().numpy()
    return kept


def measure(full: bool, folder: Path, weights: Path, device: str, workers: int) -> None:
    """Run all jobs whose results are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    chosen = cells(full)
    for cfg_scale in sorted({cell.cfg_scale for cell in chosen}):
        longest = max(cell.samples for cell in chosen if cell.cfg_scale == cfg_scale)
        for batch in range(-(-longest // BATCH)):
            path = folder / f"cfg{cfg_scale:g}-{batch:02d}.npz"
            if not path.exists():
                jobs.append((cfg_scale, batch, path))
    # the long ones first, so that no worker is left alone at the end
    jobs.sort(key=lambda job: job[1])
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        running = [pool.submit(_job, full, cfg, batch, path, weights, device) for cfg, batch, path in jobs]
        for done in tqdm(running, desc="drawing", unit=" batches"):
            done.result()


@dataclass(frozen=True)
class Reference:
    """Moments of real pictures, which the Fréchet distances are to."""

    features: Moments
    pixels: Moments


def real_pictures(model: TinyModel, count: int = REAL_PICTURES) -> Reference:
    """Of newly drawn pictures, neither of the training nor of the bench's captions."""
    rng = np.random.default_rng(REAL_SEED)
    features, pixels = [], []
    for _ in tqdm(range(count // 256), desc="real pictures", unit="x256"):
        pictures = draw([random_picture(rng) for _ in range(256)], rng).to(model.device)
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


def scores(chosen: Sequence[Cell], folder: Path, real: Reference) -> list[Score]:
    """Read what :func:`measure` left; cells that were measured on more than ``COMMON`` get a row for each number."""
    rows = []
    for cfg_scale in sorted({cell.cfg_scale for cell in chosen}):
        files = [np.load(path) for path in sorted(folder.glob(f"cfg{cfg_scale:g}-*.npz"))]
        size = np.concatenate([file["reference"] for file in files if "reference" in file])
        for cell in chosen:
            if cell.cfg_scale != cfg_scale or f"{cell.key}|right" not in files[0]:
                continue
            for samples in sorted({min(COMMON, cell.samples), cell.samples}):
                rows.append(_score(cell, files, size, samples, real))
    return rows


def _score(cell: Cell, files: Sequence[Any], size: np.ndarray, samples: int, real: Reference) -> Score:
    def column(name: str) -> np.ndarray:
        key = f"{cell.key}|{name}"
        return np.concatenate([file[key] for file in files if key in file])[:samples]

    right = column("right")
    names = sorted(("colour", "shape", "size", "pattern", "ground", "place"))
    both = right[:, names.index("colour")] & right[:, names.index("shape")]
    method = cell.method
    return Score(
        method.sampler, method.schedule, method.ending, method.freeu, cell.nfe, cell.cfg_scale, samples,
        distance=relative_rmse(column("error"), size),
        frechet=frechet(column("features"), real.features),
        frechet_pixels=frechet(column("pixels"), real.pixels),
        accuracy=share(both),
        whole_caption=share(right.all(1)),
    )  # fmt: skip
