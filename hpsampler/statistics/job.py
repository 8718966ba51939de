"""Jobs that measure the statistics of a model for DPM-Solver-v3; they can be stopped and resumed.

:class:`~hpsampler.statistics.config.StatisticsConfig` describes a job. :class:`StatisticsJob` samples one batch of
pictures after the other and saves the sums of the finished batches to a file, so that an interruption costs at most one
batch. :class:`StatisticsRunner` runs such jobs in the background.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from ..files import locked
from ..jobs import Exclusively, Job, JobRunner, ModelSource, Progress, at_once
from ..store import RESERVED, StoreError, clean_name
from ..unfinished import started_with_another_model
from .coefficients import Provenance, Statistics, StatisticsError
from .config import StatisticsConfig, calls_needed
from .estimator import Estimator
from .files import add_statistics, read_provenance, rename_statistics, statistics_files

__all__ = ["StatisticsJob", "StatisticsRunner"]

SUMS_FILE, LOW_SUMS_FILE = "sums.safetensors", "sums-low.safetensors"


class StatisticsJob(Job):
    """Measures the statistics that a config describes.

    Args:
        config: what to measure.
        source: the model.
        folder: where the sums are saved until the end; with None they are not saved.
        exclusively: how the job gets the model to itself.

    Raises:
        StoreError: the saved sums are of another model.
    """

    def __init__(
        self,
        config: StatisticsConfig,
        source: ModelSource,
        folder: Optional[Path] = None,
        exclusively: Exclusively = at_once,
    ) -> None:
        super().__init__(exclusively)
        self.config, self.source = config, source
        self.folder = folder
        self.progress = Progress(of=config.most_calls())
        self.estimators: dict[float, Optional[Estimator]] = {
            cfg_scale: self._saved_estimator(self._path(cfg_scale)) for cfg_scale in config.cfg_scales
        }
        done = sum(each.samples for each in self.estimators.values() if each is not None)
        self.progress.of -= calls_needed(done, 1, config.points) if done else 0

    def run(self) -> Statistics:
        """Sample all remaining batches, of one guidance scale after the other.

        Returns:
            The statistics of the main guidance scale; :meth:`at` has the others.

        Raises:
            Cancelled: after :meth:`cancel`.
            StoreError: a model whose output is not finite.
        """
        for cfg_scale in self.config.cfg_scales:
            self._measure(cfg_scale)
        return self.at(self.config.cfg_scale)

    def at(self, cfg_scale: float) -> Statistics:
        """The statistics of one of the config's guidance scales, once the job has run."""
        estimator = self.estimators[cfg_scale]
        assert estimator is not None
        return estimator.statistics()

    def _measure(self, cfg_scale: float) -> None:
        config, path = self.config, self._path(cfg_scale)
        estimator = self.estimators[cfg_scale]
        while estimator is None or estimator.samples < config.samples:
            done = estimator.samples if estimator is not None else 0
            seeds = range(config.seed + done, config.seed + min(done + config.batch, config.samples))
            noise = self._on_model(lambda: self.source.start(seeds, config.width, config.height))  # noqa: B023 - at once
            if estimator is None:
                estimator = self.estimators[cfg_scale] = self._new_estimator(noise, cfg_scale)
            prompts = [config.prompts[(seed - config.seed) % len(config.prompts)] for seed in seeds]
            model = self._on_model(lambda: self.source.denoiser(prompts, config.negative, cfg_scale))  # noqa: B023
            try:
                estimator.add(self._counted(model), noise * estimator.sigmas[0])
            except StatisticsError as error:
                raise StoreError(str(error)) from None
            if path is not None:
                estimator.save(path)
        self.progress.log.append(f"{estimator.samples} pictures' trajectories at CFG {cfg_scale:g}")

    def _path(self, cfg_scale: float) -> Optional[Path]:
        """Where the sums of a guidance scale are kept until the end."""
        if self.folder is None:
            return None
        return self.folder / (SUMS_FILE if cfg_scale == self.config.cfg_scale else LOW_SUMS_FILE)

    def _saved_estimator(self, path: Optional[Path]) -> Optional[Estimator]:
        """The estimator with the sums of an earlier run of the same job, if there is one that can be read.

        Raises:
            StoreError: it is of another model.
        """
        if path is None or not path.exists():
            return None
        try:
            estimator = Estimator.load(path)
        except StatisticsError:
            return None  # truncated or damaged: the job starts again
        if estimator.source.model_hash not in self.source.hashes:
            raise started_with_another_model(estimator.source.model_name, self.source.model_name)
        return estimator

    def _new_estimator(self, noise: torch.Tensor, cfg_scale: float) -> Estimator:
        config, table = self.config, self.source.noise
        grid = np.linspace(-math.log(table.sigma_max), -math.log(table.sigma_min), config.points)
        channels, height, width = noise.shape[1:]
        provenance = Provenance(
            # a file name may have bytes that are not valid text
            self.source.hashes[0], self.source.model_name.encode("utf-8", "replace").decode(), self.source.family,
            cfg_scale, height, width,
        )  # fmt: skip
        return Estimator(
            grid, (channels, height, width) if config.per_pixel else (channels, 1, 1), provenance, config.seed
        )


class StatisticsRunner(JobRunner[StatisticsConfig]):
    """Measures statistics for DPM-Solver-v3 in the background; each result is a file in ``folder``."""

    kind = "statistics"

    @staticmethod
    def config_of(values: Mapping[str, Any]) -> StatisticsConfig:
        return StatisticsConfig.of(values)

    def names(self) -> list[str]:
        return list(statistics_files(self.folder))

    def _prepare(
        self, config: StatisticsConfig, source: ModelSource, folder: Path, exclusively: Exclusively
    ) -> tuple[Job, Callable[[], str]]:
        job = StatisticsJob(config, source, folder, exclusively)

        def run() -> str:
            job.run()
            said = []
            for cfg_scale in config.cfg_scales:
                statistics, wanted = job.at(cfg_scale), config.name_at(cfg_scale)
                name = add_statistics(statistics, self.folder, wanted)
                told = f"{statistics.source.samples} pictures' trajectories, {len(statistics.lambdas)} grid points"
                said.append(told if name == config.name else f"{told}, kept as {name}")
            return "; ".join(said)

        return job, run

    def read_provenance(self, name: str) -> tuple[Provenance, tuple[int, ...]]:
        """Provenance and shape of a result. Raises StoreError: there is no such result, or it cannot be read."""
        try:
            return read_provenance(self._existing_path(name))
        except StatisticsError as error:
            raise StoreError(str(error)) from None

    def _rename_result(self, name: str, new_name: str) -> str:
        self._existing_path(name)
        new_name = clean_name(new_name, RESERVED)
        rename_statistics(self.folder, name, new_name)
        return new_name

    def _delete_result(self, name: str) -> None:
        self._existing_path(name)
        with locked(self.folder):
            path = self._existing_path(name)
            if path.is_dir():
                raise StoreError(f"{name!r} is a folder in the published layout; delete it where it lies: {path}")
            path.unlink(missing_ok=True)

    def _existing_path(self, name: str) -> Path:
        paths = statistics_files(self.folder)
        if name not in paths:
            raise StoreError(f"there are no statistics named {name!r}; there are: {', '.join(paths) or 'none yet'}")
        return paths[name]
