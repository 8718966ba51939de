"""The pool of worker processes for the bench's jobs."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread

__all__ = ["processes"]

MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
"""Settings of glibc with which it reuses memory instead of returning it to the system after every layer."""


def processes(workers: int) -> ProcessPoolExecutor:
    """A pool of new processes. Each job must limit its threads to one itself."""
    for name, value in MALLOC_SETTINGS.items():
        os.environ.setdefault(name, value)
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A worker whose parent was killed would compute its job to the end, for nobody."""
    Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None, "a pool's worker has a parent"
    parent.join()
    os._exit(1)
