"""What differs from device to device, on a stand-in for a GPU."""

from __future__ import annotations

import torch

from bench.gpu.place import proving
from hpsampler.devices import finish, without_autocast

CPU = torch.device("cpu")


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
