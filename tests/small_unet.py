"""A small UNet of Stable Diffusion 1.5's very class and layout, with random weights that give lively outputs."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from types import SimpleNamespace

import torch
import torch.nn as nn
from ldm.modules.diffusionmodules.openaimodel import UNetModel


def tiny_unet(seed: int = 0, model_channels: int = 32) -> UNetModel:
    """One of its own for each test, copied, as making one takes longer than most tests."""
    return _copied(_made(seed, model_channels))


def _copied(module: nn.Module) -> nn.Module:
    """A network with modules and weights of its own, but the same memory under the weights, which nothing writes to."""
    twin = module.__new__(type(module))
    twin.__dict__.update(
        {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}
    )
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _copied(child)
    for name, weight in module._parameters.items():
        if weight is not None:
            twin._parameters[name] = nn.Parameter(weight.detach(), weight.requires_grad)
    for name, buffer in module._buffers.items():
        twin._buffers[name] = None if buffer is None else buffer.detach()
    return twin


@cache
def _made(seed: int, model_channels: int) -> UNetModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNetModel(
            image_size=8,
            in_channels=4,
            out_channels=4,
            model_channels=model_channels,
            attention_resolutions=[2],
            num_res_blocks=2,
            channel_mult=[1, 2, 4, 4],
            num_heads=4,
            use_spatial_transformer=True,
            transformer_depth=1,
            context_dim=32,
            use_checkpoint=False,
            legacy=False,
        )
        for parameter in unet.parameters():
            # the class zero-initialises its last layers, which would make every output 0
            if parameter.abs().sum() == 0 and parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.05)
    return unet.eval().requires_grad_(False)


def family_flags(family: str) -> dict[str, bool]:
    """The attributes by which the host tells model families apart."""
    return {name: name == family for name in ("is_sd1", "is_sd2", "is_sdxl", "is_ssd", "is_sd3")}


def checkpoint_info(seed: int) -> SimpleNamespace:
    return SimpleNamespace(shorthash=f"{seed:010x}", hash="0123abcd", name_for_extra="tiny")


def tiny_checkpoint(noise_table: torch.Tensor, family: str = "is_sd1", seed: int = 0) -> SimpleNamespace:
    """What the host calls ``sd_model``: the UNet, the noise table, and the flags of its family."""
    return SimpleNamespace(
        model=SimpleNamespace(diffusion_model=tiny_unet(seed)),
        alphas_cumprod=noise_table,
        forge_objects=None,
        ema_scope=nullcontext,
        sd_checkpoint_info=checkpoint_info(seed),
        **family_flags(family),
    )
