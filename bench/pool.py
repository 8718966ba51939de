"""The pool of worker processes for the bench's jobs."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

__all__ = ["processes"]

MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
"""Settings of glibc with which it reuses memory instead of returning it to the system after every layer."""


def processes(workers: int) -> ProcessPoolExecutor:
    """A pool of new processes. Each job must limit its threads to one itself."""
    for name, value in MALLOC_SETTINGS.items():
        os.environ.setdefault(name, value)
    return ProcessPoolExecutor(workers, get_context("spawn"))
