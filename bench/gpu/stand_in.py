"""A stand-in for a GPU on a machine without one: a device of its own whose tensors are computed on the CPU.

What goes wrong on a GPU and not on a CPU is mostly this: a tensor left on the wrong device, one turned into numpy, and
a value read by the host, which then waits. Here all three are noticed, and results are the CPU's bit for bit. Numbers
of half precision are the CPU's too, so what a GPU's own kernels round is not seen.

The device calls itself ``meta``, as the CPU builds of torch refuse most others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["STAND_IN", "Elsewhere", "StandIn", "Waited"]

STAND_IN = torch.device("meta")

READS = frozenset(
    {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero", "aten::masked_select"}
)
"""Operations whose result the host must know before it goes on."""

COPIES = frozenset({"aten::copy_", "aten::_to_copy"})


class Waited(RuntimeError):
    """The host waited for the device where it must not."""


class Elsewhere(torch.Tensor):
    """A tensor on the stand-in; ``held`` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=STAND_IN,
        )  # fmt: skip
        made.held = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held!r})"

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("a tensor on a device cannot be converted to numpy; copy it to the CPU first")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func} met a tensor of the stand-in outside of it")


class StandIn(TorchDispatchMode):
    """Within it, :data:`STAND_IN` is a device.

    Attributes:
        waits: for each time that the host waited for the device, the operation.
        may_wait: whether it may; if not, :class:`Waited` is raised.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.may_wait = True

    @contextlib.contextmanager
    def without_waiting(self) -> Iterator[None]:
        before, self.may_wait = self.may_wait, False
        try:
            yield
        finally:
            self.may_wait = before

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [*_flat(args), *_flat(kwargs.values())]
        elsewhere = [each for each in given if isinstance(each, Elsewhere)]
        asked = kwargs.get("device")
        goes_there = asked is not None and torch.device(asked) == STAND_IN
        if not elsewhere and not goes_there:
            return func(*args, **kwargs)
        kwargs, name = dict(kwargs), func._schema.name
        self._check(func, name, given, elsewhere)
        if name in READS or (name == "aten::index" and any(_is_mask(each) for each in elsewhere)):
            self._wait(func)
        if name in COPIES:
            self._copy(func, name, args, kwargs)
        if goes_there:
            kwargs["device"] = torch.device("cpu")
        result = func(*map(_inner, args), **{key: _inner(value) for key, value in kwargs.items()})
        returns_here = name == "aten::_to_copy" and asked is not None and not goes_there
        if returns_here or (name == "aten::copy_" and not isinstance(args[0], Elsewhere)):
            return result
        return _there(result)

    def _check(self, func: Any, name: str, given: Sequence[Any], elsewhere: Sequence[Any]) -> None:
        if name in COPIES or not elsewhere or name.startswith("aten::index"):
            return
        for each in given:
            if isinstance(each, torch.Tensor) and not isinstance(each, Elsewhere) and each.ndim:
                raise RuntimeError(f"{func}: expected all tensors on one device, got one of {tuple(each.shape)} here")

    def _copy(self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """To the device a copy may be left alone; from it the host wants the values."""
        if name == "aten::copy_":
            target, source = args[0], args[1]
            to_device, from_device = isinstance(target, Elsewhere), isinstance(source, Elsewhere)
            left_alone = bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
        else:
            from_device = isinstance(args[0], Elsewhere)
            asked = kwargs.get("device")
            to_device = from_device if asked is None else torch.device(asked) == STAND_IN
            left_alone = bool(kwargs.get("non_blocking"))
        if to_device != from_device and not (to_device and left_alone):
            self._wait(func)

    def _wait(self, func: Any) -> None:
        if not self.may_wait:
            raise Waited(f"{func} waits for the device")
        self.waits.append(str(func))


def _is_mask(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """Arguments of an operation, with those in its lists."""
    for each in values:
        if isinstance(each, (list, tuple)):
            yield from each
        else:
            yield each


def _inner(value: Any) -> Any:
    """An argument as the CPU's operation takes it."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_inner, value))
    return value.held if isinstance(value, Elsewhere) else value


def _there(value: Any) -> Any:
    """A result of the CPU's operation on the stand-in."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_there, value))
    return Elsewhere(value) if type(value) is torch.Tensor else value
