"""The texture model: its description, and its trained weights as a :class:`tiny_model.model.TinyModel`."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import torch

from tiny_model.description import Description, Pictures, Vocabulary
from tiny_model.model import TinyModel
from tiny_model.networks import TEXT_WIDTH

from .pictures import COLOURS, DARK, DIRECTIONS, LIGHT, NUMBERS, SCALES, SHAPES, SIDE, TEXTURES, Picture, draw
from .words import WORDS

__all__ = ["PICTURES", "TEXTURE", "load"]

PICTURES = Pictures(
    SIDE,
    Picture,
    {
        "number": tuple(NUMBERS),
        "colour": tuple(COLOURS),
        "shape": tuple(SHAPES),
        "scale": tuple(SCALES),
        "direction": tuple(DIRECTIONS),
        "texture": TEXTURES,
        "dark": tuple(DARK),
        "light": tuple(LIGHT),
    },
    ("colour", "shape"),
    draw,
)

TEXTURE = Description(
    "texture",
    Path(__file__).parent / "weights",
    PICTURES,
    Vocabulary(WORDS),
    unet=MappingProxyType(
        {
            "image_size": SIDE // 8,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 24,
            "num_res_blocks": [2, 1, 1],
            "attention_resolutions": [2],
            "channel_mult": [1, 2, 4],
            "num_heads": 4,
            "use_spatial_transformer": True,
            "transformer_depth": 1,
            "context_dim": TEXT_WIDTH,
            "use_checkpoint": False,
            "legacy": False,
        }
    ),
    vae=MappingProxyType(
        {
            "double_z": True,
            "z_channels": 4,
            "resolution": SIDE,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 16,
            "ch_mult": [1, 2, 2, 2],
            "num_res_blocks": 1,
            "attn_resolutions": [],
            "dropout": 0.0,
        }
    ),
    prediction="v",
    groups=8,
)


def load(folder: Path = TEXTURE.weights, device: torch.device | str = "cpu") -> TinyModel:
    """From the weights in the repository."""
    return TinyModel.load(folder, device, TEXTURE)
