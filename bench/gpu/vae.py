"""The decoder of Stable Diffusion's autoencoder at its true size, in torch alone, with random weights."""

from __future__ import annotations

import torch
from torch import nn

from .unet import Up, split_heads_attention

__all__ = ["CHANNELS", "Decoder"]

CHANNELS = 128
"""Of the highest level; 49,490,199 parameters."""

MULTIPLES = (1, 2, 4, 4)
BLOCKS = 3
"""Residual blocks of each level."""


class Residual(nn.Module):
    def __init__(self, inner: int, outer: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, inner, eps=1e-6), nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, outer, eps=1e-6), nn.Conv2d(outer, outer, 3, padding=1)
        self.nin_shortcut = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        h = self.conv2(nn.functional.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class Attention(nn.Module):
    """Attention over all pixels, with one head."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        h = split_heads_attention(q, k, v, 1).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class Level(nn.Module):
    def __init__(self, inner: int, outer: int, groups: int, up: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(Residual(inner if at == 0 else outer, outer, groups) for at in range(BLOCKS))
        if up:
            self.upsample = Up(outer)
        self.up = up

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.block:
            x = block(x)
        return self.upsample(x) if self.up else x


class Decoder(nn.Module):
    """Latents (n, 4, h, w) to pictures (n, 3, 8h, 8w)."""

    def __init__(self, channels: int = CHANNELS, groups: int = 32) -> None:
        super().__init__()
        width = channels * MULTIPLES[-1]
        self.post_quant_conv = nn.Conv2d(4, 4, 1)
        self.conv_in = nn.Conv2d(4, width, 3, padding=1)
        self.mid = nn.ModuleDict(
            {
                "block_1": Residual(width, width, groups),
                "attn_1": Attention(width, groups),
                "block_2": Residual(width, width, groups),
            }
        )
        levels: list[nn.Module] = []
        for at, multiple in reversed(list(enumerate(MULTIPLES))):
            levels.insert(0, Level(width, channels * multiple, groups, up=at > 0))
            width = channels * multiple
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = nn.GroupNorm(groups, width, eps=1e-6), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(self.post_quant_conv(latents))
        for layer in self.mid.values():
            x = layer(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(nn.functional.silu(self.norm_out(x)))
