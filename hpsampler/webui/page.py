"""The host's page as the accordion's panel must know it: where its controls are, and what is loaded."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from modules import sd_models, shared

from ..noise import NoiseModel
from ..panel import panel_data
from ..presets import built_in
from ..settings import SettingsError
from . import checkpoint as model
from . import options, registration
from .folders import library, presets, statistics_folder

__all__ = ["PAGE", "panel"]


def _selectors(tab: str) -> MappingProxyType[str, str]:
    return MappingProxyType(
        {
            "sampler": f"#{tab}_sampling",
            "schedule": f"#{tab}_scheduler",
            "steps": f"#{tab}_steps",
            "cfg": f"#{tab}_cfg_scale",
            "width": f"#{tab}_width",
            "height": f"#{tab}_height",
            **({"denoising": "#img2img_denoising_strength"} if tab == "img2img" else {}),
        }
    )


PAGE = MappingProxyType({tab: _selectors(tab) for tab in ("txt2img", "img2img")})


def panel() -> dict[str, Any]:
    """The panel's data for the loaded model; while there is none, for Stable Diffusion 1.5's noise table."""
    loaded = sd_models.model_data.sd_model
    common: dict[str, Any] = {
        "samplers": registration.SAMPLERS,
        "schedules": list(registration.SCHEDULES.values()),
        "presets": [*built_in(), *presets().read()[0]],
        "follow": options.follows_model(),
        "plot": options.plots(),
    }
    if loaded is None:
        return panel_data("", "sd1", NoiseModel.of_stable_diffusion(), **common)
    try:
        family, noise, problem = model.family(), _table(loaded), ""
    except (SettingsError, ValueError, AttributeError) as error:
        return panel_data(model.title(), "sd1", NoiseModel.of_stable_diffusion(), problem=str(error), **common)
    # here, as a start of the WebUI needs none of it
    from ..statistics.files import provenances_of_model

    profiles, hashes = library().read()[0], model.hashes()
    measured = bool(provenances_of_model(statistics_folder(), hashes)[0])
    return panel_data(
        model.title(), family, noise, profiles=profiles, hashes=hashes, measured=measured, problem=problem, **common
    )


def _table(loaded: Any) -> NoiseModel:
    """The noise table that the next request will have; the host changes its model's for each request anew."""
    table = getattr(loaded, "alphas_cumprod_original", loaded.alphas_cumprod)
    if shared.opts.use_downcasted_alpha_bar:
        table = table.half()
    if shared.opts.sd_noise_schedule == "Zero Terminal SNR":
        table = sd_models.rescale_zero_terminal_snr_abar(table)
    return NoiseModel.from_alphas_cumprod(table)
