"""The small models' calibrations, as the Calibrate tab makes them: statistics first, then a fit for a range of guidance
scales and the comparison of all ways to draw, in jobs of some numbers of steps with a file each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from hpsampler.calibration.config import CalibrationConfig
from hpsampler.calibration.job import CalibrationJob
from hpsampler.calibration.profile import Profile
from hpsampler.statistics.coefficients import Statistics
from hpsampler.statistics.config import StatisticsConfig
from hpsampler.statistics.files import save_statistics
from hpsampler.statistics.job import StatisticsJob
from hpsampler.store import write_atomically

from .calibrated import TinySource, config_of, profile_of, statistics_near, weights_hash
from .models import MODELS, load
from .pool import processes

__all__ = ["CFG_SCALES", "STATISTICS_CFG", "STEPS", "calibrate_small", "small_statistics"]

CFG_SCALES = (2.0, 3.0, 5.0, 7.5, 10.0)
STEPS = {"tiny": ((4, 6, 10), (5, 7, 8)), "texture": ((5, 6), (8,))}
"""By model the numbers of steps of each job; all take about equally long."""

TRAJECTORIES, RUNS = 60, 50

STATISTICS_CFG, LOW_STATISTICS_CFG = 5.0, 3.0
"""The guidance scales at which statistics are measured, as the tab does it; the low ones serve CFG 3 and below."""


def configs(name: str) -> list[CalibrationConfig]:
    return [config_of(steps, CFG_SCALES, TRAJECTORIES, RUNS, MODELS[name]) for steps in STEPS[name]]


def calibrate_small(name: str, path: Path, folder: Path, weights: Path, device: str, workers: int) -> Profile:
    """Make the profile of a small model and the statistics beside it; jobs that are finished do not run again.

    Args:
        path: of the profile.
        folder: where the jobs' results are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    measured = {}
    for cfg_scale in (STATISTICS_CFG, LOW_STATISTICS_CFG):
        kept = measured[cfg_scale] = folder / f"statistics-{_digest(cfg_scale, weights)}.safetensors"
        if not kept.exists():
            save_statistics(small_statistics(name, cfg_scale, weights, device), kept)
    all_configs = configs(name)
    paths = [folder / f"calibration-{_digest(config, weights)}.json" for config in all_configs]
    for each in paths:
        _put_beside(each, measured)
    jobs = [(config, each) for config, each in zip(all_configs, paths) if not _finished(config, each)]
    if jobs:
        with processes(workers) as pool:
            running = [pool.submit(_job, name, config, each, weights, device) for config, each in jobs]
            for done in tqdm(running, desc=f"calibrating the {name} model", unit=" jobs"):
                done.result()
    profile = _combined([profile_of(each) for each in paths])
    write_atomically(path, profile.to_json())
    _put_beside(path, measured)
    return profile


def _put_beside(path: Path, measured: Mapping[float, Path]) -> None:
    """Copy statistics to where :func:`~bench.calibrated.statistics_of` finds those of a profile."""
    for cfg_scale, kept in measured.items():
        name = path.stem if cfg_scale == STATISTICS_CFG else f"{path.stem}_cfg{cfg_scale:g}"
        path.with_name(f"{name}.safetensors").write_bytes(kept.read_bytes())


def small_statistics(name: str, cfg_scale: float, weights: Path, device: str) -> Statistics:
    """Measure statistics with the defaults of the WebUI's tab, on captions and seeds that are drawn nowhere else."""
    _one_thread(device)
    model = load(name, weights, device)
    config, side = config_of((5,), (cfg_scale,), 48, 60, model.description), model.description.pictures.side
    own = StatisticsConfig(name, cfg_scale, width=side, height=side, prompts=config.prompts, seed=config.seed, batch=32)
    return StatisticsJob(own, TinySource(model, weights_hash(weights))).run()


def _digest(what: object, weights: Path) -> str:
    """A hash of what is asked and of the weights, so that results are never confused."""
    return hashlib.blake2b(repr((what, weights_hash(weights))).encode(), digest_size=6).hexdigest()


def _finished(config: CalibrationConfig, path: Path) -> bool:
    if not path.exists():
        return False
    profile = profile_of(path)
    done = {each.steps for each in profile.joint} | {each.steps for each in profile.refused}
    compared = {(each.steps, each.cfg_scale) for each in profile.compared}
    return done >= set(config.cells) and compared >= {(n, cfg) for n in config.cells for cfg in config.cfg_scales}


def _job(name: str, config: CalibrationConfig, path: Path, weights: Path, device: str) -> None:
    _one_thread(device)
    source = TinySource(load(name, weights, device), weights_hash(weights))
    unfinished = profile_of(path) if path.exists() else None
    CalibrationJob(
        config,
        source,
        unfinished,
        save=lambda profile: write_atomically(path, profile.to_json()),
        statistics=lambda cfg_scale: statistics_near(path, cfg_scale),
    ).run()


def _one_thread(device: str) -> None:
    if device == "cpu":
        torch.set_num_threads(1)


def _combined(parts: list[Profile]) -> Profile:
    joint = sorted((cell for part in parts for cell in part.joint), key=lambda cell: cell.steps)
    refused = sorted((cell for part in parts for cell in part.refused), key=lambda cell: (cell.cfg_scale, cell.steps))
    compared = sorted((each for part in parts for each in part.compared), key=lambda each: (each.steps, each.cfg_scale))
    return replace(parts[0], joint=tuple(joint), refused=tuple(refused), compared=tuple(compared))
