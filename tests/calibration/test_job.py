"""Calibration jobs: their config, their results, progress, stopping and resuming, and the choice of the last sigma."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.problems import PROBLEMS
from bench.schedules import stable_diffusion_noise
from hpsampler.calibration import fit as calibration
from hpsampler.calibration import job as job_module
from hpsampler.calibration.config import CalibrationConfig
from hpsampler.calibration.decoder import END_SIGMAS, decoder_curve, with_best_final_sigma
from hpsampler.calibration.fit import calibrate
from hpsampler.calibration.initial import initial_schedules
from hpsampler.calibration.job import CalibrationJob
from hpsampler.calibration.joint import JointSchedule, parameters_of, rounded
from hpsampler.calibration.profile import Profile, ProfileStore, noise_tolerance
from hpsampler.calibration.trajectories import MultistepSchedule, Trajectories
from hpsampler.guidance import effective_guidance
from hpsampler.job_config import DEFAULT_PROMPTS
from hpsampler.jobs import Cancelled, Progress
from hpsampler.recipes import AUTO, recipe_for
from hpsampler.schedule import base_karras
from hpsampler.solvers import sample_dpmpp_2m
from hpsampler.store import StoreError

TABLE = stable_diffusion_noise()
COUNT = 6


class Exact:
    """A source with a problem whose denoiser is known; a prompt ends in the number of its class.

    Args:
        contrast: how much of a latent its picture shows; at 1 the decoder tolerates no noise, at 0.1 a lot.
        before: called before every call of the model, with the number of pictures drawn so far.
    """

    model_name, hashes, family, noise = "exact", ("feedbeef",), "sd1", TABLE

    def __init__(self, name="toy2d", contrast=1.0, batch=1000, before=lambda calls: None):
        self.problem, self.contrast, self.batch, self.before = PROBLEMS[name](), contrast, batch, before
        self.calls, self.requests, self.decoded = 0, [], []

    def denoiser(self, prompts, negative, cfg_scale):
        self.requests.append((list(prompts), negative, cfg_scale))
        labels = torch.tensor([int(prompt.split()[-1]) % self.problem.classes for prompt in prompts])

        def model(x, sigma, cond_scale=cfg_scale, **_):
            self.before(self.calls)
            parts = zip(x.split(self.batch), sigma.split(self.batch), labels.split(self.batch))
            found = torch.cat([self.problem.denoise(*part, cond_scale) for part in parts])
            self.calls += len(x)
            return found

        return model

    def start(self, seeds, width, height):
        rows = [np.random.default_rng(seed).standard_normal(self.problem.dims) for seed in seeds]
        return torch.from_numpy(np.stack(rows))

    def decode(self, latents):
        self.decoded.append(len(latents))
        return 0.5 + self.contrast * latents[:, :2]


def config_of(**values):
    prompts = [f"of class {index}" for index in range(2 * COUNT)]
    common = {"name": "exact", "steps": (5, 6), "cfg_scales": (3.0,), "trajectories": COUNT, "prompts": prompts}
    return CalibrationConfig.of({**common, **values})


def calibrated(source=None, **values):
    return CalibrationJob(config_of(**values), source or Exact()).run()


def scaled(denoiser, factor):
    """The same denoiser with its output multiplied by ``factor()`` at each call."""

    def denoiser_of(*args):
        inner = denoiser(*args)
        return lambda x, sigma, **own: inner(x, sigma, **own) * factor()

    return denoiser_of


@pytest.fixture
def references(monkeypatch):
    """A list with an entry for every run for reference endpoints."""
    runs, solve = [], Trajectories.of.__func__
    monkeypatch.setattr(Trajectories, "of", classmethod(lambda cls, *args: runs.append(1) or solve(cls, *args)))
    return runs


# ---- the config ------------------------------------------------------------------------------------------------------


def test_the_defaults_of_a_config():
    config = CalibrationConfig.of({"name": "x"})
    assert (
        config == CalibrationConfig("x")
        and config.prompts == DEFAULT_PROMPTS
        and len(config.prompts) >= 2 * config.per_scale
    )
    assert all(prompt == " ".join(prompt.split()) for prompt in DEFAULT_PROMPTS)
    assert len(set(DEFAULT_PROMPTS)) == len(DEFAULT_PROMPTS)


@pytest.mark.parametrize(("field", "value", "kept"), [
    ("name", "  my model ", "my model"),
    ("steps", "5, 6 8", (5, 6, 8)), ("steps", "8,5,,5 ", (5, 8)), ("steps", 6, (6,)), ("steps", ["7", 5.0], (5, 7)),
    ("steps", (2, 20), (2, 20)), ("steps", "5.0", (5,)),
    ("cfg_scales", "7 5.5", (5.5, 7.0)), ("cfg_scales", "2, 3.5 10", (2.0, 3.5, 10.0)),
    ("cfg_scales", 1, (1.0,)), ("cfg_scales", [30, 1.0], (1.0, 30.0)),
    ("width", "768", 768), ("height", 64, 64), ("width", 4096.0, 4096),
    ("trajectories", 2, 2), ("trajectories", 1024, 1024), ("runs", 25, 25), ("runs", "1000", 1000),
    ("seed", 0, 0), ("seed", 2**32 - 1, 2**32 - 1), ("batch", 1, 1), ("batch", 256, 256),
    ("negative", "", ""), ("negative", " ugly, bad \n", "ugly, bad"),
    ("prompts", "a cat\r\n\n  a   dog \n\t\n", ("a cat", "a dog")), ("prompts", ["x\ny", " ", "z"], ("x y", "z")),
    ("prompts", ("é", "é", "e"), ("é", "é", "e")), ("prompts", "x\ny\n" * 2048, ("x", "y") * 2048),
])  # fmt: skip
def test_valid_values_are_accepted(field, value, kept):
    config = CalibrationConfig.of({"name": "x", field: value})
    assert getattr(config, field) == kept
    assert replace(config, **{field: getattr(CalibrationConfig("x"), field)}) == CalibrationConfig("x"), (
        "nothing else is changed"
    )
    assert type(getattr(config, field)) is type(kept)
    assert {type(each) for each in config.steps} == {int} and {type(each) for each in config.cfg_scales} == {float}
    assert CalibrationConfig.of(json.loads(json.dumps(asdict(config)))) == config, "a file gives it back"


NO_NUMBER = [None, True, False, "x", "", "nan", "inf", "1e400", math.nan, math.inf, -math.inf, 10**400, 10**5000, [],
             {}, [None], b"5", object()]  # fmt: skip


@pytest.mark.parametrize(("field", "values"), [
    ("name", ["", "a/b", "Auto", None, 5, "x" * 61, ["x"]]),
    ("steps", [*NO_NUMBER, 1, 21, 5.5, "5;6", "5 x", [5, True], [[5]], [5] * 33, "5 " * 10_000, -5, {"5": 5}]),
    ("cfg_scales", [*NO_NUMBER, 0.99, 30.1, "7;5", [7, None], -7, "7 nan"]),
    ("width", [*NO_NUMBER, 63, 4104, 500, 512.5, [512]]),
    ("height", [*NO_NUMBER, 0, 4097, 65, -512]),
    ("trajectories", [*NO_NUMBER, 1, 1025, 2.5]),
    ("runs", [*NO_NUMBER, 24, 1001]),
    ("seed", [*NO_NUMBER, -1, 2**32, 0.5]),
    ("batch", [*NO_NUMBER, 0, 257]),
    ("prompts", [None, True, 5, "", "\n \n", [], [""], [5], ["x", None], {"x": 1}, b"x", "x\n" * 4097,
                 "x", ["x", " x "], "a <lora:b:1>\nc", ["a", "<hypernet:x:0.5>"]]),
    ("negative", [None, 5, True, ["x"], b"x", "<x:y>"]),
])  # fmt: skip
def test_bad_values_are_refused_with_field_value_and_what_is_allowed(field, values):
    for value in values:
        with pytest.raises(StoreError) as error:
            CalibrationConfig.of({"name": "x", field: value})
        message = str(error.value)
        assert type(error.value) is StoreError and len(message) < 300, message
        assert re.match(f"{field} must (be|not call) ", message) and "got " in message, (value, message)


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(StoreError, match=r"^name is missing$"):
        CalibrationConfig.of({})
    with pytest.raises(StoreError, match="unknown field 'step'; the fields are batch, cfg_scales, fit, height, name"):
        CalibrationConfig.of({"name": "x", "step": 5})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("0123456789., -e\n", max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([*asdict(CalibrationConfig("x")), "other"]), json_values)
def test_any_value_is_accepted_or_refused(field, value):
    try:
        config = CalibrationConfig.of({"name": "x", field: value})
    except StoreError as error:
        assert field in str(error)
        return
    assert CalibrationConfig.of(asdict(config)) == config and config.most_calls() > 0 and config.cells


def test_a_cell_is_a_number_of_steps_for_all_guidance_scales():
    config = config_of(steps="8 5", cfg_scales="7 3")
    assert config.cells == [5, 8]
    assert config.most_calls([], []) == 0
    assert config.most_calls([8]) == config.most_calls() - config.most_calls_of(5), (
        "its references are still to be made"
    )
    assert config.most_calls([], [(5, 3.0)]) == config.most_calls_of_comparison(5) + 60 * config.pictures
    assert config.most_calls() - config.most_calls(comparisons=[]) == sum(
        2 * config.most_calls_of_comparison(steps) for steps in (5, 8)
    )
    assert config_of(steps="5", cfg_scales="3").most_calls() == config_of(steps="5", cfg_scales="3 7").most_calls()


@pytest.mark.parametrize(("trajectories", "scales", "each"), [
    (50, 5, 10), (51, 5, 11), (24, 1, 24), (2, 1, 2), (2, 4, 2), (6, 2, 3),
])  # fmt: skip
def test_the_trajectories_are_shared_among_the_guidance_scales(trajectories, scales, each):
    config = CalibrationConfig.of({"name": "x", "trajectories": trajectories, "cfg_scales": [*range(2, 2 + scales)]})
    assert (config.per_scale, config.pictures) == (each, each * scales)


# ---- the result ------------------------------------------------------------------------------------------------------


def test_a_job_gives_the_same_as_its_parts_by_hand():
    source = Exact("gauss1f2")
    profile = calibrated(source, steps="5", cfg_scales=(2.0, 5.0), negative="bad", seed=11, height=256)
    by_hand = Exact("gauss1f2")
    model_of = by_hand.problem.model
    sets = []
    for part in (0, 1):
        labels = torch.arange(2 * COUNT)[part::2] % by_hand.problem.classes
        rows = []
        for index, cfg_scale in enumerate((2.0, 5.0)):
            first = 11 + COUNT * part + 3 * index
            unit = by_hand.start(range(first, first + 3), 512, 256)
            own = labels[3 * index : 3 * index + 3]
            rows.append(Trajectories.of(model_of(own, cfg_scale), unit, TABLE, cfg_scale))
        sets.append(rows)
    found = calibrate(*sets, initial_schedules("sd1", 5, (2.0, 5.0), TABLE), 50)
    (own,) = profile.joint
    assert own.schedule == found.schedule and (own.steps, own.start, own.calls) == (5, found.start, found.calls)
    assert (own.schedule.low, own.schedule.high) == (2.0, 5.0) and profile.fitted == ()
    karras = torch.tensor([*base_karras(20, 7.0, TABLE.sigma_min, TABLE.sigma_max), 0.0])
    for each, unseen in zip(own.measured, sets[1], strict=True):
        expected = {name: float(f"{error:.6g}") for name, error in found.held_out[each.cfg_scale].items()}
        assert each.held_out == expected and each.gain > 1.2 and not each.refused
        assert list(each.held_out) == [AUTO, "first order", "SGM Uniform", "Karras", "calibrated"]
        ends = sample_dpmpp_2m(unseen.model, unseen.noise * TABLE.sigma_max, karras)
        assert each.baseline == pytest.approx(unseen.error_of(ends), rel=1e-5)
    assert source.requests == [
        ([f"of class {n}" for n in range(part, 12, 2)][first : first + 3], "bad", cfg_scale)
        for part in (0, 1)
        for first, cfg_scale in ((0, 2.0), (3, 5.0))
    ]
    assert (profile.name, profile.model, profile.hashes, profile.family) == ("exact", "exact", ("feedbeef",), "sd1")
    assert (profile.width, profile.height, profile.seed, profile.trajectories, profile.held_out) == (
        512,
        256,
        11,
        COUNT,
        COUNT,
    )
    assert (profile.sigma_min, profile.sigma_max, profile.refused) == (TABLE.sigma_min, TABLE.sigma_max, ())
    assert [sigma for sigma, _ in profile.decoder] == list(END_SIGMAS)
    assert Profile.from_json(profile.to_json()) == profile


def test_no_two_uses_share_their_noise():
    """The fit, the held-out trajectories, the decoder and the comparison."""
    source, seeds = Exact(), []
    start = source.start
    source.start = lambda asked, *size: seeds.append(list(asked)) or start(asked, *size)
    values = {
        "name": "x",
        "steps": 3,
        "cfg_scales": "3 5",
        "trajectories": 6,
        "runs": 25,
        "prompts": [f"class {index}" for index in range(4)],
    }
    CalibrationJob(CalibrationConfig.of(values), source).run()
    every = [seed for asked in seeds for seed in asked]
    # both sets and the comparison at both scales, and the decoder once
    assert len(seeds) == 2 + 2 + 1 + 2 and len(set(every)) == len(every)


def test_few_prompts_are_used_again_and_again():
    source = Exact()
    calibrated(source, steps="2", prompts="1\n2\n3")
    assert [prompts for prompts, *_ in source.requests] == [["1", "3"] * 3, ["2"] * COUNT]


def test_the_initial_schedules_are_the_recipe_and_common_schedules():
    for cfg_scale, last in ((1.0, 1.0), (7.0, 0.0)):
        rows = initial_schedules("sdxl", 7, [2.0, cfg_scale], TABLE)
        assert list(rows) == [AUTO, "first order", "SGM Uniform", "Karras"]
        found = {name: each for name, (_, each) in rows.items()}
        for each in found.values():
            assert (each.guidance or (cfg_scale,) * 7) == (effective_guidance(cfg_scale, 7),) * 7
            assert each.steps == 7 and each.sigmas[0] == pytest.approx(TABLE.sigma_max) and each.sigmas[-1] == 0
        own = recipe_for("sdxl", 7, cfg_scale)
        assert found[AUTO] == MultistepSchedule.of(own.sigmas(TABLE).double().tolist(), 1.0, last, own.guidance)
        assert found["first order"].factors == (0.0,) * 7 and found["Karras"].factors == (0.0, *[1.0] * 5, 0.0)


def test_equal_configs_give_equal_files_whatever_the_batch():
    whole = calibrated(steps="6").to_json()
    assert len(Profile.from_json(whole).joint) == 1
    for batch in (1000, 1, 4):
        assert calibrated(Exact(batch=batch), steps="6").to_json() == whole
    assert calibrated(steps="6", seed=2).to_json() != whole


@pytest.mark.parametrize("contrast", [1.0, 0.1])
@pytest.mark.parametrize("runs", [25, 50])
def test_the_most_calls_are_never_exceeded_and_the_budget_holds(contrast, runs):
    for name, steps, scales in (("toy2d", (2,), "2 3 8"), ("toy2d", (20,), "7"), ("mix64", (3, 5), "1 4")):
        source, kept = Exact(name, contrast), []
        config = config_of(steps=steps, cfg_scales=scales, runs=runs)
        job = CalibrationJob(config, source, save=kept.append)
        assert job.progress.of == config.most_calls()
        profile = job.run()
        refused = {each.steps for each in profile.refused}
        assert len(profile.joint) + len(refused) == len(steps) == len(kept) - len(profile.compared)
        assert profile == kept[-1] and len(profile.compared) <= len(steps) * len(config.cfg_scales)
        assert source.calls == job.progress.calls == job.progress.of <= config.most_calls()
        assert (profile.trajectories, profile.held_out) == (config.pictures, config.pictures) == (COUNT, COUNT)
        if runs == 50:
            assert source.calls > 0.5 * config.most_calls(), "the bound is near"
            assert all(0 < each.calls / (each.steps * COUNT) <= 50 for each in profile.joint if each.steps < 20)


def test_the_calls_of_a_cell_are_those_on_the_calibration_set():
    # the calls on the held-out set are known: its reference, the baseline, five schedules, and the last sigma's run
    ended = []
    for contrast in (1.0, 0.1):
        for cfg_scales in ("3", "2 7"):
            source = Exact(contrast=contrast)
            profile = calibrated(source, steps="5", cfg_scales=cfg_scales)
            (own,) = profile.joint
            # Auto and the fit are compared where it is used, with a question about each and about the reference
            compared = (2 * (5 + 1) + 1) * len(profile.compared) * COUNT // len(own.measured)
            rest = source.calls - own.calls - (60 + 20 + 5 * 5) * COUNT - compared
            assert rest == 5 * COUNT if own.schedule.end[0] > 0 else rest in (0, 5 * COUNT)
            assert rest == 0 or noise_tolerance(profile.decoder) > 0
            ended.append(own.schedule.end[0] > 0)
    assert ended[:2] == [False, False]


def refusing(monkeypatch):
    """Every fit ends in Karras' schedule, and the recipe solves the equation."""

    def karras(self):
        return calibration.Attempt("Karras", calibration.Descent(self.initial["Karras"], []), 1.0, 0)

    monkeypatch.setattr(calibration._Fit, "best", karras)


def test_a_refused_cell_is_recorded_with_numbers_and_not_tried_again(monkeypatch):
    refusing(monkeypatch)
    kept = []
    job = CalibrationJob(config_of(steps="5", cfg_scales="5 9"), Exact("toy2d"), save=kept.append)
    profile = job.run()
    assert profile.joint == profile.fitted == () and kept == [profile]
    assert [(each.steps, each.cfg_scale) for each in profile.refused] == [(5, 5.0), (5, 9.0)]
    reason = profile.refused[0].reason
    assert re.search(r"calibrating 5 steps gave nothing: .*CFG 9 Auto \d\.\d+,.*calibrated \d\.\d+$", reason)
    assert "5 steps: refused, calibrating 5 steps" in job.progress.log[-1]
    assert job.progress.calls == job.progress.of and Profile.from_json(profile.to_json()) == profile
    source = Exact()
    again = CalibrationJob(config_of(steps="5", cfg_scales="5 9"), source, profile)
    assert again.progress.of == 0 and again.progress.seconds_left is None
    assert again.run() == profile and source.calls == 0 and source.requests == []


def kept_progress(job, save=lambda profile: None):
    """The lines and the curve of the progress whenever something is saved."""
    shown = []

    def keep(profile):
        shown.append((dict(job.progress.lines), list(job.progress.curve)))
        save(profile)

    job.save = keep
    return shown


def test_an_initial_schedule_that_blows_up_is_a_number_in_the_file(monkeypatch, tmp_path):
    def with_a_bomb(*args):
        good = initial_schedules(*args)
        bomb = [replace(each, factors=(0.0, *[1e308] * (each.steps - 1))) for each in good["Karras"]]
        return {AUTO: good[AUTO], "bomb": bomb, "Karras": good["Karras"], "SGM Uniform": good["SGM Uniform"]}

    monkeypatch.setattr(job_module, "initial_schedules", with_a_bomb)
    source = Exact()
    job, store = CalibrationJob(config_of(steps="5"), source), ProfileStore(tmp_path)
    shown = kept_progress(job, lambda profile: store.save(profile, replacing=True))
    (own,) = job.run().joint
    assert own.measured[0].held_out["bomb"] == 1e12 and ProfileStore(tmp_path).read() == ([job.profile], [])
    lines, curve = shown[0]
    # the fit tries it within the bounds of its parameters
    assert list(lines) == ["20 steps of DPM++ 2M Karras", AUTO, "bomb", "Karras", "SGM Uniform"]
    assert [error for _, error in curve[:4]] == list(lines.values())[1:]
    assert all(math.isfinite(error) for _, error in curve) and all(map(math.isfinite, lines.values()))


def test_the_lines_and_curve_of_a_cell_are_errors_on_the_calibration_set():
    job = CalibrationJob(config_of(steps="6"), Exact())
    shown = kept_progress(job)
    (own,) = job.run().joint
    fit = job._trajectories(0, 0)
    known = initial_schedules("sd1", 6, [3.0], TABLE)
    lines, curve = shown[0]
    assert lines.pop("20 steps of DPM++ 2M Karras") == pytest.approx(own.measured[0].baseline, rel=1e-5)
    assert lines == {name: pytest.approx(fit.error(each), rel=1e-3) for name, (each,) in known.items()}
    at, errors = zip(*curve)
    assert not job.progress.lines and not job.progress.curve, "comparisons have none"
    assert at == tuple(sorted(at)) and at[0] == 11 and at[-1] == pytest.approx(own.calls / 6 / COUNT)
    assert min(errors) < 0.9 * min(lines.values())


def test_a_broken_decoder_tolerates_no_noise():
    source = Exact(contrast=0.01)
    sound = calibrated(source, steps="5")
    assert noise_tolerance(sound.decoder) == END_SIGMAS[-1] and max(source.decoded) <= 8
    for broken in (math.nan, math.inf):
        source = Exact()
        source.decode = lambda latents, broken=broken: latents * broken
        profile = calibrated(source, steps="5")
        assert profile.decoder == tuple((sigma, 1.0) for sigma in END_SIGMAS)
        assert profile.joint[0].schedule.end[0] == 0 and Profile.from_json(profile.to_json()) == profile


def test_no_gradients_are_recorded():
    source = Exact()
    own, weight = source.denoiser, torch.ones((), dtype=torch.float64, requires_grad=True)
    source.denoiser = scaled(own, lambda: weight)
    source.decode = lambda latents: 0.5 + 0.1 * latents * weight
    assert calibrated(source).to_json() == calibrated(Exact(contrast=0.1)).to_json()


def test_a_source_whose_profile_could_not_be_stored_is_refused_before_any_call():
    for wrong, message in (
        ({"hashes": ()}, "hashes must hold at least one"),
        ({"hashes": ("",)}, "hashes.0. must be a"),
        ({"family": "sd3"}, "family must be one"),
        ({"model_name": " "}, "model must"),
    ):
        source = Exact()
        vars(source).update(wrong)
        with pytest.raises(StoreError, match=message):
            CalibrationJob(config_of(), source)
        assert source.calls == 0
    source = Exact()
    source.model_name, source.hashes = "caf\udce9", ["feedbeef"]
    assert calibrated(source, steps="5").model == "caf?"


# ---- sharing the model, and time -------------------------------------------------------------------------------------


def test_the_model_is_used_exclusively_and_waiting_is_not_timed(monkeypatch):
    clock, inside = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)

    def turn(work):
        assert not inside, "it is used twice at a time"
        clock.now += 1000  # a picture of another user
        inside.append(1)
        try:
            return work()
        finally:
            inside.clear()

    source = Exact(contrast=0.1)

    def in_turn(own):
        def checked(*args, **named):
            assert inside
            return own(*args, **named)

        return checked

    source.before = in_turn(lambda calls: setattr(clock, "now", clock.now + COUNT))
    for name in ("start", "decode", "denoiser"):
        setattr(source, name, in_turn(getattr(source, name)))
    job = CalibrationJob(config_of(steps="5"), source, exclusively=turn)
    profile = job.run()
    assert job.progress.seconds == job.progress.calls > 0 and len(profile.joint) == 1
    assert profile == calibrated(Exact(contrast=0.1), steps="5")


def test_progress_counts_calls_and_bounds_the_time_left(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    seen = []

    def before(calls):
        clock.now += 0.5
        progress = job.progress
        assert progress.calls == calls
        seen.append((calls, progress.of, progress.seconds_left, progress.cell))

    source = Exact(before=before)
    job = CalibrationJob(config_of(steps="5 6", cfg_scales="3 7"), source)
    assert job.progress == Progress(of=config_of(steps="5 6", cfg_scales="3 7").most_calls())
    job.run()
    progress = job.progress
    assert progress.calls == progress.of == source.calls and progress.seconds_left == 0 and progress.cell is None
    assert seen[0][:3] == (0, config_of(steps="5 6", cfg_scales="3 7").most_calls(), None)
    for calls, of, left, _ in seen[1:]:
        # half a second for the three pictures of one guidance scale
        assert source.calls <= of and left == pytest.approx((of - calls) * 0.5 / 3)
    assert [of for _, of, *_ in seen] == sorted((of for _, of, *_ in seen), reverse=True)
    fits = [((3.0, 7.0), 5), ((3.0, 7.0), 6)]
    comparisons = [((each.cfg_scale,), each.steps) for each in job.profile.compared]
    assert len(comparisons) in (3, 4), "each where the fit is used"
    assert list(dict.fromkeys(cell for *_, cell in seen)) == [*fits, *comparisons]
    assert len(progress.log) == 3 + len(comparisons) and progress.log[0].startswith(
        "the decoder tolerates no residual noise"
    )
    assert all(re.match(r"[56] steps: held-out errors CFG 3 .*, CFG 7 ", line) for line in progress.log[1:3])
    assert all(re.match(r"[56] steps at CFG [37]: (Auto|calibrated) draws the best", line) for line in progress.log[3:])


def test_seconds_left_is_never_below_zero():
    assert Progress(calls=0, of=10).seconds_left is None
    assert Progress(calls=5, of=10, seconds=10.0).seconds_left == 10
    assert Progress(calls=11, of=10, seconds=10.0).seconds_left == 0


# ---- stopped and resumed ---------------------------------------------------------------------------------------------

CELLS = {"steps": "5 6", "cfg_scales": "3 7"}


@pytest.fixture(scope="module")
def whole():
    """An uninterrupted job: (profile as text, pictures drawn, saved profiles with the number of pictures by then)."""
    source, kept = Exact(contrast=0.1), []
    profile = CalibrationJob(config_of(**CELLS), source, save=lambda each: kept.append((each, source.calls))).run()
    assert [each.steps for each in profile.joint] == [5, 6]
    return profile.to_json(), source.calls, kept


class Stop(Exception):
    """Raised by a test."""


def interrupted(at, cache, fault=None):
    """Run until that many pictures are drawn; returns the saved profiles and the source."""
    kept = []

    def before(calls):
        if calls >= at:
            if fault is not None:
                raise fault
            job.cancel()

    source = Exact(contrast=0.1, before=before)
    job = CalibrationJob(config_of(**CELLS), source, save=kept.append, cache=cache)
    with pytest.raises(Cancelled if fault is None else type(fault)):
        job.run()
    return kept, source


HALF = COUNT // 2
"""Trajectories of each guidance scale."""
REFERENCE = 60 * HALF


@pytest.mark.parametrize(
    "at", [0, 30, REFERENCE + HALF, 2 * REFERENCE + 30, 0.3, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, "last"]
)
def test_a_stopped_and_resumed_job_gives_the_same_result(at, whole, tmp_path, references):
    text, calls, kept_whole = whole
    at = calls - 2 * HALF if at == "last" else int(at * calls) // HALF * HALF if isinstance(at, float) else at
    kept, source = interrupted(at, tmp_path)
    assert source.calls in (at, at + HALF), "the running call is finished, and no other is made"
    assert kept == [each for each, after in kept_whole if after <= at]

    begun = len(references)
    resumed = Exact(contrast=0.1)
    left = Profile.from_json(kept[-1].to_json()) if kept else None
    again = CalibrationJob(config_of(**CELLS), resumed, left, cache=tmp_path)
    assert again.run().to_json() == text
    assert len(references) - begun == sum(REFERENCE * (1 + index) > source.calls for index in range(4)), (
        "finished endpoints are not computed again"
    )
    assert len(list(tmp_path.iterdir())) == 4, "the state of a finished fit is not kept"
    assert again.progress.calls == resumed.calls == again.progress.of
    # the baseline and, in a fit, a Jacobian and a few runs are all that is repeated
    repeated = source.calls + resumed.calls - calls
    assert repeated <= 20 * COUNT + (51 + 4 * 6) * COUNT + 5 * 6 * COUNT


def test_a_job_can_be_stopped_while_decoding(whole):
    source = Exact(contrast=0.1)
    own = source.decode

    def decode(latents):
        job.cancel()
        return own(latents)

    source.decode = decode
    job = CalibrationJob(config_of(**CELLS), source)
    with pytest.raises(Cancelled):
        job.run()
    assert source.decoded == [COUNT] and job.progress.cancelled


def test_a_job_that_is_stopped_while_waiting_for_the_model_makes_no_call():
    source = Exact()

    def turn(work):
        job.cancel()
        return work()

    job = CalibrationJob(config_of(), source, exclusively=turn)
    with pytest.raises(Cancelled):
        job.run()
    assert source.calls == 0 and source.requests == []


def test_an_error_of_the_model_is_raised_and_saved_cells_stay(whole, tmp_path):
    text, _, kept_whole = whole
    kept, source = interrupted(kept_whole[0][1] + 60, tmp_path, RuntimeError("CUDA out of memory"))
    assert kept == [kept_whole[0][0]] and source.calls == kept_whole[0][1] + 60
    assert CalibrationJob(config_of(**CELLS), Exact(contrast=0.1), kept[-1], cache=tmp_path).run().to_json() == text


def test_a_folder_that_cannot_be_written_stops_the_job(whole):
    def keep(profile):
        raise OSError("disk full")

    job = CalibrationJob(config_of(**CELLS), Exact(contrast=0.1), save=keep)
    with pytest.raises(OSError, match="disk full"):
        job.run()
    assert job.profile == whole[2][0][0]


@pytest.mark.parametrize(("scale", "message"), [(math.nan, "not finite"), (math.inf, "not finite"), (0.0, "but zeros")])
def test_a_model_without_finite_output_is_refused_with_a_message(scale, message, tmp_path):
    source, kept = Exact(), []
    own = source.denoiser
    source.denoiser = scaled(own, lambda: scale)
    with pytest.raises(ValueError, match=f"the model's output is .*{message}.*nothing can be calibrated to it"):
        CalibrationJob(config_of(), source, save=kept.append, cache=tmp_path).run()
    assert kept == [] and list(tmp_path.iterdir()) == []


def test_a_model_that_fails_later_keeps_the_saved_cells(whole):
    kept_whole, kept = whole[2], []
    source = Exact(contrast=0.1)
    own = source.denoiser
    after = kept_whole[0][1]
    source.denoiser = scaled(own, lambda: math.nan if source.calls >= after else 1.0)
    with pytest.raises(ValueError, match="no initial schedule stays finite"):
        CalibrationJob(config_of(**CELLS), source, save=kept.append).run()
    assert kept == [each for each, _ in kept_whole[:1]]


# ---- saved reference endpoints ---------------------------------------------------------------------------------------


class Trap:
    """Unpickling it creates a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def _object_array(path):
    held = np.empty(1, dtype=object)
    held[0] = Trap(path.parent / "mark")
    np.save(path, held, allow_pickle=True)


def _archive(path):
    endpoints = np.load(path)
    with path.open("wb") as file:
        np.savez(file, x=endpoints)


def _vast(path):
    """A header that promises more numbers than fit into memory."""
    with path.open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**13, 2)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(100))


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "text": lambda path: path.write_text("nothing of the kind"),
    "pickle": lambda path: path.write_bytes(pickle.dumps(Trap(path.parent / "mark"))),
    "objects": _object_array,
    "zip": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(50)),
    "archive": _archive,
    "vast": _vast,
    "shape": lambda path: np.save(path, np.load(path)[:-1]),
    "transposed": lambda path: np.save(path, np.load(path).T),
    "single": lambda path: np.save(path, np.load(path).astype(np.float32)),
    "whole numbers": lambda path: np.save(path, np.ones((COUNT, 2), dtype=np.int64)),
    "nan": lambda path: np.save(path, np.load(path) * np.nan),
    "zeros": lambda path: np.save(path, np.load(path) * 0),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_endpoints_are_computed_again(kind, tmp_path, references):
    wanted = CalibrationJob(config_of(steps="5"), Exact(), cache=tmp_path).run().to_json()
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(files) == len(references) == 2
    damaged = sorted(files)[1]
    DAMAGE[kind](damaged)
    assert damaged.read_bytes() != files[damaged] and not (tmp_path / "mark").exists()
    source = Exact()
    again = CalibrationJob(config_of(steps="5"), source, cache=tmp_path)
    assert again.run().to_json() == wanted
    assert len(references) == 3 and {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert again.progress.calls == again.progress.of == source.calls


def test_saved_endpoints_are_used(tmp_path, references):
    source = Exact()
    wanted = CalibrationJob(config_of(steps="5"), source, cache=tmp_path).run()
    again = Exact()
    assert CalibrationJob(config_of(steps="5"), again, cache=tmp_path).run() == wanted
    assert len(references) == 2 and again.calls == source.calls - 2 * 60 * COUNT
    CalibrationJob(config_of(steps="5"), Exact()).run()
    assert len(references) == 4, "without a folder none are saved"


def test_single_precision_endpoints_are_loaded_in_single_precision(tmp_path):
    class Single(Exact):
        def start(self, *args):
            return super().start(*args).float()

        def denoiser(self, *args):
            inner = super().denoiser(*args)
            return lambda x, sigma, **own: inner(x.double(), sigma.double(), **own).to(x)

    first = CalibrationJob(config_of(steps="5"), Single(), cache=tmp_path)
    wanted = first.run()
    second = CalibrationJob(config_of(steps="5"), Single(), cache=tmp_path)
    assert second.run() == wanted and second.progress.calls < first.progress.calls
    assert second._trajectories(0, 0).endpoints.dtype == torch.float32


def test_guidance_scales_that_nearly_agree_have_separate_endpoints(tmp_path, references):
    values = {"steps": "5", "cfg_scales": (7.0, 7.0000001)}
    CalibrationJob(config_of(**values), Exact(), cache=tmp_path).run()
    assert len(references) == len(list(tmp_path.iterdir())) == 4


# ---- the last sigma --------------------------------------------------------------------------------------------------


def test_the_decoder_curve_is_the_change_of_its_pictures():
    unit = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = float(unit.square().mean().sqrt())
    curve = decoder_curve(lambda x: 0.5 + 0.1 * x, unit * 2, unit, (0.03, 0.3))
    assert curve == ((0.03, pytest.approx(0.003 * own)), (0.3, pytest.approx(0.03 * own)))
    assert [sigma for sigma, _ in decoder_curve(lambda x: x, unit, unit)] == list(END_SIGMAS)


@pytest.mark.parametrize(("changes", "largest"), [
    ((), 0.0), ((0.01,), 0.03), ((0.021,), 0.0), ((0.01, 0.02, 0.0201), 0.06), ((0.01, 0.03, 0.01), 0.03),
    ((math.nan, 0.01), 0.0), ((0.01, math.inf), 0.03), ((0.0,) * 7, 0.45),
])  # fmt: skip
def test_the_tolerance_is_the_last_sigma_before_the_change_is_too_large(changes, largest):
    assert noise_tolerance(tuple(zip(END_SIGMAS, changes))) == largest


def low_pass(latents):
    """A decoder that loses details: averages with few levels."""
    rows = latents.unflatten(1, (4, 16, 16))[:, :3]
    return (torch.nn.functional.avg_pool2d(rows, 4) * 4).round() / 8


def sets(name="gauss1f2", cfg_scales=(3.0,), count=6):
    """Calibration and held-out sets, and a list of the sigmas of all calls."""
    problem, found, called = PROBLEMS[name](), [], []
    for seed in (1, 2):
        rows = []
        for cfg_scale in cfg_scales:
            own = problem.model(problem.labels(count), cfg_scale)
            model = lambda x, sigma, own=own, **given: (called.append(float(sigma[0])), own(x, sigma, **given))[1]  # noqa: E731
            rows.append(Trajectories.of(model, problem.noise(count, seed), TABLE, cfg_scale))
        found.append(rows)
    called.clear()
    return *found, called


def joint(name="first order", steps=5, cfg_scales=(3.0,), end=None):
    """One of the initial schedules as a joint one; ``end`` is its last point above 0."""
    rows = initial_schedules("sd1", steps, cfg_scales, TABLE)[name]
    own = parameters_of(rows[0], cfg_scales[0])
    if end is not None:
        own[steps - 2] = math.log(math.log(rows[0].sigmas[-3] / end))
    return JointSchedule(cfg_scales[0], cfg_scales[-1], rows[0].sigmas[0], rounded(own), (0.0,) * len(own))


@pytest.mark.parametrize("scales", [(3.0,), (2.0, 4.0)])
@pytest.mark.parametrize("largest", [0.03, 0.2])
@pytest.mark.parametrize(("decode", "name"), [
    (low_pass, "gauss1f2"), (lambda x: 0.5 + 0.1 * x, "gauss1f2"), (lambda x: x, "toy2d"),
], ids=["low pass", "faint", "identity"])  # fmt: skip
def test_an_end_above_zero_is_chosen_where_it_is_nearer_on_both_sets(decode, name, largest, scales):
    fit, unseen, called = sets(name, scales, 4)
    for start in (AUTO, "SGM Uniform"):
        schedule = joint(start, 4, scales)
        called.clear()
        chosen = with_best_final_sigma(schedule, fit, unseen, decode, largest)
        last_points = [schedule.at(scale).sigmas[-2] for scale in scales]
        ends = [end for end in END_SIGMAS if end <= largest and end < min(last_points)]
        runs = 0 if not ends else 1 if chosen is schedule and len(called) == 4 * len(scales) else 2
        assert len(called) == runs * 4 * len(scales)
        # the same with complete runs
        candidates = [schedule] + [replace(schedule, end=(end, factor)) for end in ends for factor in (0.0, 1.0)]

        def error(each, target):
            total = 0.0
            for one in target:
                drawn = each.at(one.cfg_scale).sample(one.model, one.noise)
                total += math.log(float((decode(drawn) - decode(one.endpoints)).norm()))
            return total

        best = min(candidates, key=lambda each: error(each, fit))
        expected = best if error(best, unseen) < error(schedule, unseen) else schedule
        assert chosen == expected and (runs == 1) == (best is schedule and bool(ends))


def end_at(schedule, end, fit):
    """The sets with endpoints that the schedule reaches with ``end`` as its last sigma."""
    other = replace(schedule, end=(end, 0.0))
    return [replace(each, endpoints=other.at(each.cfg_scale).sample(each.model, each.noise)) for each in fit]


def test_an_end_that_is_better_on_the_calibration_set_alone_is_not_used():
    fit, unseen, called = sets("toy2d")
    schedule = joint()
    for aims, wanted in (((0.1, 0.1), 0.1), ((0.1, 0.0), 0.0), ((0.0, 0.1), 0.0), ((0.0, 0.0), 0.0)):
        aimed = [end_at(schedule, end, each) for end, each in zip(aims, (fit, unseen))]
        called.clear()
        chosen = with_best_final_sigma(schedule, *aimed, lambda x: x, 0.45)
        assert chosen.end[0] == wanted and len(called) == 5 * (1 if aims[0] == 0 else 2)
        assert wanted or chosen is schedule


def test_without_a_possible_end_the_model_is_not_called():
    fit, unseen, called = sets("toy2d")

    def decode(latents):
        raise AssertionError

    for largest, last in ((0.0, None), (0.029, None), (0.45, 0.0301), (0.45, 0.02)):
        schedule = joint(end=last)
        assert with_best_final_sigma(schedule, fit, unseen, decode, largest) is schedule
    assert called == []
    near = joint(end=0.031)
    assert with_best_final_sigma(near, *[end_at(near, 0.03, each) for each in (fit, unseen)], lambda x: x, 0.03).end[0]


def test_a_candidate_whose_pictures_are_not_finite_is_never_chosen():
    fit, unseen, _ = sets("toy2d")
    schedule = joint()
    aimed = [end_at(schedule, 0.1, each) for each in (fit, unseen)]
    (ends,) = (each.endpoints for each in end_at(schedule, 0.03, fit))

    def breaks_at_one(latents):
        return latents * (math.nan if torch.allclose(latents, ends, rtol=1e-12) else 1)

    assert not breaks_at_one(ends).isfinite().any()
    assert with_best_final_sigma(schedule, *aimed, breaks_at_one, 0.45).end[0] == 0.1
    assert with_best_final_sigma(schedule, *aimed, lambda x: x * math.nan, 0.45) is schedule


def test_pictures_are_decoded_in_small_batches():
    fit, unseen, _ = sets("toy2d", count=19)
    schedule = joint()
    sizes = []

    def decode(latents):
        sizes.append(len(latents))
        return latents

    aimed = [end_at(schedule, 0.1, each) for each in (fit, unseen)]
    assert with_best_final_sigma(schedule, *aimed, decode, 0.13).end[0] == 0.1
    candidates = 1 + 2 * 4
    assert sizes == [each for part in (8, 8, 3) for each in [part] * (candidates + 1)] + [8] * 6 + [3] * 3


def test_the_last_sigma_depends_on_the_decoder():
    (plain,) = calibrated(Exact("gauss1f1"), steps="2", cfg_scales="2", runs=25).joint
    (faint,) = calibrated(Exact("gauss1f1", 0.1), steps="2", cfg_scales="2", runs=25).joint
    assert plain.schedule.end[0] == 0 < faint.schedule.end[0] and faint.measured == plain.measured
    assert replace(faint.schedule, end=(0.0, 0.0)) == plain.schedule and faint.calls == plain.calls + 2 * COUNT
