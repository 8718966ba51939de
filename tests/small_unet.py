"""A small UNet of Stable Diffusion 1.5's very class and layout, with random weights that give lively outputs."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from functools import cache
from types import SimpleNamespace

import torch
from ldm.modules.diffusionmodules.openaimodel import UNetModel


def tiny_unet(seed: int = 0, model_channels: int = 32) -> UNetModel:
    """One of its own for each test, copied, as making one takes longer than most tests."""
    return deepcopy(_made(seed, model_channels))


@cache
def _made(seed: int, model_channels: int) -> UNetModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNetModel(
            image_size=8,
            in_channels=4,
            out_channels=4,
            model_channels=model_channels,
            attention_resolutions=[4, 2, 1],
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


def tiny_checkpoint(noise_table: torch.Tensor, family: str = "is_sd1", seed: int = 0) -> SimpleNamespace:
    """What the host calls ``sd_model``: the UNet, the noise table, and the flags of its family."""
    flags = dict.fromkeys(("is_sd1", "is_sd2", "is_sdxl", "is_ssd", "is_sd3"), False)
    if family:
        flags[family] = True
    return SimpleNamespace(
        model=SimpleNamespace(diffusion_model=tiny_unet(seed)),
        alphas_cumprod=noise_table,
        forge_objects=None,
        ema_scope=nullcontext,
        sd_checkpoint_info=SimpleNamespace(shorthash=f"{seed:010x}", hash="0123abcd", name_for_extra="tiny"),
        **flags,
    )
