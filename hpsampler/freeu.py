"""Free-U (arXiv 2309.11497): scale the backbone up and the skips' low frequencies down, in a UNet's decoder.

At every concatenation of the decoder, ``cat([hidden, skip])``, stage 1 is where hidden has ``4 * model_channels``
channels and stage 2 where it has ``2 * model_channels``::

    hidden[:, :half] *= b                       version 1
    hidden[:, :half] *= 1 + (b - 1) * m         version 2, m = channel mean of hidden, scaled to 0..1 per sample
    skip = filter(skip, s)                      the lowest 2x2 frequencies times s

The filter is not computed by FFT. Scaling the frequencies {-1, 0} x {-1, 0} by s and taking the real part is adding
(s - 1) times the projection on seven real waves, hence two thin matrix products: any size, dtype and device.

arXiv 2510.02390: Free-U from the start harms, in the last evaluations it gains. Hence a *plan* of evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import nn

__all__ = ["FreeU", "FreeUPlan", "scale_low_frequencies"]

VERSIONS = (1, 2)


@dataclass(frozen=True)
class FreeUPlan:
    """Free-U's constants and the UNet evaluations they hold for.

    Attributes:
        first, last: 0-based indices of UNet evaluations (one guided call = one evaluation), both included;
            ``last=None`` is until the end.
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
        return evaluation >= self.first and (self.last is None or evaluation <= self.last)


def low_frequency_waves(height: int, width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The real waves that span frequencies {-1, 0} x {-1, 0} of a map; shape (7 or less, height * width).

    Scaled so that ``waves.T @ waves`` is the projection. A side of 1 has no frequency -1.
    """
    h = torch.arange(height, dtype=torch.float64) * (2 * torch.pi / height)
    w = torch.arange(width, dtype=torch.float64) * (2 * torch.pi / width)
    h, w = h[:, None].expand(height, width), w[None, :].expand(height, width)
    angles = [angle for angle, exists in ((h, height > 1), (w, width > 1), (h + w, height > 1 and width > 1)) if exists]
    waves = [torch.ones_like(h)] + [wave for angle in angles for wave in (angle.cos(), angle.sin())]
    # float64 stays on the CPU: not every device has it; the copy must not make the host wait for the device
    return (torch.stack(waves).flatten(1) / (height * width) ** 0.5).to(dtype).to(device, non_blocking=True)


def scale_low_frequencies(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Free-U's Fourier filter with threshold 1: the centre 2x2 of the shifted spectrum times ``scale``, real part.

    Args:
        x: shape (batch, channels, height, width), any float dtype; unchanged.
        scale: factor of the low frequencies; 1 is the identity.

    Returns:
        Shape and dtype of ``x``.
    """
    result = x.clone()
    _scale_low_frequencies_(result, scale, _waves_for(result))
    return result


@dataclass(frozen=True)
class _Waves:
    """The waves of one map size. Each is a sum of three products of a column and a row: ``down`` times ``across``.

    Attributes:
        whole: shape (waves, height * width).
        across: shape (3, width), and down: (3, height, waves); None where a map is too small to gain by them.
    """

    whole: torch.Tensor
    across: Optional[torch.Tensor] = None
    down: Optional[torch.Tensor] = None


SEPARABLE_FROM = 1024
"""Pixels from which working by row and column, less than half of the arithmetic, outweighs its four calls for two.
Measured on the CPU in full precision; elsewhere the two calls stay."""


def _waves_for(x: torch.Tensor) -> _Waves:
    height, width = x.shape[-2:]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    whole = low_frequency_waves(height, width, x.device, dtype)
    if x.device.type != "cpu" or x.dtype != dtype or min(height, width) < 3 or height * width < SEPARABLE_FROM:
        return _Waves(whole)
    angle = torch.arange(width, dtype=torch.float64) * (2 * torch.pi / width)
    across = torch.stack([torch.ones_like(angle), angle.cos(), angle.sin()])
    down = whole.double().view(-1, height, width) @ torch.linalg.pinv(across)
    return _Waves(whole, across.to(dtype), down.permute(2, 1, 0).to(dtype).contiguous())


def _scale_low_frequencies_(x: torch.Tensor, scale: float, waves: _Waves) -> None:
    """In place, on a (batch, channels, height, width) tensor or view."""
    if waves.across is not None and waves.down is not None:
        rows = x.flatten(1, 2)
        if rows.data_ptr() == x.data_ptr():
            _scale_by_row_and_column_(rows, x.shape[1], scale, waves.across, waves.down)
            return
    flat = x.flatten(2)
    is_view = flat.data_ptr() == x.data_ptr()
    work = flat if flat.dtype == waves.whole.dtype else flat.to(waves.whole.dtype)
    basis = waves.whole.expand(work.shape[0], -1, -1)
    # the thin side first: (waves, pixels) @ (pixels, channels) runs three times faster than its transpose
    amplitudes = torch.bmm(basis, work.transpose(1, 2)).transpose(1, 2)
    if work is flat and is_view:
        flat.baddbmm_(amplitudes, basis, alpha=scale - 1)
    else:
        # half precision: the sums are taken in float32, as the FFT form does; only the correction is rounded
        x.add_(torch.bmm(amplitudes, basis).unflatten(2, x.shape[2:]).to(x.dtype), alpha=scale - 1)


def _scale_by_row_and_column_(
    rows: torch.Tensor, channels: int, scale: float, across: torch.Tensor, down: torch.Tensor
) -> None:
    """The same on a (batch, channels * height, width) view."""
    batch = rows.shape[0]
    basis = across.expand(batch, -1, -1)
    sums = torch.bmm(basis, rows.transpose(1, 2)).view(batch, 3, channels, -1)
    amplitudes = (sums @ down).sum(1, keepdim=True)
    columns = (amplitudes @ down.transpose(1, 2)).view(batch, 3, -1)
    rows.baddbmm_(columns.transpose(1, 2), basis, alpha=scale - 1)


def scale_backbone_(hidden: torch.Tensor, scale: float, version: int) -> None:
    """Free-U's backbone factor on the first half of the channels, in place. ``hidden`` is (batch, channels, h, w)."""
    half = hidden[:, : hidden.shape[1] // 2]
    if version == 1:
        half.mul_(scale)
        return
    mean = hidden.float().mean(1, keepdim=True)
    low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
    # a constant map has no structure to amplify: its normalised mean is 0, not 0/0
    normalised = (mean - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    half.mul_((1 + (scale - 1) * normalised).to(hidden.dtype))


class FreeU:
    """Free-U on one UNet, by forward pre-hooks on its decoder blocks.

    The UNet is of Stable Diffusion's layout: ``model_channels``, ``middle_block``, and ``output_blocks`` whose first
    layers know ``channels`` (in) and ``out_channels``. The hooks edit the fresh concatenation in place. All state
    hangs on the UNet it belongs to, so whatever left hooks behind, :meth:`detach` finds them by the UNet alone.
    """

    ATTRIBUTE = "_hpsampler_freeu_hooks"

    @classmethod
    def attach(cls, unet: nn.Module, plan: FreeUPlan) -> None:
        """Hook the decoder of ``unet`` with the constants of ``plan``; replaces an earlier attachment.

        Raises:
            ValueError: not a UNet of Stable Diffusion's layout.
        """
        cls.detach(unet)
        stages = decoder_stages(unet)
        waves: dict[tuple[Any, ...], _Waves] = {}
        handles: list[Any] = []
        setattr(unet, cls.ATTRIBUTE, handles)
        constants = {4: (plan.b1, plan.s1), 2: (plan.b2, plan.s2)}
        for block, hidden_channels, multiple in stages:
            if multiple in constants:
                hook = _Hook(hidden_channels, *constants[multiple], plan.version, waves)
                handles.append(block.register_forward_pre_hook(hook))

    @classmethod
    def detach(cls, unet: nn.Module) -> None:
        """Remove every hook of ours from ``unet``; nothing happens where there is none."""
        for handle in unet.__dict__.pop(cls.ATTRIBUTE, ()):
            handle.remove()

    @classmethod
    def attached(cls, unet: nn.Module) -> bool:
        return cls.ATTRIBUTE in unet.__dict__


def decoder_stages(unet: Optional[nn.Module]) -> list[tuple[nn.Module, int, int]]:
    """Every decoder block with the channels of its hidden input, and that as a multiple of ``model_channels`` (or 0).

    Raises:
        ValueError: the module has no decoder of Stable Diffusion's layout.
    """
    try:
        model_channels = int(unet.model_channels)  # type: ignore[union-attr, arg-type]
        hidden = _out_channels(unet.middle_block)  # type: ignore[union-attr]
        stages = []
        for block in unet.output_blocks:  # type: ignore[union-attr]
            whole, rest = divmod(hidden, model_channels)
            stages.append((block, hidden, whole if rest == 0 else 0))
            hidden = _out_channels(block)
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(
            f"Free-U needs a Stable Diffusion UNet with output_blocks, got {type(unet).__name__}"
        ) from error
    return stages


def _out_channels(block: Any) -> int:
    return int(block[0].out_channels)


class _Hook:
    """Forward pre-hook of one decoder block: args = (cat([hidden, skip], 1), ...)."""

    def __init__(
        self, hidden_channels: int, b: float, s: float, version: int, waves: dict[tuple[Any, ...], _Waves]
    ) -> None:
        self.hidden_channels, self.b, self.s, self.version, self.waves = hidden_channels, b, s, version, waves

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0]
        hidden, skip = x[:, : self.hidden_channels], x[:, self.hidden_channels :]
        if self.b != 1:
            scale_backbone_(hidden, self.b, self.version)
        if self.s != 1 and skip.shape[1]:
            key = (*skip.shape[2:], skip.device, skip.dtype)
            if key not in self.waves:
                self.waves[key] = _waves_for(skip)
            _scale_low_frequencies_(skip, self.s, self.waves[key])
