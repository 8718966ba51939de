"""The fit: its derivatives, the gain on held-out trajectories, its budget, and the refusal of useless fits."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from bench.methods import coupled, peer
from bench.problems import PROBLEMS
from bench.schedules import stable_diffusion_noise
from hpsampler.calibration import fit as calibration
from hpsampler.calibration.config import MAX_RUNS, jacobian_calls
from hpsampler.calibration.fit import Attempt, CalibrationRefused, FitState, calibrate
from hpsampler.calibration.initial import initial_schedules
from hpsampler.calibration.joint import CENTER, SHARE_RANGE, bounds, parameters_of, schedule_of
from hpsampler.calibration.least_squares import FINITE_DIFFERENCE, Descent, Target
from hpsampler.calibration.saved import load_state, save_state
from hpsampler.calibration.trajectories import Trajectories
from hpsampler.solvers import sample_dpmpp_1s, sample_dpmpp_2m

TABLE = stable_diffusion_noise()
OURS, SGM = coupled("DPM++ 2M"), peer("DPM++ 2M", "SGM Uniform")


class Counted:
    """Counts calls, each for one picture."""

    def __init__(self, model):
        self.model, self.calls = model, 0

    def __call__(self, x, sigma, **own):
        self.calls += len(x)
        return self.model(x, sigma, **own)


def trajectories(name, cfg_scale, seed, count=24):
    problem = PROBLEMS[name]()
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, problem.dims)))
    model = Counted(problem.model(problem.labels(count), cfg_scale))
    return Trajectories.of(model, noise, TABLE, cfg_scale)


def sets(name, scales, seed, count=8):
    """One set for each guidance scale, with different noise."""
    return [trajectories(name, scale, seed + 10 * index, count) for index, scale in enumerate(scales)]


def calls_of(made):
    return sum(each.model.calls for each in made)


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
    made = sets("gauss1f2", (2.0, 6.0), seed=1, count=4)
    start = initial_schedules("sd1", 5, (2.0, 6.0), TABLE)["SGM Uniform"]
    target = Target(made, 5, start[0].sigmas[0])
    unknowns = target.unknowns([parameters_of(each, scale) for each, scale in zip(start, (2.0, 6.0))])
    target.set_tolerances(unknowns)
    before = calls_of(made)
    jacobians = target.jacobians(unknowns)
    # of the points, of the factors, and of the guidance, whose own step is called again
    assert calls_of(made) - before == 8 * (10 + 6 + 15) == target.jacobian_calls == 8 * jacobian_calls(5)
    assert target.calls == calls_of(made) - 60 * 8
    for index, (jacobian, each) in enumerate(zip(jacobians, made, strict=True)):
        parameters = target.parameters(unknowns, index)
        at = target._residual(index, target.runs(unknowns)[index].end)
        assert jacobian.dtype == np.float32 and jacobian.shape == (4 * 1024, 13)
        for column in range(13):
            changed = parameters.copy()
            changed[column] += FINITE_DIFFERENCE
            end = schedule_of(changed, start[0].sigmas[0], each.cfg_scale).sample(each.model, each.noise)
            np.testing.assert_allclose(
                jacobian[:, column], (target._residual(index, end) - at) / FINITE_DIFFERENCE, rtol=1e-5, atol=1e-6
            )
        # at small sigmas the class is known, and guidance means nothing
        assert np.linalg.norm(jacobian[:, :9], axis=0).min() > 1e-2


def test_a_jacobian_gives_the_derivatives_by_both_ends():
    made = sets("lowrank", (2.0, 4.0, 8.0), seed=3, count=2)
    start = initial_schedules("sd1", 4, (2.0, 4.0, 8.0), TABLE)["Auto"]
    target = Target(made, 4, start[0].sigmas[0])
    unknowns = target.unknowns([parameters_of(each, scale) for each, scale in zip(start, (2.0, 4.0, 8.0))])
    target.set_tolerances(unknowns)
    residuals = target.residuals(unknowns)
    descent = Descent(unknowns, residuals, target.jacobians(unknowns), fresh=True)
    slope = descent._normal_equations(target)[1]
    for index in range(len(unknowns)):
        change = np.zeros_like(unknowns)
        change[index] = 1e-4
        other = Descent(unknowns, target.residuals(unknowns + change))
        # a finite difference of 0.01 beside one of 0.0001
        assert (other.cost - descent.cost) / 2e-4 == pytest.approx(slope[index], rel=0.1, abs=0.02 * descent.cost)


def test_an_updated_jacobian_agrees_with_what_the_step_has_shown():
    """Broyden's condition; along directions that were not tried it stays as it was."""
    scales = (2.0, 8.0)
    made = sets("lowrank", scales, seed=3, count=2)
    start = initial_schedules("sd1", 4, scales, TABLE)["Auto"]
    target = Target(made, 4, start[0].sigmas[0])
    unknowns = target.unknowns([parameters_of(each, scale) for each, scale in zip(start, scales)])
    target.set_tolerances(unknowns)
    before = target.jacobians(unknowns)
    descent = Descent(unknowns, target.residuals(unknowns), [each.copy() for each in before])
    point = unknowns + np.random.default_rng(0).uniform(0, 0.1, len(unknowns))
    residuals = target.residuals(point)
    descent._update(target, point, residuals)
    for index, (jacobian, old) in enumerate(zip(descent.jacobians, before)):
        change = target.parameters(point, index) - target.parameters(unknowns, index)
        shown = residuals[index] - descent.residuals[index]
        np.testing.assert_allclose(jacobian @ change, shown, atol=1e-5 * np.abs(shown).max())
        assert np.linalg.norm(old @ change - shown) > 1e-2 * np.linalg.norm(shown), "there was something to correct"
        other = np.eye(len(change))[0] * (change @ change) - change * change[0]
        np.testing.assert_allclose(jacobian @ other, old @ other, atol=1e-5 * np.abs(old @ other).max())


def test_parameters_and_schedules_are_converted_into_each_other():
    (start,) = initial_schedules("sd1", 6, [7.5], TABLE)["SGM Uniform"]
    again = schedule_of(parameters_of(start, 7.5), start.sigmas[0], 7.5)
    np.testing.assert_allclose(again.sigmas, start.sigmas, rtol=1e-12)
    np.testing.assert_allclose(again.guidance, start.guidance, rtol=1e-12)
    assert again.factors == start.factors and again.sigmas[-1] == 0 and again.steps == 6
    as_set = parameters_of(replace(start, guidance=()), 7.5)
    assert as_set[-6:].tolist() == [0.0] * 6 and schedule_of(as_set, 14.0, 7.5).guidance == pytest.approx([7.5] * 6)
    assert schedule_of(as_set, 14.0, 1.0).guidance == (), "at CFG 1 there is no guidance to fit"


def test_a_joint_schedule_is_linear_in_the_logarithm_of_the_guidance_scale():
    low, high = bounds(4)
    rng = np.random.default_rng(0)
    ends = [low + (high - low) * rng.uniform(0.3, 0.6, len(low)) for _ in range(2)]
    target = Target(sets("toy2d", (2.0, 8.0), seed=1, count=2), 4, 14.6)
    joint = target.joint(np.concatenate(ends))
    np.testing.assert_allclose(joint.parameters(2.0), ends[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(joint.parameters(8.0), ends[1], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(joint.parameters(4.0), (ends[0] + ends[1]) / 2, rtol=1e-6, atol=1e-6)
    assert joint.constant == pytest.approx(joint.parameters(CENTER).tolist()) and joint.steps == 4
    assert joint.covers(2.0) and joint.covers(8.0) and not joint.covers(1.9) and not joint.covers(8.1)
    found = joint.at(3.0)
    assert found.sigmas[0] == 14.6 and found.sigmas[-1] == 0 and all(a > b for a, b in pairwise(found.sigmas))
    kept = replace(joint, end=(1e-6, 0.25)).at(3.0)
    assert kept.sigmas == (*found.sigmas[:-1], 1e-6) and kept.factors == (*found.factors[:-1], 0.25)


@pytest.mark.parametrize("name, scales, steps, gain", [
    ("gauss1f1", (1.0,), 5, 3), ("lowrank", (7.5,), 6, 1.5), ("toy2d", (3.0, 7.5), 5, 2),
    ("mix8", (2.0, 3.0, 5.0), 4, 2),
])  # fmt: skip
def test_held_out_errors_improve_within_the_budget(name, scales, steps, gain):
    fit, unseen = sets(name, scales, seed=1), sets(name, scales, seed=2)
    initial = initial_schedules("sd1", steps, scales, TABLE)
    seen_by_progress = []
    result = calibrate(fit, unseen, initial, progress=lambda *told: seen_by_progress.append(told))
    assert list(result.held_out) == list(scales) and result.refused == ()
    for each in unseen:
        assert result.gain(each.cfg_scale) > gain
        schedule = result.schedule.at(each.cfg_scale)
        assert result.held_out[each.cfg_scale]["calibrated"] == each.error(schedule)
        assert schedule.sigmas[-1] == 0 and all(a > b for a, b in pairwise(schedule.sigmas))
        assert schedule.sigmas[0] == pytest.approx(TABLE.sigma_max, rel=1e-5) and schedule.steps == steps
        if each.cfg_scale > 1:
            shares = np.array(schedule.guidance) / each.cfg_scale
            assert SHARE_RANGE[0] * 0.999 <= shares.min() and shares.max() <= SHARE_RANGE[1] * 1.001
        else:
            assert schedule.guidance == ()
    assert result.calls == calls_of(fit) <= MAX_RUNS * steps * 8 * len(scales)
    assert [name for *_, name in seen_by_progress[:4]] == list(initial) and result.start in initial
    assert min(error for _, error, _ in seen_by_progress) == pytest.approx(result.fitted_error)
    again = calibrate(fit, unseen, initial)
    assert again.schedule == result.schedule


def test_an_interrupted_fit_goes_on_where_it_was(tmp_path):
    scales, path = (2.0, 6.0), tmp_path / "fit.npz"
    fit, unseen = sets("toy2d", scales, seed=1), sets("toy2d", scales, seed=2)
    initial = initial_schedules("sd1", 4, scales, TABLE)
    saved = []
    whole = calibrate(fit, unseen, initial, save=lambda state: saved.append(state.calls))
    assert len(saved) > 10 and saved == sorted(saved)

    class Stop(Exception):
        pass

    for at in (1, 3, 6, len(saved) // 2, len(saved) - 1):
        made = 0

        def save(state, at=at):
            nonlocal made
            made += 1
            save_state(path, state, "this")
            if made == at:
                raise Stop

        with pytest.raises(Stop):
            calibrate(fit, unseen, initial, save=save)
        state = load_state(path, "this")
        assert load_state(path, "another") is None and state.calls == saved[at - 1]
        before = calls_of(fit)
        again = calibrate(fit, unseen, initial, state=state)
        assert again == whole
        # the references are given, and at most one run is repeated
        assert calls_of(fit) - before <= whole.calls - saved[at - 1] + 4 * 16


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04" + bytes(50), b"nothing of the kind"])
def test_a_damaged_state_is_as_good_as_none(damage, tmp_path):
    path = tmp_path / "fit.npz"
    assert load_state(path, "this") is None
    save_state(path, FitState(calls=5, errors={"Auto": 0.5}), "this")
    assert load_state(path, "this") == FitState(calls=5, errors={"Auto": 0.5})
    path.write_bytes(damage)
    assert load_state(path, "this") is None
    np.savez(path, about=np.array([{"fit": "this"}], dtype=object))
    assert load_state(path, "this") is None


def test_a_fit_that_gains_nothing_is_refused_with_the_numbers(monkeypatch):
    fit = sets("gauss1f2", (2.0, 3.0), seed=1, count=4)
    initial = initial_schedules("sd1", 5, (2.0, 3.0), TABLE)
    aimed = {
        name: [replace(each, endpoints=row.sample(each.model, each.noise)) for each, row in zip(fit, initial[name])]
        for name in ("Auto", "Karras")
    }

    def karras(self):
        return Attempt("Karras", Descent(self.initial["Karras"], []), 1.0, 0)

    monkeypatch.setattr(calibration._Fit, "best", karras)
    with pytest.raises(CalibrationRefused, match=r"5 steps gave nothing.*CFG 3 Auto 0\.\d+.*, calibrated 0\.\d+$"):
        calibrate(aimed["Auto"], aimed["Auto"], initial)
    # better at one guidance scale, it is refused at the other alone
    mixed = [aimed["Auto"][0], aimed["Karras"][1]]
    assert calibrate(mixed, mixed, initial).refused == (2.0,)


def test_impossible_fits_are_refused_with_a_message():
    (fit,) = sets("toy2d", (2.0,), seed=1, count=4)
    five, six = (initial_schedules("sd1", steps, [2.0], TABLE)["Auto"] for steps in (5, 6))
    with pytest.raises(ValueError, match=r"the same number of steps, at least 2; got \[5, 6\]"):
        calibrate([fit], [fit], {"a": five, "b": six})
    with pytest.raises(ValueError, match="rising guidance scales"):
        calibrate([fit], [replace(fit, cfg_scale=3.0)], {"a": five})
    with pytest.raises(ValueError, match="not finite"):
        Trajectories.of(lambda x, sigma, **_: x * float("nan"), fit.noise, TABLE, 1.0)
    broken = Trajectories(lambda x, sigma, **_: x * float("inf"), fit.noise, fit.endpoints, 0, 2.0)
    with pytest.raises(ValueError, match="no initial schedule stays finite"):
        calibrate([broken], [broken], {"a": five})
