"""Parts of the command: tasks with a time limit, whose results are kept as they come, so that a later run goes on."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hpsampler.store import write_atomically

__all__ = ["Clock", "Part", "Results", "Row", "Setting", "Task", "carry_out", "missing"]

Row = Mapping[str, Any]
"""A line of a table: numbers and words by name of column."""


@dataclass(frozen=True)
class Setting:
    """How everything is measured.

    Attributes:
        small: only so much that it is seen to run.
        folder: where what takes long may keep what it has.
    """

    device: torch.device
    small: bool
    folder: Path

    @property
    def dtype(self) -> torch.dtype:
        """The networks' precision; a CPU is slow in half precision."""
        return torch.float16 if self.device.type == "cuda" else torch.float32

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"


class Clock:
    """How much of a part's time is left."""

    def __init__(self, seconds: float) -> None:
        self.limit, self.began = seconds, time.monotonic()

    @property
    def passed(self) -> float:
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        return self.limit - self.passed


@dataclass(frozen=True)
class Task:
    """One piece of a part.

    Attributes:
        run: returns its rows; with an unfinished task it is called again in a later run.
        needs: packages without which it is left out.
    """

    name: str
    run: Callable[[], Sequence[Row]]
    needs: tuple[str, ...] = ()


class Unfinished(Exception):
    """A task's time is over; what it has is kept, and a later run goes on."""


@dataclass(frozen=True)
class Part:
    """A part of the command.

    Attributes:
        name: as the command line says it.
        about: sentences for the page, on what is measured and how.
        columns: the table's columns by their names in rows, with their headings.
        seconds: its time limit.
        expected: what it took on an H100, in seconds; the quality grid's is an estimate.
        tasks: makes its tasks.
    """

    name: str
    title: str
    about: str
    columns: Mapping[str, str]
    seconds: int
    expected: int
    tasks: Callable[[Setting, Clock], Sequence[Task]]


@dataclass
class Results:
    """What is known of a part, kept in a file.

    Attributes:
        rows: of every finished task.
        failed: the error of every task that failed, and ``left_out`` what the others lacked.
        took: seconds of every finished task.
        of: how many tasks there are.
        seconds: that all runs took together.
        machine: where the latest run was.
    """

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)
    of: int = 0
    seconds: float = 0.0
    machine: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Results:
        """From a file; nothing is known where there is none, or one that cannot be read."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(vars(self), indent=1) + "\n")

    @property
    def missing(self) -> int:
        """Tasks that a later run has to do."""
        return max(self.of - len(self.rows) - len(self.left_out), 0)


def missing(packages: Sequence[str]) -> list[str]:
    """Those that are not installed."""
    return [each for each in packages if each not in sys.modules and importlib.util.find_spec(each) is None]


def carry_out(part: Part, setting: Setting, path: Path, machine: Mapping[str, Any], limit: float) -> Results:
    """Do what is left of a part within its limit; every finished task's rows are written at once."""
    results, clock = Results.read(path), Clock(limit)
    before = results.seconds
    results.failed, results.left_out, results.machine = {}, {}, dict(machine)
    tasks = part.tasks(setting, clock)
    results.of = len(tasks)
    for number, task in enumerate(tasks, 1):
        if task.name in results.rows:
            continue
        lacking = missing(task.needs)
        if lacking:
            results.left_out[task.name] = f"needs {', '.join(lacking)}"
            continue
        if clock.left <= 0:
            break
        _show(part, clock, number, len(tasks), task.name)
        began = clock.passed
        try:
            results.rows[task.name] = [dict(row) for row in task.run()]
            results.took[task.name] = clock.passed - began
        except Unfinished:
            break
        except Exception as error:  # whatever goes wrong, the other tasks go on
            if not isinstance(error, AssertionError):
                traceback.print_exc()
            results.failed[task.name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        results.seconds = before + clock.passed
        results.write(path)
    results.seconds = before + clock.passed
    results.write(path)
    _show(part, clock, len(tasks) - results.missing, len(tasks), "", end="\n")
    return results


WIDTH = 24


def _show(part: Part, clock: Clock, number: int, of: int, task: str, end: str = "") -> None:
    """The bar: on a terminal one line that changes, elsewhere a line for each part's end."""
    if not sys.stderr.isatty() and not end:
        return
    done = WIDTH * number // max(of, 1)
    line = f"{part.name:9} [{'#' * done:{WIDTH}}] {number} of {of}, {clock.passed:.0f} of {clock.limit:.0f} s  {task}"
    print(f"\r{line[:118]:118}" if sys.stderr.isatty() else line, end=end, file=sys.stderr, flush=True)
