"""The trained tiny model: a guided denoiser in k-diffusion's form, a decoder, and a reader of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import torch

from bench.schedules import stable_diffusion_noise
from hpsampler.freeu import FreeU, FreeUPlan, Waves

from .description import Captioned, Description
from .networks import TINY, WEIGHTS, Classifier, TinyDiffusion, read_weights

__all__ = ["LATENT", "Denoiser", "TinyModel", "noise_sampler", "seeded_noise"]

LATENT = TINY.latent


class TinyModel:
    """All networks of a small model, in eval mode.

    Attributes:
        description: what tells this model from another.
        noise: the noise table, Stable Diffusion's.
        diffusion: text encoder, UNet, autoencoder.
        classifier: reads pictures; the bench's metrics are made of it.
    """

    def __init__(
        self, diffusion: TinyDiffusion, classifier: Classifier, device: torch.device, description: Description = TINY
    ) -> None:
        self.description = description
        self.diffusion = diffusion.to(device).eval().requires_grad_(False)
        # half again as fast on a CPU
        self.diffusion.vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.classifier = classifier.to(device).eval().requires_grad_(False)
        self.device = device
        self.noise = stable_diffusion_noise()

    @classmethod
    def load(
        cls, folder: Path = WEIGHTS, device: torch.device | str = "cpu", description: Description = TINY
    ) -> TinyModel:
        """From a folder of weights, by default the tiny model's in the repository."""
        diffusion = TinyDiffusion(description)
        classifier = Classifier(description.pictures.answers(), description.pictures.side)
        stored = read_weights(folder / "vae.safetensors")
        diffusion.latent_scale = stored.pop("latent_scale")
        diffusion.vae.load_state_dict(stored)
        diffusion.text.load_state_dict(read_weights(folder / "text.safetensors"))
        diffusion.unet.load_state_dict(read_weights(folder / "unet.safetensors"))
        classifier.load_state_dict(read_weights(folder / "classifier.safetensors"))
        return cls(diffusion, classifier, torch.device(device), description)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        """Conditions, shape (len(prompts), 77, 64); equal prompts are read once."""
        distinct = sorted(set(prompts))
        rows = torch.cat([self.diffusion.embed(distinct[i : i + 64]) for i in range(0, len(distinct), 64)])
        return rows[[distinct.index(prompt) for prompt in prompts]]

    def denoiser(
        self,
        prompts: Sequence[str],
        cfg_scale: float,
        negative: str = "",
        freeu: tuple[FreeUPlan, ...] = (),
        on_call: Optional[Callable[[], object]] = None,
    ) -> Denoiser:
        """A denoiser for one run over a batch of prompts."""
        return Denoiser(self, self.embed(prompts), self.embed([negative]), cfg_scale, freeu, on_call)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (n, 4, h, w) as pictures (n, 3, 8h, 8w), values from 0 to 1."""
        vae, scale = self.diffusion.vae, self.diffusion.latent_scale
        rows = (latents.float() / scale).contiguous(memory_format=torch.channels_last)
        parts = [vae.decode(part) for part in rows.split(16)]
        return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (n, 3, h, w) from 0 to 1 as latents, the mean of the posterior."""
        vae, scale = self.diffusion.vae, self.diffusion.latent_scale
        return torch.cat([vae.encode(part * 2 - 1)[0] * scale for part in pictures.to(self.device).split(32)])

    @torch.no_grad()
    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """The classifier's features of pictures, (n, 64)."""
        return torch.cat([self.classifier.features(part) for part in pictures.split(128)])

    @torch.no_grad()
    def right(self, features: torch.Tensor, told: Sequence[Captioned]) -> dict[str, torch.Tensor]:
        """For every word of a caption, whether it is read from the picture, (n,) of bool each."""
        truth = self.description.pictures.truth(told)
        return {name: head(features).argmax(-1).cpu() == truth[name] for name, head in self.classifier.heads.items()}


class Denoiser:
    """``model(x, sigma) -> denoised``, classifier-free guidance included; one call is one NFE.

    With c = 1 / sqrt(1 + sigma^2) and the UNet's output u(c x, t(sigma)), D = x - sigma u where it predicts eps and
    D = c^2 x - sigma c u where it predicts v; guided, u = u_u + w (u_c - u_u), so that D = D_u + w (D_c - D_u).
    """

    def __init__(
        self, model: TinyModel, conditions: torch.Tensor, empty: torch.Tensor, cfg_scale: float,
        freeu: tuple[FreeUPlan, ...], on_call: Optional[Callable[[], object]],
    ) -> None:  # fmt: skip
        self.model, self.cfg_scale, self.freeu, self.on_call = model, cfg_scale, freeu, on_call
        self.calls = 0
        self.waves: Waves = {}
        self.guided = cfg_scale != 1
        self.contexts = torch.cat([conditions, empty.expand_as(conditions)]) if self.guided else conditions

    @torch.no_grad()
    def __call__(
        self, x: torch.Tensor, sigma: torch.Tensor, /, cond_scale: Optional[float] = None, **_: Any
    ) -> torch.Tensor:
        """``cond_scale`` is the guidance scale of this call, where it is another than that of the run."""
        unet = self.model.diffusion.unet
        plan = self.plan_of(self.calls)
        if plan is not None:
            FreeU.attach(unet, plan, self.waves)
        try:
            denoised = self._denoise(unet, x, sigma, self.cfg_scale if cond_scale is None else cond_scale)
        finally:
            FreeU.detach(unet)
        self.calls += 1
        if self.on_call is not None:
            self.on_call()
        return denoised

    def plan_of(self, call: int) -> Optional[FreeUPlan]:
        """Free-U at the call of that index."""
        return next((plan for plan in self.freeu if plan.covers(call)), None)

    def _denoise(self, unet: torch.nn.Module, x: torch.Tensor, sigma: torch.Tensor, cfg_scale: float) -> torch.Tensor:
        level = sigma.to(x).view(-1, 1, 1, 1)
        timestep = torch.from_numpy(self.model.noise.sigma_to_t(sigma)).to(x)
        scale = (1 + level**2).sqrt()
        scaled = x / scale
        if self.guided:
            both = unet(torch.cat([scaled, scaled]), torch.cat([timestep, timestep]), context=self.contexts)
            conditional, unconditional = both.chunk(2)
            predicted = unconditional + cfg_scale * (conditional - unconditional)
        else:
            predicted = unet(scaled, timestep, context=self.contexts)
        if self.model.description.prediction == "v":
            return (scaled - level * predicted) / scale
        return x - level * predicted


def noise_sampler(seeds: Sequence[int], shape: tuple[int, ...] = LATENT) -> Callable[[float, float], torch.Tensor]:
    """For a solver's new noise: what each seed's own generator gives after :func:`seeded_noise`."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def noise(*_: float) -> torch.Tensor:
        return torch.stack([torch.randn(shape, generator=each) for each in generators])

    noise()
    return noise


def seeded_noise(seeds: Sequence[int], shape: tuple[int, ...] = LATENT) -> torch.Tensor:
    """Unit noise of each seed's own generator, (n, *shape): the same alone or in any batch."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
