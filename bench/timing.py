"""How long something takes, on a CPU or a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

__all__ = ["side_by_side", "time_once"]


def time_once(function: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call; on a GPU between two events, so that waiting launches and kernels both count."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)
    began = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - began)


def side_by_side(
    ours: Callable[[], object], theirs: Callable[[], object], device: torch.device, repeats: int
) -> tuple[float, float]:
    """Median milliseconds of both, called in turn after a call each to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for function, taken in zip((ours, theirs), times, strict=True):
            milliseconds = time_once(function, device)
            if repeat > 0:
                taken.append(milliseconds)
    return statistics.median(times[0]), statistics.median(times[1])
