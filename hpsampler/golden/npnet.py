"""NPNet, the network that turns unit noise into golden noise for a prompt (arXiv 2411.09502, xie-lab-ml/Golden-Noise).

From noise z, shape (batch, 4, 128, 128), and the positive prompt's embedding e, shape (batch, 77, width)::

    a      = group_norm(z) (1 + scale(e)) + shift(e)                     scale and shift from one linear layer
    golden = svd(z) + (2 sigmoid(alpha) - 1) a + beta swin(z + a)

    svd    the latent as one 256x256 matrix U diag(s) V; attention over its singular pairs gives new singular values
    swin   resized to 224x224, through a Swin-T whose (7, 7, 768) features are read as 7 channels, resized to 128x128

It is used as its authors use it: on **unit** noise, with the **positive** prompt's embedding, at 1024x1024, before the
sampler scales the noise, and without calling the model. Networks for three models were published, see ``PUBLISHED``;
the one for SDXL is also used with SDXL's Lightning, LCM and PCM variants. Everything runs in float32.

Two things that are random in the authors' script are fixed here. The script never switches the network to evaluation
mode, so the Swin's stochastic depth stays on and the same noise gives different results; here it is off. And the signs
of the singular vectors, which the network sees, depend on the SVD's implementation; here it always runs on the CPU, so
that a picture depends neither on the device nor on its batch.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import nn
from torch.nn import functional as F

from ..devices import without_autocast
from ..store import abbreviated
from .swin import SwinTiny, attention, split_heads

__all__ = ["CHANNELS", "PUBLISHED", "SIZE", "TOKENS", "GoldenNoiseError", "NPNet", "Published"]

SIZE = 128
"""Height and width of the latents it was trained on: 1024x1024 pictures."""

CHANNELS = 4
TOKENS = 77

STD_RANGE = (0.8, 1.25)
"""Allowed standard deviation of an image's noise. That of 65536 normal numbers is within 0.02 of 1; noise that was
already multiplied by sigma is far outside."""


class GoldenNoiseError(ValueError):
    """NPNet cannot use the noise, the embedding or the file; the message is meant for the user."""


class Published(NamedTuple):
    """One of the published networks.

    Attributes:
        model: name of the model it was trained for.
        width: width of that model's prompt embedding.
        cfg_scale: guidance scale at which its authors use it.
    """

    model: str
    width: int
    cfg_scale: float


PUBLISHED = (
    Published("SDXL", 2048, 5.5),
    Published("DreamShaper-xl-v2-turbo", 2048, 3.5),
    Published("Hunyuan-DiT", 1024, 5.0),
)


class NoiseTransformer(nn.Module):
    """The Swin branch: (batch, 4, 128, 128) to the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.upconv = nn.Conv2d(7, CHANNELS, 1)
        self.downconv = nn.Conv2d(CHANNELS, 3, 1)
        self.swin = SwinTiny()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.swin(self.downconv(F.interpolate(x, [SwinTiny.SIDE, SwinTiny.SIDE])))
        # rows are read as channels and channels as columns, as in training
        return self.upconv(F.interpolate(features, [SIZE, SIZE]))


class SingularAttention(nn.Module):
    """Self-attention with 8 heads; q, k and v have no bias."""

    HEADS = 8

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(attention(*split_heads(self.qkv(x), self.HEADS)))


def as_matrix(x: torch.Tensor) -> torch.Tensor:
    """(batch, 4, n, n) -> (batch, 2n, 2n): channels 0 1 in the upper half, 2 3 in the lower."""
    batch, _, height, width = x.shape
    return x.reshape(batch, 2, 2, height, width).transpose(2, 3).reshape(batch, 2 * height, 2 * width)


def as_latent(matrix: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`as_matrix`."""
    batch, height, width = matrix.shape
    x = matrix.reshape(batch, 2, height // 2, 2, width // 2)
    return x.transpose(2, 3).reshape(batch, 4, height // 2, width // 2)


class SVDNoise(nn.Module):
    """The SVD branch: the latent with new singular values, s' = s + mlp4(mean over tokens of attention)."""

    def __init__(self) -> None:
        super().__init__()
        side = 2 * SIZE
        self.mlp1 = nn.Sequential(nn.Linear(side, 64), nn.ReLU(), nn.Linear(64, side))
        self.mlp2 = nn.Sequential(nn.Linear(side, 64), nn.ReLU(), nn.Linear(64, side))
        self.mlp3 = nn.Sequential(nn.Linear(side, side))
        self.attention = SingularAttention(side)
        self.mlp4 = nn.Sequential(nn.Linear(side, 1024), nn.ReLU(), nn.Linear(1024, side))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # always on the CPU: other devices choose other signs, and some have no SVD at all
        u, s, v = (part.to(x.device) for part in torch.linalg.svd(as_matrix(x).cpu()))
        tokens = self.mlp1(u.transpose(1, 2)) + self.mlp2(v) + self.mlp3(s)[:, None]
        s = s + self.mlp4(self.attention(tokens).mean(1))
        return as_latent(u * s[:, None] @ v)


class PromptNorm(nn.Module):
    """group_norm(x) (1 + scale) + shift, with scale and shift linear in the whole embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(TOKENS * width, 2 * CHANNELS)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        scale, shift = self.linear(embedding.flatten(1))[:, :, None, None].chunk(2, 1)
        return F.group_norm(x, 1, eps=1e-6) * (1 + scale) + shift


class NPNet(nn.Module):
    """The network with random weights; :func:`~hpsampler.golden.weights.load_npnet` reads trained ones.

    Args:
        width: width of the prompt embedding; 2048 (SDXL) and 1024 (Hunyuan-DiT) are published.
        model: name of the model it was trained for, one of ``PUBLISHED``; None or empty where its file does not say.

    Raises:
        GoldenNoiseError: the width is not a whole number of at least 1.
    """

    def __init__(self, width: int = 2048, model: Optional[str] = None) -> None:
        super().__init__()
        self.width = checked_width(width)
        self.model = model
        self.unet_svd = SVDNoise()
        self.unet_embedding = NoiseTransformer()
        self.text_embedding = PromptNorm(width)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.beta = nn.Parameter(torch.zeros(1))

    @torch.no_grad()
    def forward(self, noise: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
        """Golden noise; an image's result depends on its own noise and prompt alone. No gradients are computed.

        Args:
            noise: unit noise, shape (batch, 4, 128, 128), not yet multiplied by the first sigma.
            positive: the positive prompt's embedding, shape (batch, 77, width), or (1, 77, width) for all images.

        Returns:
            Roughly unit noise of the same shape, dtype and device; it is computed on the network's device.

        Raises:
            GoldenNoiseError: another size or number of channels, tokens or rows, or noise that is not unit noise.
        """
        _check_noise(noise)
        self._check_embedding(positive, len(noise))
        device = self.alpha.device
        # a host may run everything in half precision; the network was trained and used in float32
        with without_autocast(device):
            z = noise.to(device, torch.float32)
            e = positive.to(device, torch.float32).expand(len(z), -1, -1)
            a = self.text_embedding(z, e)
            golden = self.unet_svd(z) + (2 * self.alpha.sigmoid() - 1) * a + self.beta * self.unet_embedding(z + a)
        return golden.to(noise.device, noise.dtype)

    def _check_embedding(self, positive: torch.Tensor, batch: int) -> None:
        shape = tuple(positive.shape)
        if len(shape) != 3:
            raise GoldenNoiseError(f"the embedding must have shape (batch, {TOKENS}, {self.width}), got {shape}")
        rows, tokens, width = shape
        if width != self.width:
            models = " or ".join(models_of_width(self.width)) or "of another model"
            raise GoldenNoiseError(
                f"this NPNet reads embeddings {self.width} wide ({models}), the model's are {width} wide"
            )
        if tokens != TOKENS:
            raise GoldenNoiseError(
                f"NPNet reads {TOKENS} tokens, got {tokens}; of a longer prompt give the first {TOKENS}, "
                "as its authors do"
            )
        if rows not in (1, batch):
            raise GoldenNoiseError(
                f"the embedding must have one row, or one for each of {batch} images, got {rows}; "
                "give the positive prompt alone, not the negative one beside it"
            )


def _check_noise(noise: torch.Tensor) -> None:
    shape = tuple(noise.shape)
    if len(shape) != 4 or not noise.is_floating_point():
        raise GoldenNoiseError(
            f"noise must be floating point of shape (batch, {CHANNELS}, {SIZE}, {SIZE}), got {noise.dtype} of {shape}"
        )
    if shape[1] != CHANNELS:
        raise GoldenNoiseError(f"NPNet was trained for latents of {CHANNELS} channels, got {shape[1]}")
    if shape[2:] != (SIZE, SIZE):
        raise GoldenNoiseError(
            f"NPNet was trained for pictures of {8 * SIZE} x {8 * SIZE} alone, got {8 * shape[3]} x {8 * shape[2]}"
        )
    for spread in noise.flatten(1).float().std(1).tolist():
        if not STD_RANGE[0] <= spread <= STD_RANGE[1]:
            raise GoldenNoiseError(
                f"NPNet works on unit noise, got a standard deviation of {spread:.3g}; "
                "give the noise before it is multiplied by sigma, and without a picture in it"
            )


def models_of_width(width: int) -> list[str]:
    """Names of the published networks' models whose prompt embeddings have that width."""
    return [network.model for network in PUBLISHED if network.width == width]


def checked_width(width: int) -> int:
    if type(width) is not int or width < 1:
        raise GoldenNoiseError(f"width must be a whole number of at least 1, got {abbreviated(width)}")
    return width
