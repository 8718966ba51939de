"""Free-U (arXiv 2309.11497): scales the backbone up and the skips' low frequencies down, in a UNet's decoder.

The decoder concatenates ``cat([hidden, skip])`` in every block. Stage 1 is where hidden has ``4 * model_channels``
channels and stage 2 where it has ``2 * model_channels``::

    hidden[:, :half] *= b                       version 1
    hidden[:, :half] *= 1 + (b - 1) * m         version 2, m = channel mean of hidden, scaled to 0..1 per sample
    skip = filter(skip, s)                      the lowest 2x2 frequencies times s

The filter is computed without an FFT. Scaling the frequencies {-1, 0} x {-1, 0} by s and taking the real part equals
adding (s - 1) times the projection onto seven real waves. That takes two thin matrix products, which work with any
size, dtype and device.

arXiv 2510.02390 found that Free-U harms from the start of sampling and helps in the last evaluations. Hence a *plan*
that says in which evaluations it is on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import nn

from .devices import on_device, without_autocast

__all__ = ["FreeU", "FreeUPlan", "Waves", "decoder_stages", "output_block_patch", "scale_low_frequencies"]

VERSIONS = (1, 2)


@dataclass(frozen=True)
class FreeUPlan:
    """Free-U's constants and the UNet evaluations in which they are used.

    Attributes:
        first, last: 0-based indices of UNet evaluations (one guided call = one evaluation), both included;
            with ``last=None`` Free-U stays on until the end.
        b1, s1: stage 1; b2, s2: stage 2.
        version: 1 or 2.
    """

    first: int
    last: Optional[int] = None
    b1: float = 1.1
    b2: float = 1.1
    s1: float = 0.9
    s2: float = 0.2
    version: int = 1

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise ValueError(f"version must be 1 or 2, got {self.version!r}")

    def covers(self, evaluation: int) -> bool:
        """Whether Free-U is on in the evaluation with this index."""
        return evaluation >= self.first and (self.last is None or evaluation <= self.last)


def low_frequency_waves(height: int, width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The real waves that span the frequencies {-1, 0} x {-1, 0} of a map; shape (at most 7, height * width).

    They are scaled so that ``waves.T @ waves`` is the projection. A side of length 1 has no frequency -1.
    """
    h = torch.arange(height, dtype=torch.float64) * (2 * torch.pi / height)
    w = torch.arange(width, dtype=torch.float64) * (2 * torch.pi / width)
    h, w = h[:, None].expand(height, width), w[None, :].expand(height, width)
    angles = [angle for angle, exists in ((h, height > 1), (w, width > 1), (h + w, height > 1 and width > 1)) if exists]
    waves = [torch.ones_like(h)] + [wave for angle in angles for wave in (angle.cos(), angle.sin())]
    # float64 stays on the CPU, as not every device has it
    return on_device((torch.stack(waves).flatten(1) / (height * width) ** 0.5).to(dtype), device)


def scale_low_frequencies(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Free-U's Fourier filter with threshold 1: scales the central 2x2 of the shifted spectrum, keeps the real part.

    Args:
        x: shape (batch, channels, height, width), any float dtype; it is not modified.
        scale: factor of the low frequencies; 1 is the identity.

    Returns:
        Shape and dtype of ``x``.
    """
    result = x.clone()
    with without_autocast(x.device):
        _scale_low_frequencies_(result, scale, _waves_for(result))
    return result


@dataclass(frozen=True)
class _Waves:
    """The waves of one map size. Each is a sum of three products of a column and a row, ``columns`` times ``rows``.

    Attributes:
        full: shape (waves, height * width).
        rows: shape (3, width), and columns: (3, height, waves); None where a map is too small to benefit.
    """

    full: torch.Tensor
    rows: Optional[torch.Tensor] = None
    columns: Optional[torch.Tensor] = None


Waves = dict[tuple[Any, ...], _Waves]
"""Waves by the size, device and precision of the maps that they are for."""

SEPARABLE_FROM = 1024
"""Number of pixels from which the separable form is faster: it needs less than half of the arithmetic, but four calls
instead of two. Measured on the CPU in float32 and float64; elsewhere the two calls are used."""


def _waves_for(x: torch.Tensor) -> _Waves:
    height, width = x.shape[-2:]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    full = low_frequency_waves(height, width, x.device, dtype)
    if x.device.type != "cpu" or x.dtype != dtype or min(height, width) < 3 or height * width < SEPARABLE_FROM:
        return _Waves(full)
    angle = torch.arange(width, dtype=torch.float64) * (2 * torch.pi / width)
    rows = torch.stack([torch.ones_like(angle), angle.cos(), angle.sin()])
    columns = full.double().view(-1, height, width) @ torch.linalg.pinv(rows)
    return _Waves(full, rows.to(dtype), columns.permute(2, 1, 0).to(dtype).contiguous())


def _scale_low_frequencies_(x: torch.Tensor, scale: float, waves: _Waves) -> None:
    """In place, on a (batch, channels, height, width) tensor or view."""
    if waves.rows is not None and waves.columns is not None:
        lines = x.flatten(1, 2)
        if lines.data_ptr() == x.data_ptr():
            _scale_separably_(lines, x.shape[1], scale, waves.rows, waves.columns)
            return
    flat = x.flatten(2)
    is_view = flat.data_ptr() == x.data_ptr()
    work = flat if flat.dtype == waves.full.dtype else flat.to(waves.full.dtype)
    basis = waves.full.expand(work.shape[0], -1, -1)
    # (waves, pixels) @ (pixels, channels) runs three times faster than its transpose
    amplitudes = torch.bmm(basis, work.transpose(1, 2)).transpose(1, 2)
    if work is flat and is_view:
        flat.baddbmm_(amplitudes, basis, alpha=scale - 1)
    else:
        # half precision: sums are taken in float32, as with the FFT; only the result is rounded
        x.add_(torch.bmm(amplitudes, basis).unflatten(2, x.shape[2:]), alpha=scale - 1)


def _scale_separably_(
    lines: torch.Tensor, channels: int, scale: float, rows: torch.Tensor, columns: torch.Tensor
) -> None:
    """The same by rows and columns, on a (batch, channels * height, width) view."""
    batch = lines.shape[0]
    basis = rows.expand(batch, -1, -1)
    sums = torch.bmm(basis, lines.transpose(1, 2)).view(batch, 3, channels, -1)
    amplitudes = (sums @ columns).sum(1, keepdim=True)
    correction = (amplitudes @ columns.transpose(1, 2)).view(batch, 3, -1)
    lines.baddbmm_(correction.transpose(1, 2), basis, alpha=scale - 1)


def scale_backbone_(hidden: torch.Tensor, scale: float, version: int) -> None:
    """Scale the first half of the channels by Free-U's backbone factor, in place; hidden is (batch, channels, h, w)."""
    half = hidden[:, : hidden.shape[1] // 2]
    if version == 1:
        half.mul_(scale)
        return
    mean = hidden.float().mean(1, keepdim=True)
    low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
    # in a constant map there is nothing to amplify: its normalised mean is taken to be 0 instead of 0/0
    normalised = (mean - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    half.mul_((1 + (scale - 1) * normalised).to(hidden.dtype))


class FreeU:
    """Free-U on one UNet, by forward pre-hooks on its decoder blocks.

    The UNet must have Stable Diffusion's layout: ``model_channels``, ``middle_block``, and ``output_blocks`` whose
    first layers have ``out_channels``. The hooks modify the newly made concatenation in place. The handles are stored
    on the UNet itself, so that :meth:`detach` finds hooks that were left behind, whatever the reason.
    """

    ATTRIBUTE = "_hpsampler_freeu_hooks"

    @classmethod
    def attach(cls, unet: nn.Module, plan: FreeUPlan, waves: Optional[Waves] = None) -> None:
        """Hook the decoder of ``unet`` with the constants of ``plan``, replacing earlier hooks.

        Args:
            waves: keeps what the filter needs from one call to the next; one dictionary for each run is enough.

        Raises:
            ValueError: the module is not a UNet of Stable Diffusion's layout.
        """
        cls.detach(unet)
        blocks = decoder_stages(unet)
        stages = _Stage.of_plan(plan, waves)
        handles: list[Any] = []
        setattr(unet, cls.ATTRIBUTE, handles)
        for block, hidden_channels, multiple in blocks:
            if multiple in stages:
                handles.append(block.register_forward_pre_hook(_Hook(hidden_channels, stages[multiple])))

    @classmethod
    def detach(cls, unet: nn.Module) -> None:
        """Remove all of our hooks from ``unet``; nothing happens if there are none."""
        for handle in unet.__dict__.pop(cls.ATTRIBUTE, ()):
            handle.remove()

    @classmethod
    def attached(cls, unet: nn.Module) -> bool:
        """Whether ``unet`` has hooks of ours."""
        return cls.ATTRIBUTE in unet.__dict__


def decoder_stages(unet: Optional[nn.Module]) -> list[tuple[nn.Module, int, int]]:
    """Every decoder block, the channels of its hidden input, and these as a multiple of ``model_channels``, else 0.

    Raises:
        ValueError: the module has no decoder of Stable Diffusion's layout.
    """
    try:
        model_channels = int(unet.model_channels)  # type: ignore[union-attr, arg-type]
        hidden = _out_channels(unet.middle_block)  # type: ignore[union-attr, arg-type]
        stages = []
        for block in unet.output_blocks:  # type: ignore[union-attr]
            multiple, remainder = divmod(hidden, model_channels)
            stages.append((block, hidden, multiple if remainder == 0 else 0))
            hidden = _out_channels(block)
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(
            f"Free-U needs a Stable Diffusion UNet with output_blocks, got {type(unet).__name__}"
        ) from error
    return stages


def _out_channels(block: nn.Module) -> int:
    """Channels that a block of layers puts out, which another extension may have wrapped in a module of its own."""
    for each in block.modules():
        if isinstance(each, (nn.Sequential, nn.ModuleList)):
            return int(each[0].out_channels)  # type: ignore[arg-type]
    raise AttributeError("no list of layers")


class _Stage:
    """Free-U's act on one decoder stage.

    Args:
        waves: those of the map sizes that were met, shared by the stages.
    """

    def __init__(self, b: float, s: float, version: int, waves: Waves) -> None:
        self.b, self.s, self.version, self.waves = b, s, version, waves

    @classmethod
    def of_plan(cls, plan: FreeUPlan, waves: Optional[Waves] = None) -> dict[int, _Stage]:
        """Both stages, by the channels of ``hidden`` as a multiple of ``model_channels``."""
        waves = {} if waves is None else waves
        return {4: cls(plan.b1, plan.s1, plan.version, waves), 2: cls(plan.b2, plan.s2, plan.version, waves)}

    def act_(self, hidden: torch.Tensor, skip: torch.Tensor) -> None:
        """In place, on (batch, channels, height, width) tensors or views."""
        if self.b != 1:
            scale_backbone_(hidden, self.b, self.version)
        if self.s != 1 and skip.shape[1]:
            key = (*skip.shape[2:], skip.device, skip.dtype)
            if key not in self.waves:
                self.waves[key] = _waves_for(skip)
            with without_autocast(skip.device):
                _scale_low_frequencies_(skip, self.s, self.waves[key])


class _Hook:
    """Forward pre-hook of one decoder block, whose args are (cat([hidden, skip], 1), ...)."""

    def __init__(self, hidden_channels: int, stage: _Stage) -> None:
        self.hidden_channels, self.stage = hidden_channels, stage

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0]
        self.stage.act_(x[:, : self.hidden_channels], x[:, self.hidden_channels :])


Patch = Callable[[torch.Tensor, torch.Tensor, Any], tuple[torch.Tensor, torch.Tensor]]


def output_block_patch(plan: FreeUPlan, model_channels: int, waves: Optional[Waves] = None) -> Patch:
    """Free-U as ``patch(hidden, skip, options) -> (hidden, skip)``, which some backends call before each decoder block.

    What it is given stays as it is, as others may keep it. It is a function, as a copy of a backend's options shares
    those.

    Args:
        model_channels: the UNet's, by which the stages are known.
        waves: as in :meth:`FreeU.attach`.
    """
    stages = _Stage.of_plan(plan, waves)

    def patch(hidden: torch.Tensor, skip: torch.Tensor, options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        multiple, remainder = divmod(hidden.shape[1], model_channels)
        if remainder or multiple not in stages:
            return hidden, skip
        hidden, skip = hidden.clone(), skip.clone()
        stages[multiple].act_(hidden, skip)
        return hidden, skip

    return patch
