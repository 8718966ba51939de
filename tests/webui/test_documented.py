"""What docs/api.md says is sent to a running WebUI, and answered as it says."""

from __future__ import annotations

import json
import re

import pytest

from tests.webui.harness import ROOT
from tests.webui.hosts import SIDE, refusal

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
JSON = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.S)]


def of_any_model(text):
    """A picture's parameters without what depends on the checkpoint, the server's settings and the host's version."""
    return re.sub(r"(Model hash|Model|RNG|Clip skip): [^,]+, |, Version: .+", "", text)


def test_the_picture(server):
    request, documented = JSON[0], JSON[1]
    status, answer = server.post("/sdapi/v1/txt2img", request)
    assert status == 200 and set(answer) == set(documented)
    assert [image[:24] + "..." for image in answer["images"]] == documented["images"]
    assert documented["parameters"].items() <= answer["parameters"].items()
    info = json.loads(answer["info"])
    wanted = documented["info"]
    assert {**wanted, "infotexts": None}.items() <= {**info, "infotexts": None}.items()
    texts = [text.replace("Size: 96x96", f"Size: {SIDE}x{SIDE}") for text in wanted["infotexts"]]
    assert list(map(of_any_model, info["infotexts"])) == list(map(of_any_model, texts))


def test_the_preset_and_hires_fix(server):
    preset, hires = JSON[2], JSON[3]
    status, answer = server.post("/sdapi/v1/txt2img", {**JSON[0], "alwayson_scripts": {"HP Sampler": preset}})
    (text,) = json.loads(answer["info"])["infotexts"]
    assert status == 200 and "HP Recipe: SD1.5 6 steps, HP Ending: To zero" in text
    status, answer = server.post("/sdapi/v1/txt2img", {**hires, **server.host.payload})
    (text,) = json.loads(answer["info"])["infotexts"]
    assert status == 200 and "HP Recipe: SD1.5 6 steps" in text and "HP Hires recipe: Auto" in text


def test_the_error(server):
    scripts = {"HP Sampler": {"args": [{"rho": 99}]}}
    status, answer = server.post("/sdapi/v1/txt2img", {**JSON[0], "alwayson_scripts": scripts})
    assert status == 500 and refusal(answer) == JSON[4]["errors"]
    assert server.host.has_backend or answer == JSON[4], "forks may name the fields otherwise"


def test_the_program_that_draws_a_grid(server, tmp_path, monkeypatch):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(program.replace("http://127.0.0.1:7860", server.url), "api.md", "exec"), {})
    assert (tmp_path / "grid.png").stat().st_size > 2000


@pytest.mark.parametrize("path", ["calibrate", "calibrations"])
def test_the_routes_are_there(server, path):
    assert isinstance(server.get(f"/hpsampler/{path}"), dict)
