"""The texture model: its pictures, its words, its denoiser, and that the shipped weights are as good as is written."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.decoder import tolerance
from bench.methods import AUTO
from hpsampler.freeu import FreeU, FreeUPlan, decoder_stages
from texture_model.model import PICTURES, TEXTURE, load
from texture_model.pictures import COLOURS, DIRECTIONS, NUMBERS, SHAPES, SIDE, TEXTURES, Picture
from texture_model.quality import read_drawings, read_samples
from texture_model.words import WORDS
from tiny_model.model import seeded_noise
from tiny_model.networks import TINY, TinyDiffusion

DOCS = Path(__file__).parents[2] / "docs"
LEAF = Picture("one", "jade", "leaf", "broad", "level", "stripes", "rust", "cream")


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return load()


# ---- pictures and words ----------------------------------------------------------------------------------------------


def test_pictures_are_the_same_for_the_same_seed_and_differ_otherwise():
    one, again, other = (PICTURES.draw([LEAF], np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.shape == (1, 3, SIDE, SIDE) and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, again) and not torch.equal(one, other)


def near(picture: torch.Tensor, colour: tuple[float, float, float]) -> torch.Tensor:
    """Where a picture (3, h, w) has about that colour."""
    return (picture - torch.tensor(colour)[:, None, None]).square().sum(0).sqrt() < 0.16


@pytest.mark.parametrize("shape", SHAPES)
def test_as_many_objects_are_drawn_as_the_caption_says_and_in_its_colour(shape):
    rng = np.random.default_rng(0)
    for number, (count, radii, _) in NUMBERS.items():
        told = [Picture(number, "indigo", shape, "fine", "level", "fade", "rust", "cream")] * 3
        areas = [near(picture, COLOURS["indigo"]).float().mean() for picture in PICTURES.draw(told, rng)]
        assert all(0.6 * count * radii[0] ** 2 < area < 3 * count * radii[1] ** 2 for area in areas)


@pytest.mark.parametrize("texture", TEXTURES)
def test_a_texture_s_lines_run_as_the_caption_says(texture):
    """Along the lines neighbours are more alike than across them."""
    rng = np.random.default_rng(0)
    steps = {"level": (0, 6), "rising": (-4, 4), "upright": (6, 0), "falling": (4, 4)}  # (down, right)
    across = {"level": "upright", "upright": "level", "rising": "falling", "falling": "rising"}
    for direction in DIRECTIONS:
        told = [Picture("one", "ink", "leaf", "broad", direction, texture, "rust", "mist")] * 24
        images = PICTURES.draw(told, rng)

        def change(name, images=images):
            moved = torch.roll(images, steps[name], (2, 3))
            return (moved - images)[:, :, 6:-6, 6:-6].abs().mean()

        assert change(direction) < 0.9 * change(across[direction]), direction


def test_captions_tell_all_and_short_ones_part_of_it():
    assert LEAF.caption() == "one jade leaf over broad level stripes of rust and cream"
    rng = np.random.default_rng(0)
    shorter = {LEAF.caption(rng) for _ in range(2000)}
    assert {"one jade leaf", "one jade leaf over rust and cream", "one jade leaf over level stripes"} <= shorter
    assert len(shorter) == 10 and all("jade leaf" in caption for caption in shorter)
    assert LEAF.tells("dark", "over rust and cream") and not LEAF.tells("dark", "one jade leaf")
    three = Picture("three", "ink", "fish", "fine", "rising", "fade", "moss", "sage")
    assert three.caption().startswith("three ink fishes over") and three.tells("shape", "three ink fishes")


def test_every_caption_is_of_known_words_and_the_two_models_share_none_but_small_ones():
    for picture in PICTURES.captioned(300):
        assert TEXTURE.vocabulary.unknown(picture.caption()) == []
    assert len(set(WORDS.values())) == len(WORDS)
    assert not set(WORDS) & set(TINY.vocabulary.words)
    assert TEXTURE.vocabulary.unknown("one red leaf") == ["red"]


def test_answers_and_truth_agree():
    told = PICTURES.captioned(50)
    for name, index in PICTURES.truth(told).items():
        assert index.min() >= 0 and index.max() < PICTURES.answers()[name]
    assert PICTURES.truth([LEAF])["colour"] == list(COLOURS).index("jade")


# ---- the model -------------------------------------------------------------------------------------------------------


def test_the_weights_are_small_enough_to_ship():
    files = list(TEXTURE.weights.glob("*.safetensors"))
    assert len(files) == 4 and sum(file.stat().st_size for file in files) < 5e6


def test_the_unet_has_the_stages_that_free_u_knows(model):
    multiples = [multiple for _, _, multiple in decoder_stages(model.diffusion.unet)]
    assert {4, 2, 1} == set(multiples) and model.diffusion.unet.model_channels == 24


def test_making_it_leaves_the_original_networks_as_they_are():
    groups = {each.num_groups for each in TinyDiffusion().modules() if isinstance(each, torch.nn.GroupNorm)}
    assert groups == {32}


class Constant(torch.nn.Module):
    """Predicts for any input the v of one clean latent."""

    def __init__(self, clean: torch.Tensor, noise: torch.Tensor, share: float) -> None:
        super().__init__()
        self.v = share**0.5 * noise - (1 - share) ** 0.5 * clean

    def forward(self, x, timesteps, context):
        return self.v.expand_as(x)


def test_the_denoiser_reads_the_prediction_as_v(model):
    clean, noise, sigma = torch.randn(1, *TEXTURE.latent), torch.randn(1, *TEXTURE.latent), 2.5
    told = load()
    told.diffusion.unet = Constant(clean, noise, 1 / (1 + sigma**2))
    for cfg_scale in (1.0, 5.0):
        denoised = told.denoiser(["one jade leaf"], cfg_scale)(clean + sigma * noise, torch.tensor([sigma]))
        torch.testing.assert_close(denoised, clean, atol=1e-5, rtol=1e-5)


def test_guidance_one_is_the_conditional_model_and_guidance_is_linear(model):
    noise = seeded_noise([1, 2], TEXTURE.latent)
    sigma = torch.full((2,), 3.0)
    prompts = ["one jade leaf", "three ink houses"]
    plain, empty = model.denoiser(prompts, 1.0), model.denoiser(["", ""], 1.0)
    guided = model.denoiser(prompts, 4.0)
    x = noise * 3
    expected = empty(x, sigma) + 4 * (plain(x, sigma) - empty(x, sigma))
    torch.testing.assert_close(guided(x, sigma), expected, atol=2e-5, rtol=1e-4)
    assert guided.calls == 1 and empty.calls == 2


def test_a_seed_gives_one_picture_alone_or_in_a_batch(model):
    prompts = [picture.caption() for picture in PICTURES.captioned(3)]
    plan = AUTO.plan(model.noise, 5, 5.0)

    def drawn(some, seeds):
        denoiser = model.denoiser(some, 5.0, freeu=plan.freeu)
        return model.decode(plan.run(denoiser, seeded_noise(seeds, TEXTURE.latent), seeds))

    together, alone = drawn(prompts, [7, 8, 9]), drawn(prompts[1:2], [8])
    assert together.shape == (3, 3, SIDE, SIDE) and (together[1] - alone[0]).abs().max() < 2 / 255


def test_free_u_is_on_in_its_calls_only_and_never_left_behind(model):
    x, sigma = seeded_noise([3], TEXTURE.latent), torch.ones(1)
    on = model.denoiser(["one jade leaf"], 2.0, freeu=(FreeUPlan(1, 1),))
    first, second, third = (on(x, sigma) for _ in range(3))
    assert torch.equal(first, third) and not torch.equal(first, second)
    assert not FreeU.attached(model.diffusion.unet)


# ---- the scores that are written -------------------------------------------------------------------------------------


def recorded(name: str) -> list[dict[str, str]]:
    with (DOCS / "bench" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def reading(of: str, steps: int = 0, cfg_scale: float = 0.0) -> dict[str, str]:
    (row,) = (
        row
        for row in recorded("texture_quality.csv")
        if (row["of"], int(row["steps"]), float(row["cfg_scale"])) == (of, steps, cfg_scale)
    )
    return row


def is_as_recorded(found: float, samples: int, row: dict[str, str], column: str) -> bool:
    wanted = float(row[column])
    error = max((wanted * (1 - wanted) * (1 / samples + 1 / int(row["samples"]))) ** 0.5, 0.005)
    return abs(found - wanted) < 3.5 * error


def test_drawings_and_reconstructions_are_read_as_recorded(model):
    for found in read_drawings(model, 200):
        row = reading(found.of)
        assert is_as_recorded(found.subject.value, 200, row, "subject"), found
        assert is_as_recorded(found.caption.value, 200, row, "caption"), found


def test_samples_are_read_as_recorded(model):
    found = read_samples(model, 96, 20, 5.0)
    assert is_as_recorded(found.subject.value, 96, reading("samples", 20, 5.0), "subject")


def test_the_decoder_s_tolerance_is_as_recorded(model):
    rows = {float(row["sigma"]): row for row in recorded("texture_decoder.csv")}
    for found in tolerance(model, sigmas=(0.0, 0.13, 0.5), samples=200):
        row = rows[found.sigma]
        assert is_as_recorded(found.accuracy.value, 200, row, "accuracy"), found.sigma
        assert abs(found.loss - float(row["loss"])) < 0.1 * float(row["loss"])
    assert float(rows[0.0]["accuracy"]) >= 0.95, "what the decoder must keep of a picture"
