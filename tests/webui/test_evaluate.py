"""``python -m hpsampler.evaluate`` against a running WebUI, on the trained tiny checkpoint."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.webui.harness import ROOT
from tests.webui.hosts import SIDE
from tiny_model.pictures import SIDE as TRAINED_SIDE
from tiny_model.pictures import captioned, draw

CONFIGS = ["HP Auto/HP/6/5?ending=To zero", "DPM++ 2M/Karras/20/5"]


@pytest.fixture(scope="module")
def server(serve, trained_checkpoint):
    return serve(checkpoint=trained_checkpoint)


def command(server, tmp_path, count):
    line = [sys.executable, "-m", "hpsampler.evaluate", "--url", server.url, "--out", str(tmp_path / "out")]
    line += ["--prompts", str(tmp_path / "prompts.txt"), "--count", str(count)]
    line += ["--width", str(SIDE), "--height", str(SIDE)]
    line += ["--references", str(tmp_path / "real"), "--reference-size", str(TRAINED_SIDE), "--no-clip"]
    line += ["--features", "tests.evaluation.test_evaluation:classifier", "--device", "cpu"]
    return [*line, *(part for config in CONFIGS for part in ("--config", config))]


def pictures(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}


def test_drawn_interrupted_resumed_and_scored(server, tmp_path):
    told = captioned(24)
    (tmp_path / "prompts.txt").write_text("\n".join(picture.caption() for picture in told[:12]))
    (tmp_path / "real").mkdir()
    for i, pixels in enumerate(draw(told, np.random.default_rng(0))):
        Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().numpy()).save(tmp_path / "real" / f"{i}.png")
    line = command(server, tmp_path, 12)
    running = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while len(pictures(tmp_path / "out")) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=60)
    before = pictures(tmp_path / "out")
    assert running.returncode == 130 and 3 <= len(before) < 24 and "Traceback" not in said, said

    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    drawn = pictures(tmp_path / "out")
    plots = {path for path in drawn if len(path.parts) == 1}
    assert len(drawn) - len(plots) == 24 and before.items() <= drawn.items(), "nothing is drawn twice"
    tables = list((tmp_path / "out").glob("*.csv"))
    with tables[0].open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and all(np.isfinite(float(row["fid"])) for row in rows), rows
    assert list((tmp_path / "out").glob("*.md"))

    # what was drawn is what the same request gives
    (image,), info = server.txt2img(
        prompt=told[0].caption(), seed=0, width=SIDE, height=SIDE, sampler_name="DPM++ 2M", scheduler="Karras",
        steps=20, cfg_scale=5,
    )  # fmt: skip
    first = sorted(path for path in (tmp_path / "out").rglob("*.png") if "Karras" in str(path.parent))[0]
    assert np.array_equal(np.asarray(Image.open(first).convert("RGB")), image), info["infotexts"][0]


def test_an_unknown_sampler_is_named_with_those_there_are(server, tmp_path):
    (tmp_path / "prompts.txt").write_text("a moon")
    (tmp_path / "real").mkdir()
    for name in ("0", "1"):
        Image.new("RGB", (TRAINED_SIDE, TRAINED_SIDE)).save(tmp_path / "real" / f"{name}.png")
    line = [*command(server, tmp_path, 1), "--config", "HP Magic/HP/6/5"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100)
    said = done.stdout + done.stderr
    assert "HP Magic" in said and "HP DPM++ 2M" in said and "Traceback" not in said
