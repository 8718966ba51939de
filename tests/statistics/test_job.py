"""Jobs that measure statistics: their config and cost, stopping and resuming, renaming, deleting, and converting."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from hpsampler.jobs import Cancelled
from hpsampler.noise import NoiseModel
from hpsampler.statistics import cli as measure
from hpsampler.statistics.coefficients import Statistics
from hpsampler.statistics.config import StatisticsConfig
from hpsampler.statistics.estimator import Estimator
from hpsampler.statistics.files import best_for, load_published, load_statistics, save_statistics, statistics_files
from hpsampler.statistics.job import SUMS_FILE, StatisticsJob, StatisticsRunner
from hpsampler.store import StoreError

TABLE = NoiseModel.of_stable_diffusion()
ARRAYS = ("lambdas", "l", "s", "b")


class Gaussian:
    """A source of Gaussian latents whose mean is the number in the prompt times the guidance scale / 10.

    Args:
        before: called before every call of the model, with the number of pictures drawn so far.
    """

    model_name, hashes, family, noise = "gaussian", ("feedbeef",), "sd1", TABLE

    def __init__(self, before=lambda calls: None):
        self.before, self.calls, self.requests, self.seeds = before, 0, [], []

    def denoiser(self, prompts, negative, cfg_scale):
        self.requests.append((list(prompts), negative, cfg_scale))
        mean = cfg_scale * torch.tensor([float(prompt.split()[-1]) for prompt in prompts]).reshape(-1, 1, 1, 1) / 10

        def model(x, sigma, **_):
            self.before(self.calls)
            self.calls += len(x)
            share = 1 / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)
            return x * share + mean * (1 - share)

        return model

    def start(self, seeds, width, height):
        self.seeds += list(seeds)
        rows = [np.random.default_rng(seed).standard_normal((4, height // 8, width // 8)) for seed in seeds]
        return torch.from_numpy(np.stack(rows))


def config_of(**values):
    prompts = [f"number {index}" for index in range(5)]
    common = {"name": "mine", "cfg_scale": 3.0, "samples": 8, "points": 21, "width": 64, "height": 64, "batch": 3}
    return StatisticsConfig.of({**common, "prompts": prompts, **values})


def same(one, other):
    return one.source == other.source and all(np.array_equal(getattr(one, n), getattr(other, n)) for n in ARRAYS)


def stop_at(calls):
    def before(calls_so_far):
        if calls_so_far >= calls:
            raise Cancelled

    return before


# ---- a job -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cfg_scale": 0.5}, "cfg_scale must be a number from 1 to 30, got 0.5"),
        ({"cfg_scale": "much"}, "cfg_scale must be a number from 1 to 30, got 'much'"),
        ({"low_cfg_scale": 0.5}, "low_cfg_scale must be a number from 1 to 30, got 0.5"),
        ({"low_cfg_scale": 3}, "low_cfg_scale must be below cfg_scale, 3, got 3"),
        ({"samples": 1}, "samples must be a whole number from 2 to 100000, got 1"),
        ({"points": 20}, "points must be a whole number from 21 to 1001, got 20"),
        ({"per_pixel": 1}, "per_pixel must be true or false, got 1"),
        ({"width": 60}, "width must be a whole number from 64"),
        ({"height": 68}, "height must be a multiple of 8, got 68"),
        ({"prompts": []}, "prompts must be 1 to"),
        ({"negative": None}, "negative must be a text, got None"),
        ({"name": "Off"}, "name must be one that has no other meaning here, got 'Off'"),
        ({"name": "../up"}, "name must be 1 to 60 letters"),
        ({"steps": 5}, "unknown field 'steps'; the fields are batch, cfg_scale"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(values, words):
    with pytest.raises(StoreError, match=words):
        config_of(**values)
    with pytest.raises(StoreError, match="name is missing"):
        StatisticsConfig.of({})


def test_it_costs_two_calls_for_every_sample_and_point():
    source, config = Gaussian(), config_of()
    job = StatisticsJob(config, source)
    assert job.progress.of == config.most_calls() == 8 * 21 * 2
    job.run()
    assert source.calls == job.progress.calls == config.most_calls() and job.progress.seconds_left == 0
    assert StatisticsConfig("x").most_calls() == 64 * 51 * 2 == 6528


def test_a_low_guidance_scale_gets_statistics_of_its_own():
    """They are those of a job of that scale alone, and cost as much."""
    config, source = config_of(cfg_scale=5, low_cfg_scale=3), Gaussian()
    job = StatisticsJob(config, source)
    assert job.progress.of == config.most_calls() == 2 * config_of().most_calls()
    made = job.run()
    assert source.calls == job.progress.calls == config.most_calls() and job.progress.seconds_left == 0
    assert same(made, StatisticsJob(config_of(cfg_scale=5), Gaussian()).run()) and same(job.at(5.0), made)
    assert same(job.at(3.0), StatisticsJob(config_of(cfg_scale=3), Gaussian()).run()) and not same(job.at(3.0), made)


@pytest.mark.parametrize("calls", [200, 500])
def test_both_scales_go_on_where_they_were(calls, tmp_path):
    config = config_of(cfg_scale=5, low_cfg_scale=3)
    whole = StatisticsJob(config, Gaussian())
    whole.run()
    with pytest.raises(Cancelled):
        StatisticsJob(config, Gaussian(stop_at(calls)), tmp_path).run()
    source = Gaussian()
    rest = StatisticsJob(config, source, tmp_path)
    rest.run()
    assert all(same(rest.at(scale), whole.at(scale)) for scale in config.cfg_scales)
    # at most a batch of three pictures is walked again
    assert config.most_calls() - calls <= source.calls <= config.most_calls() - calls + 3 * 21 * 2
    assert rest.progress.calls == source.calls and rest.progress.seconds_left == 0


def test_what_the_low_ones_are_called():
    config = config_of(cfg_scale=5, low_cfg_scale=2.5)
    assert [config.name_at(scale) for scale in config.cfg_scales] == ["mine", "mine CFG 2.5"]
    long = config_of(cfg_scale=5, low_cfg_scale=2.5, name="n" * 60)
    assert len(long.name_at(2.5)) == 60 and long.name_at(2.5).endswith(" CFG 2.5")


@pytest.mark.parametrize("per_pixel", [False, True])
def test_it_measures_as_the_estimator_on_the_whole_table_and_records_the_source(per_pixel):
    source = Gaussian()
    statistics = StatisticsJob(config_of(per_pixel=per_pixel, batch=8), source).run()
    grid = np.linspace(-np.log(TABLE.sigma_max), -np.log(TABLE.sigma_min), 21)
    direct = Estimator(grid, (4, 8, 8) if per_pixel else (4, 1, 1), statistics.source, seed=1)
    other = Gaussian()
    prompts = [f"number {index % 5}" for index in range(8)]
    direct.add(other.denoiser(prompts, "", 3.0), other.start(range(1, 9), 64, 64) * direct.sigmas[0])
    assert same(statistics, direct.statistics())
    provenance = statistics.source
    assert (provenance.model_hash, provenance.model_name) == ("feedbeef", "gaussian")
    assert (provenance.cfg_scale, provenance.samples) == (3.0, 8)
    assert (provenance.height, provenance.width, statistics.size) == (8, 8, (8, 8) if per_pixel else None)
    assert source.requests == [(prompts, "", 3.0)] and source.seeds == list(range(1, 9))


def test_stopped_and_resumed_it_gives_identical_statistics(tmp_path):
    whole = StatisticsJob(config_of(), Gaussian()).run()
    for calls in (0, 40, 190, 330):
        folder = tmp_path / str(calls)
        folder.mkdir()
        with pytest.raises(Cancelled):
            StatisticsJob(config_of(), Gaussian(stop_at(calls)), folder).run()
        source = Gaussian()
        rest = StatisticsJob(config_of(), source, folder)
        # a batch of three takes 126 calls; at most one batch is sampled again
        done = calls // 126 * 3
        assert rest.progress.of == (8 - done) * 42
        assert same(rest.run(), whole) and source.calls == rest.progress.of


def test_a_model_of_another_hash_cannot_resume_it(tmp_path):
    with pytest.raises(Cancelled):
        StatisticsJob(config_of(), Gaussian(stop_at(200)), tmp_path).run()
    other = Gaussian()
    other.hashes, other.model_name = ("0ther",), "another"
    with pytest.raises(StoreError, match="begun with the model gaussian, and another is loaded now"):
        StatisticsJob(config_of(), other, tmp_path)
    assert other.calls == 0


@pytest.mark.parametrize("spoil", [lambda data: data[:100], lambda data: b"", lambda data: b"\x80\x04." + data])
def test_sums_that_cannot_be_read_are_measured_anew(tmp_path, spoil):
    whole = StatisticsJob(config_of(), Gaussian(), tmp_path).run()
    path = tmp_path / SUMS_FILE
    path.write_bytes(spoil(path.read_bytes()))
    source = Gaussian()
    assert same(StatisticsJob(config_of(), source, tmp_path).run(), whole) and source.calls == config_of().most_calls()


def test_a_model_that_is_not_finite_is_refused():
    source = Gaussian()
    inner = source.denoiser
    source.denoiser = lambda *args: lambda x, sigma: inner(*args)(x, sigma) * torch.nan
    with pytest.raises(StoreError, match="the model's output must be finite"):
        StatisticsJob(config_of(), source).run()


# ---- the runner ------------------------------------------------------------------------------------------------------


def ended(runner, state):
    assert runner.wait(900) and runner.status().state == state, runner.status().message
    return runner.status()


def test_results_are_found_by_the_model_that_was_measured(tmp_path):
    runner = StatisticsRunner(tmp_path, lambda config: Gaussian())
    assert runner.start(config_of()).name == "mine"
    assert ended(runner, "finished").message == "mine is ready: 8 pictures' trajectories, 21 grid points."
    assert same(load_statistics(tmp_path / "mine.safetensors"), StatisticsJob(config_of(), Gaussian()).run())
    assert runner.names() == ["mine"] and runner.unfinished() == []
    source, shape = runner.read_provenance("mine")
    assert source.model_name == "gaussian" and shape == (21, 4, 1, 1)
    runner.start(config_of(cfg_scale=7.0))
    ended(runner, "finished")
    assert runner.names() == ["mine", "mine 2"]
    for cfg_scale, name in ((4.0, "mine"), (7.5, "mine 2")):
        (label, statistics), problems = best_for(tmp_path, ["feedbeef"], cfg_scale, TABLE)
        assert label.startswith(f"{name} ") and statistics.source.cfg_scale == (3.0 if name == "mine" else 7.0)
        assert problems == []
    assert best_for(tmp_path, ["0ther"], 4.0, TABLE) == (None, [])


def test_each_guidance_scale_has_a_result(tmp_path):
    runner = StatisticsRunner(tmp_path, lambda config: Gaussian())
    runner.start(config_of(cfg_scale=5, low_cfg_scale=3))
    told = ended(runner, "finished").message
    assert told.count("8 pictures' trajectories, 21 grid points") == 2 and told.endswith("kept as mine CFG 3.")
    assert runner.names() == ["mine", "mine CFG 3"] and runner.unfinished() == []
    for cfg_scale, name in ((3.5, "mine CFG 3"), (4.5, "mine"), (10.0, "mine")):
        assert best_for(tmp_path, ["feedbeef"], cfg_scale, TABLE)[0][0].rpartition(" ")[0] == name


def test_results_are_renamed_and_deleted(tmp_path):
    runner = StatisticsRunner(tmp_path, lambda config: Gaussian())
    for _ in range(2):
        runner.start(config_of())
        ended(runner, "finished")
    assert runner.rename("mine", "new one") == "new one" and set(runner.names()) == {"new one", "mine 2"}
    for name, words in (("mine 2", "there are statistics named 'mine 2' already"), ("Auto", "no other meaning")):
        with pytest.raises(StoreError, match=words):
            runner.rename("new one", name)
    runner.delete("new one")
    for action in (
        lambda: runner.delete("new one"),
        lambda: runner.rename("new one", "x"),
        lambda: runner.read_provenance("new one"),
    ):
        with pytest.raises(StoreError, match="there are no statistics named 'new one'; there are: mine 2"):
            action()
    published = tmp_path / "7.5_10_1024"
    published.mkdir()
    (published / "sb.npz").write_bytes(b"")
    assert runner.read_provenance(published.name)[0].cfg_scale == 7.5
    with pytest.raises(StoreError, match="delete it where it lies"):
        runner.delete(published.name)
    assert runner.rename(published.name, "theirs") == "theirs" and set(runner.names()) == {"mine 2", "theirs"}


def test_stopped_in_one_process_and_resumed_in_another(tmp_path):
    reached, go_on = threading.Event(), threading.Event()

    def before(calls):
        if calls >= 100:
            reached.set()
            assert go_on.wait(900)

    runner = StatisticsRunner(tmp_path, lambda config: Gaussian(before))
    runner.start(config_of())
    assert reached.wait(900)
    runner.stop()
    go_on.set()
    assert "can be resumed" in ended(runner, "stopped").message and runner.names() == []
    later = StatisticsRunner(tmp_path, lambda config: Gaussian())
    assert [job.name for job in later.unfinished()] == ["mine"]
    assert later.resume("mine") == config_of()
    ended(later, "finished")
    assert same(load_statistics(tmp_path / "mine.safetensors"), StatisticsJob(config_of(), Gaussian()).run())
    assert later.unfinished() == []


# ---- the command line's files ----------------------------------------------------------------------------------------


def test_a_published_folder_becomes_a_file_of_ours_and_back(tmp_path, capsys):
    rng = np.random.default_rng(0)
    l, s, b = (rng.standard_normal((11, 4, 8, 8)).astype(np.float32) for _ in range(3))  # noqa: E741
    folder = tmp_path / "7.5_10_1024"
    folder.mkdir()
    np.savez(folder / "l.npz", l=l)
    np.savez(folder / "sb.npz", s=s, b=b)
    file = tmp_path / "sd15.safetensors"
    measure.main(["convert", str(folder), str(file), "--model-hash", "cc6cb27103", "--model-name", "v1-5"])
    assert "11 grid points, shape (4, 8, 8)" in capsys.readouterr().out
    source = load_statistics(file).source
    assert (source.model_hash, source.cfg_scale, source.samples) == ("cc6cb27103", 7.5, 1024)
    measure.main(["publish", str(file), str(tmp_path / "back")])
    back = load_published(tmp_path / "back", TABLE)
    assert np.array_equal(back.l, l) and np.array_equal(back.s, s) and np.array_equal(back.b, b)
    assert np.allclose(back.lambdas, load_statistics(file).lambdas) and statistics_files(tmp_path).keys() == {
        "sd15",
        "7.5_10_1024",
        "back",
    }


def test_what_cannot_be_converted_is_reported_in_a_sentence(tmp_path):
    file = tmp_path / "odd.safetensors"
    ones = np.ones(3)
    save_statistics(Statistics(np.array([0.0, 1.0, 5.0]), ones, ones, ones), file)
    for line, words in (
        (["convert", tmp_path / "none", tmp_path / "x.safetensors", "--model-hash", "a"], "there is no such file"),
        (["convert", tmp_path, tmp_path / "x.npz", "--model-hash", "a"], "must end in .safetensors, got 'x.npz'"),
        (["publish", tmp_path / "none.safetensors", tmp_path / "x"], "there is no such file"),
        (["publish", file, tmp_path / "x"], "odd.safetensors: its grid must be uniform in lambda"),
    ):
        with pytest.raises(SystemExit, match=words):
            measure.main([str(part) for part in line])
    assert not (tmp_path / "x").exists()
