"""The tiny model's calibration: each job is one guidance scale and some numbers of steps, with a file of its own."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from hpsampler.calibration.config import CalibrationConfig
from hpsampler.calibration.job import CalibrationJob
from hpsampler.calibration.profile import Profile
from hpsampler.store import write_atomically
from tiny_model.model import TinyModel

from .calibrated import TinySource, config_of, profile_of, weights_hash
from .pool import processes

__all__ = ["CFG_SCALES", "STEPS", "calibrate_tiny"]

CFG_SCALES = (3.0, 5.0, 7.5)
STEPS = ((4, 6, 10), (5, 7, 8))
"""Those of one job; both take about as long."""

TRAJECTORIES, RUNS = 48, 60


def orders() -> list[CalibrationConfig]:
    return [config_of(steps, [cfg_scale], TRAJECTORIES, RUNS) for cfg_scale in CFG_SCALES for steps in STEPS]


def calibrate_tiny(folder: Path, weights: Path, device: str, workers: int) -> Profile:
    """Make what is not there yet, and put it together to one profile."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = orders()
    paths = [_path(folder, order, weights) for order in asked]
    jobs = [(order, path) for order, path in zip(asked, paths) if not _finished(order, path)]
    if jobs:
        with processes(workers) as pool:
            running = [pool.submit(_job, order, path, weights, device) for order, path in jobs]
            for done in tqdm(running, desc="calibrating", unit=" jobs"):
                done.result()
    return _together([profile_of(path) for path in paths])


def _path(folder: Path, order: CalibrationConfig, weights: Path) -> Path:
    """Named after all that it follows from, so that nothing is kept which was made for other weights or otherwise."""
    what = hashlib.blake2b(repr((order, weights_hash(weights))).encode(), digest_size=6).hexdigest()
    return folder / f"calibration-{what}.json"


def _cells(profile: Profile) -> int:
    return len(profile.fitted) + len(profile.refused)


def _finished(order: CalibrationConfig, path: Path) -> bool:
    return path.exists() and _cells(profile_of(path)) == len(order.cells)


def _job(order: CalibrationConfig, path: Path, weights: Path, device: str) -> None:
    if device == "cpu":
        torch.set_num_threads(1)
    source = TinySource(TinyModel.load(weights, device), weights_hash(weights))
    begun = profile_of(path) if path.exists() else None
    CalibrationJob(order, source, begun, keep=lambda profile: write_atomically(path, profile.to_json())).run()


def _together(parts: list[Profile]) -> Profile:
    fitted = sorted((each for part in parts for each in part.fitted), key=lambda each: (each.cfg_scale, each.steps))
    refused = sorted((each for part in parts for each in part.refused), key=lambda each: (each.cfg_scale, each.steps))
    return replace(parts[0], fitted=tuple(fitted), refused=tuple(refused))
