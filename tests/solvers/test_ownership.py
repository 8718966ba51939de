"""What is kept of a model's output is a copy: a denoiser may use one buffer for all of its answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpsampler.calibration.recorded import RecordedRun
from hpsampler.calibration.trajectories import MultistepSchedule
from hpsampler.golden.search import GoldenForm, golden_latent
from hpsampler.solvers import sample_dpm_v3
from hpsampler.statistics.estimator import Estimator
from tests.oracles import mixture_denoiser
from tests.solvers.test_dpm_v3 import CASES, SHAPE
from tests.solvers.test_solvers import SCHEDULES, SOLVER_CASES, start


class Reusing:
    """A denoiser that writes every answer into the same memory, as compiled models do."""

    def __init__(self):
        self.buffer = torch.empty(0)

    def __call__(self, x, sigma, **_):
        answer = mixture_denoiser(x, sigma)
        if self.buffer.shape != answer.shape:
            self.buffer = torch.empty_like(answer)
        return self.buffer.copy_(answer)

    def forget(self):
        self.buffer.fill_(torch.nan)


V3_CASES = [pytest.param(sample_dpm_v3, case.values[0], id=f"v3-{case.id}") for case in CASES]


LEVELS = {**SCHEDULES, "equal neighbours": [14.6, 5.0, 5.0, 2.0, 2.0, 0.5], "rising": [14.6, 5.0, 6.0, 2.0, 0.0]}


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize(("sample", "options"), [*SOLVER_CASES, *V3_CASES])
def test_a_reused_buffer_changes_nothing(sample, options, levels):
    if options.get("extrapolate") and options.get("prediction") == "noise":
        pytest.skip("refused")
    sigmas = torch.tensor(levels, dtype=torch.float64)
    x, model = start(sigmas, (2, *SHAPE)), Reusing()
    expected = sample(mixture_denoiser, x, sigmas, **options)
    result = sample(model, x, sigmas, **options)
    assert torch.equal(result, expected)
    model.forget()
    assert torch.equal(result, expected), "the result is not the model's own tensor"


@pytest.mark.parametrize("share", [1.0, 0.975])
@pytest.mark.parametrize(("sample", "options"), [*SOLVER_CASES[1:], *V3_CASES])
def test_nor_after_an_analytical_first_step(sample, options, share):
    sigmas = torch.tensor(SCHEDULES["to zero"], dtype=torch.float64)
    x, own = start(sigmas, (2, *SHAPE)), {**options, "analytical_first_step": share}
    assert torch.equal(sample(Reusing(), x, sigmas, **own), sample(mixture_denoiser, x, sigmas, **own))


@pytest.mark.parametrize("form", GoldenForm)
def test_golden_noise_owns_what_the_first_call_answered(form):
    x = start([14.6])
    expected = golden_latent(form, x, 14.6, 14.3, mixture_denoiser, plain_args={})
    assert torch.equal(golden_latent(form, x, 14.6, 14.3, Reusing(), plain_args={}), expected)


def test_measured_statistics_are_of_two_calls():
    """The slope at a point is a difference of two answers, which would be 0 if both were one tensor."""
    found = []
    for model in (mixture_denoiser, Reusing()):
        estimator = Estimator(np.linspace(-2.0, 1.0, 9), (4, 1, 1))
        estimator.add(model, start([estimator.sigmas[0]], (4, 4, 3, 2)))
        found.append(estimator.statistics())
    for name in ("l", "s", "b"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))


def test_a_recorded_run_keeps_its_outputs():
    schedule = MultistepSchedule((14.6, 5.0, 2.0, 0.7, 0.0), (0.0, 0.9, 1.1, 0.8))
    other = MultistepSchedule((14.6, 5.0, 2.0, 0.5, 0.0), (0.0, 0.9, 1.2, 0.7))
    noise = start([1.0])
    expected, recorded = (RecordedRun.of(model, noise, schedule) for model in (mixture_denoiser, Reusing()))
    for first in range(4):
        ends = [run.rerun(model, other if first < 3 else schedule, first) for run, model in
                ((expected, mixture_denoiser), (recorded, Reusing()))]  # fmt: skip
        assert torch.equal(*ends)
