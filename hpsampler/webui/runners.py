"""The runners of calibrations and statistics, made when somebody first asks for one.

A start of the WebUI does not wait for what they import, which few starts need.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Optional

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

                self._calibrations = CalibrationRunner(library(), Checkpoint, HostQueue)
            return self._calibrations

    @property
    def statistics(self) -> StatisticsRunner:
        with self._lock:
            if self._statistics is None:
                from ..statistics.job import StatisticsRunner
                from .source import Checkpoint, HostQueue

                self._statistics = StatisticsRunner(statistics_folder(), Checkpoint, HostQueue)
            return self._statistics

    def stop(self, wait: float) -> None:
        """Stop what is under way, waiting at most so many seconds for each kind."""
        for runner in (self._calibrations, self._statistics):
            if runner is not None:
                runner.stop(wait=wait)
