"""The tiny Stable Diffusion's networks, in SD 1.x's very layout: the classes are those of the original code (``ldm``)
and of ``transformers``; only widths and depths are ours.

``python -m tiny_model.train`` makes their weights; :func:`load` reads them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from .description import CONTEXT, END, START, Description
from .pictures import PICTURES
from .words import VOCABULARY

# the package greets its reader on the terminal
with contextlib.redirect_stdout(io.StringIO()):
    from ldm.modules import attention
    from ldm.modules.diffusionmodules import model as autoencoder
    from ldm.modules.diffusionmodules import openaimodel
    from ldm.modules.diffusionmodules.util import GroupNorm32

__all__ = ["TINY", "UNET", "VAE", "WEIGHTS", "Classifier", "TinyDiffusion", "read_weights", "text_config"]

WEIGHTS = Path(__file__).parent / "weights"

TEXT_WIDTH = 64

UNET: dict[str, Any] = {
    "image_size": 12,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2, 4],
    "channel_mult": [1, 2, 4],
    "num_heads": 4,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": TEXT_WIDTH,
    "use_checkpoint": False,
    "legacy": False,
}

VAE: dict[str, Any] = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 96,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}


TINY = Description("tiny", WEIGHTS, PICTURES, VOCABULARY, UNET, VAE)


@contextlib.contextmanager
def _normalized_in(groups: int) -> Iterator[None]:
    """Within it, ldm's networks are made quietly and with so many groups in their normalizations: ldm writes 32, which
    leaves no width between 32 and 64."""
    with (
        mock.patch.object(openaimodel, "normalization", lambda channels: GroupNorm32(groups, channels)),
        mock.patch.object(attention, "Normalize", lambda channels: nn.GroupNorm(groups, channels, eps=1e-6)),
        mock.patch.object(autoencoder, "Normalize", lambda channels: nn.GroupNorm(groups, channels, eps=1e-6)),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


def text_config(vocabulary: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=END,
        architectures=["CLIPTextModel"],
    )


class Autoencoder(nn.Module):
    """SD's KL autoencoder: pictures (n, 3, h, w) in [-1, 1] to latents (n, 4, h/8, w/8) and back."""

    def __init__(self, description: Description = TINY) -> None:
        super().__init__()
        with _normalized_in(description.groups):
            self.encoder, self.decoder = (
                network(**description.vae) for network in (autoencoder.Encoder, autoencoder.Decoder)
            )
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)

    def encode(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of the latents."""
        mean, log_variance = self.quant_conv(self.encoder(pictures)).chunk(2, 1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.post_quant_conv(latents))


class Classifier(nn.Module):
    """Reads a picture (n, 3, side, side), values from 0 to 1: one answer per word list, and features for distances."""

    FEATURES = 64
    body: nn.Sequential

    def __init__(self, answers: dict[str, int], side: int = PICTURES.side) -> None:
        super().__init__()
        widths = (3, 16, 32, 48, 64)
        self.body = nn.Sequential(
            *(
                layer
                for i, o in pairwise(widths)
                for layer in (nn.Conv2d(i, o, 3, stride=2, padding=1), nn.GroupNorm(8, o), nn.SiLU())
            ),
            nn.Conv2d(widths[-1], self.FEATURES, 3, padding=1),
            nn.GroupNorm(8, self.FEATURES),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear((side // 16) ** 2 * self.FEATURES, self.FEATURES),
            nn.SiLU(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(self.FEATURES, count) for name, count in answers.items()})

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.body(pictures * 2 - 1)

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.features(pictures)
        return {name: head(features) for name, head in self.heads.items()}


class TinyDiffusion(nn.Module):
    """Text encoder, UNet and autoencoder; latents are the autoencoder's times ``latent_scale``."""

    latent_scale: torch.Tensor

    def __init__(self, description: Description = TINY) -> None:
        super().__init__()
        self.vocabulary = description.vocabulary
        self.text = CLIPTextModel(text_config(len(self.vocabulary.clip_rows)))
        with _normalized_in(description.groups):
            self.unet = openaimodel.UNetModel(**description.unet)
        self.vae = Autoencoder(description)
        self.register_buffer("latent_scale", torch.ones(()))

    def embed(self, prompts: list[str]) -> torch.Tensor:
        """Conditions (n, 77, TEXT_WIDTH)."""
        return self.text(self.vocabulary.tokens(prompts).to(self.latent_scale.device)).last_hidden_state


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A part's stored weights, in single precision."""
    return {key: value.float() for key, value in load_file(path).items()}
