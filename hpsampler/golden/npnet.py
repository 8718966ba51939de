"""NPNet, the network that turns unit noise into golden noise for a prompt (arXiv 2411.09502, xie-lab-ml/Golden-Noise).

From noise z, shape (batch, 4, 128, 128), and the positive prompt's embedding e, shape (batch, 77, width)::

    a      = group_norm(z) (1 + scale(e)) + shift(e)                     the prompt's say, one linear layer
    golden = svd(z) + (2 sigmoid(alpha) - 1) a + beta swin(z + a)

    svd    the latent as one 256x256 matrix U diag(s) V; attention over its singular pairs gives new singular values
    swin   resized to 224x224, through a Swin-T, its (7, 7, 768) features read as 7 channels, resized to 128x128

Used as its authors use it: on **unit** noise, with the **positive** prompt's embedding, at 1024x1024, before the
sampler scales the noise; no call of the model. It was trained for three models, see ``PUBLISHED``; that for SDXL is
also used with its Lightning, LCM and PCM children. Everything runs in float32.

Two things are settled here that the authors' script leaves to chance. It never switches the network to evaluation,
so the Swin's stochastic depth is left on and one noise gives many results; here it is off. And the signs of singular
vectors, which the network sees, belong to the machine's SVD; here it is always the CPU's, so that a picture depends
neither on the device nor on its batch.

The names of parameters are those of the published files (timm 0.9's for the Swin). A published ``.pth`` is converted
once, ``python -m hpsampler.npnet convert in.pth out.safetensors``; only safetensors are read afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import sys
import threading
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Optional

import torch
from torch import nn
from torch.nn import functional as F

from .shelf import shown

__all__ = [
    "CHANNELS", "PUBLISHED", "SIZE", "TOKENS", "GoldenNoiseError", "NPNet", "Published", "convert", "labelled",
    "load_npnet",
]  # fmt: skip

SIZE = 128
"""Height and width of the latents it was trained for: 1024x1024 pictures."""

CHANNELS = 4
TOKENS = 77

STD_RANGE = (0.8, 1.25)
"""Of an image's noise; that of 65536 normal numbers is within 0.02 of 1, times any first sigma it is far off."""

FORMAT, VERSION = "hpsampler-npnet", "1"

MAX_BYTES = 2**30
"""A file, or what an archive unfolds to, beyond this is not read; the published ones have about 120 MB."""


class GoldenNoiseError(ValueError):
    """Noise, an embedding or a file that NPNet cannot use; the message is for people."""


class Published(NamedTuple):
    """One of the networks that were published.

    Attributes:
        model: whose noise it knows.
        width: of that model's prompt embedding.
        cfg_scale: the guidance its authors use it at.
    """

    model: str
    width: int
    cfg_scale: float


PUBLISHED = (
    Published("SDXL", 2048, 5.5),
    Published("DreamShaper-xl-v2-turbo", 2048, 3.5),
    Published("Hunyuan-DiT", 1024, 5.0),
)

# ---- Swin-T (arXiv 2103.14030), features only; tensors are (batch, height, width, channels) --------------------------

WINDOW = 7
MASKED = -100.0
"""Added to the attention between pixels that are neighbours only by the cyclic shift; the weights were trained so."""


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
    """Row of the bias table for every pair of a window's pixels: (dy + 6) * 13 + (dx + 6), shape (49, 49)."""
    at = torch.arange(WINDOW * WINDOW)
    y, x = at // WINDOW, at % WINDOW
    reach = WINDOW - 1
    return (y[:, None] - y[None, :] + reach) * (2 * reach + 1) + x[:, None] - x[None, :] + reach


def shift_mask(size: int, shift: int) -> torch.Tensor:
    """``MASKED`` where two pixels of a window of the shifted map are no neighbours, shape (windows, 49, 49)."""
    # along one side: untouched windows, then the two parts that the shift brought into one window
    part = torch.zeros(size)
    part[size - WINDOW : size - shift] = 1
    part[size - shift :] = 2
    region = partition((part[:, None] * 3 + part[None, :])[None, :, :, None])[0, :, :, 0]
    return (region[:, None, :] != region[:, :, None]) * MASKED


class WindowAttention(nn.Module):
    """Attention within windows, with a learnt bias for every relative position."""

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
        q, k, v = heads_of(self.qkv(x), self.heads)
        bias = self.relative_position_bias_table[self.positions].permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask[:, None]
        return self.proj(attended(q, k, v, bias))


def heads_of(qkv: torch.Tensor, heads: int) -> Sequence[torch.Tensor]:
    """(..., tokens, 3 * width) -> three of (..., heads, tokens, width / heads)."""
    return qkv.unflatten(-1, (3, heads, -1)).transpose(-4, -2).unbind(-3)


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | float = 0.0) -> torch.Tensor:
    """softmax(q k' / sqrt(d) + bias) v, the heads put side by side: (..., tokens, width)."""
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + bias).softmax(-1)
    return (weights @ v).transpose(-3, -2).flatten(-2)


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention in windows that are shifted by ``shift`` pixels, then a perceptron for every pixel."""

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
    """Two by two pixels become one of twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # down first, then right
        parts = [x[:, y::2, z::2] for z in (0, 1) for y in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Stage(nn.Module):
    def __init__(self, width: int, heads: int, depth: int, size: int, merge: bool) -> None:
        super().__init__()
        self.downsample = PatchMerging(width // 2) if merge else nn.Identity()
        # every second block is shifted, unless one window covers the map
        shifts = [WINDOW // 2 if i % 2 and size > WINDOW else 0 for i in range(depth)]
        self.blocks = nn.Sequential(*(Block(width, heads, size, shift) for shift in shifts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(x))


class PatchEmbedding(nn.Module):
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


# ---- NPNet -----------------------------------------------------------------------------------------------------------


class NoiseTransformer(nn.Module):
    """The Swin branch: (batch, 4, 128, 128) to the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.upconv = nn.Conv2d(7, CHANNELS, 1)
        self.downconv = nn.Conv2d(CHANNELS, 3, 1)
        self.swin = SwinTiny()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.swin(self.downconv(F.interpolate(x, [SwinTiny.SIDE, SwinTiny.SIDE])))
        # its rows are taken for channels, its channels for columns: so it was trained
        return self.upconv(F.interpolate(features, [SIZE, SIZE]))


class SingularAttention(nn.Module):
    """Plain attention of 8 heads; q, k and v without bias."""

    HEADS = 8

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(attended(*heads_of(self.qkv(x), self.HEADS)))


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
        # always the CPU's: other devices choose other signs, and some have no SVD at all
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
    """The network; new ones are random, trained ones come from :func:`load_npnet`.

    Args:
        width: of the prompt embedding; 2048 (SDXL) and 1024 (Hunyuan-DiT) are published.
        model: whose noise it knows, one of ``PUBLISHED``; None or empty where its file did not say.

    Raises:
        GoldenNoiseError: a width that is none.
    """

    def __init__(self, width: int = 2048, model: Optional[str] = None) -> None:
        super().__init__()
        self.width = _checked_width(width)
        self.model = model
        self.unet_svd = SVDNoise()
        self.unet_embedding = NoiseTransformer()
        self.text_embedding = PromptNorm(width)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.beta = nn.Parameter(torch.zeros(1))

    @torch.no_grad()
    def forward(self, noise: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
        """Golden noise; each image's depends on its own noise and prompt alone. No gradients.

        Args:
            noise: unit noise, shape (batch, 4, 128, 128); not yet times the first sigma.
            positive: the positive prompt's embedding, shape (batch, 77, width), or (1, 77, width) for all.

        Returns:
            About unit noise of the same shape, dtype and device, on the network's device in between.

        Raises:
            GoldenNoiseError: another size, number of channels, tokens or rows, or noise that is not of unit size.
        """
        _check_noise(noise)
        self._check_embedding(positive, len(noise))
        here = self.alpha.device
        # a host may run everything in half precision; the weights are float32, and were used so
        with _full_precision(here.type):
            z = noise.to(here, torch.float32)
            e = positive.to(here, torch.float32).expand(len(z), -1, -1)
            a = self.text_embedding(z, e)
            golden = self.unet_svd(z) + (2 * self.alpha.sigmoid() - 1) * a + self.beta * self.unet_embedding(z + a)
        return golden.to(noise.device, noise.dtype)

    def _check_embedding(self, positive: torch.Tensor, batch: int) -> None:
        shape = tuple(positive.shape)
        if len(shape) != 3:
            raise GoldenNoiseError(f"the embedding must have shape (batch, {TOKENS}, {self.width}), got {shape}")
        rows, tokens, width = shape
        if width != self.width:
            own = " or ".join(_models(self.width)) or "of another model"
            raise GoldenNoiseError(
                f"this NPNet reads embeddings {self.width} wide ({own}), the model's are {width} wide"
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


def _full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """No autocast, where the device knows it."""
    return torch.autocast(device, enabled=False) if device in ("cpu", "cuda", "xpu") else contextlib.nullcontext()


def _models(width: int) -> list[str]:
    return [each.model for each in PUBLISHED if each.width == width]


def _checked_width(width: int) -> int:
    if type(width) is not int or width < 1:
        raise GoldenNoiseError(f"width must be a whole number of at least 1, got {shown(width)}")
    return width


# ---- files -----------------------------------------------------------------------------------------------------------

UNUSED = (
    ("unet_svd.bn.weight", (2 * SIZE,)),
    ("unet_svd.bn.bias", (2 * SIZE,)),
    ("unet_svd.bn.running_mean", (2 * SIZE,)),
    ("unet_svd.bn.running_var", (2 * SIZE,)),
    ("unet_svd.bn.num_batches_tracked", ()),
    ("unet_embedding.swin.head.fc.weight", (1000, 768)),
    ("unet_embedding.swin.head.fc.bias", (1000,)),
)
"""In the published files, in no formula: a normalisation that is never called, and the Swin's classifier."""

SECTIONS = {"unet_svd": "unet_svd", "unet_embedding": "unet_embedding", "embeeding": "text_embedding"}
"""The dictionaries in the published files (the last is so spelt), and the network's names for them."""


def load_npnet(path: str | Path) -> NPNet:
    """An NPNet from a safetensors file: :func:`convert`'s, or one with the same names without its metadata.

    The file holds ``unet_svd.*``, ``unet_embedding.*``, ``text_embedding.*``, ``alpha`` and ``beta``.

    Raises:
        GoldenNoiseError: the file is missing, is none, is cut short, or holds other names, shapes or values.
    """
    from safetensors import SafetensorError, safe_open  # not every host has it

    path = Path(path)
    with _opened(path) as file:
        start = file.read(64)
    if start.startswith(b"PK\x03\x04"):
        raise GoldenNoiseError(
            f"{path.name} is a PyTorch file; convert it once: "
            f"python -m hpsampler.npnet convert {path.name} {path.stem}.safetensors"
        )
    if not _is_safetensors(start):
        raise _not_weights(path, start)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format", "pt") not in (FORMAT, "pt"):
                raise GoldenNoiseError(f"{path.name} is no NPNet: its format is {shown(metadata['format'])}")
            if metadata.get("format") == FORMAT and metadata.get("version") != VERSION:
                raise GoldenNoiseError(
                    f"{path.name}: version must be {VERSION}, got {shown(metadata.get('version'))}; "
                    "update HP Sampler to read it"
                )
            # all names and shapes before the first tensor is read
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            width = _width_of(shapes, path.name)
            _check_model(metadata.get("model"), width, path.name)
            # the random start is written over; the host's random numbers shall go on as they were
            with torch.random.fork_rng(devices=[]):
                network = NPNet(width, metadata.get("model"))
            tensors = {name: file.get_tensor(name) for name in _check_shapes(network, shapes, path.name)}
    except (SafetensorError, OSError) as error:
        raise GoldenNoiseError(f"{path.name} is damaged or cut short: {str(error)[:80]}; download it again") from None
    network.load_state_dict(_check_values(tensors, path.name))
    return network.requires_grad_(False).eval()


def labelled(name: str, network: NPNet) -> str:
    """By which a picture names weights: ``my weights 1a2b3c4d``, with a hash of their smaller tensors."""
    whole = hashlib.sha256()
    for tensor in network.state_dict().values():
        if tensor.numel() <= 4096:
            whole.update(tensor.double().cpu().numpy().tobytes())
    return f"{name} {whole.hexdigest()[:8]}"


def convert(path_pth: str | Path, path_out: str | Path, model: Optional[str] = None) -> str:
    """A published ``.pth`` as safetensors, with every name, shape and value checked; nothing in it is run.

    A ``.pth`` is an archive with a program that builds its tensors; it is read by PyTorch's restricted reader, which
    knows tensors only, and after its table of contents has been looked at. What NPNet does not use is left out.

    Args:
        path_pth: one dictionary of ``unet_svd``, ``unet_embedding``, ``embeeding`` (so spelt), ``alpha``, ``beta``.
        path_out: ends in ``.safetensors``; an existing file is replaced once the new one is whole.
        model: one of ``PUBLISHED``. Without it Hunyuan-DiT's is known by its width; the other two have equal shapes
            and are told apart by the file's name, ``dreamshaper...`` or any other. Of another width it is not known.

    Returns:
        The model's id, which the file's metadata hold too; empty where it is not known.

    Raises:
        GoldenNoiseError: the file is missing, is something else, is cut short, holds more than tensors, or holds other
            names, shapes or values; or the new one cannot be written.
    """
    path_pth, path_out = Path(path_pth), Path(path_out)
    if path_out.suffix.lower() != ".safetensors":
        raise GoldenNoiseError(f"the new file's name must end in .safetensors, got {shown(path_out.name)}")
    with _opened(path_pth) as file:
        tensors = _flat(_read_archive(file, path_pth), path_pth.name)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    width = _width_of(shapes, path_pth.name)
    if model is None:
        fitting = _models(width) or [""]
        model = fitting[-1 if "dreamshaper" in path_pth.name.lower() else 0]
    _check_model(model, width, path_pth.name)
    used = _check_shapes(NPNet(width), shapes, path_pth.name)
    tensors = _check_values({name: tensors[name] for name in used}, path_pth.name)
    _write(path_out, tensors, {"format": FORMAT, "version": VERSION, "model": model})
    return model


def _opened(path: Path) -> BinaryIO:
    try:
        if not path.is_file() and path.exists():
            raise GoldenNoiseError(f"{path.name} is not a file")
        if path.stat().st_size > MAX_BYTES:
            raise GoldenNoiseError(f"{path.name} is no NPNet: the file must be at most {MAX_BYTES >> 20} MB")
        return path.open("rb")
    except OSError as error:
        raise GoldenNoiseError(f"{path.name} cannot be read: {error.strerror or error}") from None


def _is_safetensors(start: bytes) -> bool:
    """The length of a header, eight bytes that may begin with any, and the header."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_BYTES


def _not_weights(path: Path, start: bytes) -> GoldenNoiseError:
    """What a file that is no archive looks like; downloads often are something else."""
    text = start.lstrip().lower()
    if not start:
        what = "is empty; download it again"
    elif text.startswith((b"<!doctype", b"<html")):
        what = "is a web page, not weights; download it again"
    elif text.startswith(b"version https://git-lfs"):
        what = "only points to weights that git-lfs keeps; download the file itself"
    elif _is_safetensors(start):
        what = "is a safetensors file already"
    elif start[:1] == b"\x80":
        what = "is a bare pickle, which may hold any program; it was not opened"
    else:
        what = "is no file of weights that is known here"
    return GoldenNoiseError(f"{path.name} {what}")


def _read_archive(file: BinaryIO, path: Path) -> Any:
    """What ``torch.save`` wrote, from an archive whose contents are as they should be."""
    start = file.read(64)
    if start[:4] != b"PK\x03\x04":
        # older formats too: readers of these have had holes
        raise _not_weights(path, start)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [entry.filename.rpartition("/")[2] for entry in entries]
            if "constants.pkl" in names:
                raise GoldenNoiseError(f"{path.name} is a TorchScript program, not weights; it was not opened")
            if names.count("data.pkl") != 1:
                raise GoldenNoiseError(f"{path.name} is an archive, but not one that PyTorch wrote")
            if sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise GoldenNoiseError(f"{path.name} is no NPNet: it unfolds to more than {MAX_BYTES >> 20} MB")
            damaged = archive.testzip()
    except GoldenNoiseError:
        raise
    except Exception as error:  # besides BadZipFile, damaged archives raise half a dozen others
        raise _cut_short(path, error) from None
    if damaged is not None:
        raise _cut_short(path, damaged)
    file.seek(0)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a made-up file leads the reader to
        if type(error).__name__ == "UnpicklingError":
            raise GoldenNoiseError(
                f"{path.name} holds something other than tensors, which may be a program; nothing of it was run"
            ) from None
        raise _cut_short(path, error) from None


def _cut_short(path: Path, reason: object) -> GoldenNoiseError:
    return GoldenNoiseError(f"{path.name} is damaged or cut short ({str(reason)[:80]}); download it again")


def _flat(data: Any, name: str) -> dict[str, torch.Tensor]:
    """The published dictionary of dictionaries under the network's own names."""
    if not isinstance(data, dict) or set(data) != {*SECTIONS, "alpha", "beta"}:
        found = _listed(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise GoldenNoiseError(
            f"{name} is no NPNet: it must hold unet_svd, unet_embedding, embeeding, alpha and beta; it holds {found}"
        )
    flat: dict[str, Any] = {"alpha": data["alpha"], "beta": data["beta"]}
    for section, prefix in SECTIONS.items():
        if not isinstance(data[section], dict):
            raise GoldenNoiseError(f"{name} is no NPNet: {section} must be a dictionary of tensors")
        flat.update({f"{prefix}.{key}": value for key, value in data[section].items()})
    for key, value in flat.items():
        if not _is_plain(value):
            raise GoldenNoiseError(f"{name} is no NPNet: {shown(key)} must be a plain tensor")
    for key in ("alpha", "beta"):
        flat[key] = flat[key].reshape(1) if flat[key].numel() == 1 else flat[key]
    return flat


def _is_plain(value: Any) -> bool:
    """A tensor with its numbers; the restricted reader makes sparse, quantised, nested and numberless ones too."""
    return (
        isinstance(value, torch.Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_nested)
    )


def _width_of(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    shape = shapes.get("text_embedding.linear.weight")
    if shape is None:
        raise GoldenNoiseError(f"{name} is no NPNet: it has no text_embedding.linear.weight; it has {_listed(shapes)}")
    if len(shape) != 2 or shape[0] != 2 * CHANNELS or shape[1] % TOKENS or not shape[1]:
        raise GoldenNoiseError(f"{name}: text_embedding.linear.weight has shape {shape}, which no NPNet has")
    return shape[1] // TOKENS


def _check_shapes(network: NPNet, shapes: Mapping[str, tuple[int, ...]], name: str) -> list[str]:
    """The names that the network needs, after a look at all there are."""
    needed = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    known = {**needed, **dict(UNUSED)}
    if "unet_embedding.swin.layers.0.downsample.norm.weight" in shapes:
        raise GoldenNoiseError(f"{name} was made with timm before 0.9, with which NPNet cannot run")
    missing = [key for key in needed if key not in shapes]
    if missing:
        raise GoldenNoiseError(f"{name} lacks {_listed(missing)}")
    surplus = [key for key in shapes if key not in known]
    if surplus:
        raise GoldenNoiseError(f"{name} holds what no NPNet has: {_listed(surplus)}")
    for key, shape in shapes.items():
        if shape != known[key]:
            raise GoldenNoiseError(f"{name}: {key} must have shape {known[key]}, got {shape}")
    return list(needed)


def _check_values(tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """As float32, each with its own memory."""
    checked = {}
    for key, value in tensors.items():
        if not value.is_floating_point():
            raise GoldenNoiseError(f"{name}: {key} must be floating point, got {value.dtype}")
        checked[key] = value.detach().to(torch.float32, copy=True).contiguous()
        if not checked[key].isfinite().all():
            raise GoldenNoiseError(f"{name}: {key} must be finite")
    return checked


def _check_model(model: Optional[str], width: int, name: str) -> None:
    if model and model not in _models(width):
        known = " or ".join(_models(width)) or "no model that is known here"
        raise GoldenNoiseError(f"{name}: of this shape there is one for {known}, not {shown(model)}")


def _listed(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(shown(each) for each in names[:most]) or "nothing") + more


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """So that an interrupted write leaves an existing file as it was."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        save_file(tensors, str(part), metadata)
        os.replace(part, path)
    except (SafetensorError, OSError) as error:
        raise GoldenNoiseError(f"{path.name} cannot be written: {str(error)[:80]}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line; 0 when the file was converted, 1 with a sentence on why not."""
    parser = argparse.ArgumentParser("python -m hpsampler.npnet", description="NPNet's weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("convert", help="turn a published .pth into safetensors; nothing in it is run")
    one.add_argument("source", metavar="in.pth")
    one.add_argument("target", metavar="out.safetensors")
    one.add_argument("--model", choices=[each.model for each in PUBLISHED], help="where shapes cannot tell")
    given = parser.parse_args(arguments)
    try:
        model = convert(given.source, given.target, given.model)
    except GoldenNoiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.target}: NPNet for {model or 'a model that is not known here'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
