"""The fit: its derivatives, the gain on held-out trajectories, its budget, and the refusal of useless fits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from bench.methods import coupled, peer
from bench.problems import PROBLEMS
from bench.schedules import stable_diffusion_noise
from hpsampler.calibration import fit as calibration
from hpsampler.calibration.fit import CalibrationRefused, calibrate
from hpsampler.calibration.trajectories import MultistepSchedule, Trajectories
from hpsampler.solvers import sample_dpmpp_1s, sample_dpmpp_2m

TABLE = stable_diffusion_noise()
OURS, SGM = coupled("DPM++ 2M"), peer("DPM++ 2M", "SGM Uniform")


class Counted:
    def __init__(self, model):
        self.model, self.calls = model, 0

    def __call__(self, x, sigma, **own):
        self.calls += 1
        return self.model(x, sigma, **own)


def trajectories(name, cfg_scale, seed, count=24):
    problem = PROBLEMS[name]()
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, problem.dims)))
    model = Counted(problem.model(problem.labels(count), cfg_scale))
    return Trajectories.of(model, noise, TABLE), model


def initial_schedules(steps):
    return {method.name: MultistepSchedule.of(method.plan(TABLE, steps, 7.5).sigmas.tolist()) for method in (OURS, SGM)}


def test_factors_of_one_change_nothing_and_zero_is_first_order():
    problem = PROBLEMS["toy2d"]()
    model = problem.model(problem.labels(8), 3.0)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 2))) * TABLE.sigma_max
    for plan in (OURS.plan(TABLE, 6, 5.0), SGM.plan(TABLE, 6, 5.0)):
        sigmas = plan.sigmas.double()
        last = 1.0 if sigmas[-1] > 0 else 0.0
        own = sample_dpmpp_2m(model, x, sigmas)
        assert torch.equal(sample_dpmpp_2m(model, x, sigmas, factors=[1.0] * 5 + [last]), own)
        assert torch.equal(sample_dpmpp_2m(model, x, sigmas, factors=[0.0] * 6), sample_dpmpp_1s(model, x, sigmas))
        extrapolated = sample_dpmpp_2m(model, x, sigmas, extrapolate=True)
        assert torch.equal(sample_dpmpp_2m(model, x, sigmas, factors=[1.0] * 6), extrapolated)
    with pytest.raises(ValueError, match="factors must be 6, one per step, got 5"):
        sample_dpmpp_2m(model, x, sigmas, factors=[1.0] * 5)


def test_the_jacobian_from_partial_runs_equals_that_of_complete_runs():
    target, model = trajectories("gauss1f2", 3.0, seed=1, count=4)
    start = initial_schedules(5)["DPM++ 2M SGM Uniform"]
    fit = calibration._Fit(target, start.sigmas[0], 5, 0.1, calibration._Budget(target.calls, 10**6, None))
    parameters = fit.parameters(start)
    residuals = fit.residuals(parameters)
    before = model.calls
    jacobian = fit.jacobian(parameters)
    assert model.calls - before == 10 + 6  # calls after each of four points, after each of four factors
    assert fit.budget.calls == model.calls
    for column, index in zip(jacobian.T, range(len(parameters)), strict=True):
        changed = parameters.copy()
        changed[index] += calibration.FINITE_DIFFERENCE
        np.testing.assert_allclose(
            column, (fit.residuals(changed) - residuals) / calibration.FINITE_DIFFERENCE, atol=1e-9
        )
    assert np.linalg.norm(jacobian, axis=0).min() > 1e-4


def test_parameters_and_schedules_are_converted_into_each_other():
    start = initial_schedules(6)["DPM++ 2M SGM Uniform"]
    fit = calibration._Fit(None, start.sigmas[0], 6, 1.0, calibration._Budget(0, 0, None))
    again = fit.schedule(fit.parameters(start))
    np.testing.assert_allclose(again.sigmas, start.sigmas, rtol=1e-12)
    assert again.factors == start.factors and again.sigmas[-1] == 0 and again.steps == 6


@pytest.mark.parametrize("name, cfg_scale, steps, gain", [
    ("gauss1f2", 1.0, 5, 8), ("gauss1f1", 3.0, 5, 2), ("lowrank", 7.5, 6, 1.5), ("toy2d", 7.5, 5, 3),
    ("mix8", 3.0, 8, 3),
])  # fmt: skip
def test_held_out_errors_improve_within_the_budget(name, cfg_scale, steps, gain):
    fit, model = trajectories(name, cfg_scale, seed=1)
    unseen, _ = trajectories(name, cfg_scale, seed=2)
    seen_by_progress = []
    result = calibrate(
        fit, unseen, initial_schedules(steps), progress=lambda calls, error: seen_by_progress.append((calls, error))
    )
    assert result.gain > gain
    assert result.held_out["calibrated"] == unseen.error(result.schedule)
    sigmas = result.schedule.sigmas
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0 and all(a > b for a, b in pairwise(sigmas))
    assert sigmas[0] == pytest.approx(TABLE.sigma_max, rel=1e-5) and len(result.schedule.factors) == steps
    assert result.runs <= calibration.MAX_RUNS
    assert seen_by_progress[-1] == (result.calls, result.fitted_error)
    assert result.calls == model.calls
    again = calibrate(fit, unseen, initial_schedules(steps))
    assert again.schedule == result.schedule


def test_a_fit_that_gains_nothing_is_refused_with_the_numbers(monkeypatch):
    fit, _ = trajectories("gauss1f2", 1.0, seed=1, count=4)
    monkeypatch.setattr(calibration, "_least_squares", lambda target, start, budget: start)
    with pytest.raises(CalibrationRefused, match=r"5 steps gave nothing.*SGM Uniform 0\.\d+, calibrated 0\.\d+"):
        calibrate(fit, fit, initial_schedules(5))


def test_impossible_fits_are_refused_with_a_message():
    fit, _ = trajectories("toy2d", 1.0, seed=1, count=4)
    with pytest.raises(ValueError, match=r"the same number of steps, at least 2; got \[5, 6\]"):
        calibrate(
            fit,
            fit,
            {"a": initial_schedules(5)["DPM++ 2M SGM Uniform"], "b": initial_schedules(6)["DPM++ 2M SGM Uniform"]},
        )
    with pytest.raises(ValueError, match="not finite"):
        Trajectories.of(lambda x, sigma, **_: x * float("nan"), fit.noise, TABLE)
    broken = Trajectories(lambda x, sigma, **_: x * float("inf"), fit.noise, fit.endpoints, 0)
    with pytest.raises(ValueError, match="no initial schedule stays finite"):
        calibrate(broken, broken, initial_schedules(5))
