"""A whole calibration: several numbers of steps at several guidance scales, one after the other.

:class:`~hpsampler.calibration.config.CalibrationConfig` says what is wanted. :class:`CalibrationJob` makes a
:class:`~hpsampler.calibration.profile.Profile` of it and hands the profile over after every cell (one number of steps
at one guidance scale), so whatever stops it costs one cell at most. :class:`CalibrationRunner` runs such jobs in the
background.
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
from .profile import ERRORS, Fitted, Profile, ProfileStore, Refused, noise_tolerance, sigmas_of
from .trajectories import MultistepSchedule, Trajectories

__all__ = ["CalibrationJob", "CalibrationRunner", "initial_schedules"]

DECODED = 8
"""Latents on which the decoder's tolerance is measured."""


class CalibrationJob(Job):
    """Makes the profile that a config describes.

    Args:
        config: what is to be calibrated.
        source: the model.
        profile: what an earlier, interrupted job of the same config left; its cells are not made again.
        keep: called with the profile after every cell.
        cache: folder where reference endpoints are kept until the end; None keeps none.
        exclusively: how the job gets the model to itself.

    Raises:
        StoreError: a model of which no profile can be kept, such as one without a hash.
    """

    def __init__(
        self,
        config: CalibrationConfig,
        source: ModelSource,
        profile: Optional[Profile] = None,
        keep: Callable[[Profile], object] = lambda profile: None,
        cache: Optional[Path] = None,
        exclusively: Exclusively = at_once,
    ) -> None:
        super().__init__(exclusively)
        self.config, self.source, self.keep, self.cache = config, source, keep, cache
        self.profile = profile or Profile(
            name=config.name,
            # a file's name may hold bytes that no text has
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
        # before any call is paid for
        Profile.from_json(self.profile.to_json())
        self.progress = Progress(of=config.most_calls(self._done()))

    def _done(self) -> list[tuple[float, int]]:
        profile = self.profile
        fitted = [(each.cfg_scale, each.steps) for each in profile.fitted]
        return fitted + [(each.cfg_scale, each.steps) for each in profile.refused]

    def run(self) -> Profile:
        """Calibrate all cells that are not done yet.

        Raises:
            Cancelled: after :meth:`cancel`; the profile that ``keep`` had last holds what is finished.
            ValueError: a model whose output is not finite, or nothing but zeros.
        """
        for cfg_scale in self.config.cfg_scales:
            done = self._done()
            todo = [steps for steps in self.config.steps if (cfg_scale, steps) not in done]
            if not todo:
                continue
            self.progress.cell, self.progress.curve, self.progress.lines = (cfg_scale, todo[0]), [], {}
            fit, held_out = self._trajectories(cfg_scale, 0), self._trajectories(cfg_scale, 1)
            baseline = self._baseline_error(held_out)
            if not self.profile.decoder:
                self._measure_decoder(fit.endpoints)
            for steps in todo:
                self._cell(cfg_scale, steps, fit, held_out, baseline)
        self.progress.cell = None
        return self.profile

    def _measure_decoder(self, latents: torch.Tensor) -> None:
        config = self.config
        few = latents[:DECODED]
        seeds = range(config.seed + 2 * config.trajectories, config.seed + 2 * config.trajectories + len(few))
        noise = self._start(seeds)
        curve = decoder_curve(self._decode, few, noise)
        # a picture that is not finite is as far from another as two can be
        changes = [(sigma, float(f"{rms:.5g}") if rms <= 1 else 1.0) for sigma, rms in curve]
        self.profile = replace(self.profile, decoder=tuple(changes))
        self.progress.log.append(_decoder_sentence(self.profile))

    def _cell(self, cfg_scale: float, steps: int, fit: Trajectories, held_out: Trajectories, baseline: float) -> None:
        progress, before = self.progress, self.progress.calls
        progress.cell, progress.curve = (cfg_scale, steps), []
        progress.lines = {f"{BASELINE_STEPS} steps of DPM++ 2M Karras": baseline}
        known = initial_schedules(self.source.family, steps, cfg_scale, self.source.noise)
        names = iter(known)

        def report(calls: int, error: float) -> None:
            name = next(names, None)
            if not math.isfinite(error):
                return
            # new ones each time, as those who watch may be reading
            if name is not None:
                progress.lines = {**progress.lines, name: error}
            progress.curve = [*progress.curve, (calls / steps, error)]

        largest = noise_tolerance(self.profile.decoder)
        try:
            # the look at the end is paid from the same budget
            found = calibrate(fit, held_out, known, self.config.runs - (largest > 0), report)
        except CalibrationRefused as refusal:
            self._keep(replace(self.profile, refused=(*self.profile.refused, Refused(steps, cfg_scale, str(refusal)))))
            progress.log.append(f"CFG {cfg_scale:g}, {steps} steps: refused, {refusal}")
            progress.of += progress.calls - before - self.config.most_calls_of(steps)
            return
        before_end = progress.calls
        schedule = with_best_final_sigma(found.schedule, fit, held_out, self._decode, largest)
        fit_calls = found.calls + (steps if progress.calls > before_end else 0)
        progress.of += progress.calls - before - self.config.most_calls_of(steps)
        fitted = Fitted(
            steps, cfg_scale, sigmas_of(schedule.sigmas), sigmas_of(schedule.factors), found.start,
            {name: _error_of(error) for name, error in found.held_out.items()}, _error_of(baseline),
            fit_calls * self.config.trajectories,
        )  # fmt: skip
        self._keep(replace(self.profile, fitted=(*self.profile.fitted, fitted)))
        progress.log.append(
            f"CFG {cfg_scale:g}, {steps} steps: held-out error {fitted.held_out['calibrated']:.4g}; "
            f"{AUTO} has {fitted.held_out[AUTO]:.4g}, {BASELINE_STEPS} steps of DPM++ 2M Karras {baseline:.4g} "
            f"({fit_calls / steps:.0f} runs, {fitted.calls} UNet calls)"
        )

    def _keep(self, profile: Profile) -> None:
        self.profile = profile
        self.keep(profile)

    def _trajectories(self, cfg_scale: float, part: int) -> Trajectories:
        """The calibration set (part 0) or the held-out one (1): other prompts where there are several, other noise."""
        config, count = self.config, self.config.trajectories
        own = config.prompts[part::2] or config.prompts
        prompts = [own[index % len(own)] for index in range(count)]
        first = config.seed + part * count
        noise = self._start(range(first, first + count))
        model = self._counted(self._on_model(lambda: self.source.denoiser(prompts, config.negative, cfg_scale)))
        path = None if self.cache is None else self.cache / f"cfg{cfg_scale!r}-{part}.npy"
        stored = _stored_endpoints(path, noise)
        if stored is not None:
            self.progress.of -= REFERENCE_CALLS * count
            return Trajectories(model, noise, stored, REFERENCE_CALLS)
        found = Trajectories.of(model, noise, self.source.noise)
        if not found.scale > 0:
            raise ValueError("the model's output is nothing but zeros; nothing can be calibrated to it")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            part_path = path.with_suffix(".part.npy")
            # double holds every other precision exactly, so that a resumed fit is the same to the last bit
            np.save(part_path, found.endpoints.cpu().double().numpy())
            os.replace(part_path, path)
        return found

    def _start(self, seeds: Sequence[int]) -> torch.Tensor:
        return self._on_model(lambda: self.source.start(seeds, self.config.width, self.config.height))

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self._on_model(lambda: self.source.decode(latents))

    def _baseline_error(self, held_out: Trajectories) -> float:
        noise = self.source.noise
        sigmas = torch.tensor([*base_karras(BASELINE_STEPS, 7.0, noise.sigma_min, noise.sigma_max), 0.0])
        ends = sample_dpmpp_2m(held_out.model, held_out.noise * noise.sigma_max, sigmas)
        return held_out.error_of(ends)


def initial_schedules(family: str, steps: int, cfg_scale: float, noise: NoiseModel) -> dict[str, MultistepSchedule]:
    """The schedules a fit may start from and is compared to: the recipe first, then the best of the usual ones."""
    recipe = recipe_for(family, steps, cfg_scale)
    own = recipe.sigmas(noise).double().tolist()
    even = noise.t_to_sigma(np.linspace(len(noise) - 1, 0, steps + 1)).tolist()
    karras = [*base_karras(steps, 7.0, noise.sigma_min, noise.sigma_max).tolist(), 0.0]
    return {
        AUTO: MultistepSchedule.of(own, last=1.0 if recipe.ending == "extrapolate" else 0.0),
        "first order": MultistepSchedule.of(own, 0.0),
        "SGM Uniform": MultistepSchedule.of(even, last=0.0),
        "Karras": MultistepSchedule.of(karras, last=0.0),
    }


def _stored_endpoints(path: Optional[Path], noise: torch.Tensor) -> Optional[torch.Tensor]:
    """What an interrupted job left, if it is whole."""
    if path is None or not path.exists():
        return None
    try:
        endpoints = np.load(path, allow_pickle=False)
    except Exception:  # a broken file fails in more ways than can be listed; it is made anew
        return None
    if not isinstance(endpoints, np.ndarray) or endpoints.dtype != np.float64:
        return None
    if endpoints.shape != tuple(noise.shape) or not np.isfinite(endpoints).all() or not endpoints.any():
        return None
    return torch.from_numpy(endpoints).to(noise.dtype).to(noise.device)


def _error_of(error: float) -> float:
    """As a file keeps it."""
    return float(f"{min(max(error, ERRORS[0]), ERRORS[1]):.6g}")


def _decoder_sentence(profile: Profile) -> str:
    largest = noise_tolerance(profile.decoder)
    told = ", ".join(f"{sigma:g}: {change:.3f}" for sigma, change in profile.decoder)
    said = f"tolerates noise up to sigma {largest:g}" if largest else "tolerates no residual noise; schedules end at 0"
    return f"the decoder {said} (RMS change of its pictures by sigma: {told})"


class CalibrationRunner(JobRunner[CalibrationConfig]):
    """Runs calibrations in the background; ``profiles`` is where they are kept."""

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
        job = CalibrationJob(config, source, self._kept(config, source), self._keep, folder, exclusively)

        def run() -> str:
            profile = job.run()
            return f"{len(profile.fitted)} calibrated, {len(profile.refused)} refused"

        return job, run

    def _rename_result(self, name: str, new_name: str) -> str:
        return self.profiles.rename(name, new_name).name

    def _delete_result(self, name: str) -> None:
        self.profiles.delete(name)

    def _keep(self, profile: Profile) -> None:
        self.profiles.save(profile, replacing=True)

    def _kept(self, config: CalibrationConfig, source: ModelSource) -> Optional[Profile]:
        """The profile that an earlier, interrupted run of the same job left, if any.

        Raises:
            StoreError: it is of another model.
        """
        if config.name not in self.names():
            return None
        profile = self.profiles.get(config.name)
        if not set(profile.hashes) & set(source.hashes):
            raise started_with_another_model(profile.model, source)
        return profile
