"""``python -m bench.gpu`` on a CPU: all of it runs small, goes on where it stopped, and says what is missing."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu import check_part, part, quality
from bench.gpu.checks import Check, checks, solver_cases
from bench.gpu.job_checks import job_checks
from bench.gpu.machine import Machine
from bench.gpu.page import write
from bench.gpu.part import Clock, Part, Results, Setting, Task, Unfinished, carry_out
from bench.gpu.place import proving
from hpsampler.solvers import SOLVERS

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")

SMALL = ("--device", "cpu", "--small", "--seconds", "3600")
"""With time enough for a busy machine."""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The whole command, small, as CI runs it."""
    folder = tmp_path_factory.mktemp("gpu")
    line = [sys.executable, "-m", "bench.gpu", *SMALL, "--out", str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    return SimpleNamespace(folder=folder, done=done, page=(folder / "gpu.md").read_text(encoding="utf-8"))


# ---- all of it, small ----


def test_every_part_runs_to_its_end(small):
    assert small.done.returncode == 0, small.done.stdout + small.done.stderr
    (kept,) = [path for path in small.folder.iterdir() if path.is_dir() and path.name != "gpu"]
    for name in command.PARTS:
        found = Results.read(kept / f"{name}.json")
        assert found.rows and len(found.rows) == found.of and not found.failed and not found.left_out, name
        assert f"{name:9} {found.of} of {found.of} done" in small.done.stdout


def test_the_page_says_that_there_was_no_gpu_and_tells_no_figures_for_one(small):
    head = small.page.split("## ")[0]
    assert "**There was no GPU.**" in head and "**its times and costs say nothing**" in head
    assert "CPU" in head and f"torch {torch.__version__}" in head


def test_the_page_and_the_files_hold_every_row(small):
    for name, each in command.PARTS.items():
        with (small.folder / "gpu" / f"{name}.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        section = small.page.split(f"## {each.title}\n")[1].split("\n## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("|")]
        assert len(lines) == len(rows) + 2 and set(each.columns) & set(rows[0]), name
        assert all(row["device"].startswith("CPU") and row["date"] for row in rows)
        assert "nan" not in section


def test_what_was_measured_makes_sense(small):
    def rows(name):
        with (small.folder / "gpu" / f"{name}.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))

    launches = {row["sampler"]: float(row["launches"]) for row in rows("overhead")}
    assert launches["HP DPM++ 1S"] == 2 and launches["DPM++ 2M of k-diffusion"] > launches["HP DPM++ 2M (HP Auto)"] >= 3
    pictures = {row["sampler"]: float(row["faster"]) for row in rows("pictures")}
    assert pictures["DPM++ 2M Karras, 20 steps"] == 1 and len(pictures) == 4
    assert {row["version"] for row in rows("freeu")} == {"1", "2"}
    jobs = {row["job"]: row for row in rows("jobs")}
    assert int(jobs["statistics"]["calls"]) == 2 * 21 * 2 and int(jobs["statistics"]["defaults_calls"]) == 6528
    assert int(jobs["calibration"]["calls"]) > 0 and float(jobs["calibration"]["estimate"]) > 0
    assert {row["model"] for row in rows("quality")} == set(quality.SMALL_MODELS)


def test_a_second_run_repeats_nothing(small):
    names = ["freeu", "overhead"]
    line = [sys.executable, "-m", "bench.gpu", *names, *SMALL, "--out", str(small.folder)]
    (kept,) = [path for path in small.folder.iterdir() if path.is_dir() and path.name != "gpu"]
    before = [Results.read(kept / f"{name}.json") for name in names]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    after = [Results.read(kept / f"{name}.json") for name in names]
    assert done.returncode == 0 and [each.rows for each in before] == [each.rows for each in after]
    # the other parts stay on the page
    assert (small.folder / "gpu.md").read_text(encoding="utf-8") == small.page


MORE = {
    "PIL", "diffusers", "einops", "fastapi", "gradio", "hypothesis", "k_diffusion", "ldm", "matplotlib", "omegaconf",
    "pytest", "safetensors", "scipy", "torchdiffeq", "torchsde", "tqdm", "transformers",
}  # fmt: skip


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder of packages as on a machine that has torch and numpy alone."""
    folder = tmp_path_factory.mktemp("bare")
    installed = Path(torch.__file__).parents[1]
    for path in installed.iterdir():
        if path.name.partition(".")[0] not in MORE and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize(("name", "left_out"), [("overhead", 0), ("quality", 2), ("checks", 3)])
def test_torch_and_numpy_are_enough(name, left_out, bare, tmp_path):
    """What needs more is left out, with the packages named."""
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(bare)]), "OMP_NUM_THREADS": "1"}
    # -S: no packages but those of PYTHONPATH
    line = [sys.executable, "-S", "-m", "bench.gpu", name, "--inside", *SMALL]
    done = subprocess.run(
        [*line, "--out", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob(f"*/{name}.json")
    found = Results.read(path)
    assert not found.failed and len(found.rows) + len(found.left_out) == found.of and len(found.left_out) == left_out
    assert all(why.startswith("needs ") and "scipy" in why for why in found.left_out.values())


# ---- the command line ----


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--device", "cpu"], "--device cpu needs --small"),
        (["--device", "tpu", "--small"], "--device must be cuda or cpu, got tpu"),
        (["speed"], "parts must be of checks, overhead, pictures, freeu, jobs, quality; got speed"),
        (["--device", "cpu", "--small", "--seconds", "0"], "--seconds must be above 0, got 0"),
    ],
)
def test_a_bad_option_is_named(line, words, capsys):
    with pytest.raises(SystemExit):
        command.main(line)
    assert words in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_told(capsys):
    with pytest.raises(SystemExit):
        command.main([])
    assert "--device cuda: there is no CUDA device here" in capsys.readouterr().err


def test_all_parts_together_take_less_than_ten_minutes():
    assert sum(each.seconds for each in command.PARTS.values()) <= 600
    assert all(each.expected <= each.seconds for name, each in command.PARTS.items() if name != "quality")


# ---- a part ----


def made(*tasks, seconds=60):
    return Part("made", "Made", "About it.", {"value": "value"}, seconds, 1, lambda setting, clock: tasks)


def setting(tmp_path):
    return Setting(CPU, True, tmp_path)


def carried_out(each, tmp_path, limit=60.0):
    return carry_out(each, setting(tmp_path), tmp_path / "made.json", {"device": "CPU"}, limit)


def test_a_failed_task_does_not_stop_the_others_and_is_tried_again(tmp_path):
    state = {"broken": True}

    def fails():
        if state["broken"]:
            raise ValueError("no good\nmore")
        return [{"value": 2}]

    each = made(Task("first", lambda: [{"value": 1}]), Task("second", fails), Task("third", lambda: [{"value": 3}]))
    found = carried_out(each, tmp_path)
    assert found.failed == {"second": "ValueError: no good"} and list(found.rows) == ["first", "third"]
    assert found.missing == 1
    state["broken"] = False
    found = carried_out(each, tmp_path)
    assert not found.failed and not found.missing and found.rows["second"] == [{"value": 2}]


def test_the_time_limit_stops_it_and_a_later_run_goes_on(tmp_path):
    told = []
    each = made(*(Task(str(n), lambda n=n: told.append(n) or [{"value": n}]) for n in range(3)))
    assert carried_out(each, tmp_path, limit=-1.0).missing == 3 and not told
    assert not carried_out(each, tmp_path).missing and told == [0, 1, 2]
    carried_out(each, tmp_path)
    assert told == [0, 1, 2]


def test_a_task_may_say_itself_that_its_time_is_over(tmp_path):
    def unfinished():
        raise Unfinished

    found = carried_out(made(Task("long", unfinished), Task("next", lambda: [])), tmp_path)
    assert not found.rows and not found.failed and found.missing == 2


def test_results_of_an_earlier_task_are_kept_when_a_later_one_kills_the_process(tmp_path):
    def kills():
        assert json.loads((tmp_path / "made.json").read_text())["rows"] == {"first": [{"value": 1}]}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carried_out(made(Task("first", lambda: [{"value": 1}]), Task("second", kills)), tmp_path)


def test_a_damaged_file_of_results_is_begun_anew(tmp_path):
    (tmp_path / "made.json").write_text('{"rows": ')
    assert carried_out(made(Task("first", lambda: [{"value": 1}])), tmp_path).rows == {"first": [{"value": 1}]}


def test_the_page_tells_what_failed_and_what_is_missing(tmp_path):
    machine = Machine("Some GPU", "550.1", "2.6.0", "12.4", "2026-11-26", True, False)
    results = Results({"first": [{"value": 1.5}]}, {"second": "ValueError: no good"}, {"third": "needs scipy"}, of=5)
    path = write((made(), replace(made(), name="other")), {"made": results}, machine.to_dict(), str(machine), tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "Measured on Some GPU, torch 2.6.0, CUDA 12.4, driver 550.1, 2026-11-26." in text and "no GPU" not in text
    assert "**Failed:** second (ValueError: no good)." in text and "1 of 5 were left out: needs scipy." in text
    assert "2 of 5 are still to be run" in text and "Not run yet." in text and "| 1.5 |" in text
    line = (tmp_path / "gpu" / "made.csv").read_text(encoding="utf-8").splitlines()
    assert line[0].startswith("value,device,driver") and "Some GPU" in line[1]


def test_machines_do_not_share_results():
    one = Machine("NVIDIA H100", "550.1", "2.6.0", "12.4", "2026-11-26", True, False)
    assert replace(one, date="2026-12-01").folder == one.folder == "nvidia-h100-torch-2.6.0"
    others = (replace(one, device="NVIDIA L4"), replace(one, torch_version="2.7.0"), replace(one, small=True))
    assert len({each.folder for each in others} | {one.folder}) == 4


def test_the_clock_counts_down(monkeypatch):
    now = iter([10.0, 13.0, 21.0])
    monkeypatch.setattr(part.time, "monotonic", lambda: next(now))
    clock = Clock(10)
    assert clock.left == 7 and clock.left == -1


# ---- the checks ----


def test_every_solver_is_checked_in_every_precision():
    assert {case[0] for case in solver_cases().values()} == set(SOLVERS)
    names = [check.name for check in checks(graphs=True)] + [check.name for check in job_checks()]
    assert len(names) == len(set(names))
    for words in (
        "2M",
        "UniPC-3, noise",
        "DPM-v3-2, statistics by element",
        "Free-U version 2",
        "golden noise B",
        "NPNet",
    ):
        assert all(f"{words}; {precision}" in names for precision in ("fp32", "fp16", "bf16")), words
    assert sum(name.startswith("CUDA graph of a step") for name in names) == len(solver_cases())


def test_a_difference_that_is_too_large_fails(tmp_path):
    with pytest.raises(AssertionError, match=re.escape("differs from the CPU by 0.5, and 0.1 is allowed")):
        check_part.row_of(Check("x; fp32", lambda place: 0.5, 0.1), setting(tmp_path))


def test_a_solver_that_waits_fails_its_check(monkeypatch):
    """The check sees a value that is read between two calls, and a result of other numbers."""
    from bench.gpu import checks as module

    (check,) = [each for each in checks() if each.name == "2M; fp32"]
    original = SOLVERS["dpmpp_2m"]
    with proving(CPU) as place:
        assert check.run(place) == 0

    def reads(model, x, sigmas, **options):
        return original(lambda x, sigma, **own: model(x * float(x.abs().max() > 0), sigma, **own), x, sigmas, **options)

    monkeypatch.setattr(module, "SOLVERS", {"dpmpp_2m": reads})
    with proving(CPU) as place, pytest.raises(RuntimeError, match="waits for the device"):
        check.run(place)
