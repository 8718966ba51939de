"""Samplers and the schedule type in the host's lists: in place, by name, any number of times."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Optional

import torch
from modules import sd_samplers, sd_samplers_common, sd_samplers_kdiffusion, sd_schedulers

from ..effects import SAMPLERS, SCHEDULES
from ..golden.search import GoldenForm, golden_latent, sigma_below
from ..guidance import with_guidance
from ..plan import Pass
from ..solvers import SOLVERS, Callback
from . import host
from .request import OWN, pass_of

__all__ = ["CALIBRATED_NAME", "SAMPLERS", "SCHEDULES", "SCHEDULE_NAME", "register", "unregister"]

SCHEDULE_NAME, CALIBRATED_NAME = SCHEDULES


def register(hidden: Collection[str] = ()) -> None:
    """Add what is ours, replacing what an earlier load of this extension left.

    Args:
        hidden: samplers, and labels of schedule types, to leave out of the menus. Pictures and programs still find
            them by name, where the host would draw with another one in silence.
    """
    unregister()
    for name, solver in SAMPLERS.items():
        data = sd_samplers_common.SamplerData(
            name, _constructor(name, solver), [], {"scheduler": SCHEDULE_NAME, OWN: name}
        )
        if name not in hidden:
            sd_samplers.all_samplers.append(data)
        sd_samplers.all_samplers_map[name] = data
    for name, label in SCHEDULES.items():
        scheduler = sd_schedulers.Scheduler(name, label, _schedule(name), need_inner_model=True)
        if label not in hidden:
            sd_schedulers.schedulers.append(scheduler)
        sd_schedulers.schedulers_map[name] = sd_schedulers.schedulers_map[label] = scheduler
    _refresh()


def unregister() -> None:
    """Take out what is ours, by name; the host's lists stay the same objects."""
    sd_samplers.all_samplers[:] = [each for each in sd_samplers.all_samplers if each.name not in SAMPLERS]
    for name in SAMPLERS:
        sd_samplers.all_samplers_map.pop(name, None)
    sd_schedulers.schedulers[:] = [each for each in sd_schedulers.schedulers if each.name not in SCHEDULES]
    for name in (*SCHEDULES, *SCHEDULES.values()):
        sd_schedulers.schedulers_map.pop(name, None)
    _refresh()


def _refresh() -> None:
    sd_samplers.set_samplers()
    sd_samplers.get_sampler_and_scheduler.cache_clear()


def _schedule(schedule: str) -> Callable[..., torch.Tensor]:
    """The host's scheduler function for one of our schedule types; ``n + 1`` sigmas."""

    def sigmas(n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any) -> torch.Tensor:
        calibrated = schedule == CALIBRATED_NAME
        return pass_of(inner_model).schedule(n, calibrated, sigma_min, sigma_max).to(device)

    return sigmas


def _constructor(name: str, solver: Optional[str]) -> Callable[[Any], Any]:
    def sample(
        model: Any,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: Optional[dict[str, Any]] = None,
        callback: Optional[Callback] = None,
        disable: Optional[bool] = None,
    ) -> torch.Tensor:
        return _sample(solver, model, x, sigmas, extra_args, callback)

    setattr(sample, OWN, name)
    return lambda sd_model: sd_samplers_kdiffusion.KDiffusionSampler(sample, sd_model)


def _sample(
    solver: Optional[str],
    denoiser: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: Optional[dict[str, Any]],
    callback: Optional[Callback],
) -> torch.Tensor:
    """Run ``solver``, or the recipe's, with what the recipe couples to it. ``denoiser`` is the host's CFGDenoiser."""
    if len(sigmas) < 2:
        return x  # strength 0 with an exact number of steps
    this = pass_of(denoiser.sampler.model_wrap, denoiser.sampler)
    run = this.solve(solver, sigmas, x.shape[1:])
    options = run.options
    if options.get("noise_level"):
        # the host's own: seeded by picture, so a batch is its pictures
        options["noise_sampler"] = lambda sigma, sigma_next: denoiser.p.rng.next().to(x)
    if this.golden is not None:
        x = _golden(this, this.golden, denoiser, x, float(run.sigmas[0]), extra_args or {})
    if run.analytical:
        callback = _without_first(callback)
    # without scales of the recipe's the host's own stand, of which the second pass may have one that we must not touch
    model = with_guidance(host.takes_guidance(denoiser), run.guidance) if run.guidance else denoiser
    return SOLVERS[run.recipe.solver](model, x, run.sigmas, extra_args, callback, **options)


def _golden(
    this: Pass, form: GoldenForm, denoiser: Any, x: torch.Tensor, sigma: float, extra_args: dict[str, Any]
) -> torch.Tensor:
    """The first latent as golden noise: two calls, which the host's count of steps does not see."""
    step, this.quiet = denoiser.step, True

    def look(x: torch.Tensor, sigma: torch.Tensor, /, **args: Any) -> torch.Tensor:
        # what is scheduled by steps, such as prompt editing, stands as at the first
        denoiser.step = step
        denoised: torch.Tensor = denoiser(x, sigma, **args)
        return denoised

    try:
        # at guidance 1 the host's denoiser answers the positive prompt's
        plain_args = {**extra_args, "cond_scale": 1.0}
        return golden_latent(form, x, sigma, sigma_below(sigma), look, extra_args=extra_args, plain_args=plain_args)
    finally:
        denoiser.step, this.quiet = step, False


def _without_first(
    callback: Optional[Callback],
) -> Optional[Callback]:
    """The host's progress counts UNet calls, and the analytical first step makes none."""
    if callback is None:
        return None
    return lambda state: callback({**state, "i": state["i"] - 1}) if state["i"] else None
