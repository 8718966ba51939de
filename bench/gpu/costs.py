"""What statistics and a calibration cost on models of the true sizes, and whether the tab's estimate is right."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from hpsampler.calibration.config import CalibrationConfig
from hpsampler.calibration.job import CalibrationJob
from hpsampler.jobs import Job
from hpsampler.noise import NoiseModel
from hpsampler.statistics.config import StatisticsConfig
from hpsampler.statistics.job import StatisticsJob

from .job_checks import ClosedForm
from .models import Family, Networks, Shelf, families
from .overhead import unet_call
from .part import Clock, Part, Row, Setting, Task
from .place import synchronize

__all__ = ["PART", "NetworkSource"]


class NetworkSource:
    """Networks as a job's model, called a batch at a time as a WebUI's are."""

    model_name: str = "random weights"
    hashes: tuple[str, ...] = ("feedbeef",)

    def __init__(self, networks: Networks, batch: int) -> None:
        self.networks, self.batch, self.family = networks, batch, networks.family.family
        self.noise: NoiseModel = networks.noise

    def denoiser(self, prompts: Sequence[str], negative: str, cfg_scale: float) -> Callable[..., torch.Tensor]:
        parts = [len(prompts[at : at + self.batch]) for at in range(0, len(prompts), self.batch)]
        models = [self.networks.denoiser(count, cfg_scale) for count in parts]

        def model(x: torch.Tensor, sigma: torch.Tensor, /, **own: Any) -> torch.Tensor:
            rows = zip(models, x.split(self.batch), sigma.split(self.batch))
            return torch.cat([each(*part, **own) for each, *part in rows])

        return model

    def start(self, seeds: Sequence[int], width: int, height: int) -> torch.Tensor:
        return self.networks.unit_noise(seeds)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.networks.decode(latents).cpu()


def timed(job: Job, run: Callable[[], object], most: int, defaults: int, setting: Setting) -> dict[str, Any]:
    """What a job took.

    Args:
        most: UNet calls that it was said to make at most, each for one picture.
        defaults: the same for a job of its kind as it comes.
    """
    if setting.gpu:
        torch.cuda.reset_peak_memory_stats(setting.device)
    began = time.perf_counter()
    run()
    synchronize(setting.device)
    seconds, progress = time.perf_counter() - began, job.progress
    a_call = progress.seconds / progress.calls
    peak = torch.cuda.max_memory_allocated(setting.device) / 2**30 if setting.gpu else None
    return {
        "calls": progress.calls, "seconds": seconds, "beside": seconds - progress.seconds, "call_ms": 1e3 * a_call,
        "estimate": most * a_call, "defaults_calls": defaults,
        "defaults_minutes": defaults * seconds / progress.calls / 60, "peak_gb": peak,
    }  # fmt: skip


def statistics_rows(family: Family, shelf: Shelf) -> list[Row]:
    """One batch of trajectories at the fewest points."""
    values = {"name": "cost", "width": family.side, "height": family.side}
    usual = StatisticsConfig.of(values)
    config = StatisticsConfig.of({**values, "samples": 2 if shelf.setting.small else usual.batch, "points": 21})
    job = StatisticsJob(config, NetworkSource(shelf.networks(family), config.batch))
    found = timed(job, job.run, config.most_calls(), usual.most_calls(), shelf.setting)
    return [{"size": family.name, "job": "statistics", **found}]


def calibration_rows(family: Family, shelf: Shelf) -> list[Row]:
    """The smallest calibration from its references to the last sigma."""
    values = {"name": "cost", "width": family.side, "height": family.side}
    usual = CalibrationConfig.of(values)
    smallest = {"steps": 3 if shelf.setting.small else 5, "cfg_scales": 5, "trajectories": 2, "runs": 25}
    config = CalibrationConfig.of({**values, **smallest})
    job = CalibrationJob(config, NetworkSource(shelf.networks(family), config.batch))
    found = timed(job, job.run, config.most_calls(), usual.most_calls(), shelf.setting)
    return [{"size": family.name, "job": "calibration", **found}]


def arithmetic_rows(family: Family, shelf: Shelf) -> list[Row]:
    """A calibration of the usual size whose model costs next to nothing: the fit's own arithmetic."""
    values = {"name": "cost", "width": family.side, "height": family.side, "steps": 5}
    config = CalibrationConfig.of({**values, **({"trajectories": 4, "runs": 25} if shelf.setting.small else {})})
    # the networks' own memory is none of the fit's
    shelf.clear()
    job = CalibrationJob(config, ClosedForm(shelf.setting.device))
    found = timed(job, job.run, config.most_calls(), config.most_calls(), shelf.setting)
    kept = {name: found[name] for name in ("calls", "seconds", "beside", "peak_gb")}
    return [{"size": family.name, "job": "a fit's own arithmetic, 5 steps", **kept}]


def scaling_rows(family: Family, shelf: Shelf) -> list[Row]:
    """A call at half the side: the tab takes time to grow as the number of pixels."""
    networks, repeats = shelf.networks(family), 1 if shelf.setting.small else 5
    whole_ms, half_ms = (unet_call(networks, 4, repeats, side) for side in (family.side, family.side // 2))
    row = {"size": family.name, "job": "a call judged by one at half the side", "calls": 4}
    return [{**row, "seconds": 1e-3 * whole_ms, "call_ms": whole_ms / 4, "estimate": 4e-3 * half_ms}]


def tasks(setting: Setting, clock: Clock) -> Sequence[Task]:
    shelf, every = Shelf(setting), families(setting)
    found = []
    for family in every:
        found += [
            Task(f"statistics, {family.name}", partial(statistics_rows, family, shelf)),
            Task(f"scaling, {family.name}", partial(scaling_rows, family, shelf)),
        ]
        # once is enough to see that it runs
        if family is every[0] or not setting.small:
            found.append(Task(f"calibration, {family.name}", partial(calibration_rows, family, shelf), ("scipy",)))
    for family in every[: 1 if setting.small else None]:
        found.append(Task(f"arithmetic, {family.name}", partial(arithmetic_rows, family, shelf), ("scipy",)))
    return found


PART = Part(
    name="jobs",
    title="Statistics and calibrations",
    about=(
        "Jobs of the smallest size, on the true-size networks. *Estimate* is what the tab *Calibrate* says before: the "
        "largest number of calls times the seconds of a timed call. *As it comes* is what a job with the tab's own "
        "values takes at most, reckoned from these calls and not run."
    ),
    columns={
        "size": "model", "job": "job", "calls": "UNet calls, each for a picture", "seconds": "seconds",
        "beside": "of it beside the calls", "call_ms": "a call, ms", "estimate": "estimate, seconds",
        "defaults_calls": "calls as it comes, at most", "defaults_minutes": "minutes as it comes, at most",
        "peak_gb": "peak memory, GB",
    },
    seconds=150,
    expected=60,
    tasks=tasks,
)  # fmt: skip
