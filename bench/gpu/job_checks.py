"""What must hold of jobs on a GPU: statistics and calibrations come out as on a CPU, and calls are timed in full."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from hpsampler.calibration.config import CalibrationConfig
from hpsampler.calibration.fit import CALIBRATED
from hpsampler.calibration.job import CalibrationJob
from hpsampler.noise import NoiseModel
from hpsampler.solvers import sample_dpm_v3
from hpsampler.statistics.config import StatisticsConfig
from hpsampler.statistics.job import StatisticsJob

from .checks import PRECISIONS, SHAPE, TO_ZERO, Check, apart, draw, guided
from .place import Place

__all__ = ["ClosedForm", "job_checks"]

SIDE = 64
"""Height and width of the jobs' pictures; latents have an eighth."""

PER_PRECISION = {torch.float32: (5e-3, 0.02), torch.float16: (0.4, 0.25), torch.bfloat16: (1.0, 1.0)}
"""Largest difference from the CPU of statistics, and of a calibration's error. That of statistics is some ten times
what another rounding inside the model makes on a CPU, as derivatives by finite differences lose three digits of the
precision. In half precision two fits may end in different places."""


@dataclass
class ClosedForm:
    """A source of a model that is known in closed form, on a device and in a precision."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    model_name: str = "closed form"
    hashes: tuple[str, ...] = ("feedbeef",)
    family: str = "sd1"
    noise: NoiseModel = field(default_factory=NoiseModel.of_stable_diffusion)

    def denoiser(self, prompts: Sequence[str], negative: str, cfg_scale: float) -> Callable[..., torch.Tensor]:
        def model(x: torch.Tensor, sigma: torch.Tensor, /, cond_scale: float = cfg_scale, **_: Any) -> torch.Tensor:
            return guided(x, sigma, cond_scale)

        return model

    def start(self, seeds: Sequence[int], width: int, height: int) -> torch.Tensor:
        shape = (4, height // 8, width // 8)
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device, self.dtype)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents[:, :3].float().cpu() / 2 + 0.5).clamp(0, 1)


def statistics_check(dtype: torch.dtype, place: Place) -> float:
    """Statistics of a few trajectories: the derivative l, and in float32 what is drawn with them.

    The coefficients s and b are quotients of small numbers here, whose digits are no more than rounding, and a picture
    hardly depends on them.
    """
    config = StatisticsConfig.of({"name": "check", "samples": 4, "points": 21, "width": SIDE, "height": SIDE})
    ours, theirs = (
        StatisticsJob(config, ClosedForm(device, dtype)).run() for device in (place.device, torch.device("cpu"))
    )
    differences = [float(np.sqrt(np.mean((ours.l - theirs.l) ** 2) / np.mean(theirs.l**2)))]
    if dtype == torch.float32:
        x, levels = draw(*SHAPE) * TO_ZERO[0], torch.tensor(TO_ZERO)
        for order in (1, 2):
            one, other = (sample_dpm_v3(guided, x, levels, statistics=each, order=order) for each in (ours, theirs))
            differences.append(apart(one, other))
    return max(differences)


def calibration_check(dtype: torch.dtype, place: Place) -> float:
    """A small calibration, from the references to the last sigma."""
    values = {"steps": 4, "cfg_scales": 3, "trajectories": 4, "runs": 25, "width": SIDE, "height": SIDE}
    config = CalibrationConfig.of({"name": "check", **values})
    errors = []
    for device in (place.device, torch.device("cpu")):
        profile = CalibrationJob(config, ClosedForm(device, dtype)).run()
        # a fit that is no better than Auto is refused, and Auto is then used
        found = [each.held_out[CALIBRATED] for joint in profile.joint for each in joint.measured]
        assert len(profile.joint) + len(profile.refused) == 1 and profile.decoder, "the job did not finish"
        errors.append(found[0] if found else 0.0)
    return abs(errors[0] - errors[1]) / max(errors[1], 1e-6) if all(errors) else 0.0


class _Slow:
    """A model that gives its device a lot to do at once."""

    def __init__(self, place: Place) -> None:
        self.work = torch.ones(2048, 2048, device=place.device)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, /, **own: Any) -> torch.Tensor:
        found = self.work
        for _ in range(20):
            found = found @ self.work * 1e-4
        return x + found.mean()


def timing_check(place: Place) -> float:
    """A job's seconds hold the device's work, and not only the giving of it; the share that is missing."""
    job = StatisticsJob(StatisticsConfig("check"), ClosedForm(place.device))
    x = torch.ones(1, 4, 8, 8, device=place.device)
    if place.stand_in is not None:
        place.stand_in.waits.clear()
        job._counted(guided)(x, x.new_ones(1))
        assert place.stand_in.waits, "the call was timed without waiting for the device"
        return 0.0
    counted = job._counted(_Slow(place))
    counted(x, x.new_ones(1)).cpu()
    job.progress.seconds, began = 0.0, time.perf_counter()
    counted(x, x.new_ones(1)).cpu()
    return max(1 - job.progress.seconds / (time.perf_counter() - began), 0.0)


def job_checks() -> list[Check]:
    found: list[Check] = []
    for precision, dtype in PRECISIONS.items():
        of_statistics, of_calibration = PER_PRECISION[dtype]
        found.append(Check(f"statistics job; {precision}", partial(statistics_check, dtype), of_statistics))
        found.append(
            Check(f"calibration job; {precision}", partial(calibration_check, dtype), of_calibration, ("scipy",))
        )
    found.append(Check("a job's seconds", timing_check, 0.1))
    return found
