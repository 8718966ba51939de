"""What only a GPU runs, with fakes in the place of torch.cuda's functions."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from bench import launches
from bench.gpu import __main__ as command
from bench.gpu.checks import checks
from bench.gpu.place import Between, Place
from bench.launches import launches_per_step

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture
def modes(monkeypatch):
    """What the debug mode for waiting was set to, in turn."""
    told = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", told.append)
    return told


def test_waiting_is_an_error_between_two_calls_alone(modes):
    seen = []

    def model(x, sigma):
        seen.append(list(modes))
        return x

    x = torch.ones(1)
    with Between(model, lambda call: Place(CUDA).without_waiting()) as watched:
        watched(x, x)
        assert modes[-1] == "error"
        watched(x, x)
    assert seen == [[], ["error", "default"]] and modes == ["error", "default"] * 2


def test_an_error_between_two_calls_switches_it_off_again(modes):
    x = torch.ones(1)
    with pytest.raises(ZeroDivisionError), Between(lambda x, s: x, lambda call: Place(CUDA).without_waiting()) as model:
        model(x, x)
        raise ZeroDivisionError
    assert modes == ["error", "default"]


@pytest.mark.parametrize("check", [each for each in checks(graphs=True) if "graph" in each.name], ids=lambda c: c.name)
def test_one_step_is_captured_and_replayed(check, monkeypatch):
    """With a graph that lets everything run at once, the result is the solver's own."""
    told = []

    @contextlib.contextmanager
    def capture(graph):
        told.append("captured")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: told.append("replayed")))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    with torch.no_grad():
        assert check.run(Place(CPU)) == 0
    assert told == ["captured", "replayed"]


def test_kernels_are_counted_and_copies_are_not(monkeypatch):
    from torch.autograd import DeviceType

    def event(name, device=DeviceType.CUDA):
        return SimpleNamespace(name=name, device_type=device)

    kernels = []

    class Profile:
        def __enter__(self):
            kernels.clear()
            return self

        def __exit__(self, *_):
            pass

        def events(self):
            return [*kernels, event("Memcpy HtoD (Pageable -> Device)"), event("aten::add", DeviceType.CPU)]

    monkeypatch.setattr(torch.profiler, "profile", lambda activities: Profile())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    found = launches_per_step(lambda steps: kernels.extend([event("start")] + 3 * steps * [event("add")]), CUDA)
    assert found == 3 and launches.launches(lambda: None, CUDA) == 0


def test_a_part_that_takes_too_long_is_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "GRACE", 0.0)
    args = SimpleNamespace(seconds=0.001, device="cpu", out=tmp_path, small=True)
    assert not command._run(command.PARTS["overhead"], args)
    assert not list(tmp_path.rglob("*.json"))
