"""Swin-T (arXiv 2103.14030), features only; tensors are (batch, height, width, channels)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["SwinTiny", "attention", "split_heads"]

WINDOW = 7
MASKED = -100.0
"""Added to the attention between pixels that are neighbours only by the cyclic shift, as in training."""


def partition(x: torch.Tensor) -> torch.Tensor:
    """(batch, height, width, channels) -> (batch, windows, 49, channels), row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return x.transpose(2, 3).reshape(batch, -1, WINDOW * WINDOW, channels)


def joined(windows: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of :func:`partition`."""
    batch, channels = windows.shape[0], windows.shape[-1]
    x = windows.reshape(batch, height // WINDOW, width // WINDOW, WINDOW, WINDOW, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


def relative_positions() -> torch.Tensor:
    """The bias table's row for every pair of a window's pixels: (dy + 6) * 13 + (dx + 6), shape (49, 49)."""
    at = torch.arange(WINDOW * WINDOW)
    y, x = at // WINDOW, at % WINDOW
    reach = WINDOW - 1
    return (y[:, None] - y[None, :] + reach) * (2 * reach + 1) + x[:, None] - x[None, :] + reach


def shift_mask(size: int, shift: int) -> torch.Tensor:
    """``MASKED`` where two pixels of a window are no neighbours in the unshifted map; shape (windows, 49, 49)."""
    # along one side: untouched windows, then the two parts that the shift brought into one window
    part = torch.zeros(size)
    part[size - WINDOW : size - shift] = 1
    part[size - shift :] = 2
    region = partition((part[:, None] * 3 + part[None, :])[None, :, :, None])[0, :, :, 0]
    return (region[:, None, :] != region[:, :, None]) * MASKED


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias for every relative position."""

    positions: torch.Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("positions", relative_positions(), persistent=False)

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
        """x: (batch, windows, 49, width); mask: (windows, 49, 49) or None."""
        q, k, v = split_heads(self.qkv(x), self.heads)
        bias = self.relative_position_bias_table[self.positions].permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask[:, None]
        return self.proj(attention(q, k, v, bias))


def split_heads(qkv: torch.Tensor, heads: int) -> Sequence[torch.Tensor]:
    """(..., tokens, 3 * width) -> three of (..., heads, tokens, width / heads)."""
    return qkv.unflatten(-1, (3, heads, -1)).transpose(-4, -2).unbind(-3)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | float = 0.0) -> torch.Tensor:
    """softmax(q k' / sqrt(d) + bias) v with the heads concatenated: (..., tokens, width)."""
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + bias).softmax(-1)
    return (weights @ v).transpose(-3, -2).flatten(-2)


class Mlp(nn.Module):
    """Two linear layers with GELU between them, applied to every pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention in windows shifted by ``shift`` pixels, then an MLP for every pixel."""

    mask: Optional[torch.Tensor]

    def __init__(self, width: int, heads: int, size: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.register_buffer("mask", shift_mask(size, shift) if shift else None, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = joined(self.attn(partition(y), self.mask), height, width)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Merges two by two pixels into one with twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # down first, then right
        parts = [x[:, y::2, z::2] for z in (0, 1) for y in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Stage(nn.Module):
    """Patch merging (except in the first stage), then blocks of attention."""

    def __init__(self, width: int, heads: int, depth: int, size: int, merge: bool) -> None:
        super().__init__()
        self.downsample = PatchMerging(width // 2) if merge else nn.Identity()
        # every second block is shifted, unless one window covers the map
        shifts = [WINDOW // 2 if i % 2 and size > WINDOW else 0 for i in range(depth)]
        self.blocks = nn.Sequential(*(Block(width, heads, size, shift) for shift in shifts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(x))


class PatchEmbedding(nn.Module):
    """(batch, 3, h, w) -> (batch, h/4, w/4, width): one vector for every patch of 4x4 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 4, 4)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class SwinTiny(nn.Module):
    """``swin_tiny_patch4_window7_224`` without its classifier: (batch, 3, 224, 224) -> (batch, 7, 7, 768)."""

    SIDE = 224

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(96)
        plan = ((96, 3, 2, 56), (192, 6, 2, 28), (384, 12, 6, 14), (768, 24, 2, 7))
        self.layers = nn.Sequential(
            *(Stage(width, heads, depth, size, merge=i > 0) for i, (width, heads, depth, size) in enumerate(plan))
        )
        self.norm = nn.LayerNorm(768)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layers(self.patch_embed(x)))
