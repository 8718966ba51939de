"""A request to draw, from what was set for it to what its picture says of it.

A request (the host's ``p``) has one pass, or with hires. fix two. Before the first, :func:`prepare` validates what was
set and writes into the infotext what will be used. Before each, :func:`begin` makes its :class:`~hpsampler.plan.Pass`.
After the last, :func:`finish` takes back what was written of a request that another script drew past all of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any, Optional

from modules import sd_samplers, sd_samplers_common, sd_samplers_kdiffusion, sd_schedulers

from .. import notes
from ..effects import AUTOMATIC, SAMPLERS, SCHEDULES, Use
from ..fields import SettingsError
from ..freeu import decoder_stages
from ..notes import VERSION_KEY, followed, parameters
from ..plan import Pass, Request
from ..settings import Settings
from ..statistics.files import Opened
from ..store import StoreError
from . import checkpoint as model
from . import host, options, passes, xyz
from .folders import presets
from .infotext import KEYS, NOTE_KEY
from .npnet import find as find_npnet
from .npnet import make_golden
from .refusal import allow, refuse

__all__ = ["OWN", "before", "begin", "finish", "pass_of", "pass_or_none", "prepare", "settings_of"]

OWN = "hpsampler"
"""Marks what is ours by the sampler's name: the function that samples, and the options of its entry in the host's list.
Other extensions rename a sampler while they draw, and keep both."""

SETTINGS = "hpsampler_settings"
"""Name under which a request carries its validated settings, or the error in them."""

ASKED, BEGUN, AROUND = "hpsampler_asked", "hpsampler_begun", "hpsampler_around"
"""And what sampler and schedule type were asked for, whether a pass of it was begun, and its ``sample`` as it was."""

OPENED = "hpsampler_opened"
"""And the statistics that were read for it."""

SAME_SCHEDULE = "Use same scheduler"
PRESET_NAME = "preset"
"""In the API's dict, and of an axis: a preset whose values are taken where the dict names no others."""

_drawing: ContextVar[Any] = ContextVar("hpsampler_drawing", default=None)
"""The request that another script is drawing in its own way, for as long as that takes."""


# ---- before the picture ----------------------------------------------------------------------------------------------


def before(p: Any) -> None:
    """Before the host corrects the names in a request."""
    setattr(p, ASKED, (p.sampler_name, p.scheduler))


def prepare(p: Any, args: Sequence[Any]) -> None:
    """Validate what was set, and write what will be used into the infotext. What is wrong is raised by the pass."""
    # cells of an X/Y/Z plot are shallow copies of one request, and share what an earlier one wrote
    keys = {NOTE_KEY, VERSION_KEY, *KEYS.values()}
    p.extra_generation_params = {k: v for k, v in p.extra_generation_params.items() if k not in keys}
    setattr(p, BEGUN, False)
    allow(p)
    _surround(p)
    try:
        settings = settings_of(p, args)
        _correct_schedules(p, settings)
        _check(p, settings)
    except SettingsError as error:
        setattr(p, SETTINGS, error)
        refuse(p, error)
        return
    setattr(p, SETTINGS, settings)
    uses = [_use(p, _own_name(sampler), schedule) for sampler, schedule in _passes_of(p)]
    for note in _unused(p, settings, uses):
        tell(p, note)
    written = parameters(settings, uses)
    p.extra_generation_params.update({k: v for k, v in written.items() if k != VERSION_KEY})
    if not written:
        return
    for problem in options.problems():
        tell(p, problem)
    for use, own, steps in zip(uses, _of_passes(settings), _steps_of(p)):
        tell(p, notes.misfit(own, use, steps))
    p.extra_generation_params[VERSION_KEY] = written[VERSION_KEY]


def settings_of(p: Any, args: Sequence[Any]) -> Settings:
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
    return followed(settings, model.family(), partial(tell, p))


def _of_passes(settings: Settings) -> tuple[Settings, Settings]:
    return settings, settings.of_second_pass()


def _unused(p: Any, settings: Settings, uses: Sequence[Use]) -> list[str]:
    """What was set and has no effect in any pass."""
    if not settings.enabled:
        return []
    try:
        family = model.family()
    except SettingsError:
        family = "sd1"  # such a model is drawn by the host's samplers alone, of which no recipe says anything
    try:
        named = [
            Settings(enabled=True, recipe=each.recipe).resolve(family, p.steps, host.guidance(p, False))
            for each in _of_passes(settings)
        ]
    except ValueError:
        return []  # such as no steps at all, which the pass refuses if anything of ours is in it
    return notes.unused(settings, [*zip(uses, named)])


def _correct_schedules(p: Any, settings: Settings) -> None:
    """Tell of a schedule type that there is not, and let the second pass find its own as the host's first does.

    The first takes a type by name or label, and another one as Automatic. In the second the host would sample evenly in
    time with any other spelling, and say nothing; it is corrected where something of ours would be drawn with it.
    """
    first, *second = _passes_of(p)
    sampler, asked = getattr(p, ASKED, (None, None))
    ours = {**SCHEDULES, **{label: label for label in SCHEDULES.values()}}
    if asked in ours and p.scheduler not in ours and sampler == p.sampler_name:
        # a fork's sampler that knows a few types by name, and for which the host has put one of them in its place
        tell(p, notes.ignored(sampler, ours[asked]))
    elif asked and asked not in sd_schedulers.schedulers_map and (settings.enabled or _own_name(first[0]) in SAMPLERS):
        tell(p, f"there is no schedule type {asked!r} here, so Automatic is used")
    asked = getattr(p, "hr_scheduler", None)
    if not second or not asked:
        return
    found = sd_schedulers.schedulers_map.get(asked)
    label = p.scheduler if asked == SAME_SCHEDULE else AUTOMATIC if found is None else found.label
    if label == asked or _own_name(second[0][0]) not in SAMPLERS:
        return
    p.hr_scheduler = label
    if found is None and asked != SAME_SCHEDULE:
        tell(p, f"there is no schedule type {asked!r} here, so the second pass uses Automatic")


def _check(p: Any, settings: Settings) -> None:
    """Find before anything is drawn what its passes would refuse, so far as that is known by now.

    Raises:
        SettingsError: what they would raise.
    """
    # a second pass may have a model of its own, which is not loaded yet
    number = 1 if getattr(p, "hr_checkpoint_name", None) else len(_passes_of(p))
    try:
        for second, own, steps in zip((False, True)[:number], _of_passes(settings), _steps_of(p)):
            this = passes.foreseen(own, _request(p, second), _opened(p))
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


# ---- what a pass uses ------------------------------------------------------------------------------------------------


def _own_name(sampler: str) -> str:
    """The name of a sampler of the host's list, ours under whatever name it stands there now."""
    data = sd_samplers.all_samplers_map.get(sampler)
    return str(data.options.get(OWN, sampler)) if data is not None else sampler


def _running(sampler: Any, name: str) -> str:
    """The name of the sampler that runs: ours by its function, another one by its entry, whatever was asked for."""
    own = getattr(getattr(sampler, "func", None), OWN, None)
    if own is not None:
        return str(own)
    name = _own_name(name)
    return str(getattr(getattr(sampler, "config", None), "name", name)) if name in SAMPLERS and sampler else name


def _use(p: Any, sampler: str, scheduler: Optional[str]) -> Use:
    """What a pass with that sampler and schedule type uses of ours."""
    found = sd_schedulers.schedulers_map.get(scheduler)
    # one that the host does not know is drawn as Automatic
    known = AUTOMATIC if found is None or found.name == "automatic" else found.label
    use = Use.of(sampler, known, not hasattr(p, "init_latent"))
    return replace(use, schedule=scheduler or AUTOMATIC)


def _takes_a_schedule(sampler: Any) -> bool:
    """Timestep samplers (DDIM, UniPC, ..) ask no schedule type; DPM fast and adaptive take only its ends."""
    is_k_diffusion = isinstance(sampler, sd_samplers_kdiffusion.KDiffusionSampler)
    return is_k_diffusion and "sigmas" in inspect.signature(sampler.func).parameters


def _request(p: Any, second: bool, sampler: Any = None) -> Request:
    """What one pass of a request is to draw; ``sampler`` is the host's that runs it, where that is known."""
    name, scheduler = _pass_of(p, second)
    use = _use(p, _running(sampler, name), scheduler)
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


# ---- the pass --------------------------------------------------------------------------------------------------------


def begin(p: Any, sampler: Any, model_wrap: Any, tensors: Optional[Mapping[str, Any]] = None) -> Pass:
    """Check what the pass that begins will use, before its first UNet call, and hand the settings on to it.

    Args:
        sampler: the host's, which is going to run; None where that is not known.
        model_wrap: its denoiser wrapper.
        tensors: the noise ``x`` and the condition ``c``; None where another script draws with its own.

    Raises:
        SettingsError: what was set cannot be used.
    """
    settings = getattr(p, SETTINGS, None) or Settings()
    if isinstance(settings, SettingsError):
        raise settings
    if p.is_hr_pass:
        settings = settings.of_second_pass()
    request = _request(p, p.is_hr_pass, sampler)
    this = passes.planned(settings, request, model_wrap, partial(tell, p), partial(record, p), _opened(p))
    try:
        _check_unet(this)
        this.begin(sampler is None or _takes_a_schedule(sampler))
    except SettingsError:
        raise
    except ValueError as error:
        # such as no steps at all
        raise SettingsError(f"HP Sampler: {error}") from None
    if this.golden is not None:
        record(p, "golden_noise", settings.golden_noise)
    elif settings.npnet and request.from_noise:
        if tensors is None:
            tell(p, f"golden noise {settings.golden_noise} is left out here, as another script makes the noise")
        else:
            record(p, "golden_noise", make_golden(settings.npnet, tensors["x"], tensors["c"]))
    setattr(p, BEGUN, True)
    if model_wrap is not None:
        passes.attach(model_wrap, this)
    return this


def _opened(p: Any) -> Opened:
    """The statistics that were read for the request; cells of an X/Y/Z plot, which are copies of it, share them."""
    if not hasattr(p, OPENED):
        setattr(p, OPENED, Opened())
    found: Opened = getattr(p, OPENED)
    return found


def pass_or_none(model_wrap: Any, sampler: Any = None) -> Optional[Pass]:
    """The pass of a denoiser wrapper, which is begun now if another script draws; None where nothing is known of it.

    Raises:
        SettingsError: what was set cannot be used.
    """
    found = passes.find(model_wrap)
    if found is None and _drawing.get() is not None:
        found = begin(_drawing.get(), sampler, model_wrap)
    return found


def pass_of(model_wrap: Any, sampler: Any = None) -> Pass:
    """The same, and one by the Auto recipe where a caller samples past all our hooks. Raises as above."""
    return pass_or_none(model_wrap, sampler) or passes.unknown(model_wrap)


def _surround(p: Any) -> None:
    """Where another script has put its own ``sample`` into a request, know the request while that runs."""
    own = vars(p).get("sample")
    if own is None:
        return
    draw: Callable[..., Any] = getattr(own, AROUND, own)

    def sample(*args: Any, **kwargs: Any) -> Any:
        settings = getattr(p, SETTINGS, None)
        if isinstance(settings, SettingsError):
            raise settings
        before = _drawing.set(p)
        try:
            return draw(*args, **kwargs)
        finally:
            _drawing.reset(before)

    setattr(sample, AROUND, draw)
    p.sample = sample


# ---- what the picture says -------------------------------------------------------------------------------------------


def finish(p: Any) -> None:
    """After the last UNet call: the infotext says only what ran."""
    if getattr(p, BEGUN, True) or VERSION_KEY not in p.extra_generation_params:
        return
    for key in (VERSION_KEY, NOTE_KEY, *KEYS.values()):
        p.extra_generation_params.pop(key, None)
    tell(p, "another script draws past HP Sampler, so what is set has no effect")


def tell(p: Any, text: str) -> None:
    """Tell the person, beside the image on the page and, as API clients never see that, in the infotext."""
    if not text:
        return
    p.comment(f"HP Sampler: {text}.")
    said = p.extra_generation_params.get(NOTE_KEY)
    if text not in (said or ""):
        p.extra_generation_params[NOTE_KEY] = f"{said}; {text}" if said else text


def record(p: Any, name: str, label: str) -> None:
    """Write into the infotext what a pass used for the setting of that name; a second pass may have another."""
    key = KEYS[name]
    said = p.extra_generation_params.get(key)
    if label not in (said or "").split("; "):
        p.extra_generation_params[key] = f"{said}; {label}" if said else label
