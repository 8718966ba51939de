"""Copies to the device: only CUDA may be left to make them later, and from memory that stays until then."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from hpsampler.devices import on_device
from hpsampler.freeu import low_frequency_waves
from hpsampler.solvers import SOLVERS
from tests.solvers.test_dpm_v3 import gaussian_statistics, start


class Copies(TorchFunctionMode):
    """Notes every copy to a device that does not wait, with whether its source is pinned."""

    def __init__(self):
        super().__init__()
        self.late: list[object] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        late = kwargs.get("non_blocking") or (func in (torch.Tensor.to, torch.Tensor.copy_) and True in args[2:])
        if late:
            self.late.append(func)
        return func(*args, **kwargs)


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_solver_leaves_a_copy_for_later_but_on_cuda(solver):
    x = start(14.6, dtype=torch.float32).to("meta")
    own = {"statistics": gaussian_statistics(26)} if solver == "dpm_v3" else {}
    with Copies() as copies:
        result = SOLVERS[solver](lambda x, sigma: x * 0.5, x, torch.tensor([14.6, 3.0, 1.0, 0.0]), **own)
    assert result.device.type == "meta" and copies.late == []


def test_free_u_leaves_no_copy_for_later_but_on_cuda():
    with Copies() as copies:
        waves = low_frequency_waves(8, 8, torch.device("meta"), torch.float16)
    assert waves.device.type == "meta" and copies.late == []


def test_on_cuda_a_copy_is_left_for_later_from_pinned_memory():
    """With a stand-in for the tensor, as few machines that run this have CUDA."""

    class Values:
        pinned = False

        def pin_memory(self):
            self.pinned = True
            return self

        def to(self, device, non_blocking=False):
            assert self.pinned and non_blocking
            return "there"

    assert on_device(Values(), torch.device("cuda")) == "there"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_many_temporaries_arrive_as_they_were():
    found = [on_device(torch.full((4096,), float(value)), torch.device("cuda")) for value in range(200)]
    np.testing.assert_array_equal([float(each[-1]) for each in found], range(200))
