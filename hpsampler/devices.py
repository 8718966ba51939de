"""What differs from device to device."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

__all__ = ["finish", "without_autocast"]


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Within it, computations keep their precision, where a host runs everything under automatic mixed precision."""
    if device.type not in ("cpu", "cuda", "xpu"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def finish(result: torch.Tensor) -> torch.Tensor:
    """``result`` itself, once its device has computed it: a GPU answers with what it has still to do."""
    if result.device.type != "cpu" and result.numel():
        result.flatten()[-1:].cpu()
    return result
