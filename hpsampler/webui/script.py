"""The accordion and the host's hooks around a request."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Optional

from modules import script_callbacks, scripts, sd_samplers_common, sd_samplers_kdiffusion, sd_schedulers, shared
from modules.ui_components import InputAccordion

from ..effects import AUTOMATIC, Use
from ..fields import SettingsError
from ..freeu import decoder_stages
from ..plan import VERSION_KEY, Request, followed, misfit_note, parameters
from ..presets import built_in
from ..recipes import AUTO
from ..settings import ENABLED, FIELDS, Settings
from ..store import StoreError
from . import checkpoint as model
from . import host, options, page_defaults, registration, tab, xyz
from .accordion import TITLE, Accordion, PageContext, build
from .api import add_routes
from .folders import menus, presets
from .infotext import KEYS, NOTE_KEY, on_pasted, paste_fields
from .npnet import make_golden
from .page import PAGE, known
from .passes import attach, find, planned
from .runners import Runners

__all__ = ["HPSamplerScript", "install"]

ATTRIBUTE = "hpsampler_settings"
"""Name under which a request (``p``) carries its validated settings, or the error in them."""

PRESET_NAME = "preset"
"""In the API's dict, and of an axis: a preset whose values are taken where the dict names no others."""

STOP_SECONDS = 30


class HPSamplerScript(scripts.Script):
    """The accordion in txt2img and img2img, and the life of its settings from the request to the last UNet call."""

    def title(self) -> str:
        return TITLE

    def __init__(self) -> None:
        super().__init__()
        self.accordion: Optional[Accordion] = None
        """Of the page; the API builds others, which nobody sees."""
        self.menus: dict[str, Any] = {}
        """The page's own menus of samplers and of schedule types, which may be built before the accordion or after."""

        self.begun_with: list[Any] = []
        """The values of the accordion as it was last built, which the API fills up a request with."""

    def show(self, is_img2img: bool) -> Any:
        tab_name = "img2img" if is_img2img else "txt2img"
        for name in ("sampling", "scheduler"):
            self.on_after_component(partial(self._found, name), elem_id=f"{tab_name}_{name}")
        return scripts.AlwaysVisible

    def _found(self, name: str, event: Any) -> None:
        self.menus.setdefault(name, event.component)
        self._connect()

    def _connect(self) -> None:
        """Let the accordion's offer set the page's own menus, once both are there."""
        if self.accordion is not None and len(self.menus) == 2 and "connected" not in self.menus:
            self.accordion.connect(self.menus["sampling"], self.menus["scheduler"])
            self.menus["connected"] = True

    def ui(self, is_img2img: bool) -> list[Any]:
        tab_name = "img2img" if is_img2img else "txt2img"
        begin, values = _begin_with()
        saved = page_defaults.saved(_ui_config(), tab_name)
        around = PageContext(PAGE[tab_name], known, presets(), menus(), values, begin, tab.TAB_TITLE, saved)
        accordion = build(f"{tab_name}_hpsampler", InputAccordion, around)
        self.accordion = self.accordion or accordion
        self._connect()
        self.begun_with = [each.value for each in accordion.inputs]
        self.infotext_fields, self.paste_field_names = paste_fields(accordion)
        return accordion.inputs

    def _said(self, args: Sequence[Any]) -> Sequence[Any]:
        """What a request says: behind a dict, values that were given, and not those that the API filled up with."""
        filled = args and isinstance(args[0], Mapping) and [*args[1:]] == self.begun_with[1:]
        return args[:1] if filled else args

    def process(self, p: Any, *args: Any) -> None:
        # cells of an X/Y/Z plot are shallow copies of one request, and share what an earlier one wrote
        keys = {NOTE_KEY, VERSION_KEY, *KEYS.values()}
        p.extra_generation_params = {k: v for k, v in p.extra_generation_params.items() if k not in keys}
        try:
            settings = _settings_of(p, self._said(args))
        except SettingsError as error:
            # an exception here would be printed and the image drawn all the same; the pass stops it instead
            setattr(p, ATTRIBUTE, error)
            return
        setattr(p, ATTRIBUTE, settings)
        uses = [_use(p, sampler, schedule) for sampler, schedule in _passes_of(p)]
        written = parameters(settings, uses)
        p.extra_generation_params.update({k: v for k, v in written.items() if k != VERSION_KEY})
        if not written:
            return
        for problem in options.problems():
            _tell(p, problem)
        for use, own, steps in zip(uses, (settings, settings.of_second_pass()), _steps_of(p)):
            _tell(p, misfit_note(own, use, steps))
        p.extra_generation_params[VERSION_KEY] = written[VERSION_KEY]

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        settings = getattr(p, ATTRIBUTE, None) or Settings()
        try:
            if isinstance(settings, SettingsError):
                raise settings
            self._begin(p, settings, kwargs)
        except SettingsError as error:
            _stop(p, error)

    def _begin(self, p: Any, settings: Settings, tensors: Mapping[str, Any]) -> None:
        """Check what this pass will use, before its first UNet call, and hand the settings on to it."""
        name, scheduler = (p.hr_sampler_name, p.hr_scheduler) if p.is_hr_pass else (None, None)
        use = _use(p, name or p.sampler_name, scheduler or p.scheduler)
        if p.is_hr_pass:
            settings = settings.of_second_pass()
        request = Request(
            use,
            cfg_scale=host.guidance(p),
            from_noise=use.from_noise and not p.is_hr_pass,
            steps=p.steps,
            width=p.hr_upscale_to_x if p.is_hr_pass else p.width,
            height=p.hr_upscale_to_y if p.is_hr_pass else p.height,
            second=p.is_hr_pass,
            start=_start_of(p),
        )
        model_wrap = getattr(p.sampler, "model_wrap", None)
        this = planned(settings, request, model_wrap, partial(_tell, p), partial(_record, p))
        if this.used:
            try:
                decoder_stages(host.unet(host.loaded()))
            except ValueError as error:
                raise SettingsError(f"HP Sampler: {error}") from None
        this.begin(_takes_a_schedule(p.sampler))
        if this.golden is not None:
            _record(p, "golden_noise", settings.golden_noise)
        elif settings.npnet and not p.is_hr_pass and use.from_noise:
            _record(p, "golden_noise", make_golden(settings.npnet, tensors["x"], tensors["c"]))
        if model_wrap is not None:
            attach(model_wrap, this)


def _start_of(p: Any) -> Optional[tuple[int, float]]:
    """Where the host starts in the schedule of an img2img pass, and the strength that this shall mean."""
    if not p.is_hr_pass and not hasattr(p, "init_latent"):
        return None
    requested = (getattr(p, "hr_second_pass_steps", 0) or p.steps) if p.is_hr_pass else None
    steps, last = sd_samplers_common.setup_img2img_steps(p, requested)
    # strength 0 with "exact steps" leaves the host without a schedule
    return (steps - last - 1, float(p.denoising_strength)) if steps > last else None


def _settings_of(p: Any, args: Sequence[Any]) -> Settings:
    """The request's settings: the page's or the API's, with what an X/Y/Z plot sets in their place.

    Raises:
        SettingsError: as :meth:`Settings.of`, and for a preset that is not here.
    """
    values: dict[str, Any] = {}
    axes = xyz.axes_of(p)
    # whoever plots an axis of ours wants to see it
    for given in (Settings.named(args), {"enabled": True, **axes} if axes else {}):
        name = given.pop(PRESET_NAME, None)
        if name is not None:
            try:
                values.update(presets().find(name).values())
            except StoreError as error:
                raise SettingsError(f"HP Sampler: Preset ({PRESET_NAME}): {error}") from None
        values.update(given)
    settings = Settings.of_names(values)
    if not settings.enabled:
        return options.settings_when_off()
    if not options.follows_model():
        return settings
    return followed(settings, model.family(), partial(_tell, p))


def _begin_with() -> tuple[str, Optional[dict[str, Any]]]:
    """The preset that the accordion begins with and its values; None where the settings page names none."""
    name = options.default_preset()
    if not name:
        return AUTO, None
    try:
        return name, presets().find(name).values()
    except StoreError as error:
        print(f"HP Sampler: the settings name a preset to begin with that is not here; {error}")
        return AUTO, None


def _ui_config() -> Path:
    """The file in which the host keeps the page's defaults."""
    return Path(shared.cmd_opts.ui_config_file)


def _thaw() -> None:
    """Before a page is built: nothing that it begins with by our decision is frozen in the host's file."""
    _, values = _begin_with()
    plain = {each.name: each.default for each in FIELDS}
    begin = {ENABLED.name: values is not None, **plain, **(values or {})}
    try:
        found = page_defaults.thaw(_ui_config(), begin, (each.values() for each in (*built_in(), *presets().read()[0])))
    except OSError as error:
        found = [f"the page's defaults cannot be kept apart from what was saved of them; {error}"]
    for problem in found:
        print(f"HP Sampler: {problem.removeprefix('HP Sampler: ')}.")


def _use(p: Any, sampler: str, scheduler: Optional[str]) -> Use:
    """What a pass with that sampler and schedule type uses of ours."""
    found = sd_schedulers.schedulers_map.get(scheduler)
    # one that the host does not know is drawn as Automatic
    known = AUTOMATIC if found is None or found.name == "automatic" else found.label
    use = Use.of(sampler, known, not hasattr(p, "init_latent"))
    return replace(use, schedule=scheduler or AUTOMATIC)


def _passes_of(p: Any) -> list[tuple[str, Optional[str]]]:
    """Sampler and schedule type of every pass of a request."""
    first = (p.sampler_name, p.scheduler)
    if not getattr(p, "enable_hr", False):
        return [first]
    return [first, (p.hr_sampler_name or p.sampler_name, p.hr_scheduler or p.scheduler)]


def _steps_of(p: Any) -> list[int]:
    """Steps of every pass's schedule; a pass that must make an exact number of them runs the last of a longer one."""

    def longer(steps: int) -> int:
        strength = min(p.denoising_strength or 0, 0.999)
        return int(steps / strength) if strength > 0 else steps

    exact = hasattr(p, "init_latent") and host.option("img2img_fix_steps", False)
    return [longer(p.steps) if exact else p.steps, longer(getattr(p, "hr_second_pass_steps", 0) or p.steps)]


def _takes_a_schedule(sampler: Any) -> bool:
    """Timestep samplers (DDIM, UniPC, ..) ask no schedule type; DPM fast and adaptive take only its ends."""
    is_k_diffusion = isinstance(sampler, sd_samplers_kdiffusion.KDiffusionSampler)
    return is_k_diffusion and "sigmas" in inspect.signature(sampler.func).parameters


def _tell(p: Any, text: str) -> None:
    """Tell the person, beside the image on the page and, as API clients never see that, in the infotext."""
    if not text:
        return
    p.comment(f"HP Sampler: {text}.")
    said = p.extra_generation_params.get(NOTE_KEY)
    if text not in (said or ""):
        p.extra_generation_params[NOTE_KEY] = f"{said}; {text}" if said else text


def _record(p: Any, name: str, label: str) -> None:
    """Write into the infotext what a pass used for the setting of that name; a second pass may have another."""
    key = KEYS[name]
    said = p.extra_generation_params.get(key)
    if label not in (said or "").split("; "):
        p.extra_generation_params[key] = f"{said}; {label}" if said else label


def _stop(p: Any, error: SettingsError) -> None:
    """Let the pass raise ``error`` where the host does not swallow it; ``p.sampler`` lives for this request only."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise error

    p.sampler.sample = p.sampler.sample_img2img = refuse


def on_cfg_denoiser(params: Any) -> None:
    """Before each UNet call: Free-U on the UNet that this call goes to, if the plan says so, else on none."""
    denoiser = params.denoiser
    this = find(getattr(denoiser.sampler, "model_wrap", None))
    plan = this.freeu_plan(denoiser.step, denoiser.total_steps) if this is not None else None
    obstacle = host.freeu(plan)
    if this is not None and obstacle:
        this.tell(f"Free-U had no effect, as {obstacle}")


def on_cfg_after_cfg(params: Any) -> None:
    """After all UNet calls of a step, others' included: Free-U is on for no longer, so nothing can leave it."""
    host.freeu(None)


def install() -> None:
    """Register all of it; called by the script file on every load of the host's scripts."""
    for problem in options.problems():
        print(f"HP Sampler: {problem}.")
    registration.register(options.hidden())
    # For every callback the host reads the source of its whole call stack, to see whose it is: 30 ms each from where
    # scripts are loaded. A thread's stack is short, and names the same file.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_add_callbacks).result()


def _add_callbacks() -> None:
    script_callbacks.on_before_ui(_thaw)
    script_callbacks.on_before_ui(xyz.register)
    script_callbacks.on_ui_settings(options.register)
    script_callbacks.on_cfg_denoiser(on_cfg_denoiser)
    script_callbacks.on_cfg_after_cfg(on_cfg_after_cfg)
    script_callbacks.on_infotext_pasted(on_pasted)

    runners = Runners()
    script_callbacks.on_ui_tabs(
        lambda: [(tab.build(runners, known, options.default_preset), tab.TAB_TITLE, tab.TAB_ID)]
    )
    script_callbacks.on_app_started(partial(_on_app_started, runners))

    def leave() -> None:
        # what it has finished is kept, and the next load can resume it
        runners.stop(wait=STOP_SECONDS)
        host.freeu(None)
        registration.unregister()

    script_callbacks.on_script_unloaded(leave)


def _on_app_started(runners: Runners, page: Any, app: Any) -> None:
    if shared.cmd_opts.api:
        add_routes(app, runners, shared.cmd_opts.api_auth)
