"""A text-to-image denoiser that is known exactly: the posterior mean over the drawn pictures of :mod:`demo.scenes`.

Every picture is one mode: a Gaussian around it whose variance falls with frequency as that of photographs does, so that
samples are variations rather than copies. The captions are the classes of :class:`demo.problems.Problem`.

Pictures are held as latents: brightness and two colour differences, each an orthonormal DCT up to a frequency, centred
and scaled so that all of them together have mean 0 and variance 1. There the variance of a mode is diagonal, and white
noise is white in the picture too, but for the frequencies left out. A picture that is kept whole would tell its caption
at Stable Diffusion's largest sigma already; these latents, as those of a real model, tell it on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from .problems import Problem
from .scenes import SCENES, draw_scenes

__all__ = ["Gallery", "gallery"]

COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
"""Orthonormal rows: brightness, red against blue, magenta against green."""

DRAWN = 48
"""Pixels per side of the pictures that become modes."""

CUTOFFS = (32, 16, 16)
"""Radial DCT frequency up to which brightness and colour differences are kept."""

SPREAD = 0.08
"""Standard deviation of a pixel around its mode's picture, in units of 0 (black) to 1 (white)."""

COLOUR_SHARE = 0.15
"""Variance of each colour difference around its mode, relative to that of the brightness."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, eq=False)
class Gallery(Problem):
    """An exact denoiser whose states are pictures; all modes share one variance per coordinate.

    Attributes:
        centre: the mean picture, and scale: the standard deviation that was divided by; both undo the normalisation.
        on_call: called once per call of the denoiser.
    """

    centre: torch.Tensor
    scale: float
    on_call: Callable[[], object] = _nothing

    @cached_property
    def _variance(self) -> torch.Tensor:
        return self.variances[0, 0]

    @cached_property
    def _modes(self) -> torch.Tensor:
        return self.means.flatten(0, 1)

    @cached_property
    def _squares(self) -> torch.Tensor:
        return self._modes**2

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor, cfg_scale: float) -> torch.Tensor:
        """The guided denoiser of :class:`Problem`, as matrix products, which a shared variance allows."""
        self.on_call()
        levels, row = sigma.to(x).unique(return_inverse=True)
        totals = self._variance + levels[:, None] ** 2
        total = totals[row]
        # what is the same for every mode cancels in the softmax
        evidence = (x / total) @ self._modes.T - ((0.5 / totals) @ self._squares.T)[row]
        own = labels[:, None] == torch.arange(self.classes).repeat_interleave(self.means.shape[1])
        conditional = evidence.masked_fill(~own, -torch.inf).softmax(-1)
        weights = torch.lerp(evidence.softmax(-1), conditional, cfg_scale)
        return x + (weights @ self._modes - x) * (1 - self._variance / total)

    def pictures(self, x: torch.Tensor, pixels: int) -> np.ndarray:
        """States as pictures of any size, shape (batch, pixels, pixels, 3), 8 bit."""
        planes = np.zeros((len(x), 3, DRAWN, DRAWN))
        planes[:, _kept()] = (x * self.scale + self.centre).numpy()
        waves = _waves(pixels)
        values = np.einsum("ck,ncij->nijk", COLOURS, waves.T @ planes @ waves)
        return (values.clip(0, 1) * 255).round().astype(np.uint8)


def gallery(modes: int = 128, seed: int = 0) -> Gallery:
    """The gallery of all captions, ``modes`` pictures of each; always the same for the same arguments."""
    drawn = np.stack([_encode(draw_scenes(caption, modes, DRAWN, seed)) for caption in SCENES])
    centre = drawn.mean((0, 1))
    drawn -= centre
    variance = _mode_variance()
    scale = float(np.sqrt((drawn**2).mean() + variance.mean()))
    means = torch.from_numpy(drawn / scale)
    variances = torch.from_numpy(variance / scale**2).expand_as(means)
    return Gallery("gallery", means, variances, torch.from_numpy(centre), scale)


def _waves(pixels: int) -> np.ndarray:
    """The DCT-II's waves on a grid of ``pixels``, shape (DRAWN, pixels); orthonormal rows where that is ``DRAWN``."""
    at = (np.arange(pixels) + 0.5) / pixels
    waves = np.cos(np.pi * np.arange(DRAWN)[:, None] * at) * np.sqrt(2 / DRAWN)
    waves[0] /= np.sqrt(2)
    return waves


def _frequencies() -> np.ndarray:
    return np.hypot(np.arange(DRAWN)[:, None], np.arange(DRAWN))


def _kept() -> np.ndarray:
    """Which coordinates make up the state, shape (3, DRAWN, DRAWN)."""
    return np.stack([_frequencies() < cutoff for cutoff in CUTOFFS])


def _encode(pictures: np.ndarray) -> np.ndarray:
    """Pictures (batch, DRAWN, DRAWN, 3) as unscaled states; softened towards the cutoff, so that edges do not ring."""
    waves = _waves(DRAWN)
    planes = waves @ np.einsum("ck,nijk->ncij", COLOURS, pictures) @ waves.T
    soften = np.stack([np.sinc(_frequencies() / (1.6 * cutoff)) for cutoff in CUTOFFS])
    return (planes * soften)[:, _kept()]


def _mode_variance() -> np.ndarray:
    """Variance of a mode's coordinates: (f + 1)^-3 over the radial frequency f, in pixel units."""
    shares = np.array([1, COLOUR_SHARE, COLOUR_SHARE])[:, None, None] * (_frequencies() + 1) ** -3
    return (SPREAD**2 * shares / shares.mean())[_kept()]
