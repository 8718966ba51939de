"""Guidance as a hyperparameter: the scale that each call gets, coupled to the number of calls.

With D_u and D_c the unconditional and conditional outputs of a model, classifier-free guidance (arXiv 2207.12598) is
``D = D_u + w (D_c - D_u)``. Along a sampling step D_c - D_u decays, and a solver holds it for the whole step, so over a
long step a large w acts as a much larger one. With few steps a smaller scale therefore ends nearer to where the guided
equation at the *nominal* w leads. For n steps::

    w_eff = w                          for w <= n/2
    w_eff = n/2 + 0.45 (w - n/2)       above

From n = 2w on nothing changes. The constants were set by eye on a small trained model and on exact problems
(``docs/measurements.md``), and held on another one that is not in this repository; on Stable Diffusion itself nothing
has been measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .checks import abbreviated, finite
from .solvers import Model

__all__ = ["SHARE", "STATISTICS_REACH", "STATISTICS_SHARE", "effective_guidance", "with_guidance"]

SHARE = 0.45
"""What counts of the guidance scale above half the number of steps."""

STATISTICS_SHARE = 0.5
"""The same for DPM-Solver-v3 with statistics of the model, which damp the first steps by themselves."""

STATISTICS_REACH = 2.0
"""Largest ratio between the scale that statistics are used at and the one they were measured at that passes without a
word. Those of CFG 5 were tried at 2.75 to 5; beyond that it is a guess."""


def effective_guidance(cfg_scale: float, steps: int, share: float = SHARE) -> float:
    """The guidance scale that acts over ``steps`` calls as ``cfg_scale`` does over many.

    Args:
        cfg_scale: the nominal guidance scale w.
        steps: calls of the whole schedule n, also where only its end is run (img2img).
        share: what counts of w above n/2.

    Raises:
        ValueError: naming the argument that is no finite number.
    """
    for name, value in (("cfg_scale", cfg_scale), ("steps", steps), ("share", share)):
        if finite(value) is None:
            raise ValueError(f"{name} must be a finite number, got {abbreviated(value)}")
    half = steps / 2
    return cfg_scale if cfg_scale <= half else half + share * (cfg_scale - half)


def with_guidance(model: Model, scales: Sequence[float]) -> Model:
    """``model``, called with ``cond_scale=scales[i]`` in its i-th call; the last scale stands for further calls.

    ``cond_scale`` is the WebUI's (and k-diffusion's) name for the guidance scale among a denoiser's extra arguments.
    Without scales it is ``model`` itself.

    Raises:
        ValueError: a scale that is not finite.
    """
    try:
        scales = tuple(scales)
    except TypeError:
        raise ValueError(f"scales must be a row of numbers, got {abbreviated(scales)}") from None
    if not scales:
        return model
    for scale in scales:
        if finite(scale) is None:
            raise ValueError(f"scales must be finite, got {abbreviated(scale)}")
    calls = 0

    def guided(x: torch.Tensor, sigma: torch.Tensor, /, **extra_args: Any) -> torch.Tensor:
        nonlocal calls
        scale = scales[min(calls, len(scales) - 1)]
        calls += 1
        return model(x, sigma, **{**extra_args, "cond_scale": scale})

    return guided
