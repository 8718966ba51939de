"""UNets of the true sizes of Stable Diffusion 1.5 and SDXL, in torch alone.

Only their cost matters here, so their weights are random. Layout and names are those of the original code, so that a
test can hold them to it, and Free-U finds the decoder that it finds in a WebUI. Attention is torch's own fused one, as
a WebUI has it by default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["SD15_UNET", "SDXL_UNET", "UNet", "UNetSize", "split_heads_attention"]


@dataclass(frozen=True)
class UNetSize:
    """What tells one UNet from another.

    Attributes:
        channels: of the first level.
        multiples: channels of each level, as multiples of the first's.
        depths: transformer blocks in each place of a level that has attention; 0 is none.
        context: width of the prompt's embedding.
        heads: attention heads everywhere; 0 is as many as ``head_channels`` gives.
        linear: whether a transformer is entered and left by a linear layer rather than a convolution.
        vector: width of the vector beside the timestep, which SDXL has; 0 is none.
        groups: of every normalization.
    """

    channels: int
    multiples: tuple[int, ...]
    depths: tuple[int, ...]
    context: int
    heads: int = 0
    head_channels: int = 64
    linear: bool = False
    vector: int = 0
    groups: int = 32


SD15_UNET = UNetSize(320, (1, 2, 4, 4), (1, 1, 1, 0), 768, heads=8)
"""Stable Diffusion 1.5's, 859,520,964 parameters."""

SDXL_UNET = UNetSize(320, (1, 2, 4), (0, 2, 10), 2048, linear=True, vector=2816)
"""SDXL's, 2,567,463,684 parameters."""

RESIDUALS = 2
"""Residual blocks of a level of the encoder; the decoder has one more."""


class Residual(nn.Module):
    def __init__(self, inner: int, outer: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.out_channels = outer
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outer))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, outer), nn.SiLU(), nn.Identity(), nn.Conv2d(outer, outer, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


def split_heads_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention of (batch, tokens, channels) with the channels split among heads."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: torch.Tensor, context: Optional[torch.Tensor] = None) -> torch.Tensor:
        context = x if context is None else context
        return self.to_out(split_heads_attention(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))


class Gated(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inner, 2 * outer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, gate = self.proj(x).chunk(2, -1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Gated(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.attn1, self.ff = Attention(width, width, heads), FeedForward(width)
        self.attn2 = Attention(width, context, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x


class Transformer(nn.Module):
    """Attention over the pixels of a map, and from them to the prompt."""

    def __init__(self, width: int, depth: int, size: UNetSize) -> None:
        super().__init__()
        heads = size.heads or width // size.head_channels
        self.linear = size.linear
        self.norm = nn.GroupNorm(size.groups, width, eps=1e-6)
        self.proj_in, self.proj_out = (
            nn.Linear(width, width) if size.linear else nn.Conv2d(width, width, 1) for _ in range(2)
        )
        self.transformer_blocks = nn.ModuleList(TransformerBlock(width, size.context, heads) for _ in range(depth))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        height = x.shape[2]
        h = self.norm(x)
        h = h if self.linear else self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)
        h = self.proj_in(h) if self.linear else h
        for block in self.transformer_blocks:
            h = block(h, context)
        h = self.proj_out(h) if self.linear else h
        h = h.transpose(1, 2).unflatten(2, (height, -1))
        return x + (h if self.linear else self.proj_out(h))


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Layers(nn.Sequential):
    """Layers in a row, each given what it needs beside the map."""

    def forward(self, x: torch.Tensor, embedding: torch.Tensor, context: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, Residual):
                x = layer(x, embedding)
            elif isinstance(layer, Transformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """``unet(x, timesteps, context, vector)``: latents (n, 4, h, w) to the network's output of the same shape.

    ``context`` is (n, tokens, width), and ``vector`` (n, width) for sizes that have one.
    """

    def __init__(self, size: UNetSize) -> None:
        super().__init__()
        channels, groups = size.channels, size.groups
        embedding = 4 * channels
        self.size, self.model_channels = size, channels
        self.time_embed = nn.Sequential(nn.Linear(channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        if size.vector:
            inner = nn.Sequential(nn.Linear(size.vector, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
            self.label_emb = nn.Sequential(inner)

        def level(inner: int, outer: int, depth: int) -> list[nn.Module]:
            attention = [Transformer(outer, depth, size)] if depth else []
            return [Residual(inner, outer, embedding, groups), *attention]

        blocks: list[nn.Module] = [Layers(nn.Conv2d(4, channels, 3, padding=1))]
        widths, width = [channels], channels
        for at, (multiple, depth) in enumerate(zip(size.multiples, size.depths)):
            for _ in range(RESIDUALS):
                blocks.append(Layers(*level(width, multiple * channels, depth)))
                width = multiple * channels
                widths.append(width)
            if at < len(size.multiples) - 1:
                blocks.append(Layers(Down(width)))
                widths.append(width)
        self.input_blocks = nn.ModuleList(blocks)
        # where the lowest level has no attention, the middle has as much as the one above it
        depth = size.depths[-1] or size.depths[-2]
        first, attention = level(width, width, depth)
        self.middle_block = Layers(first, attention, Residual(width, width, embedding, groups))
        blocks = []
        for at, (multiple, depth) in reversed(list(enumerate(zip(size.multiples, size.depths)))):
            for index in range(RESIDUALS + 1):
                layers = level(width + widths.pop(), multiple * channels, depth)
                width = multiple * channels
                if at and index == RESIDUALS:
                    layers.append(Up(width))
                blocks.append(Layers(*layers))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1))

    def forward(
        self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, vector: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        embedding = self.time_embed(_waves(timesteps, self.model_channels).to(x.dtype))
        if vector is not None:
            embedding = embedding + self.label_emb(vector)
        skips = []
        for block in self.input_blocks:
            x = block(x, embedding, context)
            skips.append(x)
        x = self.middle_block(x, embedding, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], 1), embedding, context)
        return self.out(x)


def _waves(timesteps: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of the timesteps, (n, width)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=timesteps.device) * (-math.log(10000) / half))
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)
