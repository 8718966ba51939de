"""The host's page as the accordion's panel must know it: where its controls are, and what is loaded."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from ..fields import SettingsError
from ..noise import NoiseModel
from ..panel import Known, Snapshot
from ..presets import built_in
from . import checkpoint as model
from . import host, options
from .folders import library, presets, statistics_folder

__all__ = ["PAGE", "known"]


def _selectors(tab: str) -> MappingProxyType[str, str]:
    of_tab = {
        "hires": "#txt2img_hr-checkbox",
        "hr_sampler": "#hr_sampler",
        "hr_schedule": "#hr_scheduler",
        "hr_steps": "#txt2img_hires_steps",
        "hr_scale": "#txt2img_hr_scale",
        "hr_cfg": "#txt2img_hr_cfg",
    }
    return MappingProxyType(
        {
            "sampler": f"#{tab}_sampling",
            "schedule": f"#{tab}_scheduler",
            "steps": f"#{tab}_steps",
            "cfg": f"#{tab}_cfg_scale",
            "width": f"#{tab}_width",
            "height": f"#{tab}_height",
            "denoising": f"#{tab}_denoising_strength",
            # the text itself, as gradio 4 counts the seconds beside it while a picture is drawn
            "drawn": f"#html_info_{tab} p",
            **(of_tab if tab == "txt2img" else {}),
        }
    )


PAGE = MappingProxyType({tab: _selectors(tab) for tab in ("txt2img", "img2img")})


def known() -> Known:
    """What the panel must know of the loaded model; while there is none, Stable Diffusion 1.5's noise table."""
    loaded = host.loaded()
    found = Known(
        "sd1", NoiseModel.of_stable_diffusion(), presets=(*built_in(), *presets().read()[0]),
        calibrations=Snapshot(library().folder), statistics=statistics_folder(), follow=options.follows_model(),
        plot=options.plots(), off=options.settings_when_off(),
        aim=options.aim(),
    )  # fmt: skip
    if loaded is None:
        return found
    try:
        family, noise, hashes = model.family(), host.table(loaded), model.hashes()
    except (SettingsError, ValueError, AttributeError) as error:
        return replace(found, model=model.title(), problem=str(error))

    def measured() -> bool:
        # here, as a start of the WebUI needs none of it
        from ..statistics.files import provenances_of_model

        return bool(provenances_of_model(statistics_folder(), hashes)[0])

    return replace(found, model=model.title(), family=family, noise=noise, hashes=hashes, measured=measured)
