"""Training goes on where it was interrupted, and a course's stages write what the model reads."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch

from texture_model.model import TEXTURE
from tiny_model.model import TinyModel
from tiny_model.training import AutoencoderPhase, Course, Trainer, train

SMALL = Course(
    pictures=256,
    few=256,
    classifier_steps=2,
    autoencoder=(AutoencoderPhase("vae", 2, 2, 64, noise=0.1, kl_weight=1e-6, whole_every=2, whole=1),),
    text_steps=2,
    unet_steps=2,
    unet_batch=4,
    unet_rate=1e-3,
)


def trainer(folder):
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    return network, Trainer("line", [network], 220, 0.01, Namespace(out=folder, device="cpu", scale=1.0))


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path):
    rows = torch.linspace(-1, 1, 12).reshape(4, 3)

    def loss_of(network):
        return (network(rows) - rows[:, :2]).square().mean()

    (tmp_path / "whole").mkdir()
    whole, at_once = trainer(tmp_path / "whole")
    at_once.run(lambda step: loss_of(whole))

    first, interrupted = trainer(tmp_path)

    def until_151(step):
        if step == 151:
            interrupted.keep(150)
            raise KeyboardInterrupt
        return loss_of(first)

    with pytest.raises(KeyboardInterrupt):
        interrupted.run(until_151)
    second, resumed = trainer(tmp_path)
    steps = []
    resumed.run(lambda step: (steps.append(step), loss_of(second))[1])
    assert steps == list(range(151, 221)) and [step for step, _ in resumed.losses] == [100, 220]
    for one, other in zip(whole.parameters(), second.parameters()):
        assert torch.equal(one, other)


def test_the_stages_write_what_a_model_reads(tmp_path):
    description = TEXTURE
    train(description, SMALL, "", ["--out", str(tmp_path), "--threads", "1"])
    assert {file.name for file in tmp_path.iterdir()} == {
        "classifier.safetensors", "vae.safetensors", "text.safetensors", "unet.safetensors", "losses.csv",
    }  # fmt: skip
    model = TinyModel.load(tmp_path, description=description)
    told = description.pictures.captioned(2)
    x, sigma = torch.randn(2, *description.latent), torch.ones(2)
    latents = model.denoiser([picture.caption() for picture in told], 5.0)(x, sigma)
    pictures = model.decode(latents)
    assert pictures.shape == (2, 3, description.pictures.side, description.pictures.side)
    assert model.encode(pictures).shape == latents.shape
    assert set(model.right(model.features(pictures), told)) == set(description.pictures.answers())
