"""Calibration jobs: several numbers of steps at several guidance scales, one after the other.

:class:`~hpsampler.calibration.config.CalibrationConfig` describes a job. :class:`CalibrationJob` builds a
:class:`~hpsampler.calibration.profile.Profile` and saves it after every cell (one number of steps at one guidance
scale), so that an interruption costs at most one cell. :class:`CalibrationRunner` runs such jobs in the background.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from ..jobs import (
    Exclusively,
    Job,
    JobRunner,
    ModelSource,
    Progress,
    at_once,
    started_with_another_model,
)
from ..noise import NoiseModel
from ..recipes import AUTO, recipe_for
from ..schedule import base_karras
from ..solvers import sample_dpmpp_2m
from .config import BASELINE_STEPS, REFERENCE_CALLS, CalibrationConfig
from .decoder import decoder_curve, with_best_final_sigma
from .fit import CalibrationRefused, calibrate
from .profile import ERRORS, Fitted, Profile, ProfileStore, Refused, noise_tolerance, rounded
from .trajectories import MultistepSchedule, Trajectories

__all__ = ["CalibrationJob", "CalibrationRunner", "initial_schedules"]

BASELINE = f"{BASELINE_STEPS} steps of DPM++ 2M Karras"

DECODER_LATENTS = 8
"""Number of latents on which the decoder's tolerance is measured."""


class CalibrationJob(Job):
    """Makes the profile that a config describes.

    Args:
        config: what to calibrate.
        source: the model.
        profile: the profile of an earlier, interrupted job of the same config; its cells are not calibrated again.
        save: called with the profile after every cell.
        cache: folder where reference endpoints are saved until the end; with None they are not saved.
        exclusively: how the job gets the model to itself.

    Raises:
        StoreError: no profile of this model can be stored, for example because it has no hash.
    """

    def __init__(
        self,
        config: CalibrationConfig,
        source: ModelSource,
        profile: Optional[Profile] = None,
        save: Callable[[Profile], object] = lambda profile: None,
        cache: Optional[Path] = None,
        exclusively: Exclusively = at_once,
    ) -> None:
        super().__init__(exclusively)
        self.config, self.source, self.save, self.cache = config, source, save, cache
        self.profile = profile or Profile(
            name=config.name,
            # a file name may have bytes that are not valid text
            model=source.model_name.encode("utf-8", "replace").decode(),
            hashes=tuple(source.hashes),
            family=source.family,
            width=config.width,
            height=config.height,
            sigma_min=source.noise.sigma_min,
            sigma_max=source.noise.sigma_max,
            trajectories=config.trajectories,
            held_out=config.trajectories,
            seed=config.seed,
        )
        # an invalid profile must fail before the first model call
        Profile.from_json(self.profile.to_json())
        self.progress = Progress(of=config.most_calls(self._finished_cells()))

    def _finished_cells(self) -> list[tuple[float, int]]:
        cells: list[Fitted | Refused] = [*self.profile.fitted, *self.profile.refused]
        return [(cell.cfg_scale, cell.steps) for cell in cells]

    def run(self) -> Profile:
        """Calibrate all remaining cells.

        Raises:
            Cancelled: after :meth:`cancel`; the profile that was saved last has all finished cells.
            ValueError: a model whose output is not finite, or nothing but zeros.
        """
        for cfg_scale in self.config.cfg_scales:
            finished = self._finished_cells()
            remaining = [steps for steps in self.config.steps if (cfg_scale, steps) not in finished]
            if not remaining:
                continue
            self.progress.cell, self.progress.curve, self.progress.lines = (cfg_scale, remaining[0]), [], {}
            fit, held_out = self._trajectories(cfg_scale, 0), self._trajectories(cfg_scale, 1)
            baseline = self._baseline_error(held_out)
            if not self.profile.decoder:
                self._measure_decoder(fit.endpoints)
            for steps in remaining:
                self._calibrate_cell(cfg_scale, steps, fit, held_out, baseline)
        self.progress.cell = None
        return self.profile

    def _measure_decoder(self, latents: torch.Tensor) -> None:
        config = self.config
        latents = latents[:DECODER_LATENTS]
        first_seed = config.seed + 2 * config.trajectories
        noise = self._unit_noise(range(first_seed, first_seed + len(latents)))
        curve = decoder_curve(self._decode, latents, noise)
        # where pictures are not finite, the largest possible change is stored
        changes = [(sigma, float(f"{rms:.5g}") if rms <= 1 else 1.0) for sigma, rms in curve]
        self.profile = replace(self.profile, decoder=tuple(changes))
        self.progress.log.append(_decoder_sentence(self.profile))

    def _calibrate_cell(
        self, cfg_scale: float, steps: int, fit: Trajectories, held_out: Trajectories, baseline: float
    ) -> None:
        progress, calls_before = self.progress, self.progress.calls
        progress.cell, progress.curve = (cfg_scale, steps), []
        progress.lines = {BASELINE: baseline}
        schedules = initial_schedules(self.source.family, steps, cfg_scale, self.source.noise)
        names = iter(schedules)

        def report(calls: int, error: float) -> None:
            name = next(names, None)
            if not math.isfinite(error):
                return
            # replaced, not changed, as another thread may be reading them
            if name is not None:
                progress.lines = {**progress.lines, name: error}
            progress.curve = [*progress.curve, (calls / steps, error)]

        largest = noise_tolerance(self.profile.decoder)
        try:
            # the run for the last sigma is paid from the same budget
            calibration = calibrate(fit, held_out, schedules, self.config.runs - (largest > 0), report)
        except CalibrationRefused as refusal:
            refused = Refused(steps, cfg_scale, str(refusal))
            self._save(replace(self.profile, refused=(*self.profile.refused, refused)))
            progress.log.append(f"CFG {cfg_scale:g}, {steps} steps: refused, {refusal}")
            progress.of += progress.calls - calls_before - self.config.most_calls_of(steps)
            return
        calls_of_fit = progress.calls
        schedule = with_best_final_sigma(calibration.schedule, fit, held_out, self._decode, largest)
        fit_calls = calibration.calls + (steps if progress.calls > calls_of_fit else 0)
        progress.of += progress.calls - calls_before - self.config.most_calls_of(steps)
        fitted = Fitted(
            steps, cfg_scale, rounded(schedule.sigmas), rounded(schedule.factors), calibration.start,
            {name: _stored_error(error) for name, error in calibration.held_out.items()}, _stored_error(baseline),
            fit_calls * self.config.trajectories,
        )  # fmt: skip
        self._save(replace(self.profile, fitted=(*self.profile.fitted, fitted)))
        progress.log.append(
            f"CFG {cfg_scale:g}, {steps} steps: held-out error {fitted.held_out['calibrated']:.4g}; "
            f"{AUTO} has {fitted.held_out[AUTO]:.4g}, {BASELINE} {baseline:.4g} "
            f"({fit_calls / steps:.0f} runs, {fitted.calls} UNet calls)"
        )

    def _save(self, profile: Profile) -> None:
        self.profile = profile
        self.save(profile)

    def _trajectories(self, cfg_scale: float, part: int) -> Trajectories:
        """The calibration set (part 0) or the held-out set (part 1), with different noise and, if possible, prompts."""
        config, count = self.config, self.config.trajectories
        choice = config.prompts[part::2] or config.prompts
        prompts = [choice[index % len(choice)] for index in range(count)]
        first = config.seed + part * count
        noise = self._unit_noise(range(first, first + count))
        model = self._counted(self._on_model(lambda: self.source.denoiser(prompts, config.negative, cfg_scale)))
        path = None if self.cache is None else self.cache / f"cfg{cfg_scale!r}-{part}.npy"
        stored = _stored_endpoints(path, noise)
        if stored is not None:
            self.progress.of -= REFERENCE_CALLS * count
            return Trajectories(model, noise, stored, REFERENCE_CALLS)
        trajectories = Trajectories.of(model, noise, self.source.noise)
        if not trajectories.scale > 0:
            raise ValueError("the model's output is nothing but zeros; nothing can be calibrated to it")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            part_path = path.with_suffix(".part.npy")
            # float64 represents every other precision exactly, so a resumed fit is identical
            np.save(part_path, trajectories.endpoints.cpu().double().numpy())
            os.replace(part_path, path)
        return trajectories

    def _unit_noise(self, seeds: Sequence[int]) -> torch.Tensor:
        return self._on_model(lambda: self.source.start(seeds, self.config.width, self.config.height))

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self._on_model(lambda: self.source.decode(latents))

    def _baseline_error(self, held_out: Trajectories) -> float:
        """The error of the baseline, 20 steps of DPM++ 2M Karras."""
        noise = self.source.noise
        sigmas = torch.tensor([*base_karras(BASELINE_STEPS, 7.0, noise.sigma_min, noise.sigma_max), 0.0])
        ends = sample_dpmpp_2m(held_out.model, held_out.noise * noise.sigma_max, sigmas)
        return held_out.error_of(ends)


def initial_schedules(family: str, steps: int, cfg_scale: float, noise: NoiseModel) -> dict[str, MultistepSchedule]:
    """The schedules that a fit may start from and is compared with: the recipe first, then common schedules."""
    recipe = recipe_for(family, steps, cfg_scale)
    coupled = recipe.sigmas(noise).double().tolist()
    even = noise.t_to_sigma(np.linspace(len(noise) - 1, 0, steps + 1)).tolist()
    karras = [*base_karras(steps, 7.0, noise.sigma_min, noise.sigma_max).tolist(), 0.0]
    return {
        AUTO: MultistepSchedule.of(coupled, last=1.0 if recipe.ending == "extrapolate" else 0.0),
        "first order": MultistepSchedule.of(coupled, 0.0),
        "SGM Uniform": MultistepSchedule.of(even, last=0.0),
        "Karras": MultistepSchedule.of(karras, last=0.0),
    }


def _stored_endpoints(path: Optional[Path], noise: torch.Tensor) -> Optional[torch.Tensor]:
    """The endpoints that an interrupted job saved, if the file is complete and fits the noise."""
    if path is None or not path.exists():
        return None
    try:
        endpoints = np.load(path, allow_pickle=False)
    except Exception:  # a damaged file can raise anything; the endpoints are then computed again
        return None
    if not isinstance(endpoints, np.ndarray) or endpoints.dtype != np.float64:
        return None
    if endpoints.shape != tuple(noise.shape) or not np.isfinite(endpoints).all() or not endpoints.any():
        return None
    return torch.from_numpy(endpoints).to(noise.dtype).to(noise.device)


def _stored_error(error: float) -> float:
    """An error as a profile file stores it: rounded, and limited to ``ERRORS``."""
    return float(f"{min(max(error, ERRORS[0]), ERRORS[1]):.6g}")


def _decoder_sentence(profile: Profile) -> str:
    largest = noise_tolerance(profile.decoder)
    changes = ", ".join(f"{sigma:g}: {change:.3f}" for sigma, change in profile.decoder)
    result = (
        f"tolerates noise up to sigma {largest:g}" if largest else "tolerates no residual noise; schedules end at 0"
    )
    return f"the decoder {result} (RMS change of its pictures by sigma: {changes})"


class CalibrationRunner(JobRunner[CalibrationConfig]):
    """Runs calibrations in the background; their profiles are stored in ``profiles``."""

    kind = "a calibration"

    def __init__(
        self,
        profiles: ProfileStore,
        source: Callable[[CalibrationConfig], ModelSource],
        queue: Callable[[], Exclusively] = lambda: at_once,
    ) -> None:
        super().__init__(profiles.folder, source, queue)
        self.profiles = profiles

    @staticmethod
    def config_of(values: Mapping[str, Any]) -> CalibrationConfig:
        return CalibrationConfig.of(values)

    def names(self) -> list[str]:
        return self.profiles.names()

    def _prepare(
        self, config: CalibrationConfig, source: ModelSource, folder: Path, exclusively: Exclusively
    ) -> tuple[Job, Callable[[], str]]:
        job = CalibrationJob(config, source, self._saved_profile(config, source), self._save, folder, exclusively)

        def run() -> str:
            profile = job.run()
            return f"{len(profile.fitted)} calibrated, {len(profile.refused)} refused"

        return job, run

    def _rename_result(self, name: str, new_name: str) -> str:
        return self.profiles.rename(name, new_name).name

    def _delete_result(self, name: str) -> None:
        self.profiles.delete(name)

    def _save(self, profile: Profile) -> None:
        self.profiles.save(profile, replacing=True)

    def _saved_profile(self, config: CalibrationConfig, source: ModelSource) -> Optional[Profile]:
        """The profile of an earlier, interrupted run of the same job, if there is one.

        Raises:
            StoreError: it is of another model.
        """
        if config.name not in self.names():
            return None
        profile = self.profiles.get(config.name)
        if not set(profile.hashes) & set(source.hashes):
            raise started_with_another_model(profile.model, source)
        return profile
