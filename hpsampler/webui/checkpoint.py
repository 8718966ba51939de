"""The loaded checkpoint, as far as the method must know it: family, noise table, UNet."""

from __future__ import annotations

import sys
from typing import Any, Optional

from modules import shared
from torch import nn

from ..fields import SettingsError
from ..noise import NoiseModel

__all__ = ["LoadedCheckpoint", "family", "hashes", "noise_model", "title", "unet", "unet_in_its_place"]


def family() -> str:
    """Family of the loaded model.

    Raises:
        SettingsError: a model that the method does not cover, such as the flow models SD3 and Flux.
    """
    model = shared.sd_model
    for attribute, name in (("is_sdxl", "sdxl"), ("is_ssd", "sdxl"), ("is_sd2", "sd2"), ("is_sd1", "sd1")):
        if getattr(model, attribute, False) and not getattr(model, "is_sd3", False):
            return name
    raise SettingsError(
        "HP Sampler covers SD 1.x, SD 2.x and SDXL; the loaded model is none of them "
        f"({type(model).__name__}). Choose another sampler and schedule type for it."
    )


def hashes() -> tuple[str, ...]:
    """What the checkpoint is known by: the start of its SHA-256 (absent with --no-hashing) and the host's old hash."""
    info = shared.sd_model.sd_checkpoint_info
    return tuple(dict.fromkeys(each for each in (info.shorthash, info.hash) if each))


def title() -> str:
    """The checkpoint's name as people know it."""
    return str(shared.sd_model.sd_checkpoint_info.name_for_extra)


def noise_model(model_wrap: Any) -> NoiseModel:
    """The noise table of the denoiser that is about to sample, with what the host changed in it (zero terminal SNR)."""
    try:
        return NoiseModel.from_sigmas(model_wrap.sigmas)
    except ValueError as error:
        # such as the host's zero terminal SNR on a downcast table, which is infinite
        raise SettingsError(f"HP Sampler cannot use the noise table of the loaded model: {error}") from None


class LoadedCheckpoint:
    """The loaded model as a pass asks for it, a :class:`~hpsampler.plan.Model`: nothing is read before it is needed.

    Args:
        model_wrap: the denoiser that is about to sample.
    """

    def __init__(self, model_wrap: Any) -> None:
        self._model_wrap = model_wrap

    @property
    def family(self) -> str:
        return family()

    @property
    def noise(self) -> NoiseModel:
        return noise_model(self._model_wrap)

    @property
    def hashes(self) -> tuple[str, ...]:
        return hashes()


def unet() -> Optional[nn.Module]:
    """The UNet that the next call goes to, if the model has one; changes with refiner and hires checkpoint."""
    model = shared.sd_model
    objects = getattr(model, "forge_objects", None)
    holder = objects.unet if objects is not None else model
    return getattr(getattr(holder, "model", None), "diffusion_model", None)


def unet_in_its_place() -> str:
    """The UNet that another extension runs instead, outside torch (TensorRT, OpenVINO): its name, or nothing."""
    # not every fork has the module
    other = getattr(sys.modules.get("modules.sd_unet"), "current_unet", None)
    return "" if other is None else str(getattr(getattr(other, "option", None), "label", "") or type(other).__name__)
