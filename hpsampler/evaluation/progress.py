"""A progress bar on standard error."""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

__all__ = ["ProgressBar"]


class ProgressBar:
    """A tqdm bar if tqdm is installed, else a line every ten seconds, on standard error."""

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, quiet: bool, unit: str = "pictures") -> None:
        self.quiet, self.unit = quiet, unit
        self._bar: Any = None
        self._name, self._total, self._done, self._printed_at = "", 0, 0, 0.0
        try:
            self._tqdm: Any = importlib.import_module("tqdm").tqdm
        except ImportError:
            self._tqdm = None

    def begin(self, name: str, total: int, done: int = 0) -> None:
        self.end()
        self._name, self._total, self._done, self._printed_at = name, total, done, time.monotonic()
        if not self.quiet and self._tqdm is not None:
            self._bar = self._tqdm(desc=name, total=total, initial=done, unit=f" {self.unit}", file=sys.stderr)

    def add(self, count: int) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif not self.quiet and (
            self._done >= self._total or time.monotonic() - self._printed_at > self.SECONDS_BETWEEN_LINES
        ):
            self._printed_at = time.monotonic()
            print(f"{self._name}: {self._done} of {self._total} {self.unit}", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
