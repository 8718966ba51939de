"""The tiny model's calibration: its source, its held-out captions and seeds, its reach, and its report."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from bench import calibrate, exact, grid, reach, tiny
from bench import calibrated as module
from bench.calibrated import (
    AFTER,
    NAME,
    TinySource,
    after_calibrate,
    calibrated,
    config_of,
    made_for,
    profile_of,
    statistics_of,
    weights_hash,
)
from bench.calibrated_report import exact_section, reach_section, side_by_side, tiny_section
from bench.problems import PROBLEMS, reference_endpoint, relative_error
from bench.report import read_csv, write_csv
from bench.runs import SHOWN
from bench.schedules import stable_diffusion_noise
from demo import draw
from hpsampler.calibration.choice import Comparison, Figures
from hpsampler.calibration.fit import CalibrationRefused
from hpsampler.calibration.profile import Fitted, Joint, Profile, Refused
from hpsampler.calibration.trajectories import MultistepSchedule
from hpsampler.guidance import STATISTICS_SHARE, effective_guidance
from hpsampler.recipes import recipe_for
from hpsampler.solvers import sample_dpm_v3
from hpsampler.statistics.coefficients import Provenance, Statistics
from hpsampler.statistics.files import save_statistics
from tests.bench.test_bench import Counted, InPlace
from tests.calibration.test_joint import joint
from texture_model.model import TEXTURE
from tiny_model.model import TinyModel, seeded_noise
from tiny_model.networks import Classifier, TinyDiffusion
from tiny_model.pictures import answers, captioned

TABLE = stable_diffusion_noise()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = TinyModel(TinyDiffusion(), Classifier(answers()), torch.device("cpu"))
    for weight in model.diffusion.unet.parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.02)
    return model


def fitted(steps, cfg_scale, first=5.0, factor=1.2):
    sigmas = (TABLE.sigma_max, *np.geomspace(first, 0.1, steps - 1).tolist(), 0.0)
    held_out = {"Auto": 0.4, "calibrated": 0.2}
    return Fitted(steps, cfg_scale, sigmas, (0.0, *[factor] * (steps - 1)), "Auto", held_out, 0.03, 48 * 50 * steps)


def profile_with(*schedules, hashes=("abc",), refused=()):
    kinds = {kind: tuple(each for each in schedules if isinstance(each, kind)) for kind in (Fitted, Joint)}
    return Profile(
        "tiny model", "the tiny model", hashes, "sd1", 96, 96, TABLE.sigma_min, TABLE.sigma_max, 48, 48, 1,
        fitted=kinds[Fitted], joint=kinds[Joint], refused=refused,
    )  # fmt: skip


class Guided(Counted):
    """Another answer for every guidance scale; without one it is that of ``cfg_scale``."""

    def __init__(self, cfg_scale):
        super().__init__()
        self.cfg_scale, self.scales = cfg_scale, []

    def __call__(self, x, sigma, cond_scale=None, **own):
        scale = self.cfg_scale if cond_scale is None else cond_scale
        self.scales.append(scale)
        return super().__call__(x, sigma, **own) * (1 + scale / 100)


@pytest.fixture
def gaussian(model, monkeypatch):
    """Instead of the network a denoiser that costs nothing."""
    monkeypatch.setattr(TinyModel, "load", classmethod(lambda cls, *_: model))
    monkeypatch.setattr(TinySource, "denoiser", lambda self, prompts, negative, cfg_scale: Counted())
    monkeypatch.setattr(TinySource, "decode", lambda self, latents: latents[:, :3])


# ---- the source and the profile --------------------------------------------------------------------------------------


def test_the_source_is_the_model_in_batches(model):
    calls = []
    source = TinySource(model, "abc", batch=2, on_call=calls.append)
    prompts = [picture.caption() for picture in SHOWN[:3]]
    x, sigma = source.start([5, 6, 7], 96, 96) * 9, torch.full((3,), 9.0)
    whole = model.denoiser(prompts, 4.0, "a red heart")(x, sigma)
    torch.testing.assert_close(source.denoiser(prompts, "a red heart", 4.0)(x, sigma), whole, rtol=1e-4, atol=1e-4)
    assert calls == [2, 1]
    assert not torch.allclose(source.denoiser(prompts, "", 4.0)(x, sigma), whole, rtol=1e-3, atol=1e-3)
    assert torch.equal(x, seeded_noise([5, 6, 7]) * 9) and source.start([5], 128, 64).shape == (1, 4, 8, 16)
    assert source.decode(x).shape == (3, 3, 96, 96) and source.hashes == ("abc",) and source.noise is model.noise


def test_captions_and_seeds_differ_from_those_of_the_bench():
    config = config_of([5, 8], [3.0], 48, 60)
    drawn = {picture.caption() for picture in [*captioned(grid.MANY), *SHOWN]}
    assert len(set(config.prompts)) == 96 and not drawn & set(config.prompts)
    assert (
        config.seed > tiny.FIRST_SEED + grid.MANY and config.trajectories == 48 and config.width == config.height == 96
    )
    assert module.BENCH_CAPTIONS == grid.MANY


def test_the_second_model_has_captions_of_its_own():
    config = config_of([5], [3.0], 8, 60, TEXTURE)
    drawn = {picture.caption() for picture in TEXTURE.pictures.captioned(grid.MANY)}
    assert len(set(config.prompts)) == 16 and not drawn & set(config.prompts)
    assert not set(config.prompts) & set(config_of([5], [3.0], 8, 60).prompts)
    assert (config.width, config.height, config.name) == (TEXTURE.pictures.side, TEXTURE.pictures.side, "texture model")


def test_a_profile_is_for_the_weights_it_was_made_for(tmp_path):
    path = tmp_path / "calibration.json"
    (tmp_path / "unet.safetensors").write_bytes(b"one")
    assert not made_for(path, tmp_path)
    path.write_text(profile_with(hashes=(weights_hash(tmp_path),)).to_json())
    assert made_for(path, tmp_path) and profile_of(path).hashes == (weights_hash(tmp_path),)
    (tmp_path / "unet.safetensors").write_bytes(b"another")
    assert not made_for(path, tmp_path)


def test_the_method_samples_with_the_schedule_of_the_profile():
    own = fitted(5, 3.0)
    method = calibrated(profile_with(own, fitted(6, 3.0)))
    plan = method.plan(TABLE, 5, 3.0)
    x = seeded_noise(range(3), (4, 3, 3))
    model = Counted()
    result = plan.run(model, x, range(3))
    assert model.calls == plan.nfe == 5 and method.name == NAME
    torch.testing.assert_close(result, MultistepSchedule(own.sigmas, own.factors).sample(Counted(), x))
    other = calibrated(profile_with(fitted(5, 3.0, factor=0.8))).plan(TABLE, 5, 3.0)
    assert not torch.allclose(other.run(Counted(), x, range(3)), result, rtol=1e-3)
    assert method.plan(TABLE, 7, 3.0) is None and method.plan(TABLE, 5, 5.0) is None


def compared(nfe, cfg_scale, **pictures):
    """A comparison in which each way has these figures for its pictures, and none is nearer than another."""
    names = {"auto": "Auto", "fitted": "calibrated", "first": "statistics, order 1", "second": "statistics, order 2"}
    figures = {names[name]: Figures(0.1, value) for name, value in pictures.items()}
    return Comparison(nfe, cfg_scale, figures, "small model 1a2b3c4d")


def statistics(cfg_scale=None):
    points = np.linspace(-math.log(TABLE.sigma_max), -math.log(TABLE.sigma_min), 21)
    # those of another scale are other numbers
    values = (np.full((21, 4, 1, 1), value) for value in (0.3 + (cfg_scale or 0) / 100, 0.1, 0.0))
    return Statistics(points, *values, source=Provenance(cfg_scale=cfg_scale))


@pytest.mark.parametrize(
    "figures, wanted",
    [
        ({"auto": 0.3, "fitted": 0.2, "first": 0.1, "second": 0.2}, "statistics, order 1"),
        ({"auto": 0.3, "fitted": 0.2, "first": 0.3, "second": 0.1}, "statistics, order 2"),
        ({"auto": 0.3, "fitted": 0.2, "first": 0.3, "second": 0.3}, "calibrated"),
        ({"auto": 0.1, "fitted": 0.2, "first": 0.3, "second": 0.3}, "Auto"),
    ],
)
def test_after_a_calibration_auto_draws_with_the_way_of_the_best_pictures(figures, wanted):
    fit = joint()
    profile = dataclasses.replace(profile_with(), joint=(fit,), compared=(compared(5, 7.0, **figures),))
    own = ("small model 1a2b3c4d", statistics())
    others = ("small model 00000000", statistics())
    plan = after_calibrate(profile, [others, own]).plan(TABLE, 5, 7.0)
    auto = recipe_for("sd1", 5, 7.0)
    x, model = seeded_noise(range(2), (4, 3, 3)), Guided(7.0)
    result = plan.run(model, x, range(2))
    if wanted == "Auto":
        assert plan.recipe == auto
    elif wanted == "calibrated":
        assert plan.recipe.solver == "dpmpp_2m" and plan.recipe.levels == fit.schedule.at(7.0).sigmas
    else:
        sigmas = dataclasses.replace(auto, ending="zero").sigmas(TABLE)
        order, scale = int(wanted[-1]), effective_guidance(7.0, 5, STATISTICS_SHARE)
        direct = sample_dpm_v3(
            Guided(scale), x * float(sigmas[0]), sigmas, order=order, statistics=own[1], corrector=False
        )
        assert torch.equal(result, direct) and set(model.scales) == {scale}


def test_without_a_comparison_there_is_nothing_after_a_calibration():
    profile = dataclasses.replace(profile_with(fitted(5, 7.0)), compared=(compared(5, 7.0, auto=0.2, first=0.1),))
    method = after_calibrate(profile, ())
    assert method.plan(TABLE, 5, 7.0).recipe == recipe_for("sd1", 5, 7.0), "the statistics were lost"
    assert method.plan(TABLE, 6, 7.0) is None and method.plan(TABLE, 5, 20.0) is None


@pytest.mark.usefixtures("gaussian")
def test_the_command_writes_a_profile(tmp_path, capsys):
    out = tmp_path / "new" / "made.json"
    module.main(["--steps", "2", "--cfg", "3", "--trajectories", "2", "--runs", "20", "--out", str(out)])
    profile = profile_of(out)
    cells = [(each.steps, each.schedule.low) for each in profile.joint]
    cells += [(each.steps, each.cfg_scale) for each in profile.refused]
    assert cells == [(2, 3.0)] and profile.hashes == (weights_hash(module.WEIGHTS),) and profile.trajectories == 2
    assert f"Written: {out}" in capsys.readouterr().out


# ---- the bench -------------------------------------------------------------------------------------------------------


def small_configs(name):
    return [config_of([steps], [3.0, 5.0], 4, 12) for steps in (3, 2)]


@pytest.mark.usefixtures("gaussian")
def test_a_calibration_is_combined_and_continues_where_it_stopped(monkeypatch, tmp_path):
    (tmp_path / "unet.safetensors").write_bytes(b"one")
    monkeypatch.setattr(calibrate, "processes", InPlace)
    monkeypatch.setattr(calibrate, "configs", small_configs)
    monkeypatch.setattr(calibrate, "small_statistics", lambda name, cfg_scale, *_: statistics(cfg_scale))
    made, folder = tmp_path / "made.json", tmp_path / "jobs"

    def run():
        return calibrate.calibrate_small("tiny", made, folder, tmp_path, "cpu", 1)

    whole = run()
    assert profile_of(made) == whole
    assert [each.source.cfg_scale for _, each in statistics_of(made)] == [5.0, 3.0]
    # each scale is compared with the statistics that were measured nearest to it
    assert {(each.statistics, each.cfg_scale) for each in whole.compared} == {
        (label, own.source.cfg_scale) for label, own in statistics_of(made)
    }
    assert sorted({each.steps for each in (*whole.joint, *whole.refused)}) == [2, 3]
    assert [each.steps for each in whole.joint] == sorted(each.steps for each in whole.joint)
    assert [(each.steps, each.cfg_scale) for each in whole.compared] == [(2, 3.0), (2, 5.0), (3, 3.0), (3, 5.0)]
    assert all("statistics, order 1" in each.figures for each in whole.compared)
    files = sorted(folder.glob("calibration-*.json"))
    assert len(files) == 2
    # one job is interrupted in its first cell, and the other must not be changed
    kept, lost = files
    lost.write_text(dataclasses.replace(profile_of(lost), joint=(), refused=(), compared=()).to_json())
    before = kept.stat().st_mtime_ns
    assert run() == whole
    assert kept.stat().st_mtime_ns == before
    (tmp_path / "unet.safetensors").write_bytes(b"another")
    run()
    assert len(list(folder.glob("calibration-*.json"))) == 4


def test_calibrated_cells_are_those_that_were_fitted(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(profile_with(fitted(5, 3.0), fitted(10, 3.0)).to_json())
    own = [cell for cell in grid.cells(grid.Selection(calibration=path)) if cell.method.name == NAME]
    assert [(cell.nfe, cell.cfg_scale, cell.samples) for cell in own] == [(5, 3.0, grid.MANY), (10, 3.0, grid.COMMON)]
    keys = [tiny._planned(own, 3.0, 0)[0][2]]
    path.write_text(profile_with(fitted(5, 3.0, factor=1.1)).to_json())
    again = [cell for cell in grid.cells(grid.Selection(calibration=path)) if cell.method.name == NAME]
    assert tiny._planned(again, 3.0, 0)[0][2] not in keys, "another schedule must be drawn again"
    assert [cell for cell in grid.cells(grid.Selection()) if cell.method.name == NAME] == []


@pytest.mark.parametrize("model", ["tiny", "texture"])
def test_what_auto_draws_with_afterwards_is_measured_where_ways_were_compared(tmp_path, model):
    path = tmp_path / "calibration.json"
    ways = (compared(5, 7.5, auto=0.2, first=0.1), compared(10, 7.5, auto=0.2, first=0.1))
    path.write_text(dataclasses.replace(profile_with(), compared=ways).to_json())
    save_statistics(statistics(), path.with_suffix(".safetensors"))
    own = [cell for cell in grid.cells(grid.Selection(model, calibration=path)) if cell.method.name == AFTER]
    assert {(cell.nfe, cell.samples) for cell in own} == {(5, grid.MANY), (10, grid.COMMON)}
    drawn = [(cell.nfe, cfg) for cfg in (3.0, 5.0, 7.0, 7.5) for cell, *_ in tiny._planned(own, cfg, 0)]
    assert drawn == [(5, 5.0), (10, 5.0), (5, 7.0), (10, 7.0), (5, 7.5), (10, 7.5)], (
        "not far from where it was compared"
    )


def test_a_schedule_fitted_to_a_problem_is_nearer_on_noise_it_has_not_seen(monkeypatch):
    monkeypatch.setattr(exact, "RUNS", 60)
    problem, noise = PROBLEMS["lowrank"](), PROBLEMS["lowrank"]().noise(16, exact.SEED)
    method, (fit,) = exact.calibrated(problem, 3.0, TABLE, budgets=[5])
    model = problem.model(problem.labels(16), 3.0)
    aim = reference_endpoint(problem, noise, 3.0, TABLE.sigma_max)
    own, auto = (
        relative_error(each.plan(TABLE, 5, 3.0).run(model, noise, range(16)), aim)
        for each in (method, exact.methods()[0])
    )
    assert own < auto / 3 and (fit.problem, fit.nfe, fit.cfg_scale) == ("lowrank", 5, 3.0)
    assert fit.start and 20 < fit.runs <= 60 and method.plan(TABLE, 6, 3.0) is None


def test_the_row_of_a_refused_fit_is_that_of_auto(monkeypatch):
    def refuse(fit, held_out, schedules, runs):
        fit[0].error(schedules["Auto"][0])
        for (schedule,) in schedules.values():
            held_out[0].error(schedule)
        held_out[0].error(schedules["Auto"][0])
        raise CalibrationRefused

    monkeypatch.setattr(exact, "calibrate", refuse)
    problem = PROBLEMS["toy2d"]()
    method, (fit,) = exact.calibrated(problem, 7.5, TABLE, budgets=[5])
    own, auto = (each.plan(TABLE, 5, 7.5) for each in (method, exact.methods()[0]))
    assert own.recipe == auto.recipe and fit.start == "" and fit.runs == (60 + 5) / 5


# ---- how far it carries ----------------------------------------------------------------------------------------------


def test_the_plans_that_are_tried_at_each_place():
    profile = profile_with(joint(5), joint(8, refused=(10.0,)))
    tried = {
        cfg: [(name, nfe) for name, nfe, _ in reach.plans(profile, reach.Place(cfg, (12, 12), 4))]
        for cfg in (1.5, 4.0, 9.0, 12.0)
    }
    auto = [("Auto", 5), ("Auto", 8)]
    assert tried == {
        1.5: auto,
        4.0: [("Auto", 5), ("calibrated", 5), ("Auto", 8), ("calibrated", 8)],
        9.0: [("Auto", 5), ("calibrated", 5), ("Auto", 8)],
        12.0: auto,
    }


@pytest.fixture
def reached(model, monkeypatch, tmp_path):
    """The rows of a small run, which is repeated, and its folder."""
    monkeypatch.setattr(TinyModel, "load", classmethod(lambda cls, *_: model))
    monkeypatch.setattr(reach, "processes", InPlace)
    monkeypatch.setattr(reach, "BATCH", 2)
    monkeypatch.setattr("bench.runs.REFERENCE_STEPS", 8)
    places = [reach.Place(4.0, (12, 12), 4), reach.Place(5.0, (12, 12), 2), reach.Place(5.0, (8, 12), 2)]
    monkeypatch.setattr(reach, "PLACES", places)
    path = tmp_path / "calibration.json"
    path.write_text(profile_with(joint(5), joint(8)).to_json())
    rows = reach.measure_reach(path, tmp_path / "out", tmp_path, "cpu", 1)
    monkeypatch.setattr(reach, "_job", None)
    assert reach.measure_reach(path, tmp_path / "out", tmp_path, "cpu", 1) == rows, "stored results are used"
    return rows, tmp_path


def test_reach_is_measured_at_every_place(reached, model):
    rows, folder = reached
    at = {(row.schedule, row.nfe, row.cfg_scale, row.height): row for row in rows}
    assert len(at) == len(rows) == 2 * 2 * 3
    assert at["calibrated", 5, 4.0, 12].samples == 4 and at["calibrated", 8, 5.0, 8].width == 12
    prompts = [picture.caption() for picture in captioned(2)]
    noise = seeded_noise([tiny.FIRST_SEED, tiny.FIRST_SEED + 1])
    aim = reach.reference_endpoint(model, model.denoiser(prompts, 5.0), noise)
    plan = calibrated(profile_of(folder / "calibration.json")).plan(TABLE, 5, 5.0)
    error = relative_error(plan.run(model.denoiser(prompts, 5.0), noise, [0, 1]), aim)
    assert at["calibrated", 5, 5.0, 12].distance.value == pytest.approx(error, rel=1e-4)
    write_csv(folder / "reach.csv", rows)
    text = "\n".join(reach_section(read_csv(folder / "reach.csv"), []))
    assert "| CFG | Auto, 5 | Auto, 8 | calibrated, 5 | calibrated, 8 |" in text
    assert "| 12x12 | " in text and "| 8x12 | " in text
    own = f"{at['calibrated', 5, 4.0, 12].distance.value:.3f}".lstrip("0")
    assert own in next(line for line in text.splitlines() if line.startswith("| 4 | "))


def test_reach_on_an_exact_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(reach, "processes", InPlace)
    monkeypatch.setattr(reach, "PROBLEMS", {"gauss1f1": PROBLEMS["gauss1f1"]})
    monkeypatch.setattr(reach, "EXACT_SCALES", (3.0, 4.0, 20.0))
    monkeypatch.setattr(reach, "FITTED_SCALES", (3.0, 5.0))
    monkeypatch.setattr(reach, "NFE", (4,))
    monkeypatch.setattr(exact, "TRAJECTORIES", {"gauss1f1": 8})
    monkeypatch.setattr(exact, "FITTED_TO", 24)
    monkeypatch.setattr(exact, "RUNS", 30)
    rows = reach.measure_exact_reach(1)
    at = {(row.schedule, row.cfg_scale): row.error.value for row in rows}
    assert set(at) == {(name, cfg) for name in ("Auto", "calibrated") for cfg in (3.0, 4.0, 20.0)}
    for cfg in (3.0, 4.0):
        assert at["calibrated", cfg] < 0.6 * at["Auto", cfg], (
            "it is fitted at this scale, and to both sides of this one"
        )
    assert at["calibrated", 20.0] == at["Auto", 20.0], "beyond its scales it is not used"
    write_csv(tmp_path / "exact_reach.csv", rows)
    tiny_row = {"schedule": "Auto", "cfg_scale": "3.0", "height": "12", "width": "12", "samples": "2", "distance": ".2"}
    section = reach_section([{**tiny_row, "nfe": "4"}], read_csv(tmp_path / "exact_reach.csv"))
    assert "| CFG | Auto, 4 | calibrated, 4 |" in section[-1]


# ---- the page --------------------------------------------------------------------------------------------------------


def row(sampler, nfe, distance, **other):
    values = {"schedule": "", "ending": "zero", "freeu": "off", "cfg_scale": "5", "samples": "250", **other}
    figures = {"frechet": "60", "frechet_se": "2", "accuracy": "0.8", "accuracy_se": "0.01", "distance_se": "0.01"}
    return {"sampler": sampler, "nfe": str(nfe), "distance": str(distance), **figures, **values}


def test_the_page_compares_calibrated_schedules_with_the_best_others():
    tiny_rows = [
        row(NAME, 5, 0.15), row("HP Auto", 5, 0.3), row("DPM++ 2M", 5, 0.25, schedule="SGM Uniform"),
        row("DPM++ 2M", 20, 0.03, schedule="Karras"), row(NAME, 5, 0.15, samples="2000", frechet="41"),
        row("HP Auto", 5, 0.3, samples="2000"), row("DPM++ 2M", 20, 0.03, schedule="Karras", samples="2000"),
    ]  # fmt: skip
    refused = (Refused(6, 5.0, "no better"),)
    text = "\n".join(tiny_section(tiny_rows, profile_with(fitted(5, 5.0), refused=refused), "250", "2000"))
    line = next(line for line in text.splitlines() if line.startswith("| 5 | 5 |"))
    assert "DPM++ 2M SGM Uniform: 60 (2) / .800 (.010) / .250" in line and line.endswith("| 50 | 40 |")
    assert "at most 50 runs" in text and "1 of 2" in text
    text = side_by_side([*tiny_rows, row(AFTER, 5, 0.2, samples="2000", frechet="39")], "2000")[1].splitlines()
    assert text[0] == "|  | NFE | CFG 5 |"
    assert [line.partition(" (")[0] for line in text[2:]] == [
        "| Auto | 5 | 60", "| Auto after Calibrate | 5 | 39", "| the fitted schedule alone | 5 | 41",
        "| DPM++ 2M Karras | 20 | 60",
    ]  # fmt: skip
    problems = [
        {"problem": name, "sampler": sampler, "nfe": "5", "cfg_scale": "3", "error": error}
        for name in ("a", "b")
        for sampler, error in ((NAME, "0.1"), ("HP Auto", "0.2"))
    ]
    exact_rows = [
        row(NAME, 5, 0, cfg_scale="3", error="0.1", error_se="0.01"),
        row("HP Auto", 5, 0, cfg_scale="3", error="0.2", error_se="0.01"),
    ]
    fits = [
        {"problem": name, "nfe": "5", "cfg_scale": "3", "start": start, "runs": "52"}
        for name, start in (("a", "Auto"), ("b", ""))
    ]
    text = "\n".join(exact_section(exact_rows, problems, fits))
    assert "at most 52 runs" in text and "1 of 2: b (CFG 3, 5 steps)" in text
    assert "| 3 | 5 | .100 (.010) | .200 (.010) | HP Auto: .200 (.010) | 50 | 50 |" in text
    assert "| 3 | 5 | .100 / .200 | .100 / .200 |" in text


# ---- the demonstration -----------------------------------------------------------------------------------------------


def test_the_sheet_shows_a_calibration_where_one_fits(monkeypatch, tmp_path):
    path = tmp_path / "calibration.json"
    monkeypatch.setattr(draw, "SHIPPED", path)

    tiny_model = TinyModel.load()
    fit, ways = joint(), (compared(5, 7.0, auto=0.2, fitted=0.1),)
    assert draw._calibrated(tiny_model, module.WEIGHTS, 7.0) is None
    path.write_text(dataclasses.replace(profile_with(), joint=(fit,), compared=ways).to_json())
    assert draw._calibrated(tiny_model, module.WEIGHTS, 7.0) is None, "it was made for another model"
    own = profile_with(hashes=(weights_hash(module.WEIGHTS),))
    path.write_text(dataclasses.replace(own, joint=(fit,), compared=ways).to_json())
    assert draw._calibrated(tiny_model, module.WEIGHTS, 15.0) is None
    monkeypatch.setattr("bench.runs.REFERENCE_STEPS", 8)
    comparison = draw.main(["--images", "1", "--quiet", "--out", str(tmp_path)])
    assert [(run.name, run.nfe) for run in comparison.shown][-2:] == [("HP Auto", 8), (AFTER, 5)]
    numbers = json.loads((tmp_path / "numbers.json").read_text())["runs"]
    assert numbers[-1]["sampler"] == AFTER and numbers[-1]["sigmas"][2] == pytest.approx(fit.schedule.at(7.0).sigmas[2])
    with Image.open(tmp_path / "sheet.webp") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    # the sheet is compressed, so a colour comes back nearly, not exactly
    near = np.abs(pixels.astype(int) - (0xBE, 0x18, 0x5D)).max(1) <= 24
    assert near.any(), "its column has a heading in its colour"
