"""The small models that the bench draws with, by name."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import torch

from texture_model.model import TEXTURE
from tiny_model.model import TinyModel
from tiny_model.networks import TINY

__all__ = ["MODELS", "load"]

MODELS = MappingProxyType({TINY.name: TINY, TEXTURE.name: TEXTURE})
"""The first is the one that the demonstration draws with; the second is as unlike it as its size allows."""


def load(name: str, weights: Path | None = None, device: torch.device | str = "cpu") -> TinyModel:
    """A small model with its own weights, or with those in another folder."""
    description = MODELS[name]
    return TinyModel.load(weights or description.weights, device, description)
