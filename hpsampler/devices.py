"""How tensors that were computed on the CPU get to where the model is."""

from __future__ import annotations

import torch

__all__ = ["on_device"]


def on_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on ``device``; on CUDA without making the host wait.

    A copy that does not wait reads its source later. PyTorch keeps pinned memory until such a copy has been made, but
    on CUDA alone: on MPS, XPU and DirectML the copy of a tensor that is gone by then delivers whatever lies there.
    """
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
