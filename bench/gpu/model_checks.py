"""What must hold of the small models on a GPU: captions, guided calls, decoding and reading as on a CPU."""

from __future__ import annotations

from functools import partial

import torch

from .checks import TF32_TOLERANCE, Check, apart, draw
from .place import Place

__all__ = ["NEEDS", "SMALL_MODELS", "model_checks"]

SMALL_MODELS = ("tiny", "texture")

NEEDS = ("ldm", "transformers", "safetensors", "einops", "omegaconf", "diffusers", "PIL", "scipy", "tqdm")

SIGMA = 3.0


def model_check(name: str, place: Place) -> float:
    """A guided call, its decoding, and what is read from the pictures; the largest difference of the three."""
    # these need the packages
    from ..models import load

    found: list[list[torch.Tensor]] = []
    for device in (place.device, torch.device("cpu")):
        model = load(name, device=device)
        told = model.description.pictures.captioned(2)
        x = draw(2, *model.description.latent).to(device) * SIGMA
        denoiser = model.denoiser([each.caption() for each in told], 5.0)
        denoised = denoiser(x, torch.full((2,), SIGMA, device=device), cond_scale=4.0)
        pictures = model.decode(denoised)
        found.append([denoised, pictures, model.features(pictures)])
        assert set(model.right(found[-1][-1], told)) == set(model.description.pictures.answers())
    return max(apart(ours, theirs) for ours, theirs in zip(*found))


def model_checks() -> list[Check]:
    return [
        Check(f"the {name} model; fp32", partial(model_check, name), TF32_TOLERANCE, NEEDS) for name in SMALL_MODELS
    ]
