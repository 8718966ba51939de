"""Calibration jobs: several numbers of steps, one after the other, each for a range of guidance scales.

:class:`~hpsampler.calibration.config.CalibrationConfig` describes a job. :class:`CalibrationJob` builds a
:class:`~hpsampler.calibration.profile.Profile` and saves it after every cell (one number of steps). The references and
the state of the fit under way are saved too, so that an interruption costs a few runs. At the end it compares all ways
to draw that there are then on the held-out trajectories (:mod:`~hpsampler.calibration.compare`).
:class:`CalibrationRunner` runs such jobs in the background.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from ..files import part_beside
from ..jobs import (
    Exclusively,
    Job,
    JobRunner,
    ModelSource,
    Progress,
    at_once,
)
from ..recipes import AUTO
from ..schedule import base_karras
from ..solvers import sample_dpmpp_2m
from ..statistics.coefficients import Statistics
from ..statistics.files import best_for
from ..unfinished import started_with_another_model
from .choice import AIMS, Comparison
from .compare import Judge, draw, ways
from .config import BASELINE_STEPS, REFERENCE_CALLS, CalibrationConfig
from .decoder import decoder_curve, with_best_final_sigma
from .fit import CalibrationRefused, FitState, calibrate
from .initial import initial_schedules
from .profile import Profile, ProfileStore, noise_tolerance
from .rows import CALIBRATED, ERRORS, Joint, Measured, Refused
from .saved import load_state, save_state
from .trajectories import Trajectories

__all__ = ["CalibrationJob", "CalibrationRunner"]

BASELINE = f"{BASELINE_STEPS} steps of DPM++ 2M Karras"

StatisticsNear = Callable[[float], Optional[tuple[str, Statistics]]]

DECODER_LATENTS = 8
"""Number of latents on which the decoder's tolerance is measured."""


class CalibrationJob(Job):
    """Makes the profile that a config describes.

    Args:
        config: what to calibrate.
        source: the model.
        profile: the profile of an earlier, interrupted job of the same config; its cells are not calibrated again.
        save: called with the profile after every cell.
        statistics: the model's statistics nearest to a guidance scale, with their label, where there are any.
        cache: folder where reference endpoints and the fit under way are saved until the end; with None they are not.
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
        statistics: StatisticsNear = lambda cfg_scale: None,
    ) -> None:
        super().__init__(exclusively)
        self.statistics = statistics
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
            trajectories=config.pictures,
            held_out=config.pictures,
            seed=config.seed,
        )
        # an invalid profile must fail before the first model call
        Profile.from_json(self.profile.to_json())
        fits = self._to_fit()
        comparisons = [
            (steps, scale)
            for scale in config.cfg_scales
            for steps in config.cells
            if steps in fits or steps in self._to_compare(scale)
        ]
        self.progress = Progress(of=config.most_calls(fits, comparisons))

    def _to_fit(self) -> list[int]:
        finished = self._finished_cells()
        return [steps for steps in self.config.cells if self.config.fit and steps not in finished]

    def _finished_cells(self) -> list[int]:
        profile, scales = self.profile, set(self.config.cfg_scales)
        fitted = {each.steps for each in profile.joint}
        return [
            steps
            for steps in self.config.steps
            # a fit that was refused is recorded at every guidance scale
            if steps in fitted or scales <= {each.cfg_scale for each in profile.refused if each.steps == steps}
        ]

    def run(self) -> Profile:
        """Calibrate all remaining cells.

        Raises:
            Cancelled: after :meth:`cancel`; the profile that was saved last has all finished cells.
            ValueError: a model whose output is not finite, or nothing but zeros.
        """
        config, remaining, scales = self.config, self._to_fit(), self.config.cfg_scales
        if not remaining and not any(map(self._to_compare, scales)):
            return self.profile
        self.progress.cell, self.progress.curve, self.progress.lines = (scales, config.cells[0]), [], {}
        parts = (0, 1) if remaining else (1,)
        *fit, held_out = ([self._trajectories(index, part) for index in range(len(scales))] for part in parts)
        if remaining:
            baselines = [self._baseline_error(each) for each in held_out]
            if not self.profile.decoder:
                self._measure_decoder(fit[0])
            for steps in remaining:
                self._calibrate_cell(steps, fit[0], held_out, baselines)
        for index, each in enumerate(held_out):
            self._compare(index, each)
        self.progress.of, self.progress.cell = self.progress.calls, None
        return self.profile

    def _to_compare(self, cfg_scale: float) -> list[int]:
        """The numbers of steps at which there is something to compare that was not."""
        done = {(each.steps, each.cfg_scale) for each in self.profile.compared}
        cells = [steps for steps in self.config.cells if (steps, cfg_scale) not in done]
        return [steps for steps in cells if len(ways(self.profile, steps, cfg_scale, self._near(cfg_scale))) > 1]

    def _near(self, cfg_scale: float) -> Optional[tuple[str, Statistics]]:
        """The statistics that DPM-Solver-v3 is compared with: those that were measured nearest to the CFG scale.

        By its own name it takes those nearest to the guidance that it draws with. On both bench models the comparison
        chooses better ways among these (docs/calibration.md).
        """
        return self.statistics(cfg_scale)

    def _compare(self, index: int, held_out: Trajectories) -> None:
        """Compare the ways to draw at the guidance scale with that index."""
        config, progress, scale = self.config, self.progress, held_out.cfg_scale
        cells = self._to_compare(scale)
        if not cells:
            return
        # the calibration set, the held-out set and the decoder's noise have the seeds before
        first = config.seed + 3 * config.pictures + index * config.per_scale
        judge = Judge(held_out, self._unit_noise(range(first, first + config.per_scale)))
        for steps in cells:
            progress.cell, progress.curve, progress.lines = ((scale,), steps), [], {}
            found = self._near(scale)
            label, statistics = found or ("", None)
            figures = {
                name: judge.figures(draw(name, recipe, held_out, self.source.noise, statistics))
                for name, recipe in ways(self.profile, steps, scale, found).items()
            }
            comparison = Comparison(steps, scale, figures, label)
            self._save(replace(self.profile, compared=(*self.profile.compared, comparison)))
            progress.log.append(_comparison_sentence(comparison))

    def _measure_decoder(self, sets: Sequence[Trajectories]) -> None:
        # some of every guidance scale, in turn
        latents = torch.stack([row for rows in zip(*(each.endpoints for each in sets)) for row in rows])
        latents = latents[:DECODER_LATENTS]
        first_seed = self.config.seed + 2 * self.config.pictures
        noise = self._unit_noise(range(first_seed, first_seed + len(latents)))
        curve = decoder_curve(self._decode, latents, noise)
        # where pictures are not finite, the largest possible change is stored
        changes = [(sigma, float(f"{rms:.5g}") if rms <= 1 else 1.0) for sigma, rms in curve]
        self.profile = replace(self.profile, decoder=tuple(changes))
        self.progress.log.append(_decoder_sentence(self.profile))

    def _calibrate_cell(
        self,
        steps: int,
        fit: Sequence[Trajectories],
        held_out: Sequence[Trajectories],
        baselines: Sequence[float],
    ) -> None:
        progress, config, calls_before = self.progress, self.config, self.progress.calls
        progress.cell, progress.curve = (config.cfg_scales, steps), []
        progress.lines = {BASELINE: math.exp(sum(map(math.log, baselines)) / len(baselines))}
        schedules = initial_schedules(self.source.family, steps, config.cfg_scales, self.source.noise)

        def report(calls: int, error: float, name: str) -> None:
            if not math.isfinite(error):
                return
            # replaced, not changed, as another thread may be reading them
            if name:
                progress.lines = {**progress.lines, name: error}
            progress.curve = [*progress.curve, (calls / steps / config.pictures, error)]

        largest = noise_tolerance(self.profile.decoder)
        state = self._saved_fit(steps)
        most_calls = config.most_calls_of(steps)
        if state is not None:
            # of these calls an earlier run made all but one run's, which is repeated
            done = state.calls - REFERENCE_CALLS * config.pictures - steps * config.pictures * state.recorded
            progress.of -= done
            most_calls -= done
            for name, error in state.errors.items():
                report(REFERENCE_CALLS * config.pictures, error, name)
        try:
            # the run for the last sigma is paid from the same budget
            calibration = calibrate(
                fit,
                held_out,
                schedules,
                config.runs - (largest > 0),
                report,
                state,
                lambda now: self._save_fit(steps, now),
            )
        except CalibrationRefused as refusal:
            refused = tuple(Refused(steps, cfg_scale, str(refusal)) for cfg_scale in config.cfg_scales)
            self._save(replace(self.profile, refused=(*self.profile.refused, *refused)))
            self._forget_fit(steps)
            progress.log.append(f"{steps} steps: refused, {refusal}")
            progress.of += progress.calls - calls_before - most_calls
            return
        calls_of_fit = progress.calls
        schedule = with_best_final_sigma(calibration.schedule, fit, held_out, self._decode, largest)
        fit_calls = calibration.calls + (steps * config.pictures if progress.calls > calls_of_fit else 0)
        progress.of += progress.calls - calls_before - most_calls
        measured = tuple(
            Measured(
                cfg_scale,
                {name: _stored_error(error) for name, error in calibration.held_out[cfg_scale].items()},
                _stored_error(baseline),
            )
            for cfg_scale, baseline in zip(config.cfg_scales, baselines)
        )
        joint = Joint(schedule, calibration.start, measured, fit_calls)
        self._save(replace(self.profile, joint=(*self.profile.joint, joint)))
        self._forget_fit(steps)
        progress.log.append(_joint_sentence(joint, fit_calls / steps / config.pictures))

    def _saved_fit(self, steps: int) -> Optional[FitState]:
        return None if self.cache is None else load_state(self._fit_path(steps), self._fit_name(steps))

    def _forget_fit(self, steps: int) -> None:
        if self.cache is not None:
            self._fit_path(steps).unlink(missing_ok=True)

    def _save_fit(self, steps: int, state: FitState) -> None:
        if self.cache is not None:
            save_state(self._fit_path(steps), state, self._fit_name(steps))

    def _fit_path(self, steps: int) -> Path:
        assert self.cache is not None
        return self.cache / f"fit-{steps}.npz"

    def _fit_name(self, steps: int) -> str:
        """What must agree for a saved state to be of use."""
        return repr((steps, replace(self.config, name="", steps=(), batch=1), noise_tolerance(self.profile.decoder)))

    def _save(self, profile: Profile) -> None:
        self.profile = profile
        self.save(profile)

    def _trajectories(self, index: int, part: int) -> Trajectories:
        """The calibration set (part 0) or the held-out set (part 1) of the guidance scale with that index.

        No two sets have the same noise, and the two parts have different prompts, if possible.
        """
        config, count = self.config, self.config.per_scale
        cfg_scale = config.cfg_scales[index]
        choice = config.prompts[part::2] or config.prompts
        prompts = [choice[number % len(choice)] for number in range(index * count, (index + 1) * count)]
        first = config.seed + part * config.pictures + index * count
        noise = self._unit_noise(range(first, first + count))
        model = self._counted(self._on_model(lambda: self.source.denoiser(prompts, config.negative, cfg_scale)))
        path = None if self.cache is None else self.cache / f"cfg{cfg_scale!r}-{part}.npy"
        stored = _stored_endpoints(path, noise)
        if stored is not None:
            self.progress.of -= REFERENCE_CALLS * count
            return Trajectories(model, noise, stored, REFERENCE_CALLS, cfg_scale)
        trajectories = Trajectories.of(model, noise, self.source.noise, cfg_scale)
        if not trajectories.scale > 0:
            raise ValueError("the model's output is nothing but zeros; nothing can be calibrated to it")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part_beside(path) as part_path, part_path.open("wb") as file:
                # float64 represents every other precision exactly, so a resumed fit is identical
                np.save(file, trajectories.endpoints.cpu().double().numpy())
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


def _joint_sentence(joint: Joint, runs: float) -> str:
    errors = ", ".join(
        f"CFG {each.cfg_scale:g} {each.held_out[CALIBRATED]:.4g} ({AUTO} {each.held_out[AUTO]:.4g}, {BASELINE} "
        f"{each.baseline:.4g}{'; not used there' if each.refused else ''})"
        for each in joint.measured
    )
    return f"{joint.steps} steps: held-out errors {errors}; {runs:.0f} runs, {joint.calls} UNet calls"


def _comparison_sentence(comparison: Comparison) -> str:
    pictures, distance = (comparison.ranked(aim)[0] for aim in AIMS)
    best = f"{pictures} draws the best pictures" + (
        " and the nearest" if pictures == distance else f", {distance} the nearest"
    )
    figures = ", ".join(
        f"{name} {each.pictures:.3g} / {each.distance:.3g}" for name, each in comparison.figures.items()
    )
    return f"{comparison.steps} steps at CFG {comparison.cfg_scale:g}: {best} (pictures / distance: {figures})"


def _decoder_sentence(profile: Profile) -> str:
    largest = noise_tolerance(profile.decoder)
    changes = ", ".join(f"{sigma:g}: {change:.3f}" for sigma, change in profile.decoder)
    result = (
        f"tolerates noise up to sigma {largest:g}" if largest else "tolerates no residual noise; schedules end at 0"
    )
    return f"the decoder {result} (RMS change of its pictures by sigma: {changes})"


class CalibrationRunner(JobRunner[CalibrationConfig]):
    """Runs calibrations in the background; their profiles are stored in ``profiles``.

    Args:
        statistics: the folder of DPM-Solver-v3's, with which ways to draw are compared too.
    """

    kind = "a calibration"

    def __init__(
        self,
        profiles: ProfileStore,
        source: Callable[[CalibrationConfig], ModelSource],
        queue: Callable[[], Exclusively] = lambda: at_once,
        statistics: Optional[Path] = None,
    ) -> None:
        super().__init__(profiles.folder, source, queue)
        self.profiles, self.statistics = profiles, statistics

    @staticmethod
    def config_of(values: Mapping[str, Any]) -> CalibrationConfig:
        return CalibrationConfig.of(values)

    def names(self) -> list[str]:
        return self.profiles.names()

    def _prepare(
        self, config: CalibrationConfig, source: ModelSource, folder: Path, exclusively: Exclusively
    ) -> tuple[Job, Callable[[], str]]:
        def statistics_near(cfg_scale: float) -> Optional[tuple[str, Statistics]]:
            if self.statistics is None:
                return None
            return best_for(self.statistics, source.hashes, cfg_scale, source.noise)[0]

        profile = self._saved_profile(config, source)
        job = CalibrationJob(config, source, profile, self._save, folder, exclusively, statistics_near)

        def run() -> str:
            profile = job.run()
            finished = {each.steps for each in profile.joint}
            refused = {each.steps for each in profile.refused} - finished
            compared = f"{len(profile.compared)} comparison{'s' if len(profile.compared) != 1 else ''}"
            return f"{len(finished)} calibrated, {len(refused)} refused, {compared}" if config.fit else compared

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
            raise started_with_another_model(profile.model, source.model_name)
        return profile
