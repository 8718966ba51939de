"""What a piece of code gives a device to do: kernels on a GPU, operations on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["CountOps", "launches", "launches_per_step"]


class CountOps(TorchDispatchMode):
    """Counts what runs on the device: every operation that is not a view."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def launches(function: Callable[[], object], device: torch.device) -> int:
    """The kernels that a call launches, by torch's profiler; on a CPU the operations that it carries out."""
    if device.type != "cuda":
        with CountOps() as mode:
            function()
        return mode.count
    from torch.autograd import DeviceType

    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize(device)
    events = profile.events() or []
    copies = ("Memcpy", "Memset")
    return sum(each.device_type == DeviceType.CUDA and not each.name.startswith(copies) for each in events)


def launches_per_step(run: Callable[[int], object], device: torch.device, steps: int = 10) -> float:
    """Launches of one step more, where ``run(n)`` runs n steps."""
    run(steps)
    return (launches(lambda: run(2 * steps), device) - launches(lambda: run(steps), device)) / steps
