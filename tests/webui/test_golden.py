"""Golden noise in a running WebUI: A and B on the trained tiny checkpoint, NPNet with the SDXL layout; API and page."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from demo.session import Request, draw
from hpsampler.golden.cli import main
from hpsampler.golden.npnet import NPNet
from hpsampler.golden.weights import convert, weights_label
from hpsampler.settings import Settings
from tests.accordion.page import until
from tests.webui.harness import WebUIError, answered, open_ui, paste
from tests.webui.hosts import SIDE
from tests.webui.test_page import choose, open_accordion
from tiny_model.model import TinyModel
from tiny_model.pictures import SIDE as TRAINED_SIDE
from tiny_model.pictures import captioned

PROMPTS = [picture.caption() for picture in captioned(8)]
SIZE = {"width": SIDE, "height": SIDE}
DRAWN = {"sampler_name": "HP Auto", "steps": 5, "cfg_scale": 5, "seed": 11, "prompt": PROMPTS[0], **SIZE}
SDXL = "hps-tiny-sdxl"
LARGE = {"sampler_name": "HP Auto", "steps": 2, "cfg_scale": 5, "seed": 3, "width": 1024, "height": 1024}


def golden(form, **payload):
    return {**DRAWN, **payload, "alwayson_scripts": {"HP Sampler": {"args": [{"golden_noise": form}]}}}


def text_of(info):
    return info["infotexts"][0]


@pytest.fixture(scope="module")
def painter(serve, trained_checkpoint):
    return serve(checkpoint=trained_checkpoint, settings={"randn_source": "CPU"})


@pytest.mark.parametrize("form", ["A", "B"])
def test_the_picture_is_the_core_s(painter, form):
    if SIDE != TRAINED_SIDE:
        pytest.skip(f"this host draws pictures of {SIDE} pixels, and the core of {TRAINED_SIDE}")
    (image,), info = painter.txt2img(**golden(form))
    assert f"HP Golden noise: {form}" in text_of(info) and "HP note" not in text_of(info)
    settings = Settings.of_names({"enabled": True, "golden_noise": form})
    ours = draw(TinyModel.load(), Request(PROMPTS[0], seed=11, steps=5, cfg_scale=5.0, settings=settings))
    assert ours.calls == 7
    pixels = (ours.pictures[0].permute(1, 2, 0).numpy() * 255).round()
    assert np.abs(pixels - image).max() <= 1
    plain, _ = painter.txt2img(**DRAWN)
    assert not np.array_equal(plain[0], image)


@pytest.mark.parametrize("sampler", ["HP DPM++ 1S", "HP DPM++ 2M", "HP UniPC", "HP DPM-v3"])
def test_with_every_hp_sampler_a_batch_is_its_pictures(painter, sampler):
    batch, _ = painter.txt2img(**golden("B", sampler_name=sampler, batch_size=3))
    for index in (0, 2):
        alone, _ = painter.txt2img(**golden("B", sampler_name=sampler, seed=11 + index))
        assert np.abs(batch[index].astype(int) - alone[0]).max() <= 1


def test_elsewhere_it_is_left_out_and_told(painter):
    (image,), info = painter.txt2img(**golden("A", sampler_name="Euler"))
    assert "golden noise A needs an HP sampler" in text_of(info) and "HP Golden noise" not in text_of(info)
    plain, _ = painter.txt2img(**{**DRAWN, "sampler_name": "Euler"})
    assert np.array_equal(plain[0], image)
    _, info = painter.img2img(image, **golden("A", denoising_strength=0.5))
    assert "golden noise is for pure noise" in text_of(info)
    second, info = painter.txt2img(
        **golden("A", enable_hr=True, hr_scale=2, hr_second_pass_steps=4, denoising_strength=0.6)
    )
    assert "HP Golden noise: A" in text_of(info) and "HP note" not in text_of(info) and second[0].std() > 5


def test_without_it_nothing_is_left_of_it(painter):
    before, _ = painter.txt2img(**DRAWN)
    painter.txt2img(**golden("B"))
    after, _ = painter.txt2img(**DRAWN)
    assert np.array_equal(before[0], after[0])


class TestPage:
    """In Chromium."""

    def test_chosen_drawn_pasted(self, page, painter):
        page.route(lambda url: not url.startswith(painter.url), lambda route: route.abort())
        open_ui(page, painter)
        choose(page, "#txt2img_sampling", "HP Auto")
        open_accordion(page)
        page.locator("#txt2img_hpsampler input[type=checkbox]").first.check()
        choose(page, "#txt2img_hpsampler_golden_noise", "B")
        page.wait_for_function(
            "() => /2 of them for golden noise/.test(document.querySelector('#txt2img_hpsampler_panel').innerText)"
        )
        page.fill("#txt2img_prompt textarea", PROMPTS[0])
        for name, value in {"steps": 5, "cfg_scale": 5, "width": SIDE, "height": SIDE}.items():
            page.fill(f"#txt2img_{name} input[type=number]", str(value))
            page.press(f"#txt2img_{name} input[type=number]", "Tab")
        answered(page)
        page.click("#txt2img_generate")
        page.wait_for_function(
            "() => document.querySelector('#html_info_txt2img').innerText.includes('HP Golden noise: B')"
        )
        _, info = painter.txt2img(**golden("A"))
        # while a picture is drawn, the page's other events wait
        page.locator("#txt2img_interrupt").wait_for(state="hidden")
        paste(page, text_of(info))
        until(page.locator("#txt2img_hpsampler_golden_noise input").first.input_value, "A")


class TestNPNet:
    @pytest.fixture(scope="class")
    def large(self, serve):
        return serve(checkpoint=SDXL, settings={"randn_source": "CPU"})

    @pytest.fixture(scope="class")
    def folder(self, large):
        found = large.data / "models" / "hpsampler" / "npnet"
        found.mkdir(parents=True, exist_ok=True)
        return found

    @pytest.fixture(scope="class")
    def network(self, folder):
        """Random weights as wide as the tiny SDXL's embedding: a published file is 2048 wide, and not at hand."""
        torch.manual_seed(0)
        network = NPNet(128).requires_grad_(False).eval()
        save_file(network.state_dict(), folder / "wide.safetensors")
        save_file(NPNet(1024).state_dict(), folder / "other.safetensors")
        return network

    def ask(self, name, **payload):
        return {**LARGE, **payload, "alwayson_scripts": {"HP Sampler": {"args": [{"golden_noise": name}]}}}

    @pytest.mark.parametrize("sampler", ["HP Auto", "Euler"])
    def test_it_changes_the_picture_before_any_sampler_and_is_named(self, large, network, sampler):
        (image,), info = large.txt2img(**self.ask("wide", sampler_name=sampler))
        label = weights_label("wide", network)
        assert f"HP Golden noise: {label}" in text_of(info) and "HP note" not in text_of(info)
        again, _ = large.txt2img(**self.ask(label, sampler_name=sampler))
        plain, _ = large.txt2img(**{**LARGE, "sampler_name": sampler})
        assert np.array_equal(again[0], image) and not np.array_equal(plain[0], image)

    def test_a_batch_is_its_pictures(self, large, network):
        batch, _ = large.txt2img(**self.ask("wide", batch_size=2))
        alone, _ = large.txt2img(**self.ask("wide", seed=4))
        assert np.abs(batch[1].astype(int) - alone[0]).max() <= 1

    @pytest.mark.parametrize(
        ("name", "payload", "words"),
        [
            ("wide", {"width": 512, "height": 512}, "trained for pictures of 1024 x 1024 alone, got 512 x 512"),
            ("wide", {"width": 1024, "height": 768}, "trained for pictures of 1024 x 1024 alone, got 1024 x 768"),
            ("other", {}, "reads embeddings 1024 wide (Hunyuan-DiT), the model's are 128 wide"),
            ("nobody", {}, "there are no weights 'nobody'; there are: other, wide"),
        ],
    )  # fmt: skip
    def test_what_it_cannot_do_stops_the_picture_with_a_sentence(self, large, network, name, payload, words):
        with pytest.raises(WebUIError, match="answered 500") as refused:
            large.txt2img(**self.ask(name, **payload))
        assert words in str(refused.value)

    def test_files_that_are_none_are_refused_and_run_nothing(self, large, folder, network):
        class Bomb:
            def __reduce__(self):
                return open, (str(folder / "ran"), "w")

        whole = (folder / "wide.safetensors").read_bytes()
        bad = {
            "pickled": pickle.dumps(Bomb()), "cut": whole[: len(whole) // 2], "empty": b"", "page": b"<html></html>",
        }  # fmt: skip
        for name, data in bad.items():
            (folder / f"{name}.safetensors").write_bytes(data)
            with pytest.raises(WebUIError, match="answered 500") as refused:
                large.txt2img(**self.ask(name))
            assert f"{name}.safetensors" in str(refused.value)
            (folder / f"{name}.safetensors").unlink()
        assert not (folder / "ran").exists()

    def test_a_published_file_is_converted_and_used(self, large, folder, network, tmp_path, capsys):
        state = network.state_dict()
        sections = {"unet_svd": "unet_svd", "unet_embedding": "unet_embedding", "embeeding": "text_embedding"}
        published = {
            section: {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{prefix}.")}
            for section, prefix in sections.items()
        }
        torch.save({**published, "alpha": state["alpha"], "beta": state["beta"]}, tmp_path / "theirs.pth")
        convert(tmp_path / "theirs.pth", folder / "converted.safetensors")
        first, _ = large.txt2img(**self.ask("wide"))
        second, info = large.txt2img(**self.ask("converted"))
        assert np.array_equal(first[0], second[0]) and "HP Golden noise: converted" in text_of(info)
        assert main(["convert", str(tmp_path / "none.pth"), str(folder / "x.safetensors")]) == 1
        assert "none.pth cannot be read" in capsys.readouterr().err
