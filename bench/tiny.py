"""The bench on the tiny model: every cell draws the same seeds and captions; what it drew is kept as small figures.

A job is one guidance scale and one batch of seeds. Its results go to a file of their own, so that an interrupted run
goes on where it stopped. Within a job equal calls of the network (same latents, sigma and Free-U) are made once: all
schedules start at one sigma, and endings differ in the last step only.
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

from tiny_model.model import Denoiser, TinyModel, seeded_noise
from tiny_model.pictures import Picture, answers, captioned, draw, random_picture

from .grid import BATCH, COMMON, Cell, cells
from .methods import Plan
from .metrics import Estimate, Moments, frechet, relative_rmse, share
from .pool import processes
from .runs import reference_endpoint
from .schedules import stable_diffusion_noise

__all__ = ["Reference", "Remembering", "Score", "caption_read", "look", "measure", "real_pictures", "scores"]

FIRST_SEED = 10_000
REAL_SEED = 78
PIXEL_SIDE = 8
"""Side of the pooled pictures whose pixels are features too: 3 * 8 * 8 of them."""

REAL_PICTURES = 8192
KEPT = ("features", "pixels", "right", "error")
"""What is kept of a drawn picture; the error only where the reference endpoint was made."""


class Remembering:
    """A denoiser that answers equal calls from memory."""

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
    """Under which a cell's figures are kept: its name, and what it does, which may change while the name stays."""
    what = repr((plan.sigmas.tolist(), plan.recipe, plan.freeu))
    return f"{cell.method.name}|{cell.nfe}|{hashlib.blake2b(what.encode(), digest_size=6).hexdigest()}"


def _planned(chosen: Sequence[Cell], cfg_scale: float, batch: int) -> list[tuple[Cell, Plan, str]]:
    """The cells that reach a batch of one guidance scale, with their plans and keys."""
    table = stable_diffusion_noise()
    found = []
    for cell in chosen:
        if cell.cfg_scale == cfg_scale and batch * BATCH < cell.samples:
            plan = cell.method.plan(table, cell.nfe, cfg_scale)
            if plan is not None:
                found.append((cell, plan, _key(cell, plan)))
    return found


def _stored(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path) as file:
        return dict(file)


def _missing(planned: Sequence[tuple[Cell, Plan, str]], stored: Mapping[str, Any]) -> list[tuple[Cell, Plan, str]]:
    return [each for each in planned if f"{each[2]}|right" not in stored]


def _job(
    full: bool, calibration: Path | None, cfg_scale: float, batch: int, path: Path, weights: Path, device: str
) -> Path:
    """Draw one batch of one guidance scale with every cell that reaches so far and is not drawn yet."""
    if device == "cpu":
        torch.set_num_threads(1)
    model = TinyModel.load(weights, device)
    first = batch * BATCH
    told = captioned(first + BATCH)[first:]
    seeds = range(FIRST_SEED + first, FIRST_SEED + first + BATCH)
    noise = seeded_noise(seeds).to(device)
    denoiser = partial(model.denoiser, [picture.caption() for picture in told], cfg_scale)
    found = _stored(path)
    if first < COMMON and "aim" not in found:
        found["aim"] = reference_endpoint(model, denoiser(), noise).cpu().numpy()
    aim = torch.from_numpy(found["aim"]).to(device) if "aim" in found else None
    memory: dict[Any, torch.Tensor] = {}
    seen: dict[bytes, str] = {}
    # chosen here anew: a method is made of functions, which do not travel between processes
    for cell, plan, key in _missing(_planned(cells(full, calibration), cfg_scale, batch), found):
        counted = Remembering(denoiser(freeu=plan.freeu), memory)
        latents = plan.run(counted, noise, seeds)
        if counted.calls != cell.nfe:
            raise RuntimeError(f"{key}: {counted.calls} calls instead of {cell.nfe}")
        twin = seen.setdefault(hashlib.blake2b(latents.cpu().numpy().tobytes()).digest(), key)
        if twin == key:
            looked = look(model, latents, told, aim)
        else:
            looked = {name: found[f"{twin}|{name}"] for name in KEPT if f"{twin}|{name}" in found}
        found.update({f"{key}|{name}": values for name, values in looked.items()})
    partial_path = path.with_suffix(".part.npz")
    np.savez(partial_path, **found)
    partial_path.replace(path)
    return path


def look(
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


def caption_read(right: np.ndarray) -> np.ndarray:
    """Of the answers of :func:`look`: whether colour and shape both are the caption's."""
    names = sorted(answers())
    return right[:, names.index("colour")] & right[:, names.index("shape")]


def measure(full: bool, calibration: Path | None, folder: Path, weights: Path, device: str, workers: int) -> None:
    """Run all jobs that have something left to do."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = cells(full, calibration)
    jobs = []
    for cfg_scale in sorted({cell.cfg_scale for cell in chosen}):
        longest = max(cell.samples for cell in chosen if cell.cfg_scale == cfg_scale)
        for batch in range(-(-longest // BATCH)):
            path = _path(folder, cfg_scale, batch)
            if _missing(_planned(chosen, cfg_scale, batch), _stored(path)):
                jobs.append((cfg_scale, batch, path))
    if not jobs:
        return
    # the long ones first, so that no worker is left alone at the end
    jobs.sort(key=lambda job: job[1])
    with processes(workers) as pool:
        running = [pool.submit(_job, full, calibration, cfg, batch, path, weights, device) for cfg, batch, path in jobs]
        for done in tqdm(running, desc="drawing", unit=" batches"):
            done.result()


def _path(folder: Path, cfg_scale: float, batch: int) -> Path:
    return folder / f"cfg{cfg_scale:g}-{batch:02d}.npz"


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
        longest = max(cell.samples for cell in chosen if cell.cfg_scale == cfg_scale)
        files = [_stored(_path(folder, cfg_scale, batch)) for batch in range(-(-longest // BATCH))]
        sizes = np.concatenate([np.square(file["aim"]).sum((1, 2, 3)) for file in files if "aim" in file])
        for cell, _, key in _planned(chosen, cfg_scale, 0):
            drawn = [file for file in files if f"{key}|right" in file]
            columns = {
                name: np.concatenate([f[f"{key}|{name}"] for f in drawn if f"{key}|{name}" in f]) for name in KEPT
            }
            for samples in sorted({min(COMMON, cell.samples), cell.samples}):
                rows.append(_score(cell, {name: rows[:samples] for name, rows in columns.items()}, sizes, real))
    return rows


def _score(cell: Cell, columns: Mapping[str, np.ndarray], sizes: np.ndarray, real: Reference) -> Score:
    right, errors, method = columns["right"], columns["error"], cell.method
    return Score(
        method.sampler, method.schedule, method.ending, method.freeu, cell.nfe, cell.cfg_scale, len(right),
        distance=relative_rmse(errors, sizes[: len(errors)]),
        frechet=frechet(columns["features"], real.features),
        frechet_pixels=frechet(columns["pixels"], real.pixels),
        accuracy=share(caption_read(right)),
        whole_caption=share(right.all(1)),
    )  # fmt: skip
