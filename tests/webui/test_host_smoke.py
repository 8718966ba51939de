"""The harness itself: a real WebUI draws with each tiny checkpoint, repeats itself, and shows its page."""

from __future__ import annotations

import numpy as np
import pytest

from tests.webui.harness import open_ui


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in steps of 1/255."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("checkpoint", ["hps-tiny-sd15", "hps-tiny-sd15-v", "hps-tiny-sdxl"])
def test_each_checkpoint_draws(server, checkpoint):
    server.set_checkpoint(checkpoint)
    (first,), info = server.txt2img()
    (again,), _ = server.txt2img()
    (seed2,), _ = server.txt2img(seed=2)
    (prompt2,), _ = server.txt2img(prompt="a red apple")
    changes = {
        "steps": {"steps": 20},
        "sampler": {"sampler_name": "DPM++ 2M"},  # the API's default is Euler
        "scheduler": {"scheduler": "Exponential"},
    }
    distances = {name: distance(first, server.txt2img(**change)[0][0]) for name, change in changes.items()}
    distances["prompt"] = distance(first, prompt2)

    assert first.shape == (64, 64, 3)
    assert checkpoint in info["infotexts"][0]
    assert 15 < first.std() < 90, "grey, or all black and white"
    assert np.isin(first, (0, 255)).mean() < 0.05, "saturated"
    assert np.array_equal(first, again)
    assert distance(first, seed2) > 10
    assert min(distances.values()) > 1, distances


def test_img2img_keeps_the_picture(server):
    (picture,), _ = server.txt2img()
    (changed,), _ = server.img2img(picture, denoising_strength=0.3, seed=5)
    (other,), _ = server.txt2img(seed=7)
    assert 0.5 < distance(picture, changed) < distance(picture, other)


def test_hires_fix(server):
    (image,), info = server.txt2img(enable_hr=True, hr_scale=2, denoising_strength=0.6)
    assert image.shape == (128, 128, 3)
    assert image.std() > 15
    assert f"Hires upscaler: {server.host.upscaler}" in info["infotexts"][0]


def test_reload_ui_comes_back(server):
    (before,), _ = server.txt2img()
    server.restart_ui()
    (after,), _ = server.txt2img()
    assert np.array_equal(before, after)


def test_page_shows(server, page, tmp_path):
    open_ui(page, server)
    assert page.locator("#txt2img_generate").is_visible()
    page.screenshot(path=tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_second_server_without_the_extension_and_with_a_probe(serve):
    server = serve(
        extension=False,
        checkpoint="hps-tiny-sdxl",
        files={"extensions/probe/scripts/probe.py": "print('probe script ran')\n"},
    )
    assert "probe script ran" in server.log()
    names = {extension["name"] for extension in server.get("/sdapi/v1/extensions")}
    assert "hp-sampler" not in names
    (image,), info = server.txt2img()
    assert image.std() > 15
    assert "hps-tiny-sdxl" in info["infotexts"][0]
