"""The runners of calibrations and statistics, made when somebody first asks for one, and what they do together.

A start of the WebUI does not wait for what they import, which few starts need.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional

from ..jobs import RUNNING, JobRunner, Timed
from ..store import Store, StoreError
from .folders import library, statistics_folder

if TYPE_CHECKING:
    from ..calibration.job import CalibrationRunner
    from ..statistics.job import StatisticsRunner

__all__ = ["Runners"]


class Runners:
    """One of either kind, shared by every page and by the API."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calibrations: Optional[CalibrationRunner] = None
        self._statistics: Optional[StatisticsRunner] = None

    @property
    def calibrations(self) -> CalibrationRunner:
        with self._lock:
            if self._calibrations is None:
                from ..calibration.job import CalibrationRunner
                from .source import Checkpoint, HostQueue

                self._calibrations = CalibrationRunner(library(), Checkpoint, HostQueue, statistics_folder())
            return self._calibrations

    @property
    def statistics(self) -> StatisticsRunner:
        with self._lock:
            if self._statistics is None:
                from ..statistics.job import StatisticsRunner
                from .source import Checkpoint, HostQueue

                self._statistics = StatisticsRunner(statistics_folder(), Checkpoint, HostQueue)
            return self._statistics

    @property
    def all(self) -> tuple[JobRunner[Any], ...]:
        """In the order in which they work on what is asked of them together."""
        return self.statistics, self.calibrations

    @property
    def running(self) -> bool:
        return any(runner.status().state == RUNNING for runner in self.all)

    @property
    def timed(self) -> Optional[Timed[Any]]:
        """How long a call took in the latest job of either kind, if one was timed; makes no runner for that."""
        made = [each for each in (self._calibrations, self._statistics) if each is not None and each.timed]
        return max(made, key=lambda each: each.status().began).timed if made else None

    def start(self, asked: Sequence[tuple[JobRunner[Any], Any]]) -> str:
        """Start one job after the other, each with its config, under one name that is new to all of their runners.

        Returns:
            The name.

        Raises:
            StoreError: something is under way.
            OSError: a folder cannot be written.
        """
        self._check_free()
        taken = {
            name for runner, _ in asked for name in (*runner.names(), *(each.name for each in runner.unfinished()))
        }
        name = Store.free_name(asked[0][1].name, taken)
        before: Optional[JobRunner[Any]] = None
        for runner, config in asked:
            runner.start(replace(config, name=name), before)
            before = runner
        return name

    def resume(self, name: str) -> None:
        """Go on with all that is unfinished under a name. Raises StoreError: nothing is, or something is under way."""
        self._check_free()
        unfinished = [runner for runner in self.all if name in [each.name for each in runner.unfinished()]]
        if not unfinished:
            raise StoreError(f"nothing unfinished is named {name!r}")
        before: Optional[JobRunner[Any]] = None
        for runner in unfinished:
            runner.resume(name, before)
            before = runner

    def stop(self, wait: float) -> None:
        """Stop what is under way, waiting at most so many seconds for each kind."""
        made = [runner for runner in (self._calibrations, self._statistics) if runner is not None]
        for runner in made:
            runner.stop()
        for runner in made:
            runner.wait(wait)

    def _check_free(self) -> None:
        for runner in self.all:
            config = runner.status().config
            if runner.running and config is not None:
                raise StoreError(f"{config.name!r} is under way; stop it first, or let it end")
