"""What the decoder makes of residual noise: its tolerance, which decides whether a schedule may stop above sigma 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tiny_model.model import TinyModel, seeded_noise

from .metrics import Estimate, Moments, frechet, share

__all__ = ["SIGMAS", "Tolerance", "tolerance"]

SIGMAS = (0.0, 0.03, 0.06, 0.1, 0.13, 0.2, 0.25, 0.35, 0.5, 0.7, 1.0)
SEED = 4242


@dataclass(frozen=True)
class Tolerance:
    """Decoding encoded pictures with noise of ``sigma`` on their latents.

    Attributes:
        change: RMS over pixels (0 to 1) between the decodings with and without the noise.
        loss: RMS over pixels between the decoding and the picture that was encoded.
        frechet: distance of the classifier's features to those of the pictures themselves.
        accuracy: share read with the right colour and shape; whole_caption: all words.
    """

    sigma: float
    samples: int
    change: float
    loss: float
    frechet: Estimate
    accuracy: Estimate
    whole_caption: Estimate


def tolerance(model: TinyModel, sigmas: Sequence[float] = SIGMAS, samples: int = 1000) -> list[Tolerance]:
    """The curve, on newly drawn pictures."""
    rng = np.random.default_rng(SEED)
    grammar = model.description.pictures
    told = [grammar.random(rng) for _ in range(samples)]
    pictures = grammar.draw(told, rng)
    latents = model.encode(pictures)
    noise = seeded_noise(range(samples), model.description.latent).to(latents)
    clean = model.decode(latents)
    aim = Moments.of(model.features(pictures.to(model.device)).cpu().numpy())
    curve = []
    for sigma in sigmas:
        decoded = model.decode(latents + sigma * noise) if sigma else clean
        features = model.features(decoded)
        right = model.right(features, told)
        curve.append(
            Tolerance(
                sigma,
                samples,
                _rms(decoded - clean),
                _rms(decoded.cpu() - pictures),
                frechet(features.cpu().numpy(), aim),
                share(torch.stack([right[name] for name in grammar.subject]).all(0).numpy()),
                share(torch.stack(list(right.values())).all(0).numpy()),
            )
        )
    return curve


def _rms(difference: torch.Tensor) -> float:
    return float(difference.square().mean().sqrt())
