"""The loaded checkpoint as something to calibrate to, or to measure: the host's own conditions, denoiser, noise and
decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Optional, Union

import torch
from modules import (
    call_queue,
    devices,
    processing,
    rng,
    sd_samplers_common,
    sd_samplers_kdiffusion,
    shared,
)

from ..fields import SettingsError
from ..jobs import Cancelled
from ..store import StoreError
from . import checkpoint as model
from . import host

if TYPE_CHECKING:
    from ..calibration.config import CalibrationConfig
    from ..statistics.config import StatisticsConfig

__all__ = ["Checkpoint", "HostQueue"]

JOB = "HP Sampler calibration"

Asked = Union["CalibrationConfig", "StatisticsConfig"]


class HostQueue:
    """One calibration's turns at the model, when the host's queue lets it, as one more picture would."""

    def __init__(self) -> None:
        self.taken = False
        self.last: Optional[float] = None
        """When the host's latest job began, as of our last turn; None before its first."""

    def __call__(self, work: Callable[[], Any]) -> Any:
        """Run ``work`` when it is our turn.

        Raises:
            Cancelled: somebody pressed Interrupt, now or since our last turn.
        """
        state = shared.state
        with call_queue.queue_lock:
            # a job of the host's in between had an interrupt of its own
            if state.interrupted and self.taken and state.time_start == self.last:
                state.interrupted = False
                raise Cancelled
            # not state.begin and end: they collect garbage for longer than a call of a small model takes
            state.interrupted = state.skipped = state.stopping_generation = False
            state.job = JOB
            try:
                return work()
            except sd_samplers_common.InterruptedException:
                state.interrupted = state.skipped = False
                raise Cancelled from None
            finally:
                state.job, state.current_latent = "", None
                self.taken, self.last = True, state.time_start


class Checkpoint:
    """The checkpoint that is loaded now, a :class:`~hpsampler.jobs.ModelSource`; calls must be made in a turn.

    Raises:
        StoreError: a model that the method does not cover.
    """

    def __init__(self, config: Asked) -> None:
        self.config = config
        host.load()
        try:
            self.family = model.family()
            self.hashes = model.hashes()
            self.model_name = model.title()
            with host.ready_to_call():
                self.noise = model.noise_model(_Batch(config.prompts[:1], config, 1.0).sampler.model_wrap)
        except SettingsError as error:
            raise StoreError(str(error)) from None

    def denoiser(self, prompts: Sequence[str], negative: str, cfg_scale: float) -> _Denoiser:
        return _Denoiser(self, prompts, cfg_scale)

    def start(self, seeds: Sequence[int], width: int, height: int) -> torch.Tensor:
        """The host's own noise of those seeds, as it draws with."""
        channels = getattr(shared.sd_model, "latent_channels", processing.opt_C)
        shape = (channels, height // processing.opt_f, width // processing.opt_f)
        return torch.cat([rng.ImageRNG(shape, [seed]).next().float() for seed in seeds])

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.check()
        with host.ready_to_call():
            rows = [
                sd_samplers_common.decode_first_stage(shared.sd_model, part).float().cpu()
                for part in latents.split(self.config.batch)
            ]
        return (torch.cat(rows) / 2 + 0.5).clamp(0, 1)

    def check(self) -> None:
        """Raises StoreError: another checkpoint was loaded since."""
        if not set(self.hashes) & set(model.hashes()):
            raise StoreError(
                f"the checkpoint was changed from {self.model_name} to {model.title()} meanwhile; load the first "
                "again, then resume"
            )


class _Denoiser:
    """The guided denoiser of many trajectories, a batch at a time; made anew when the host replaced the model."""

    def __init__(self, checkpoint: Checkpoint, prompts: Sequence[str], cfg_scale: float) -> None:
        self.checkpoint, self.prompts, self.cfg_scale = checkpoint, list(prompts), cfg_scale
        self.batches: list[_Batch] = []
        self.made_for: Optional[Any] = None

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, /, **own: Any) -> torch.Tensor:
        """``cond_scale`` among the arguments is the guidance scale of this call."""
        self.checkpoint.check()
        size = self.checkpoint.config.batch
        with host.ready_to_call(x[:size]):
            if self.made_for is not shared.sd_model:
                config = self.checkpoint.config
                parts = range(0, len(self.prompts), size)
                self.batches = [_Batch(self.prompts[at : at + size], config, self.cfg_scale) for at in parts]
                self.made_for = shared.sd_model
            rows = [batch(*part, **own) for batch, *part in zip(self.batches, x.split(size), sigma.split(size))]
        return torch.cat(rows)


class _Batch:
    """One batch of prompts with the host's own guidance around its denoiser."""

    def __init__(self, prompts: Sequence[str], config: Asked, cfg_scale: float) -> None:
        p = processing.StableDiffusionProcessingTxt2Img(
            prompt=list(prompts), negative_prompt=[config.negative] * len(prompts), batch_size=len(prompts),
            width=config.width, height=config.height, cfg_scale=cfg_scale, steps=1, sampler_name="Euler",
            scheduler="Automatic", s_min_uncond=0.0,
        )  # fmt: skip
        # lists of our own: those of the class hold what the person drew last
        p.cached_c, p.cached_uc = [None, None], [None, None]
        p.fill_fields_from_opts()
        p.setup_prompts()
        p.prompts, p.negative_prompts = p.all_prompts, p.all_negative_prompts
        # some hosts' denoisers read them
        p.seeds = p.all_seeds = [0] * len(prompts)
        host.override_schedule(p)
        p.setup_conds()
        self.sampler = sd_samplers_kdiffusion.KDiffusionSampler(_nothing, shared.sd_model)
        self.sampler.config = sd_samplers_common.SamplerData(JOB, None, [], {})
        channels = getattr(shared.sd_model, "latent_channels", processing.opt_C)
        shape = (len(prompts), channels, config.height // processing.opt_f, config.width // processing.opt_f)
        x = torch.zeros(shape, device=devices.device)
        # runs no step; leaves the host's denoiser with everything it needs to be called
        self.sampler.sample(p, x, p.c, p.uc, image_conditioning=p.txt2img_image_conditioning(x))

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **own: Any) -> torch.Tensor:
        denoiser = self.sampler.model_wrap_cfg
        denoiser.step = 0
        return denoiser(x, sigma, **{**self.sampler.sampler_extra_args, **own})


def _nothing(
    model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None
) -> torch.Tensor:
    return x
