"""The checks as a part of the command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .checks import Check, checks
from .job_checks import job_checks
from .model_checks import model_checks
from .part import Clock, Part, Row, Setting, Task
from .place import proving

__all__ = ["PART"]

TESTED = ("tests/solvers", "tests/test_freeu.py")
"""Where the tests are that run on any device."""

TEST_NEEDS = (
    "pytest", "pytest_timeout", "hypothesis", "scipy", "k_diffusion", "torchsde", "torchdiffeq", "tqdm", "ldm",
    "diffusers",
)  # fmt: skip


def row_of(check: Check, setting: Setting) -> list[Row]:
    with proving(setting.device) as place:
        found = check.run(place)
    name, _, precision = check.name.partition("; ")
    assert found <= check.tolerance, f"differs from the CPU by {found:.2g}, and {check.tolerance:g} is allowed"
    return [{"check": name, "precision": precision, "difference": found, "tolerance": check.tolerance}]


def tests(setting: Setting, clock: Clock) -> list[Row]:
    """The tests that are marked ``cuda``, in pytest."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "--device", str(setting.device), "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *TESTED], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=max(clock.left, 30)
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()] or ["pytest said nothing"]
    assert done.returncode == 0, "\n".join([lines[-1], *lines[-20:]])
    return [{"check": f"the tests marked cuda: {lines[-1].strip('= ')}"}]


def tasks(setting: Setting, clock: Clock) -> Sequence[Task]:
    # the stand-in cannot make the tensors that transformers asks of a device
    found = [*checks(graphs=setting.gpu), *job_checks(), *(model_checks() if setting.gpu else ())]
    made = [Task(each.name, partial(row_of, each, setting), each.needs) for each in found]
    # on a CPU the test suite runs them itself
    return [*made, Task("tests marked cuda", partial(tests, setting, clock), TEST_NEEDS)] if setting.gpu else made


PART = Part(
    name="checks",
    title="What holds on this device",
    about=(
        "Every solver with guidance per call, Free-U, golden noise, NPNet, and the jobs. Between two calls of the "
        "model the host never waits for the device: that is an error here. *Difference* is the RMS difference from the "
        "CPU's result in the same precision, relative to the result's RMS; the jobs compare statistics, and the error "
        "of a calibration. A CUDA graph of a step stands for all that a solver does between its third and fourth "
        "call."
    ),
    columns={
        "check": "check", "precision": "precision", "difference": "difference", "tolerance": "allowed",
    },
    seconds=90,
    expected=30,
    tasks=tasks,
)  # fmt: skip
