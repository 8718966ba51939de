"""The stand-in for a GPU notices what would go wrong on one."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from bench.gpu.model_checks import SMALL_MODELS, model_checks
from bench.gpu.place import Between, Place, proving
from bench.gpu.stand_in import STAND_IN, Elsewhere, StandIn, Waited
from bench.models import load

CPU = torch.device("cpu")


@pytest.fixture
def mode():
    with torch.no_grad(), StandIn() as mode:
        yield mode


@pytest.fixture
def there(mode):
    found = torch.arange(6.0).view(2, 3).to(STAND_IN)
    mode.waits.clear()
    return found


def test_what_is_computed_there_is_the_cpu_s(mode, there):
    here = torch.arange(6.0).view(2, 3)
    for compute in (lambda x: x @ x.T + x.sum(), lambda x: torch.cat([x[:, 1:], x.new_ones(2, 1)], 1).softmax(-1)):
        result = compute(there)
        assert isinstance(result, Elsewhere) and result.device == STAND_IN
        assert not mode.waits
        assert torch.equal(result.cpu(), compute(here)) and mode.waits
        mode.waits.clear()


def test_a_view_shares_its_values(there):
    there[0].mul_(2)
    assert torch.equal(there.cpu(), torch.tensor([[0.0, 2.0, 4.0], [3.0, 4.0, 5.0]]))
    assert there.flatten().data_ptr() == there.data_ptr() != there.T.flatten().data_ptr()


READS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x > 0).all()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "a mask": lambda x: x[x > 1],
    "a copy back": lambda x: torch.empty(2, 3).copy_(x),
    "a copy there": lambda x: torch.ones(3).to(x.device),
    "a copy into": lambda x: x.copy_(torch.ones(2, 3)),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_every_wait_is_noticed(mode, there, read):
    read(there)
    assert mode.waits
    with mode.without_waiting(), pytest.raises(Waited, match="waits for the device"):
        read(there)
    read(there)


def test_a_copy_that_is_left_alone_is_none(mode, there):
    with mode.without_waiting():
        torch.ones(3).to(STAND_IN, non_blocking=True)
        there.copy_(torch.ones(2, 3), non_blocking=True)
        there + torch.tensor(2.0) + 3
        there[torch.tensor([1], device=STAND_IN)]


def test_tensors_of_two_devices_do_not_meet(there):
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        there + torch.ones(3)
    with pytest.raises(TypeError, match="copy it to the CPU first"):
        there.numpy()


def test_outside_of_it_its_tensors_are_of_no_use():
    with torch.no_grad():
        with StandIn():
            there = torch.ones(2, device=STAND_IN)
        with pytest.raises(RuntimeError, match="outside"):
            there + 1


def test_a_module_moves_there_and_back(mode):
    layer = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.GroupNorm(1, 2))
    x = torch.ones(1, 1, 5, 5)
    expected = layer(x)
    layer.to(STAND_IN)
    assert torch.equal(layer(x.to(STAND_IN)).cpu(), expected)


def test_the_context_is_entered_between_calls_and_after_the_last():
    told = []

    @contextlib.contextmanager
    def context(call):
        told.append(("in", call))
        yield
        told.append(("out", call))

    def model(x, sigma, **_):
        told.append("call")
        return x

    with Between(model, context) as watched:
        watched(torch.ones(1), torch.ones(1))
        watched(torch.ones(1), torch.ones(1), cond_scale=3)
    assert told == ["call", ("in", 0), ("out", 0), "call", ("in", 1), ("out", 1)] and watched.calls == 2


def test_a_solver_that_reads_between_calls_is_caught():
    def sampler(model, x):
        for _ in range(2):
            x = x + model(x, x.new_ones(1)) * float(x.sum() > 0)
        return x

    with proving(CPU) as place:
        x = torch.ones(1, 2).to(place.device)
        with pytest.raises(Waited), Between(lambda x, sigma: x, lambda call: place.without_waiting()) as model:
            sampler(model, x)
        assert place.stand_in.may_wait


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_a_small_model_sends_its_captions_where_it_is(name):
    """The rest of it is checked on a GPU: transformers asks a device for tensors that the stand-in cannot make."""
    seen = []

    def text(tokens):
        seen.append(tokens.device)
        return SimpleNamespace(last_hidden_state=torch.zeros(*tokens.shape, 64, device=tokens.device))

    with proving(CPU) as place:
        model = load(name, device=place.device)
        model.diffusion.text.forward = text
        embedded = model.embed([each.caption() for each in model.description.pictures.captioned(2)])
    assert seen == [STAND_IN] and isinstance(embedded, Elsewhere)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_the_check_of_a_small_model_holds_on_a_cpu(name):
    (check,) = [each for each in model_checks() if f"the {name} model" in each.name]
    assert check.run(Place(CPU)) == 0
