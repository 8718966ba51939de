"""The tiny model's calibration, in jobs of one guidance scale and some numbers of steps with a file for each."""

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
"""The numbers of steps of each job; both take about equally long."""

TRAJECTORIES, RUNS = 48, 60


def configs() -> list[CalibrationConfig]:
    return [config_of(steps, [cfg_scale], TRAJECTORIES, RUNS) for cfg_scale in CFG_SCALES for steps in STEPS]


def calibrate_tiny(folder: Path, weights: Path, device: str, workers: int) -> Profile:
    """Run the jobs that are not finished, and combine their results in one profile."""
    folder.mkdir(parents=True, exist_ok=True)
    all_configs = configs()
    paths = [_path(folder, config, weights) for config in all_configs]
    jobs = [(config, path) for config, path in zip(all_configs, paths) if not _finished(config, path)]
    if jobs:
        with processes(workers) as pool:
            running = [pool.submit(_job, config, path, weights, device) for config, path in jobs]
            for done in tqdm(running, desc="calibrating", unit=" jobs"):
                done.result()
    return _combined([profile_of(path) for path in paths])


def _path(folder: Path, config: CalibrationConfig, weights: Path) -> Path:
    """The file of a job, named by a hash of its config and the weights, so that results are never confused."""
    digest = hashlib.blake2b(repr((config, weights_hash(weights))).encode(), digest_size=6).hexdigest()
    return folder / f"calibration-{digest}.json"


def _cells(profile: Profile) -> int:
    return len(profile.fitted) + len(profile.refused)


def _finished(config: CalibrationConfig, path: Path) -> bool:
    return path.exists() and _cells(profile_of(path)) == len(config.cells)


def _job(config: CalibrationConfig, path: Path, weights: Path, device: str) -> None:
    if device == "cpu":
        torch.set_num_threads(1)
    source = TinySource(TinyModel.load(weights, device), weights_hash(weights))
    unfinished = profile_of(path) if path.exists() else None
    CalibrationJob(config, source, unfinished, save=lambda profile: write_atomically(path, profile.to_json())).run()


def _combined(parts: list[Profile]) -> Profile:
    fitted = sorted((cell for part in parts for cell in part.fitted), key=lambda cell: (cell.cfg_scale, cell.steps))
    refused = sorted((cell for part in parts for cell in part.refused), key=lambda cell: (cell.cfg_scale, cell.steps))
    return replace(parts[0], fitted=tuple(fitted), refused=tuple(refused))
