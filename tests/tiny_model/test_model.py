"""The tiny model: its pictures, its words, its denoiser, and that the shipped weights are as good as is written."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.decoder import tolerance
from bench.methods import AUTO, KARRAS, coupled
from hpsampler.freeu import FreeU, FreeUPlan, decoder_stages
from tiny_model.model import LATENT, TinyModel, seeded_noise
from tiny_model.networks import UNET, WEIGHTS
from tiny_model.pictures import COLOURS, SHAPES, SIDE, Picture, answers, captioned, draw, random_picture, truth
from tiny_model.words import CLIP_ROWS, CONTEXT, WORDS, tokens, unknown_words

DOCS = Path(__file__).parents[2] / "docs"
CIRCLE = Picture("red", "circle", "large", "plain", "grey", "middle")


@pytest.fixture(scope="module")
def model():
    return TinyModel.load()


# ---- pictures and words ----------------------------------------------------------------------------------------------


def test_pictures_are_the_same_for_the_same_seed_and_differ_otherwise():
    one, again, other = (draw([CIRCLE], np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.shape == (1, 3, SIDE, SIDE) and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_drawn_in_its_colour_where_the_caption_says(shape):
    rng = np.random.default_rng(0)
    middle = draw([Picture("green", shape, "large", "plain", "grey", "middle")] * 4, rng)
    beside = draw([Picture("green", shape, "small", "plain", "grey", "left")] * 4, rng)

    def greenness(pictures: torch.Tensor) -> torch.Tensor:
        return (pictures[:, 1] - pictures[:, [0, 2]].amax(1)).clamp(min=0)

    assert greenness(middle).sum() > 2 * greenness(beside).sum() > 0
    columns = greenness(beside).sum((0, 1))
    assert columns[: SIDE // 2].sum() > 5 * columns[SIDE // 2 :].sum()


def test_captions_tell_all_and_short_ones_part_of_it():
    assert CIRCLE.caption() == "a large red circle on a plain grey background in the middle"
    rng = np.random.default_rng(0)
    shorter = {CIRCLE.caption(rng) for _ in range(2000)}
    assert "a red circle" in shorter and len(shorter) == 16
    assert all("red circle" in caption for caption in shorter)


def test_every_caption_is_of_known_words_and_has_its_row():
    for picture in captioned(300):
        assert unknown_words(picture.caption()) == []
    rows = tokens(["a red circle", "A RED, circle!", "a lighthouse"])
    assert rows.shape == (3, CONTEXT) and torch.equal(rows[0], rows[1])
    assert [CLIP_ROWS[i] for i in rows[0, :5]] == [49406, WORDS["a"], WORDS["red"], WORDS["circle"], 49407]
    assert unknown_words("a lighthouse at the left") == ["lighthouse"] and rows[2, 2] == CLIP_ROWS.index(-1)
    assert tokens(["red " * 200])[0, -1] == 1  # cut, and still ended


def test_answers_and_truth_agree():
    told = [random_picture(np.random.default_rng(seed)) for seed in range(50)]
    for name, index in truth(told).items():
        assert index.min() >= 0 and index.max() < answers()[name]
    assert truth([CIRCLE])["colour"] == list(COLOURS).index("red")


# ---- the model -------------------------------------------------------------------------------------------------------


def test_the_weights_are_small_enough_to_ship():
    files = list(WEIGHTS.glob("*.safetensors"))
    assert len(files) == 4 and sum(file.stat().st_size for file in files) < 12e6


def test_the_unet_has_the_stages_that_free_u_knows(model):
    multiples = [multiple for _, _, multiple in decoder_stages(model.diffusion.unet)]
    assert multiples == [4, 4, 4, 2, 2, 1] and model.diffusion.unet.model_channels == UNET["model_channels"]


def test_guidance_one_is_the_conditional_model_and_guidance_is_linear(model):
    noise = seeded_noise([1, 2])
    sigma = torch.full((2,), 3.0)
    prompts = ["a red circle", "a blue star"]
    plain, empty = model.denoiser(prompts, 1.0), model.denoiser(["", ""], 1.0)
    guided = model.denoiser(prompts, 4.0)
    x = noise * 3
    expected = empty(x, sigma) + 4 * (plain(x, sigma) - empty(x, sigma))
    torch.testing.assert_close(guided(x, sigma), expected, atol=2e-5, rtol=1e-4)
    assert guided.calls == 1 and empty.calls == 2


def test_a_seed_gives_one_picture_alone_or_in_a_batch(model):
    prompts = [picture.caption() for picture in captioned(3)]
    plan = AUTO.plan(model.noise, 5, 5.0)
    together = plan.run(model.denoiser(prompts, 5.0, freeu=plan.freeu), seeded_noise([7, 8, 9]), [7, 8, 9])
    alone = plan.run(model.denoiser(prompts[1:2], 5.0, freeu=plan.freeu), seeded_noise([8]), [8])
    assert (model.decode(together)[1] - model.decode(alone)[0]).abs().max() < 2 / 255


def test_free_u_is_on_in_its_calls_only_and_never_left_behind(model):
    x, sigma = seeded_noise([3]), torch.ones(1)
    on = model.denoiser(["a red circle"], 2.0, freeu=(FreeUPlan(1, 1),))
    first, second, third = (on(x, sigma) for _ in range(3))
    assert torch.equal(first, third) and not torch.equal(first, second)
    assert not FreeU.attached(model.diffusion.unet)
    with pytest.raises(RuntimeError):
        on.calls = 1
        on(x[:, :3], sigma)
    assert not FreeU.attached(model.diffusion.unet)


# ---- the scores that are written -------------------------------------------------------------------------------------


def recorded(name: str) -> list[dict[str, str]]:
    with (DOCS / "bench" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_decoder_s_tolerance_is_as_recorded(model):
    rows = {float(row["sigma"]): row for row in recorded("decoder.csv")}
    for found in tolerance(model, sigmas=(0.0, 0.13, 0.5), samples=100):
        row = rows[found.sigma]
        wanted = float(row["accuracy"])
        error = max((wanted * (1 - wanted) / 100) ** 0.5, 0.005)
        assert abs(found.accuracy.value - wanted) < 3.5 * error, found.sigma
        assert abs(found.loss - float(row["loss"])) < 0.1 * float(row["loss"])
    assert float(rows[0.0]["accuracy"]) >= 0.95, "what the decoder must keep of a picture"
    assert float(rows[0.13]["accuracy"]) >= float(rows[0.0]["accuracy"]) - 0.02, (
        "it swallows the paper's residual noise"
    )


def cell(method, nfe, cfg_scale, rows):
    same = (method.sampler, method.schedule, method.ending, method.freeu, str(nfe))
    names = ("sampler", "schedule", "ending", "freeu", "nfe")
    found = [row for row in rows if tuple(row[name] for name in names) == same]
    return max((row for row in found if float(row["cfg_scale"]) == cfg_scale), key=lambda row: int(row["samples"]))


@pytest.mark.parametrize("method, nfe", [(KARRAS, 20), (AUTO, 5), (coupled("DPM++ 1S", "keep"), 8)])
def test_the_shipped_weights_give_the_recorded_accuracy(model, method, nfe):
    row = cell(method, nfe, 5.0, recorded("tiny.csv"))
    told = captioned(96)
    plan = method.plan(model.noise, nfe, 5.0)
    seeds = range(96)
    denoiser = model.denoiser([picture.caption() for picture in told], 5.0, freeu=plan.freeu)
    pictures = model.decode(plan.run(denoiser, seeded_noise(seeds), seeds))
    assert denoiser.calls == nfe and pictures.shape == (96, 3, SIDE, SIDE) and LATENT == (4, 12, 12)
    right = model.right(model.features(pictures), told)
    found, wanted = float((right["colour"] & right["shape"]).float().mean()), float(row["accuracy"])
    error = ((wanted * (1 - wanted)) * (1 / 96 + 1 / int(row["samples"]))) ** 0.5
    assert abs(found - wanted) < 3.5 * error


def test_fifty_steps_draw_what_the_caption_says():
    row = cell(KARRAS, 50, 5.0, recorded("tiny.csv"))
    assert float(row["accuracy"]) >= 0.85 and int(row["samples"]) >= 500
