"""The networks of Stable Diffusion 1.5 and SDXL with random weights, as a guided denoiser and a decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch

from hpsampler.freeu import FreeU, FreeUPlan, Waves
from hpsampler.noise import NoiseModel

from .part import Setting
from .unet import SD15_UNET, SDXL_UNET, UNet, UNetSize
from .vae import CHANNELS, Decoder

__all__ = ["FAMILIES", "Family", "Networks", "Shelf", "families"]

TOKENS = 77


@dataclass(frozen=True)
class Family:
    """A kind of model at the size of its pictures.

    Attributes:
        name: for tables.
        family: as recipes call it.
        side: height and width of the pictures.
        decoder: channels of the decoder's highest level.
    """

    name: str
    family: str
    side: int
    unet: UNetSize
    decoder: int = CHANNELS
    groups: int = 32

    @property
    def latent(self) -> tuple[int, int, int]:
        return 4, self.side // 8, self.side // 8


FAMILIES = (Family("SD 1.5, 512", "sd1", 512, SD15_UNET), Family("SDXL, 1024", "sdxl", 1024, SDXL_UNET))

_SMALL = (
    Family("SD 1.5, small", "sd1", 64, UNetSize(16, (1, 2, 4), (1, 1, 0), 32, heads=2, groups=8), 16, 8),
    Family("SDXL, small", "sdxl", 64, UNetSize(16, (1, 2, 4), (0, 1, 2), 32, 0, 8, True, 64, groups=8), 16, 8),
)
"""The same layouts with so few channels that a CPU is done at once."""


def families(setting: Setting) -> tuple[Family, ...]:
    return _SMALL if setting.small else FAMILIES


class Networks:
    """UNet and decoder of a family; weights are drawn on the device itself."""

    def __init__(self, family: Family, setting: Setting) -> None:
        self.family, self.device, self.dtype = family, setting.device, setting.dtype
        self.noise = NoiseModel.of_stable_diffusion()
        torch.manual_seed(0)
        with torch.device(setting.device):
            self.unet = UNet(family.unet).to(self.dtype).eval().requires_grad_(False)
            self.decoder = Decoder(family.decoder, family.groups).to(self.dtype).eval().requires_grad_(False)
            self.log_sigmas = torch.tensor(self.noise.sigmas, dtype=torch.float32).log()

    def unit_noise(self, seeds: Sequence[int], side: int = 0) -> torch.Tensor:
        """For pictures of the family's size, or of another ``side``."""
        shape = (4, side // 8, side // 8) if side else self.family.latent
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device)

    def conditions(self, count: int) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        """What stands for the embeddings of so many prompts, and of as many negative ones."""
        size = self.family.unet
        context = torch.randn(2 * count, TOKENS, size.context, device=self.device, dtype=self.dtype)
        if not size.vector:
            return context, None
        return context, torch.randn(2 * count, size.vector, device=self.device, dtype=self.dtype)

    def timesteps(self, sigma: torch.Tensor) -> torch.Tensor:
        """The timesteps of sigmas, linear in log sigma, without asking the device."""
        log_sigma = sigma.float().log()
        after = torch.searchsorted(self.log_sigmas, log_sigma).clamp(1, len(self.log_sigmas) - 1)
        low, high = self.log_sigmas[after - 1], self.log_sigmas[after]
        return (after - 1) + ((log_sigma - low) / (high - low)).clamp(0, 1)

    @torch.no_grad()
    def evaluate(
        self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor, vector: Optional[torch.Tensor]
    ) -> torch.Tensor:
        """The network's noise for latents, float32; as a WebUI calls it."""
        scaled = x / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt()
        return self.unet(scaled.to(self.dtype), self.timesteps(sigma), context, vector).float()

    def denoiser(self, count: int, cfg_scale: float = 7.0, freeu: Sequence[FreeUPlan] = ()) -> Callable[..., Any]:
        """The guided denoiser of so many pictures: with and without the prompt in one batch."""
        context, vector = self.conditions(count)
        waves: Waves = {}
        calls = 0

        def model(x: torch.Tensor, sigma: torch.Tensor, /, cond_scale: float = cfg_scale) -> torch.Tensor:
            nonlocal calls
            plan = next((each for each in freeu if each.covers(calls)), None)
            calls += 1
            if plan is not None:
                FreeU.attach(self.unet, plan, waves)
            try:
                both = self.evaluate(torch.cat([x, x]), torch.cat([sigma, sigma]), context, vector)
            finally:
                FreeU.detach(self.unet)
            conditional, unconditional = both.chunk(2)
            return x - sigma.view(-1, 1, 1, 1) * torch.lerp(unconditional, conditional, cond_scale)

        return model

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as pictures, values from 0 to 1, one after the other as a WebUI decodes them."""
        rows = [self.decoder(part.to(self.dtype)).float() for part in latents.split(1)]
        return (torch.cat(rows) / 2 + 0.5).clamp(0, 1)

    def parameters(self) -> tuple[int, int]:
        """How many the UNet and the decoder have."""
        unet, decoder = (sum(each.numel() for each in part.parameters()) for part in (self.unet, self.decoder))
        return unet, decoder


class Shelf:
    """The networks of one family at a time, as making them takes seconds."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.latest: Optional[Networks] = None

    def networks(self, family: Family) -> Networks:
        if self.latest is None or self.latest.family is not family:
            self.clear()
            self.latest = Networks(family, self.setting)
        return self.latest

    def clear(self) -> None:
        """Give the memory back."""
        self.latest = None
        if self.setting.gpu:
            torch.cuda.empty_cache()
