"""Where something is proved: on a GPU, or on the stand-in for one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Optional

import torch

from .stand_in import STAND_IN, StandIn

__all__ = ["Between", "Place", "proving", "synchronize"]


@dataclass(frozen=True)
class Place:
    """A device to prove things on.

    Attributes:
        device: where tensors go.
        stand_in: the mode that plays it, where there is no GPU.
    """

    device: torch.device
    stand_in: Optional[StandIn] = None

    def without_waiting(self) -> AbstractContextManager[None]:
        """Within it, the host must not wait for the device; where it does, an error is raised."""
        return _cuda_without_waiting() if self.stand_in is None else self.stand_in.without_waiting()

    def autocast(self) -> tuple[torch.device, torch.dtype]:
        """Where automatic mixed precision is proved, and in which precision; the stand-in has none."""
        return (self.device, torch.float16) if self.stand_in is None else (torch.device("cpu"), torch.bfloat16)


@contextlib.contextmanager
def proving(device: torch.device) -> Iterator[Place]:
    """The place for a device: itself if it is a GPU, and the stand-in for ``cpu``."""
    with torch.no_grad():
        if device.type == "cuda":
            yield Place(device)
            return
        with StandIn() as mode:
            yield Place(STAND_IN, mode)


@contextlib.contextmanager
def _cuda_without_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Between:
    """A model around which a context is entered for all that is done between its calls, and after the last.

    Used in a ``with`` statement, whose end is that of the last context.

    Args:
        context: makes the context that is entered when the model has answered the call of that index.
    """

    def __init__(
        self, model: Callable[..., torch.Tensor], context: Callable[[int], AbstractContextManager[Any]]
    ) -> None:
        self.model, self.context, self.calls = model, context, 0
        self._open = ExitStack()

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, /, **extra_args: Any) -> torch.Tensor:
        self._open.close()
        denoised = self.model(x, sigma, **extra_args)
        self.calls += 1
        self._open.enter_context(self.context(self.calls - 1))
        return denoised

    def __enter__(self) -> Between:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
