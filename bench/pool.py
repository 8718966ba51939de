"""The worker processes that the bench's jobs run in."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

__all__ = ["processes"]

KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
"""glibc's: memory of one layer is used again for the next, instead of being fetched from the system each time."""


def processes(workers: int) -> ProcessPoolExecutor:
    """A pool of fresh processes; each is to set its threads to one."""
    for name, value in KEPT_MEMORY.items():
        os.environ.setdefault(name, value)
    return ProcessPoolExecutor(workers, get_context("spawn"))
