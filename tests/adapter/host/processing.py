"""Requests of the stand-in host: txt2img, img2img and hires fix, in the host's order of hooks."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Optional

import torch


@dataclass
class Txt2Img:
    """A request. ``seeds`` gives the batch; each image's noise comes from its own seed."""

    steps: int = 5
    cfg_scale: float = 7.0
    sampler_name: str = "HP Auto"
    scheduler: Optional[str] = "Automatic"
    seeds: tuple[int, ...] = (1,)
    size: int = 8
    width: int = 64
    height: int = 64
    enable_hr: bool = False
    hr_sampler_name: Optional[str] = None
    hr_scheduler: Optional[str] = None
    hr_second_pass_steps: int = 0
    hr_upscale_to_x: int = 128
    hr_upscale_to_y: int = 128
    denoising_strength: float = 0.6
    refiner: Any = None
    refiner_switch_step: int = 10**9
    is_hr_pass: bool = False
    n_iter: int = 1
    is_api: bool = False
    extra_generation_params: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, int] = field(default_factory=dict)
    sampler: Any = None

    def comment(self, text: str) -> None:
        self.comments[text] = 1

    def setup_conds(self) -> None:
        self.c = torch.stack([_noise(seed + 1000, (4, 32)) for seed in self.seeds])

    def sample(self, host: Host, cond: Any, uncond: Any, args: tuple[Any, ...]) -> torch.Tensor:
        """Scripts put their own in its place, on the request."""
        return host.draw(self, uncond, args)


@dataclass
class Img2Img(Txt2Img):
    init_latent: Any = None


class Host:
    """Runs requests through one script, as the WebUI does: hook exceptions are printed, sampler exceptions raised."""

    def __init__(self, script: Any, process_batch: Optional[Callable[[Any], None]] = None) -> None:
        """``process_batch`` is another extension's, which may rename the sampler."""
        self.script, self.process_batch = script, process_batch
        self.printed: list[str] = []

    def _hook(self, name: str, p: Any, args: tuple[Any, ...], **kwargs: Any) -> None:
        try:
            getattr(self.script, name)(p, *args, **kwargs)
        except Exception:
            self.printed.append(traceback.format_exc())

    def run(self, p: Any, *args: Any) -> torch.Tensor:
        """The latent(s) of a request, with ``args`` as the script's values."""
        from modules import sd_samplers, shared

        base = shared.sd_model
        try:
            self._hook("before_process", p, args)
            p.sampler_name, p.scheduler = sd_samplers.get_sampler_and_scheduler(
                p.sampler_name, p.scheduler, convert_automatic=False
            )
            if shared.face.has_backend:
                p.hr_cfg = getattr(p, "hr_cfg", p.cfg_scale)
            self._hook("process", p, args)
            latents = [self._batch(p, args) for _ in range(p.n_iter)]
            return latents[-1] if latents else None
        finally:
            shared.sd_model = base

    def _batch(self, p: Any, args: tuple[Any, ...]) -> torch.Tensor:
        from modules import shared

        shared.face.begin_batch(shared.sd_model)
        if self.process_batch is not None:
            self.process_batch(p)
        p.setup_conds()
        latent = p.sample(self, p.c, shared.face.conditions(p.c, p.cfg_scale), args)
        self._hook("post_sample", p, (latent, *args))
        return latent

    def draw(self, p: Any, uncond: Any, args: tuple[Any, ...]) -> torch.Tensor:
        """What a request does by itself."""
        from modules import sd_samplers, shared

        p.sampler = sd_samplers.create_sampler(p.sampler_name, shared.sd_model)
        noise = self._noises(p, p.size)
        self._hook("process_before_every_sampling", p, args, x=noise, noise=noise, c=p.c, uc=uncond)
        if isinstance(p, Img2Img):
            return p.sampler.sample_img2img(p, p.init_latent, noise, p.c, uncond)
        latent = p.sampler.sample(p, noise, p.c, uncond)
        return self._hires(p, latent, args) if p.enable_hr else latent

    def _hires(self, p: Any, latent: torch.Tensor, args: tuple[Any, ...]) -> torch.Tensor:
        from modules import sd_samplers, shared

        p.is_hr_pass = True
        shared.face.begin_batch(shared.sd_model)
        uncond = shared.face.conditions(p.c, getattr(p, "hr_cfg", p.cfg_scale))
        p.sampler = sd_samplers.create_sampler(p.hr_sampler_name or p.sampler_name, shared.sd_model)
        p.hr_scheduler = p.hr_scheduler or p.scheduler
        latent = torch.nn.functional.interpolate(latent, scale_factor=2)
        noise = self._noises(p, 2 * p.size)
        for _ in range(2 if shared.face.has_backend else 1):
            self._hook("process_before_every_sampling", p, args, x=latent, noise=noise, c=p.c, uc=uncond)
        latent = p.sampler.sample_img2img(p, latent, noise, p.c, uncond, steps=p.hr_second_pass_steps or p.steps)
        p.is_hr_pass = False
        return latent

    def _noises(self, p: Any, size: int) -> torch.Tensor:
        return torch.stack([_noise(seed, (4, size, size)) for seed in p.seeds])


def _noise(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
