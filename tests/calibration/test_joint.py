"""Profiles with a schedule for a range of guidance scales: their files, their choice, and the same picture again."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.problems import PROBLEMS
from hpsampler.calibration.joint import CENTER, JointSchedule, bounds, rounded
from hpsampler.calibration.profile import Joint, Measured, Profile, ProfileStore, Refused
from hpsampler.effects import Use
from hpsampler.guidance import with_guidance
from hpsampler.plan import LoadedModel, Pass, Request
from hpsampler.recipes import recipe_for
from hpsampler.settings import Settings
from hpsampler.solvers import SOLVERS
from hpsampler.store import StoreError
from tests.calibration.test_profile import TABLE, WHOLE, fitted, profile, target


def schedule(steps=5, low=2.0, high=10.0, seed=0, end=(0.0, 0.0)):
    """A plausible one: about evenly spaced in log sigma, with guidance that falls with the guidance scale."""
    rng = np.random.default_rng(seed)
    constant = [math.log(math.log(300) / steps)] * (steps - 1) + [0.5] * (steps - 1) + [math.log(0.8)] * steps
    constant = np.array(constant) + 0.05 * rng.standard_normal(3 * steps - 2)
    slope = [0.1] * (steps - 1) + [-0.2] * (steps - 1) + [-0.15] * steps
    return JointSchedule(low, high, TABLE.sigma_max, rounded(constant), rounded(slope), end=end)


def joint(steps=5, refused=(), gain=2.0, scales=(2.0, 5.0, 10.0), **others):
    measured = tuple(
        Measured(cfg, {"Auto": 0.2 * (0.9 if cfg in refused else gain), "calibrated": 0.2}, 0.03) for cfg in scales
    )
    return Joint(schedule(steps, scales[0], scales[-1], **others), "SGM Uniform", measured, 15_000)


def with_joint(name="my model", *rows, **others):
    return replace(profile(name), fitted=(), joint=rows or (joint(),), **others)


@pytest.fixture
def store(tmp_path):
    return ProfileStore(tmp_path / "calibrations")


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row", [joint(), joint(8, end=(0.03, 1.0)), joint(2, scales=(7.0,)), joint(6, refused=(2.0, 5.0))]
)
def test_a_file_round_trip_is_exact(row):
    example = with_joint("x", row, refused=(Refused(4, 7.0, "nothing"),))
    again = Profile.from_json(example.to_json())
    assert again == example and again.to_json() == example.to_json() and again.joint[0].hash == row.hash
    data = json.loads(example.to_json())
    assert data["version"] == 2 and data["joint"][0]["steps"] == row.steps and data["fitted"] == []
    for cfg_scale in (row.schedule.low, row.schedule.high):
        assert again.joint[0].schedule.at(cfg_scale) == row.schedule.at(cfg_scale)


def test_a_profile_without_joint_schedules_stays_a_file_of_version_1():
    text = profile().to_json()
    assert json.loads(text)["version"] == 1 and "joint" not in json.loads(text)
    assert Profile.from_json(text).joint == ()
    # what a file of version 1 says beyond its version is not read
    assert Profile.from_json(json.dumps({**json.loads(text), "joint": "nonsense"})).joint == ()


FILE = json.loads(with_joint().to_json())


@pytest.mark.parametrize(("field", "values"), [
    ("steps", [1, 4, 6, 151, 5.0, None]), ("low", [0, "2", 11, math.nan]), ("high", [1.9, 1001, None]),
    ("center", [0, -5, None]), ("start_sigma", [0, -1, 1e5, 1e-5]), ("start", ["", 5]), ("calls", [-1, 1.5]),
    ("constant", [[], [0.0] * 12, [0.0] * 14, [101.0] * 13, [5.0] * 13, [-20.0] * 13, ["x"] * 13, None]),
    ("slope", [[0.0] * 12, [30.0] * 13, [-30.0] * 13, [math.inf] * 13]),
    ("end", [[], [0.1], [-0.1, 1], [1e-7, 1], [5.0, 1.0], [0.1, 11], [0.1, -11], 5]),
    ("measured", [[], 5, [5], FILE["joint"][0]["measured"][::-1],
                  [{**FILE["joint"][0]["measured"][0], "cfg_scale": 11}],
                  [{**FILE["joint"][0]["measured"][0], "held_out": {"Auto": 1}}],
                  [{**FILE["joint"][0]["measured"][0], "yardstick": -1}]]),
])  # fmt: skip
def test_a_wrong_value_is_refused_with_field_value_and_what_is_allowed(field, values):
    for value in values:
        data = copy.deepcopy(FILE)
        data["joint"][0][field] = value
        with pytest.raises(StoreError, match=r"joint\[0\]\.\w+.*must be .*got ") as error:
            Profile.from_json(json.dumps(data))
        assert len(str(error.value)) < 400
    data = copy.deepcopy(FILE)
    del data["joint"][0][field]
    with pytest.raises(StoreError, match=rf"joint\[0\]\.{field} is missing"):
        Profile.from_json(json.dumps(data))


def test_version_2_needs_its_field():
    with pytest.raises(StoreError, match="joint is missing"):
        Profile.from_json(json.dumps({**WHOLE, "version": 2}))


def test_whatever_a_fit_can_find_can_be_read():
    for steps in (2, 3, 5, 20):
        low, high = bounds(steps)
        for ends in ((low, low), (low, np.minimum(high, 0.5)), (low + 0.4 * (high - low), low)):
            slope = (ends[1] - ends[0]) / math.log(5)
            made = JointSchedule(
                2.0, 10.0, 14.6, rounded(ends[0] + slope * math.log(CENTER / 2)), rounded(slope)
            )  # fmt: skip
            if made.at(10.0).sigmas[-2] < 2e-6 or made.at(2.0).sigmas[-2] < 2e-6:
                continue
            row = replace(joint(), schedule=made)
            assert Profile.from_json(with_joint("x", row).to_json()).joint == (row,)


def test_the_hash_depends_on_all_numbers_that_determine_the_picture():
    own = joint()
    same = replace(own, start="Auto", calls=1, measured=own.measured[:1])
    assert same.hash == own.hash and len(own.hash) == 8
    numbers = own.schedule
    others = [
        replace(numbers, low=3.0), replace(numbers, high=9.0), replace(numbers, start_sigma=14.0),
        replace(numbers, constant=(0.0, *numbers.constant[1:])), replace(numbers, slope=(0.0, *numbers.slope[1:])),
        replace(numbers, center=7.0), replace(numbers, end=(0.03, 0.0)), replace(numbers, end=(0.03, 1.0)),
    ]  # fmt: skip
    assert len({replace(own, schedule=each).hash for each in (numbers, *others)}) == 9


# ---- which one fits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cfg_scale", "found"), [
    (2.0, True), (7.0, True), (10.0, True), (1.99, False), (10.01, False), (0.0, False), (-7.0, False),
    (math.nan, False), (math.inf, False),
])  # fmt: skip
def test_it_answers_for_every_guidance_scale_in_its_range(cfg_scale, found):
    example = with_joint()
    assert example.find(5, target(cfg_scale)) is (example.joint[0] if found else None)
    assert example.find(6, target(7.0)) is None
    assert example.find(5, target(7.0, hashes=("no",))) is None and example.find(5, target(7.0, width=64)) is None


def test_where_it_is_no_better_than_the_recipe_it_is_not_used():
    (own,) = with_joint("x", joint(refused=(5.0,))).joint
    assert [each.refused for each in own.measured] == [False, True, False]
    # the nearest place by ratio decides
    used = {cfg: not own.misfit(cfg) for cfg in (2.0, 3.0, 3.2, 5.0, 7.0, 7.2, 10.0)}
    assert used == {2.0: True, 3.0: True, 3.2: False, 5.0: False, 7.0: False, 7.2: True, 10.0: True}
    assert own.misfit(6.0) == "at CFG 5 it is no better than Auto" and own.misfit(11) == "it is for CFG 2 to 10, not 11"
    assert joint(scales=(7.0,)).misfit(7.5) == "it is for CFG 7, not 7.5"


def test_a_joint_schedule_wins_over_one_of_version_1(store):
    old = fitted(5, 7.0, gain=2.0)
    store.save(profile("old", old))
    assert store.best(5, target(7.0))[1] == old
    store.save(with_joint("new", joint(gain=1.1)))
    assert store.best(5, target(7.0))[0].name == "new"
    store.save(with_joint("better", joint(gain=1.5, seed=1)))
    assert store.best(5, target(7.0))[0].name == "better"
    # out of its range, or where it is refused, the old one is used as before
    assert store.best(5, target(10.4))[1] == old and store.best(5, target(12.0)) is None
    store.save(replace(profile("both", old), joint=(joint(refused=(5.0, 10.0), seed=2),)))
    both = store.get("both")
    assert both.find(5, target(7.0)) == old and both.find(5, target(2.0)) == both.joint[0]


def test_the_one_that_a_user_named_or_the_reason_why_there_is_none(store):
    own = joint(refused=(2.0,))
    store.save(with_joint("x", own))
    assert store.pick("x", 5, target(7.0)) == ((store.get("x"), own), "")
    assert store.pick("x", 5, target(12.0)) == (None, "it is for CFG 2 to 10, not 12")
    assert store.pick("x", 5, target(2.5)) == (None, "at CFG 2 it is no better than Auto")
    assert store.pick("x", 6, target(7.0)) == (None, "it has no 6 steps near CFG 7")
    label = f"gone {own.hash}"
    assert store.pick(label, 5, target(7.0, hashes=()))[0][1] == own
    assert store.pick(label, 5, target(12.0)) == (None, "it is for CFG 2 to 10, not 12")
    store.rename("x", "y")
    assert store.by_label(label)[0].name == "y"


# ---- the picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [(0.0, 0.0), (0.03, 1.0)])
def test_its_recipe_has_schedule_factors_and_guidance_at_the_guidance_scale(end):
    example = with_joint("x", joint(end=end))
    (own,) = example.joint
    drawn = []
    for cfg_scale in (3.0, 7.0):
        recipe = example.recipe(own, recipe_for("sd1", 5, cfg_scale), cfg_scale)
        wanted = own.schedule.at(cfg_scale)
        assert (recipe.levels, recipe.factors, recipe.guidance) == (wanted.sigmas, wanted.factors, wanted.guidance)
        assert (recipe.bend, recipe.ending) == (0.0, "keep" if end[0] else "zero")
        assert (recipe.steps, recipe.solver, recipe.calibration) == (5, "dpmpp_2m", f"x {own.hash}")
        problem = PROBLEMS["toy2d"]()
        model, unit = problem.model(problem.labels(8), cfg_scale), problem.noise(8, seed=1)
        sigmas = recipe.sigmas(TABLE)
        found = SOLVERS[recipe.solver](
            with_guidance(model, recipe.guidance), unit * sigmas[0], sigmas, **recipe.options()
        )  # fmt: skip
        torch.testing.assert_close(found, wanted.sample(model, unit), rtol=1e-5, atol=1e-5)
        drawn.append(recipe)
    assert drawn[0].levels != drawn[1].levels and drawn[0].guidance != drawn[1].guidance


def planned(store, cfg_scale, sampler="HP Auto", kind="Automatic", from_noise=True, hashes=("bbbb",), **own):
    """A planned pass of five steps, what it told, and what it recorded."""
    told, kept = [], {}
    request = Request(Use.of(sampler, kind), cfg_scale, from_noise, 5, 512, 512)
    model = LoadedModel("sd1", TABLE, hashes)
    this = Pass(Settings(enabled=True, **own), request, model, store, tell=told.append, record=kept.__setitem__)
    this.begin()
    return this, this.schedule(5, this.request.use.calibrated), told, kept


def test_auto_uses_it_and_the_label_draws_the_same_picture_again(store):
    own = joint(refused=(2.0,))
    store.save(with_joint("x", own))
    this, sigmas, told, kept = planned(store, 7.0)
    run, wanted = this.solve(None, sigmas), own.schedule.at(7.0)
    assert run.sigmas.tolist() == pytest.approx(wanted.sigmas, rel=6e-8) and told == []
    assert (run.options["factors"], run.guidance) == (wanted.factors, wanted.guidance)
    assert kept == {"calibration": f"x {own.hash}"}
    again, sigmas, told, kept_again = planned(store, 7.0, calibration=kept["calibration"])
    assert again.solve(None, sigmas).guidance == run.guidance and torch.equal(sigmas, run.sigmas) and told == []
    assert kept_again == kept
    # where it is refused, or out of its range, the recipe's schedule is drawn
    for cfg_scale, reason in ((2.2, "at CFG 2 it is no better"), (12.0, "it is for CFG 2 to 10, not 12")):
        that, sigmas, told, kept = planned(store, cfg_scale)
        assert that.recipe == recipe_for("sd1", 5, cfg_scale) and (told, kept) == ([], {})
        _, _, told, kept = planned(store, cfg_scale, calibration=f"x {own.hash}")
        assert len(told) == 1 and reason in told[0] and kept == {}


def test_img2img_runs_the_last_calls_with_their_own_guidance(store):
    own = joint()
    store.save(with_joint("x", own))
    this, sigmas, *_ = planned(store, 7.0, kind="HP calibrated", from_noise=False)
    run, wanted = this.solve(None, sigmas[2:]), own.schedule.at(7.0)
    assert run.guidance == wanted.guidance[2:] and run.options["factors"] == wanted.factors[2:]


def test_guidance_that_was_set_stands_in_place_of_the_fitted(store):
    store.save(with_joint("x"))
    this, sigmas, *_ = planned(store, 7.0, guidance="As set")
    assert this.solve(None, sigmas).guidance == () and this.recipe.calibration


@pytest.mark.parametrize("gains", [(1.5, 3.0), (3.0, 1.5)])
def test_of_several_for_the_same_steps_the_one_that_gains_most_is_used(gains):
    """Within one profile, whatever their order; gains where the picture is drawn count."""
    rows = tuple(joint(gain=gain, scales=(2.0, 5.0, 10.0 + number)) for number, gain in enumerate(gains))
    found = with_joint("x", *rows).find(5, target(7.0))
    assert found == rows[gains.index(3.0)]
