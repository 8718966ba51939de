"""The accordion and the host's hooks around a request."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Optional

import gradio as gr
from gradio.context import Context
from modules import script_callbacks, scripts, sd_samplers_common, sd_samplers_kdiffusion, sd_schedulers, shared
from modules.infotext_utils import PasteField
from modules.ui_components import InputAccordion

from ..effects import AUTOMATIC, Use
from ..fields import Field, SettingsError
from ..freeu import decoder_stages
from ..plan import VERSION_KEY, Pass, Request, followed, misfit_note, parameters
from ..recipes import AUTO
from ..settings import AS_SET, FIELDS, OFF, Settings
from ..store import StoreError
from . import checkpoint as model
from . import host, options, registration, tab, xyz
from .accordion import TITLE, Accordion, PageContext, build
from .api import add_routes
from .fallback import sentence_alone
from .folders import library, menus, presets
from .npnet import find as find_npnet
from .npnet import make_golden
from .page import PAGE, known
from .passes import attach, find, foreseen, planned
from .refusal import allow, answer_in_words, refuse, stop
from .runners import Runners
from .trouble import Trouble

__all__ = ["HPSamplerScript", "install"]

ATTRIBUTE = "hpsampler_settings"
"""Name under which a request (``p``) carries its validated settings, or the error in them."""

_BY_NAME = MappingProxyType({field.name: field for field in FIELDS})
RECIPE_KEY, CALIBRATION_KEY = _BY_NAME["recipe"].infotext, _BY_NAME["calibration"].infotext
STATISTICS_KEY, GOLDEN_KEY = _BY_NAME["statistics"].infotext, _BY_NAME["golden_noise"].infotext
NOTE_KEY = "HP note"

BEFORE_GUIDANCE = {"guidance": AS_SET, "bend": "0"}
"""What Auto did before version 0.7.0, and what a picture of that time is pasted with."""

PRESET_NAME = "preset"
"""In the API's dict, and of an axis: a preset whose values are taken where the dict names no others."""

STOP_SECONDS = 30


class HPSamplerScript(scripts.Script):
    """The accordion in txt2img and img2img, and the life of its settings from the request to the last UNet call."""

    trouble = Trouble()
    """Of this load of the extension, with which the host makes the class anew."""

    def title(self) -> str:
        return TITLE

    def __init__(self) -> None:
        super().__init__()
        self.accordion: Optional[Accordion] = None
        """Of the page; the API builds others, which nobody sees."""
        self.menus: dict[str, Any] = {}
        """The page's own menus of samplers and of schedule types, which may be built before the accordion or after."""

    def show(self, is_img2img: bool) -> Any:
        tab_name = "img2img" if is_img2img else "txt2img"
        listen = self.trouble.guarded("the offer Use HP Auto", self.on_after_component)
        for name in ("sampling", "scheduler"):
            listen(
                self.trouble.guarded("the offer Use HP Auto", partial(self._found, name)), elem_id=f"{tab_name}_{name}"
            )
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
        prefix = f"{'img2img' if is_img2img else 'txt2img'}_hpsampler"
        block = Context.block
        before = list(block.children) if block is not None else []
        try:
            accordion = self._build(is_img2img, prefix)
        except Exception as error:
            # an exception here would end the start of some hosts; half of an accordion would be worse than none
            for each in [each for each in (block.children if block is not None else ()) if each not in before]:
                each.unrender()
            return sentence_alone(f"HP Sampler: {self.trouble.report('the accordion', error)}", prefix)
        self.trouble.guarded("pasting pictures", self._paste_into)(accordion)
        return accordion.inputs

    def _build(self, is_img2img: bool, prefix: str) -> Accordion:
        tab_name = "img2img" if is_img2img else "txt2img"
        begin, values = _begin_with()
        around = PageContext(PAGE[tab_name], known, presets(), menus(), values, begin, tab.TAB_TITLE, self.trouble)
        accordion = build(prefix, InputAccordion, around)
        self.accordion = self.accordion or accordion
        self.trouble.guarded("the offer Use HP Auto", self._connect)()
        return accordion

    def _paste_into(self, accordion: Accordion) -> None:
        self.infotext_fields = [
            PasteField(accordion.enabled, _needs_accordion),
            *(PasteField(accordion.controls[field.name], _reader(field)) for field in FIELDS),
        ]
        self.paste_field_names = [field.infotext for field in FIELDS]

    def process(self, p: Any, *args: Any) -> None:
        # cells of an X/Y/Z plot are shallow copies of one request, and share what an earlier one wrote
        keys = {NOTE_KEY, VERSION_KEY, *(field.infotext for field in FIELDS)}
        p.extra_generation_params = {k: v for k, v in p.extra_generation_params.items() if k not in keys}
        allow(p)
        try:
            settings = _settings_of(p, args)
            _check(p, settings)
        except SettingsError as error:
            setattr(p, ATTRIBUTE, error)
            refuse(p, error)
            return
        setattr(p, ATTRIBUTE, settings)
        uses = [_use(p, sampler, schedule) for sampler, schedule in _passes_of(p)]
        written = parameters(settings, uses)
        p.extra_generation_params.update({k: v for k, v in written.items() if k != VERSION_KEY})
        if not written:
            return
        for use, own, steps in zip(uses, (settings, settings.of_second_pass()), _steps_of(p)):
            _tell(p, misfit_note(own, use, steps))
        p.extra_generation_params[VERSION_KEY] = written[VERSION_KEY]

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        settings = getattr(p, ATTRIBUTE, None) or Settings()
        try:
            if isinstance(settings, SettingsError):
                raise settings
            self._begin(p, settings, kwargs)
            answer_in_words(p)
        except SettingsError as error:
            stop(p, error)

    def _begin(self, p: Any, settings: Settings, tensors: Mapping[str, Any]) -> None:
        """Check what this pass will use, before its first UNet call, and hand the settings on to it."""
        if p.is_hr_pass:
            settings = settings.of_second_pass()
        request = _request(p, p.is_hr_pass)
        model_wrap = getattr(p.sampler, "model_wrap", None)
        this = planned(settings, request, model_wrap, partial(_tell, p), partial(_record, p))
        _check_unet(this)
        this.begin(_takes_a_schedule(p.sampler))
        if this.golden is not None:
            _record(p, "golden_noise", settings.golden_noise)
        elif settings.npnet and not p.is_hr_pass and request.use.from_noise:
            _record(p, "golden_noise", make_golden(settings.npnet, tensors["x"], tensors["c"]))
        if model_wrap is not None:
            attach(model_wrap, this)


def _request(p: Any, second: bool) -> Request:
    """What one pass of a request is to draw."""
    use = _use(p, *_pass_of(p, second))
    return Request(
        use,
        cfg_scale=host.guidance(p, second),
        from_noise=use.from_noise and not second,
        steps=p.steps,
        width=p.hr_upscale_to_x if second else p.width,
        height=p.hr_upscale_to_y if second else p.height,
        second=second,
        start=_start_of(p, second),
    )


def _start_of(p: Any, second: bool) -> Optional[tuple[int, float]]:
    """Where the host starts in the schedule of an img2img pass, and the strength that this shall mean."""
    if not second and not hasattr(p, "init_latent"):
        return None
    requested = (getattr(p, "hr_second_pass_steps", 0) or p.steps) if second else None
    steps, last = sd_samplers_common.setup_img2img_steps(p, requested)
    # strength 0 with "exact steps" leaves the host without a schedule
    return (steps - last - 1, float(p.denoising_strength)) if steps > last else None


def _check(p: Any, settings: Settings) -> None:
    """Find before anything is drawn what its passes would refuse, so far as that is known by now.

    Raises:
        SettingsError: what they would raise.
    """
    # a second pass may have a model of its own, which is not loaded yet
    passes = 1 if getattr(p, "hr_checkpoint_name", None) else len(_passes_of(p))
    try:
        for second, own, steps in zip((False, True)[:passes], (settings, settings.of_second_pass()), _steps_of(p)):
            this = foreseen(own, _request(p, second))
            _check_unet(this)
            this.begin()
            use = this.request.use
            if own.npnet and use.own and use.from_noise and not second:
                find_npnet(own.npnet)
            if use.own and use.coupled:
                this.schedule(steps)
    except SettingsError:
        raise
    except Exception:
        # a host that knows less by now: the pass itself finds what is wrong
        return


def _check_unet(this: Pass) -> None:
    """Raises SettingsError: the model's UNet is none that Free-U knows, where anything of ours is used."""
    if not this.used:
        return
    try:
        decoder_stages(host.unet(host.loaded()))
    except ValueError as error:
        raise SettingsError(f"HP Sampler: {error}") from None


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


def _use(p: Any, sampler: str, scheduler: Optional[str]) -> Use:
    """What a pass with that sampler and schedule type uses of ours."""
    found = sd_schedulers.schedulers_map.get(scheduler)
    # one that the host does not know is drawn as Automatic
    known = AUTOMATIC if found is None or found.name == "automatic" else found.label
    use = Use.of(sampler, known, not hasattr(p, "init_latent"))
    return replace(use, schedule=scheduler or AUTOMATIC)


def _pass_of(p: Any, second: bool) -> tuple[str, Optional[str]]:
    """Sampler and schedule type of one pass of a request."""
    if not second:
        return p.sampler_name, p.scheduler
    return p.hr_sampler_name or p.sampler_name, p.hr_scheduler or p.scheduler


def _passes_of(p: Any) -> list[tuple[str, Optional[str]]]:
    """The same of every pass."""
    return [_pass_of(p, second) for second in ([False, True] if getattr(p, "enable_hr", False) else [False])]


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
    key = _BY_NAME[name].infotext
    said = p.extra_generation_params.get(key)
    if label not in (said or "").split("; "):
        p.extra_generation_params[key] = f"{said}; {label}" if said else label


def _needs_accordion(params: dict[str, Any]) -> bool:
    """Whether a pasted picture can only be made again with the accordion on.

    One that Auto drew without a calibration needs it as soon as there are calibrations, which Auto would use now; and
    one of an older version, as Auto draws other pictures since.
    """
    if any(key in params for key in (RECIPE_KEY, CALIBRATION_KEY, STATISTICS_KEY, GOLDEN_KEY)):
        return True
    return VERSION_KEY in params and (_is_older(params) or bool(library().names()))


def _is_older(params: dict[str, Any]) -> bool:
    """Whether a pasted picture was drawn before guidance and bend were numbers of the recipe."""
    numbers = re.findall(r"\d+", str(params.get(VERSION_KEY, "")))[:2]
    return VERSION_KEY in params and [int(number[:4]) for number in numbers] < [0, 7]


def _reader(field: Field) -> Callable[[dict[str, Any]], Any]:
    """What a pasted infotext says of a field: its default where a picture of ours leaves it out."""

    def read(params: dict[str, Any]) -> Any:
        if not _needs_accordion(params):
            return None
        # what says nothing of a calibration was drawn without one
        default = OFF if field.infotext == CALIBRATION_KEY and library().names() else field.default
        if _is_older(params):
            default = BEFORE_GUIDANCE.get(field.name, default)
        value = params.get(field.infotext, params.get(field.formerly, default))
        try:
            return field.parse(value)
        except SettingsError as error:
            gr.Warning(str(error))
            return value

    return read


def on_cfg_denoiser(params: Any) -> None:
    """Before each UNet call: Free-U on the UNet that this call goes to, if the plan says so, else on none."""
    denoiser = params.denoiser
    this = find(getattr(denoiser.sampler, "model_wrap", None))
    plan = this.freeu_plan(denoiser.step, denoiser.total_steps) if this is not None else None
    try:
        obstacle = host.freeu(plan, this.waves if this is not None else None)
    except Exception as error:
        # the infotext may not say that it was on
        obstacle = f"it could not be put on this UNet ({type(error).__name__}: {error})"
    if this is not None and plan is not None and obstacle:
        this.tell(f"Free-U had no effect, as {obstacle}")


def on_cfg_after_cfg(params: Any) -> None:
    """After all UNet calls of a step, others' included: Free-U is on for no longer, so nothing can leave it."""
    host.freeu(None)


def install() -> None:
    """Register all of it; called by the script file on every load of the host's scripts."""
    registration.register(options.hidden())
    # For every callback the host reads the source of its whole call stack, to see whose it is: 30 ms each from where
    # scripts are loaded. A thread's stack is short, and names the same file.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_add_callbacks).result()


def _add_callbacks() -> None:
    guarded = HPSamplerScript.trouble.guarded
    script_callbacks.on_before_ui(guarded("the axes of X/Y/Z plots", xyz.register))
    script_callbacks.on_ui_settings(guarded("the settings page", options.register))
    script_callbacks.on_cfg_denoiser(on_cfg_denoiser)
    script_callbacks.on_cfg_after_cfg(guarded("taking Free-U off", on_cfg_after_cfg))

    runners = Runners()

    def tabs() -> list[tuple[Any, str, str]]:
        return [(tab.build(runners, known, options.default_preset), tab.TAB_TITLE, tab.TAB_ID)]

    script_callbacks.on_ui_tabs(guarded(f"the tab {tab.TAB_TITLE}", tabs, instead=[]))
    script_callbacks.on_app_started(guarded("the API of calibrations", partial(_on_app_started, runners)))

    def leave() -> None:
        # what it has finished is kept, and the next load can resume it
        runners.stop(wait=STOP_SECONDS)
        host.freeu(None)
        registration.unregister()

    script_callbacks.on_script_unloaded(guarded("leaving", leave))


def _on_app_started(runners: Runners, page: Any, app: Any) -> None:
    if shared.cmd_opts.api:
        add_routes(app, runners, getattr(shared.cmd_opts, "api_auth", None))
