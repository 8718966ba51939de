"""The demonstration: its toy denoiser is exact, its files are whole, its numbers repeat; and what perf measures."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from demo import draw, perf
from demo.gallery import DRAWN, gallery
from demo.oracles_import import k_diffusion_sampling
from demo.problems import Problem
from demo.runs import HP, KARRAS, plans, stable_diffusion_noise
from demo.scenes import SCENES, draw_scenes
from demo.sheet import CELL, GAP, HEADER, contact_sheet

TINY = ("--images", "8", "--modes", "16", "--quiet")

# ---- the toy ---------------------------------------------------------------------------------------------------------


def test_the_quick_denoiser_is_the_defined_one():
    quick = gallery(modes=4)
    defined = Problem("the definition", quick.means, quick.variances)
    labels = quick.labels(10)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((10, quick.dims)))
    for sigma in (14.6, 3.0, 0.4, 0.03):
        for cfg_scale in (1.0, 5.0):
            levels = torch.full((10,), sigma)
            levels[::3] *= 1.5
            ours = quick.denoise(x * sigma, levels, labels, cfg_scale)
            torch.testing.assert_close(ours, defined.denoise(x * sigma, levels, labels, cfg_scale))


def test_the_gallery_is_normalised_and_shows_what_was_drawn():
    toy = gallery(modes=16)
    total = (toy.means**2).mean() + toy.variances.mean()
    assert abs(float(total) - 1) < 1e-12 and abs(float(toy.means.mean((0, 1)).abs().max())) < 1e-12
    for label, caption in enumerate(SCENES):
        drawn = draw_scenes(caption, 16, DRAWN, 0)
        shown = toy.pictures(toy.means[label], DRAWN) / 255
        assert np.abs(shown - drawn).mean() < 0.03, caption
    assert toy.pictures(toy.means[0, :2], 77).shape == (2, 77, 77, 3)


def test_captions_are_told_on_the_way_and_not_by_pure_noise():
    toy = gallery()
    rng = np.random.default_rng(0)
    modes = toy.means.flatten(0, 1)[:: toy.means.shape[1] // 8]
    noise = torch.from_numpy(rng.standard_normal(modes.shape))
    spread = torch.from_numpy(rng.standard_normal(modes.shape)) * toy.variances[0, 0].sqrt()

    def perplexity(x: torch.Tensor, sigma: float) -> float:
        """Of the posterior over captions: from 1, certain, to their number."""
        total = toy.variances[0, 0] + sigma**2
        distance = ((x[:, None, None] - toy.means) ** 2 / total).sum(-1)
        posterior = (-0.5 * distance).flatten(1).softmax(-1).view(len(x), toy.classes, -1).sum(-1)
        return float((-(posterior * posterior.clamp_min(1e-30).log()).sum(-1)).exp().mean())

    few, largest = slice(None, None, 4), 14.6
    assert perplexity(noise[few] * largest, largest) > 4
    assert perplexity((modes + spread + noise)[few], 1.0) < 1.1


# ---- drawing ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder and the comparison of a run that is large enough for its errors to tell something."""
    out = tmp_path_factory.mktemp("demo") / "not" / "there yet"
    return out, draw.main(["--images", "32", "--modes", "32", "--quiet", "--out", str(out)])


def errors_of(comparison):
    return {(run.name, run.plan.steps): run.error for run in comparison.runs if run.plan}


def test_drawing_writes_whole_files(drawn):
    out, comparison = drawn
    assert {path.name for path in out.iterdir()} == {"sheet.png", "schedules.png", "index.html", "numbers.json"}
    for name in ("sheet.png", "schedules.png"):
        with Image.open(out / name) as image:
            image.load()
            assert image.width > 900 and np.asarray(image.convert("L")).std() > 10
    html = (out / "index.html").read_text(encoding="utf-8")
    assert "not Stable Diffusion" in html
    assert re.findall(r'(?:src|href)="(.{0,21})', html) == ["data:image/png;base64"] * 2
    numbers = json.loads((out / "numbers.json").read_text())
    assert [run["nfe"] for run in numbers["runs"]] == [run.nfe for run in comparison.runs]


def test_every_run_spends_as_many_calls_as_it_has_steps(drawn):
    _, comparison = drawn
    assert comparison.runs[0].nfe == draw.REFERENCE_CALLS
    shown = [(run.name, run.nfe) for run in comparison.shown[1:]]
    assert shown == [(KARRAS, 20), (KARRAS, 5), (HP, 5), (HP, 6), (HP, 8)]
    assert all(run.nfe == run.plan.steps for run in comparison.runs[1:])


def test_errors_are_as_known_of_exact_denoisers(drawn):
    errors = errors_of(drawn[1])
    assert errors[HP, 8] <= errors[HP, 6] <= errors[HP, 5]  # no step more raises the error
    assert errors[HP, 5] < errors[KARRAS, 5]
    assert errors[KARRAS, 20] == min(errors.values())  # and none of this is as near as 20 steps
    # the residual noise that HP keeps at this guidance is an error here, where no decoder takes it up
    assert min(error for (name, _), error in errors.items() if name == HP) > 0.13


def test_the_same_seed_draws_the_same_and_another_does_not(tmp_path):
    out = [tmp_path / "first", tmp_path / "again", tmp_path / "another"]
    first = draw.main([*TINY, "--out", str(out[0])])
    again = draw.main([*TINY, "--out", str(out[1])])
    for one, other in zip(first.runs, again.runs, strict=True):
        assert torch.equal(one.states, other.states), one.name
    assert (out[0] / "schedules.png").read_bytes() == (out[1] / "schedules.png").read_bytes()
    sheets = [np.asarray(contact_sheet(comparison)) for comparison in (first, again)]
    times = HEADER + 8 * (CELL + GAP) + 30  # the line of a sheet from which times are written
    assert np.array_equal(*(sheet[:times] for sheet in sheets))
    other = draw.main([*TINY, "--seed", "2", "--out", str(out[2])])
    assert not torch.equal(first.runs[-1].states, other.runs[-1].states)


def test_low_guidance_ends_without_noise_and_is_told_so(tmp_path):
    comparison = draw.main(["--images", "3", "--modes", "4", "--cfg", "2", "--quiet", "--out", str(tmp_path)])
    assert all(run.plan.sigmas[-1] == 0 for run in comparison.runs[1:])
    assert all(plan.options == {"extrapolate": True} for plan in plans(stable_diffusion_noise(), 2.0) if plan.recipe)
    assert "grain" not in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_a_number_of_images_below_one_is_refused(capsys):
    with pytest.raises(SystemExit):
        draw.main(["--images", "0"])
    assert "must be at least 1, got 0" in capsys.readouterr().err


# ---- measuring -------------------------------------------------------------------------------------------------------


def best_ratio(measure, enough):
    """The ratio of medians of the best of up to three measurements: other work on the machine only disturbs."""
    best = 0.0
    for _ in range(3):
        best = max(best, measure().ratio)
        if best >= enough:
            break
    return best


@pytest.mark.timeout(60)
def test_freeu_is_eight_times_faster_than_by_fft():
    torch.set_num_threads(1)
    assert best_ratio(lambda: perf.freeu_line(torch.device("cpu"), repeats=9), enough=8) >= 8


@pytest.mark.timeout(60)
def test_the_solver_costs_no_more_than_k_diffusion_s():
    torch.set_num_threads(1)
    assert best_ratio(lambda: perf.solver_line((1, 4, 64, 64), torch.device("cpu"), repeats=9), enough=1) >= 1


def test_the_import_is_measured_in_a_fresh_interpreter():
    line = perf.import_line(repeats=1)
    assert 0 < line.ours_ms < 1000 and line.ratio is None  # `make perf` says how far below 100; one import may be cold


def test_the_table_and_the_file_hold_every_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(perf, "side_by_side", lambda *_: (2.0, 18.0))
    monkeypatch.setattr(perf, "import_line", lambda: perf.Line("import", 20.0))
    perf.main(["--json", str(tmp_path / "perf.json")])
    printed = capsys.readouterr().out
    lines = json.loads((tmp_path / "perf.json").read_text())["lines"]
    assert [line["ratio"] for line in lines] == [9.0] * 4 + [None]
    assert all(line["name"] in printed for line in lines) and printed.count("9.0 x") == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit):
        perf.main(["--device", "cuda"])
    assert "there is no CUDA device here" in capsys.readouterr().err


def test_k_diffusion_comes_without_what_it_does_not_need():
    torchvision_was_there = "torchvision" in sys.modules
    assert callable(k_diffusion_sampling().sample_dpmpp_2m)
    assert ("torchvision" in sys.modules) == torchvision_was_there
