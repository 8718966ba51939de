"""Devices: only CUDA may be left to make copies later, results are waited for, and precision is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from bench.gpu.place import proving
from hpsampler.devices import finish, on_device, without_autocast
from hpsampler.freeu import low_frequency_waves
from hpsampler.solvers import SOLVERS
from tests.solvers.test_dpm_v3 import gaussian_statistics, start

CPU = torch.device("cpu")


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


def test_a_result_is_waited_for_where_it_is_computed_elsewhere():
    with proving(CPU) as place:
        x = torch.ones(2, 3).to(place.device)
        place.stand_in.waits.clear()
        for result in (x, x.T, x[:, 0]):
            assert finish(result) is result
        assert len(place.stand_in.waits) == 3
        empty = x[:0]
        assert finish(empty) is empty and len(place.stand_in.waits) == 3
    here = torch.ones(2)
    assert finish(here) is here


def test_precision_stays_under_autocast_where_it_is_asked_for():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with without_autocast(CPU):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    with without_autocast(torch.device("meta")):
        assert (x @ x).dtype == torch.float32
