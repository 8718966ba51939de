"""The accordion and the host's hooks around a request."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any, Optional

import gradio as gr
from modules import script_callbacks, scripts, sd_samplers_kdiffusion, sd_schedulers, shared
from modules.infotext_utils import PasteField
from modules.ui_components import InputAccordion

from .. import __version__
from ..freeu import FreeU, decoder_stages
from ..recipes import PRESETS
from ..settings import FIELDS, OFF, SCHEDULE_FIELDS, Field, Settings, SettingsError
from ..workshop import Workshop
from . import model, registration, tab
from .accordion import TITLE, build
from .api import add_routes
from .passes import Pass, Request
from .source import Checkpoint, Turns
from .store import library

__all__ = ["HPSamplerScript", "install"]

ATTRIBUTE = "hpsampler_settings"
"""Name under which a request (``p``) carries its validated settings, or the error in them."""

_BY_NAME = MappingProxyType({field.name: field for field in FIELDS})
RECIPE_KEY, CALIBRATION_KEY = _BY_NAME["recipe"].infotext, _BY_NAME["calibration"].infotext
NOTE_KEY, VERSION_KEY = "HP note", "HP version"

STOP_SECONDS = 30


class HPSamplerScript(scripts.Script):
    """The accordion in txt2img and img2img, and the life of its settings from the request to the last UNet call."""

    def title(self) -> str:
        return TITLE

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        accordion = build(f"{'img2img' if is_img2img else 'txt2img'}_hpsampler", InputAccordion, library().names)
        self.infotext_fields = [
            PasteField(accordion.enabled, _needs_accordion),
            *(PasteField(accordion.controls[field.name], _reader(field)) for field in FIELDS),
        ]
        self.paste_field_names = [field.infotext for field in FIELDS]
        return accordion.inputs

    def process(self, p: Any, *args: Any) -> None:
        try:
            settings = Settings.of(args)
        except SettingsError as error:
            # an exception here would be printed and the image drawn all the same; the pass stops it instead
            setattr(p, ATTRIBUTE, error)
            return
        setattr(p, ATTRIBUTE, settings)
        uses = [_Use(sampler, schedule) for sampler, schedule in _passes_of(p)]
        schedule = any(use.schedule for use in uses)
        if not (settings.freeu == "On" or schedule or any(use.sampler for use in uses)):
            return
        if settings.enabled:
            preset = PRESETS.get(settings.recipe)
            unipc = any(
                use.solver == "unipc" or (use.own_choice and preset is not None and preset.solver == "unipc")
                for use in uses
            )
            p.extra_generation_params.update(settings.infotext(schedule, settings.freeu == "On" or schedule, unipc))
            if preset is not None and schedule and preset.steps != p.steps:
                _tell(p, f"the recipe {preset.name} is made for {preset.steps} steps; it ran with {p.steps}")
        p.extra_generation_params[VERSION_KEY] = __version__

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        settings = getattr(p, ATTRIBUTE, None) or Settings()
        try:
            if isinstance(settings, SettingsError):
                raise settings
            self._begin(p, settings)
        except SettingsError as error:
            _stop(p, error)

    def _begin(self, p: Any, settings: Settings) -> None:
        """Check what this pass will use, before its first UNet call, and hand the settings on to it."""
        name, scheduler = (p.hr_sampler_name, p.hr_scheduler) if p.is_hr_pass else (None, None)
        use = _Use(name or p.sampler_name, scheduler or p.scheduler)
        request = Request(
            cfg_scale=p.cfg_scale,
            from_noise=not p.is_hr_pass and not hasattr(p, "init_latent"),
            width=p.hr_upscale_to_x if p.is_hr_pass else p.width,
            height=p.hr_upscale_to_y if p.is_hr_pass else p.height,
            solver=use.solver,
            own=use.sampler,
            tell=partial(_tell, p),
            record=partial(_record, p),
        )
        this = Pass(settings, request)
        if use.sampler or use.schedule or settings.freeu == "On":
            this.resolve(p.steps)
            try:
                decoder_stages(model.unet())
            except ValueError as error:
                raise SettingsError(f"HP Sampler: {error}") from None
        if use.schedule and not _takes_a_schedule(p.sampler):
            schedule = scheduler or p.scheduler
            _tell(p, f"the sampler {name or p.sampler_name} makes its own schedule and ignored the type {schedule}")
        idle = settings.changed(SCHEDULE_FIELDS | {"analytical_first_step"})
        if idle and use.sampler and not use.schedule:
            labels = ", ".join(field.label for field in idle)
            _tell(p, f"{labels} had no effect, as the schedule type was {scheduler or p.scheduler} and not HP")
        if hasattr(p.sampler, "model_wrap"):
            this.attach(p.sampler.model_wrap)


class _Use:
    """What one pass uses of ours."""

    def __init__(self, sampler: str, scheduler: Optional[str]) -> None:
        self.sampler = sampler in registration.SAMPLERS
        self.solver = registration.SAMPLERS.get(sampler)
        self.own_choice = self.sampler and self.solver is None
        found = sd_schedulers.schedulers_map.get(scheduler)
        automatic = found is None or found.name == "automatic"
        self.schedule = self.sampler if automatic else found.name in registration.SCHEDULES


def _passes_of(p: Any) -> list[tuple[str, Optional[str]]]:
    """Sampler and schedule type of every pass of a request."""
    first = (p.sampler_name, p.scheduler)
    if not getattr(p, "enable_hr", False):
        return [first]
    return [first, (p.hr_sampler_name or p.sampler_name, p.hr_scheduler or p.scheduler)]


def _takes_a_schedule(sampler: Any) -> bool:
    """Timestep samplers (DDIM, UniPC, ..) ask no schedule type; DPM fast and adaptive take only its ends."""
    is_k_diffusion = isinstance(sampler, sd_samplers_kdiffusion.KDiffusionSampler)
    return is_k_diffusion and "sigmas" in inspect.signature(sampler.func).parameters


def _tell(p: Any, text: str) -> None:
    """Tell the person, beside the image on the page and, as API clients never see that, in the infotext."""
    p.comment(f"HP Sampler: {text}.")
    said = p.extra_generation_params.get(NOTE_KEY)
    if text not in (said or ""):
        p.extra_generation_params[NOTE_KEY] = f"{said}; {text}" if said else text


def _record(p: Any, label: str) -> None:
    """Write into the infotext which calibrated schedule a pass ran on; a second pass may have another."""
    said = p.extra_generation_params.get(CALIBRATION_KEY)
    if label not in (said or "").split("; "):
        p.extra_generation_params[CALIBRATION_KEY] = f"{said}; {label}" if said else label


def _needs_accordion(params: dict[str, Any]) -> bool:
    """Whether a pasted picture can only be made again with the accordion on.

    One that Auto drew without a calibration needs it as soon as there are calibrations, which Auto would use now.
    """
    if RECIPE_KEY in params or CALIBRATION_KEY in params:
        return True
    return VERSION_KEY in params and bool(library().names())


def _stop(p: Any, error: SettingsError) -> None:
    """Let the pass raise ``error`` where the host does not swallow it; ``p.sampler`` lives for this request only."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise error

    p.sampler.sample = p.sampler.sample_img2img = refuse


def _reader(field: Field) -> Callable[[dict[str, Any]], Any]:
    """What a pasted infotext says of a field: its default where a picture of ours leaves it out."""

    def read(params: dict[str, Any]) -> Any:
        if not _needs_accordion(params):
            return None
        # what says nothing of a calibration was drawn without one
        default = OFF if field.infotext == CALIBRATION_KEY and library().names() else field.default
        value = params.get(field.infotext, default)
        try:
            return field.parse(value)
        except SettingsError as error:
            gr.Warning(str(error))
            return value

    return read


def on_cfg_denoiser(params: Any) -> None:
    """Before each UNet call: Free-U on the UNet that this call goes to, if the plan says so, else on none."""
    denoiser = params.denoiser
    unet = model.unet()
    if unet is None:
        return
    FreeU.detach(unet)
    this = Pass.find(getattr(denoiser.sampler, "model_wrap", None))
    plan = this.freeu_plan(denoiser.step, denoiser.total_steps) if this is not None else None
    if plan is not None:
        FreeU.attach(unet, plan)


def on_cfg_denoised(params: Any) -> None:
    """After each UNet call: hooks live for one call, so no exception, interrupt or model switch can leave them."""
    unet = model.unet()
    if unet is not None:
        FreeU.detach(unet)


def install() -> None:
    """Register all of it; called by the script file on every load of the host's scripts."""
    registration.register()
    script_callbacks.on_cfg_denoiser(on_cfg_denoiser)
    script_callbacks.on_cfg_denoised(on_cfg_denoised)

    workshop = Workshop(library(), Checkpoint, Turns)
    script_callbacks.on_ui_tabs(lambda: [(tab.build(workshop), tab.TAB_TITLE, tab.TAB_ID)])
    script_callbacks.on_app_started(partial(_on_app_started, workshop))

    def leave() -> None:
        # what it has finished is kept, and the next load can resume it
        workshop.stop(wait=STOP_SECONDS)
        registration.unregister()

    script_callbacks.on_script_unloaded(leave)


def _on_app_started(workshop: Workshop, page: Any, app: Any) -> None:
    if shared.cmd_opts.api:
        add_routes(app, workshop, shared.cmd_opts.api_auth)
