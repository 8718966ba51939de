"""The loaded checkpoint, as far as the method must know it: family, noise table, names."""

from __future__ import annotations

from typing import Any

from ..fields import SettingsError
from ..noise import NoiseModel
from . import host

__all__ = ["LoadedCheckpoint", "family", "hashes", "noise_model", "title"]


def _model() -> Any:
    model = host.loaded()
    if model is None:
        raise SettingsError("HP Sampler: no model is loaded")
    return model


def family() -> str:
    """Family of the loaded model.

    Raises:
        SettingsError: a model that the method does not cover, such as a flow model (SD3, Flux), or none is loaded.
    """
    model = _model()
    if host.is_flow(model):
        raise SettingsError(
            "HP Sampler covers SD 1.x, SD 2.x and SDXL that predict noise or v; the loaded model is a flow model "
            f"({type(model).__name__}). Choose another sampler and schedule type for it."
        )
    for attribute, name in (("is_sdxl", "sdxl"), ("is_ssd", "sdxl"), ("is_sd2", "sd2"), ("is_sd1", "sd1")):
        if getattr(model, attribute, False):
            return name
    raise SettingsError(
        "HP Sampler covers SD 1.x, SD 2.x and SDXL; the loaded model is none of them "
        f"({type(model).__name__}). Choose another sampler and schedule type for it."
    )


def hashes() -> tuple[str, ...]:
    """What the checkpoint is known by: the start of its SHA-256 (absent with --no-hashing) and the host's old hash."""
    info = _model().sd_checkpoint_info
    return tuple(dict.fromkeys(each for each in (info.shorthash, info.hash) if each))


def title() -> str:
    """The checkpoint's name as people know it."""
    return str(_model().sd_checkpoint_info.name_for_extra)


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
        model_wrap: the denoiser that is about to sample; None while there is none, and the next request's noise table
            stands for its own.
    """

    def __init__(self, model_wrap: Any = None) -> None:
        self._model_wrap = model_wrap

    @property
    def family(self) -> str:
        return family()

    @property
    def noise(self) -> NoiseModel:
        return host.table(_model()) if self._model_wrap is None else noise_model(self._model_wrap)

    @property
    def hashes(self) -> tuple[str, ...]:
        return hashes()
