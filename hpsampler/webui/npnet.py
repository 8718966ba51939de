"""NPNet on the host's first noise, before its sampler scales it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from modules import prompt_parser

from ..fields import SettingsError
from ..settings import GOLDEN_FORMS, OFF
from .folders import npnets

__all__ = ["find", "make_golden"]


def make_golden(wanted: str, noise: torch.Tensor, conditions: Any) -> str:
    """Turn unit noise into golden noise, in place; returns the label of the weights, for the picture's text.

    Args:
        wanted: name of the weights, or the label that a picture has of them.
        noise: (batch, channels, height, width); the very tensor that the host samples from.
        conditions: the host's of the positive prompts.

    Raises:
        SettingsError: the weights are not here or cannot be read, or cannot be used for this size or model.
    """
    # here, as a start of the WebUI does not wait for a network that few people have
    from ..golden.npnet import TOKENS, GoldenNoiseError
    from ..golden.weights import load_npnet, weights_label

    name, path = find(wanted)
    try:
        network = load_npnet(path)
        label = weights_label(name, network)
        if wanted not in (name, label):
            raise GoldenNoiseError(f"the weights {name!r} here are others than the picture's: {label}, not {wanted}")
        golden = network.to(noise.device)(noise, _embeddings(conditions, TOKENS).to(noise.device))
    except GoldenNoiseError as error:
        raise SettingsError(f"HP Sampler: Golden noise (golden_noise={wanted!r}): {error}") from None
    noise.copy_(golden)
    return label


def find(wanted: str) -> tuple[str, Path]:
    """Name and file of weights by their name, or by the label that a picture has of them.

    Raises:
        SettingsError: they are not here.
    """
    kept = npnets()
    name = wanted if wanted in kept else wanted.rpartition(" ")[0]
    if name not in kept:
        raise SettingsError(
            f"HP Sampler: Golden noise (golden_noise) must be {OFF}, {', '.join(GOLDEN_FORMS)} or NPNet's weights that "
            f"are here; there are no weights {wanted!r}; there are: {', '.join(kept) or 'none yet'}"
        )
    return name, kept[name]


def _embeddings(conditions: Any, tokens: int) -> torch.Tensor:
    """(batch, tokens, width): what the UNet's cross-attention sees of each positive prompt at the first step.

    Of a prompt in several parts (AND, more than 77 tokens) the first.
    """
    rows, found = prompt_parser.reconstruct_multicond_batch(conditions, 0)
    embeddings = found["crossattn"] if isinstance(found, dict) else found
    first = [parts[0][0] for parts in rows]
    return embeddings[first, :tokens].float()
