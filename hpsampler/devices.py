"""What differs from device to device: how copies get there, in what precision it computes, when it is done."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

__all__ = ["finish", "on_device", "without_autocast"]


def on_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on ``device``; on CUDA without making the host wait.

    A copy that does not wait reads its source later. PyTorch keeps pinned memory until such a copy has been made, but
    on CUDA alone: on MPS, XPU and DirectML the copy of a tensor that is gone by then delivers whatever lies there.
    """
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def finish(result: torch.Tensor) -> torch.Tensor:
    """``result`` itself, once its device has computed it: a GPU answers with what it has still to do."""
    if result.device.type != "cpu" and result.numel():
        result.flatten()[-1:].cpu()
    return result


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Within it, computations keep their precision, where a host runs everything under automatic mixed precision."""
    if device.type not in ("cpu", "cuda", "xpu"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
