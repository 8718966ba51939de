"""The demonstration: its files are whole, its numbers repeat, its counts are true; and what perf measures."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bench import perf
from bench.calibrated import AFTER as CALIBRATED
from bench.methods import AUTO, KARRAS, SGM
from bench.oracles_import import k_diffusion_sampling
from demo import draw
from demo.sheet import CELL, GAP, HEADER, contact_sheet

# ---- drawing ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder and the comparison of a run that is large enough for its errors to tell something."""
    out = tmp_path_factory.mktemp("demo") / "not" / "there yet"
    return out, draw.main(["--images", "16", "--quiet", "--out", str(out)])


def by_run(comparison, figure):
    return {(run.name, run.nfe): getattr(run, figure) for run in comparison.runs if run.plan}


def test_drawing_writes_whole_files(drawn):
    out, comparison = drawn
    assert {path.name for path in out.iterdir()} == {"sheet.webp", "schedules.webp", "index.html", "numbers.json"}
    for name in ("sheet.webp", "schedules.webp"):
        with Image.open(out / name) as image:
            image.load()
            assert image.width > 900 and np.asarray(image.convert("L")).std() > 10
    html = (out / "index.html").read_text(encoding="utf-8")
    assert re.search(r"not Stable\s+Diffusion", html)
    assert re.findall(r'(?:src|href)="(.{0,22})', html) == ["data:image/webp;base64"] * 2
    numbers = json.loads((out / "numbers.json").read_text())
    assert [run["nfe"] for run in numbers["runs"]] == [run.nfe for run in comparison.runs]


def test_the_sheet_shows_the_runs_that_were_promised(drawn):
    _, comparison = drawn
    shown = [(run.name, run.nfe) for run in comparison.shown[1:]]
    auto = [(AUTO.name, 5), (AUTO.name, 6), (AUTO.name, 8)]
    rival = [(SGM.name, 5), (SGM.name, 6), (SGM.name, 8)]
    assert shown == [(KARRAS.name, 20), (KARRAS.name, 5), *rival, *auto, (CALIBRATED, 5)]
    assert all(run.nfe == run.plan.nfe for run in comparison.runs[1:])


def test_the_pictures_show_what_the_captions_say(drawn):
    read = by_run(drawn[1], "read")
    assert drawn[1].runs[0].read >= 0.75 and read[KARRAS.name, 20] >= 0.75
    assert min(read[AUTO.name, nfe] for nfe in (5, 6, 8)) >= 0.5, "guessing finds one in 64"


def test_twenty_steps_are_nearest_to_the_equation(drawn):
    errors = by_run(drawn[1], "error")
    assert errors[KARRAS.name, 20] == min(errors.values())
    assert errors[AUTO.name, 5] < errors[SGM.name, 5] < errors[KARRAS.name, 5]


def test_the_page_says_where_the_best_rival_at_equal_steps_is_nearer(drawn):
    out, comparison = drawn
    errors = by_run(comparison, "error")
    nearer = [str(nfe) for nfe in (5, 6, 8) if errors[SGM.name, nfe] < errors[AUTO.name, nfe]]
    steps = {0: "", 1: "{}", 2: "{} and {}", 3: "{}, {} and {}"}[len(nearer)].format(*nearer)
    words = f"is nearer than HP Auto at {steps} steps." if nearer else "is nowhere nearer than HP Auto."
    assert f"{SGM.name}, the WebUI's best at so few steps, {words}" in (out / "index.html").read_text(encoding="utf-8")


def test_the_same_seed_draws_the_same_and_another_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.runs.REFERENCE_STEPS", 8)
    tiny = ("--images", "2", "--quiet")
    out = [tmp_path / "first", tmp_path / "again", tmp_path / "another"]
    first = draw.main([*tiny, "--out", str(out[0])])
    again = draw.main([*tiny, "--out", str(out[1])])
    for one, other in zip(first.runs, again.runs, strict=True):
        assert torch.equal(one.pictures, other.pictures), one.name
    assert (out[0] / "schedules.webp").read_bytes() == (out[1] / "schedules.webp").read_bytes()
    sheets = [np.asarray(contact_sheet(comparison)) for comparison in (first, again)]
    times = HEADER + 2 * (CELL + GAP) + 30  # the line of a sheet from which times are written
    assert np.array_equal(*(sheet[:times] for sheet in sheets))
    other = draw.main([*tiny, "--seed", "2", "--out", str(out[2])])
    assert not torch.equal(first.runs[-1].pictures, other.runs[-1].pictures)


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


def test_dpm_v3_computes_its_weights_in_the_first_picture_alone():
    first, further = perf.dpm_v3_lines((8, 8), torch.device("cpu"), repeats=5)
    assert first.ours_ms > further.ours_ms > 0 and first.ratio is further.ratio is None
    assert "every element, first picture" in first.name and "every element, further ones" in further.name


def test_a_start_is_measured_in_a_fresh_interpreter_and_imports_what_it_needs(tmp_path):
    start = perf.measure_start(tmp_path)
    assert start.import_ms > 0 and start.build_ms > 0 and "hpsampler.webui.script" in start.modules
    late = {"scipy", "safetensors", "hpsampler.calibration.fit", "hpsampler.calibration.job", "hpsampler.evaluation"}
    late |= {"hpsampler.golden.npnet", "hpsampler.statistics.estimator", "hpsampler.statistics.job"}
    late |= {"hpsampler.panel.view", "hpsampler.webui.panel_html", "hpsampler.webui.plot", "hpsampler.webui.source"}
    assert not late & set(start.modules)
    assert start.components["tab"] <= 38 and start.components["accordions"] > 0


def test_the_table_and_the_file_hold_every_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(perf, "side_by_side", lambda *_: (2.0, 18.0))
    monkeypatch.setattr(perf, "start_lines", lambda: ([perf.Line("import", 20.0)], {"accordions": 90, "tab": 38}))
    perf.main(["--json", str(tmp_path / "perf.json")])
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "perf.json").read_text())
    lines = written["lines"]
    assert written["components"] == {"accordions": 90, "tab": 38}
    assert "components on the page: 128 (90 of the accordions, 38 of the tab)" in printed
    assert [line["ratio"] for line in lines] == [9.0] * 4 + [None] * 5
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
