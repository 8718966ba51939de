"""The bench: the calls of its methods, its figures, and its files."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from bench import calibrate, further, grid, report, tiny
from bench.__main__ import ExactMean, main
from bench.decoder import Tolerance
from bench.exact import ExactFit, ExactScore, geometric_mean, methods
from bench.further_report import dpm_v3_section, golden_section
from bench.methods import AUTO, KARRAS, coupled, diffusers_method, peer
from bench.metrics import Estimate, Moments, bootstrap, frechet, frechet_distance, relative_rmse, share
from bench.problems import PROBLEMS, reference_endpoint, relative_error
from bench.schedules import SCHEDULES, stable_diffusion_noise
from bench.text import error_text
from tiny_model.model import TinyModel, seeded_noise
from tiny_model.networks import Classifier, TinyDiffusion
from tiny_model.pictures import answers, captioned

TABLE = stable_diffusion_noise()


class Counted:
    """The exact denoiser of a unit Gaussian, which counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, sigma, **_):
        self.calls += 1
        return x / (1 + sigma.to(x).view(-1, *[1] * (x.ndim - 1)) ** 2)


# ---- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", grid.all_methods(), ids=lambda method: method.name)
def test_a_method_makes_the_stated_number_of_calls(method):
    x = seeded_noise(range(3), (4, 3, 3))
    plans_from_5 = 0
    for nfe in (1, 2, 4, 5, 6, 7, 8, 10, 20):
        plan = method.plan(TABLE, nfe, 5.0)
        if plan is None:
            continue
        model = Counted()
        result = plan.run(model, x, range(3))
        assert model.calls == nfe == plan.nfe and torch.isfinite(result).all() and result.shape == x.shape
        plans_from_5 += nfe >= 5
    assert plans_from_5 >= 2


@pytest.mark.parametrize("method", grid.all_methods(), ids=lambda method: method.name)
def test_a_seed_gives_one_result_alone_or_in_a_batch(method):
    plan = method.plan(TABLE, 7, 5.0)
    together = plan.run(Counted(), seeded_noise([4, 5, 6], (4, 3, 3)), [4, 5, 6])
    alone = plan.run(Counted(), seeded_noise([5], (4, 3, 3)), [5])
    torch.testing.assert_close(together[1:2], alone)


def test_many_steps_of_every_ode_method_reach_the_same_endpoint():
    problem = PROBLEMS["gauss1f2"]()
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((8, problem.dims)))
    model = problem.model(problem.labels(8), 3.0)
    reference = reference_endpoint(problem, noise, 3.0, TABLE.sigma_max)
    for method in methods():
        plan = method.plan(TABLE, 121, 3.0)
        if plan is None or "SDE" in method.sampler:
            continue
        last_sigma = float(plan.sigmas[-1])
        error = relative_error(plan.run(model, noise, range(8)), reference)
        allowed = 0.03 if "Euler" not in method.sampler and "1" not in method.sampler else 0.08
        assert error < allowed + last_sigma, f"{method.name}: {error:.3f}"


def test_endings_of_one_schedule_differ_in_the_last_sigma_only():
    keep, zero = (coupled("DPM++ 2M", ending).plan(TABLE, 6, 5.0).sigmas for ending in ("keep", "zero"))
    assert torch.equal(keep[:-1], zero[:-1]) and keep[-1] > 0 == zero[-1]
    more = coupled("DPM++ 2M", "one more call").plan(TABLE, 6, 5.0).sigmas
    assert len(more) == 7 and more[-1] == 0 and torch.equal(more[:-1], coupled("DPM++ 2M").plan(TABLE, 5, 5.0).sigmas)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_fall_from_the_largest_sigma_to_their_end(name):
    for steps in (1, 2, 5, 11, 20, 50):
        sigmas = SCHEDULES[name](TABLE, steps)
        assert len(sigmas) == steps + 1 and sigmas.dtype == torch.float32
        assert float(sigmas[0]) == pytest.approx(TABLE.sigma_max, rel=1e-4)
        assert (sigmas.diff() < 0).all(), f"{steps}: {sigmas}"
        if name == "KL Optimal":
            assert float(sigmas[-1]) == pytest.approx(TABLE.sigma_min, rel=1e-3)
        else:
            assert sigmas[-1] == 0


def test_diffusers_unipc_at_equal_points_is_ours():
    plan = diffusers_method("UniPC").plan(TABLE, 8, 5.0)
    assert float(plan.sigmas[0]) == pytest.approx(TABLE.sigma_max, rel=1e-6)
    # and its end is where the equation leads: that of a unit Gaussian from noise e at sigma s is e s / sqrt(1 + s^2)
    noise = seeded_noise(range(4), (4, 3, 3))
    many = diffusers_method("UniPC").plan(TABLE, 100, 5.0).run(Counted(), noise, range(4))
    torch.testing.assert_close(
        many, noise * float(TABLE.sigma_max / (1 + TABLE.sigma_max**2) ** 0.5), atol=0.02, rtol=0.02
    )


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_frechet_distance_agrees_with_its_definition():
    rng = np.random.default_rng(0)
    a, b = (
        Moments.of(rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) + rng.standard_normal(6)) for _ in "ab"
    )
    root = sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert abs(frechet_distance(a, a)) < 1e-8


def test_standard_errors_agree_with_repeated_draws():
    rng = np.random.default_rng(1)
    drawn = [rng.standard_normal((400, 3)) for _ in range(60)]
    means = [float(rows.mean()) for rows in drawn]
    errors = [bootstrap(lambda rows: float(rows.mean()), rows).error for rows in drawn]
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.25)
    half = share(np.array([True, False] * 50))
    assert half.value == 0.5 and half.error == pytest.approx(0.05)
    distances = frechet(rng.standard_normal((800, 3)), Moments(np.zeros(3), np.eye(3)))
    assert 0 < distances.value < 0.05 and 0 < distances.error < 0.02


def test_relative_errors_and_their_geometric_mean():
    assert relative_rmse(np.full(10, 0.04), np.full(10, 4.0)).value == pytest.approx(0.1)
    scores = [
        ExactScore(name, "s", "", "zero", 5, 3.0, Estimate(value, value / 10))
        for name, value in (("a", 0.1), ("b", 0.4))
    ]
    mean = geometric_mean(scores)
    assert mean.value == pytest.approx(0.2) and mean.error == pytest.approx(0.2 * 0.1 * 2**0.5 / 2)


# ---- cells and files -------------------------------------------------------------------------------------------------


def test_every_cell_has_its_own_name_and_the_deciding_ones_have_the_samples():
    for full in (False, True):
        chosen = grid.cells(grid.Selection(full=full))
        names = [(cell.key, cell.cfg_scale) for cell in chosen]
        assert len(set(names)) == len(names)
    deciding = [cell for cell in grid.cells(grid.Selection()) if cell.cfg_scale > 1 and cell.nfe in grid.DECIDING_NFE]
    assert all(
        cell.samples == grid.MANY >= 2000
        for cell in deciding
        if cell.method.name in {method.name for method in grid.candidates()}
    )
    whole = {(cell.method.name, cell.nfe, cell.cfg_scale) for cell in grid.cells(grid.Selection(full=True))}
    assert {(cell.method.name, cell.nfe, cell.cfg_scale) for cell in grid.cells(grid.Selection())} <= whole
    assert len(whole) == len(grid.all_methods()) * len(grid.NFE) * len(grid.CFG_SCALES)


@pytest.fixture
def random_model():
    torch.manual_seed(0)
    model = TinyModel(TinyDiffusion(), Classifier(answers()), torch.device("cpu"))
    for weight in model.diffusion.unet.parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.02)
    return model


def test_cached_calls_change_nothing_and_save_calls(random_model):
    prompts, noise, seeds = [picture.caption() for picture in captioned(2)], seeded_noise([1, 2]), [1, 2]
    memory, calls = {}, []
    for method in (coupled("DPM++ 2M"), coupled("DPM++ 2M", "zero"), coupled("DPM++ 2M", freeu="late"), KARRAS):
        plan = method.plan(random_model.noise, 6, 3.0)
        plain = plan.run(random_model.denoiser(prompts, 3.0, freeu=plan.freeu), noise, seeds)
        denoiser = random_model.denoiser(prompts, 3.0, freeu=plan.freeu, on_call=partial(calls.append, method.name))
        cached = tiny.CachedDenoiser(denoiser, memory)
        assert torch.equal(plan.run(cached, noise, seeds), plain), method.name
        assert cached.calls == 6
    counts = [calls.count(name) for name in dict.fromkeys(calls)]
    # the second differs only in its last step; Free-U starts at the fifth call; Karras shares the first call
    assert counts == [6, 2, 5]


class InPlace:
    """An executor that runs jobs immediately in this process."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, job, *args):
        future = Future()
        future.set_result(job(*args))
        return future


def test_a_run_continues_where_it_stopped(tmp_path, monkeypatch, random_model):
    for module in (grid, tiny):
        monkeypatch.setattr(module, "BATCH", 4)
        monkeypatch.setattr(module, "COMMON", 4)
    monkeypatch.setattr(tiny, "load", lambda *_: random_model)
    monkeypatch.setattr("bench.runs.REFERENCE_STEPS", 12)
    chosen = [grid.Cell(AUTO, 5, 5.0, 8), grid.Cell(coupled("DPM++ 2M", freeu="late"), 5, 5.0, 4)]
    monkeypatch.setattr(tiny, "cells", lambda selection: chosen)
    for batch in range(2):
        tiny.draw_job(grid.Selection(), 5.0, batch, tmp_path / f"cfg5-{batch:02d}.npz", tmp_path, "cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cfg5-00.npz", "cfg5-01.npz"]
    done = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    tiny.measure(grid.Selection(), tmp_path, tmp_path, "cpu", 1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == done, "everything was done already"
    (tmp_path / "cfg5-01.npz").unlink()
    monkeypatch.setattr(tiny, "processes", InPlace)
    tiny.measure(grid.Selection(), tmp_path, tmp_path, "cpu", 1)
    assert set(tmp_path.iterdir()) == set(done)
    real = tiny.Reference(Moments(np.zeros(64), np.eye(64)), Moments(np.zeros(192), np.eye(192)))
    rows = tiny.scores(chosen, tmp_path, real)
    assert [(row.sampler, row.freeu, row.samples) for row in rows] == [
        ("HP Auto", "as coupled", 4), ("HP Auto", "as coupled", 8), ("DPM++ 2M", "late", 4),
    ]  # fmt: skip
    assert all(0 <= row.accuracy.value <= 1 and row.distance.value > 0 and row.frechet.value > 0 for row in rows)


def test_the_page_is_written_from_the_tables(tmp_path):
    estimate = Estimate(0.25, 0.01)
    folder = tmp_path / "bench"
    folder.mkdir()
    row = tiny.Score("HP Auto", "", "as coupled", "as coupled", 5, 3.0, 2000, *[estimate] * 5)
    worse = dataclasses.replace(row, sampler="DPM++ 2M", schedule="Karras", ending="zero", frechet=Estimate(0.9, 0.01))
    common = [dataclasses.replace(score, samples=500) for score in (row, worse)]
    rows = [row, worse, dataclasses.replace(row, nfe=6), dataclasses.replace(worse, nfe=6), *common]
    report.write_csv(folder / "tiny.csv", rows)
    report.write_csv(folder / "exact.csv", [ExactMean("HP Auto", "", "as coupled", 5, 3.0, estimate)])
    report.write_csv(folder / "decoder.csv", [Tolerance(s, 9, s, s, estimate, estimate, estimate) for s in (0.0, 0.5)])
    (tmp_path / "losses.csv").write_text("stage,step,loss\nvae,1,0.5\nvae,2,0.25\n")
    read = report.read_csv(folder / "tiny.csv")
    assert read[0]["frechet"] == "0.25" and read[0]["frechet_se"] == "0.01" and len(read) == 6
    main(["report", "--docs", str(tmp_path), "--weights", str(tmp_path)])
    page = (tmp_path / "bench.md").read_text()
    assert "**0.25 (0.01)** / **.250 (.010)**" in page and "| 0.9 (0.01) / **.250" in page
    assert "make bench" in page and {path.name for path in (tmp_path / "images").iterdir()} == {
        "bench_tiny.webp", "bench_exact.webp", "bench_decoder.webp", "tiny_losses.webp",
    }  # fmt: skip
    other = dataclasses.replace(row, cfg_scale=7.0, frechet=Estimate(0.5, 0.01))
    report.write_csv(folder / "tiny.csv", [dataclasses.replace(row, frechet=Estimate(0.125, 0.01)), other], merge=True)
    merged = report.read_csv(folder / "tiny.csv")
    assert [line["frechet"] for line in merged] == ["0.125", *(line["frechet"] for line in read[1:]), "0.5"]
    for fit in (ExactFit("lowrank", 5, 3.0, "Karras", 59.0), ExactFit("lowrank", 5, 3.0, "", 200.0)):
        report.write_csv(folder / "fits.csv", [fit], merge=(folder / "fits.csv").exists())
    assert [line["runs"] for line in report.read_csv(folder / "fits.csv")] == ["200"], "of one cell there is one line"
    report.write_csv(folder / "tiny.csv", rows)
    again = (tmp_path / "images" / "bench_exact.webp").read_bytes()
    main(["report", "--docs", str(tmp_path), "--weights", str(tmp_path)])
    assert (tmp_path / "images" / "bench_exact.webp").read_bytes() == again


def test_dpm_v3_and_golden_noise_are_measured_on_both_testbeds(tmp_path, monkeypatch, random_model):
    for name, value in (("BATCH", 2), ("COMMON_SAMPLES", 4), ("MANY", 6), ("STEPS", (5,)), ("CFG_SCALES", (5.0,))):
        monkeypatch.setattr(further, name, value)
    monkeypatch.setattr(further, "processes", InPlace)
    monkeypatch.setattr(further, "PROBLEMS", {"gauss1f2": PROBLEMS["gauss1f2"]})
    monkeypatch.setattr(further.exact, "TRAJECTORIES", {"gauss1f2": 24})
    small = partial(further.StatisticsConfig, samples=8, points=31)
    monkeypatch.setattr(further, "StatisticsConfig", small)
    monkeypatch.setattr(calibrate, "StatisticsConfig", small)
    monkeypatch.setattr(calibrate, "weights_hash", lambda _: "0" * 64)
    monkeypatch.setattr("bench.runs.REFERENCE_STEPS", 12)
    monkeypatch.setattr(further.TinyModel, "load", classmethod(lambda cls, *_: random_model))
    real = tiny.Reference(Moments(np.zeros(64), np.eye(64)), Moments(np.zeros(192), np.eye(192)))
    rows = further.measure_further(real, tmp_path, "cpu", 1)
    common, many = ([row for row in rows if row.samples == samples] for samples in (4, 6))
    assert [(row.method, row.nfe) for row in common] == [
        ("Auto", 5), *((name, 5) for name in further.V3), *((name, 7) for name in further.GOLDEN), (further.MORE, 7),
        (further.BASELINE, 20),
    ]  # fmt: skip
    assert [row.method for row in many] == list(further.DECIDING) and len(common) + len(many) == len(rows)
    assert len({row.distance.value for row in common}) == len(common), "every trial samples differently"
    exact = further.measure_exact_v3(1)
    errors = {row.sampler: row.error.value for row in exact}
    assert list(errors) == ["Auto", *further.V3]
    assert errors["DPM-v3 of order 2"] < 0.9 * errors["DPM-v3 without statistics"], "statistics must help"
    report.write_csv(tmp_path / "further.csv", rows)
    report.write_csv(tmp_path / "exact_dpm_v3.csv", exact)
    read = [report.read_csv(tmp_path / name) for name in ("further.csv", "exact_dpm_v3.csv")]
    page = "\n".join([*dpm_v3_section(*read), *golden_section(read[0])])
    assert f"*{error_text(errors['Auto'])}*" in page
    assert page.count("| 5 | ") == len(rows) + 1, "Auto is in both tables of the common samples"
    assert page.count("20 steps, for scale") == 2


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["tiney"])
    assert "exact, decoder, calibrate, tiny, texture, reach, further, report; got tiney" in capsys.readouterr().err
    assert peer("Heun", "Karras").plan(TABLE, 6, 1.0) is None


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes where Linux lists them")
def test_workers_end_with_their_parent_however_it_ends():
    code = """
import os, time
from bench.pool import processes

pool = processes(1)
print(pool.submit(os.getpid).result(), flush=True)
pool.submit(time.sleep, 3600).result()
"""
    started = [sys.executable, "-c", code]
    parent = subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert _lives(worker)
    finally:
        parent.kill()
        parent.wait()
    until = time.monotonic() + 120
    while _lives(worker):
        assert time.monotonic() < until, "the worker still computes for nobody"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for by its new parent has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False
