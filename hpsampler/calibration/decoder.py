"""How much final noise a decoder tolerates, and whether a schedule should stop there rather than at 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from .fit import LEAST_STEP, _Path
from .trajectories import MultistepSchedule, Trajectories, rms

__all__ = ["Decode", "decoder_curve", "with_best_final_sigma"]

END_SIGMAS = (0.03, 0.06, 0.1, 0.13, 0.2, 0.3, 0.45)
"""Where a schedule might stop short of 0; the paper's cuts leave 0.13 to 0.16."""

DECODED_AT_ONCE = 8
"""Pictures are a hundred times what their latents are; those of all trajectories need not be held at once."""

Decode = Callable[[torch.Tensor], torch.Tensor]
"""Latents (n, ...) to pictures (n, ...), values from 0 to 1."""


def decoder_curve(
    decode: Decode, latents: torch.Tensor, noise: torch.Tensor, sigmas: Sequence[float] = END_SIGMAS
) -> tuple[tuple[float, float], ...]:
    """(sigma, RMS change over pixels of the decoded latents when noise of that sigma is left on them)."""
    clean = decode(latents)
    return tuple((sigma, rms(decode(latents + sigma * noise) - clean)) for sigma in sigmas)


def with_best_final_sigma(
    schedule: MultistepSchedule, fit: Trajectories, held_out: Trajectories, decode: Decode, largest: float
) -> MultistepSchedule:
    """The schedule ended where its decoded pictures come nearest to those of the reference endpoints: at 0, or above.

    Ends above 0 are those of ``END_SIGMAS`` up to ``largest`` (what the decoder tolerates) and below the schedule's
    last point, the last step of first or of second order. The end is chosen on ``fit`` and kept only where it also
    wins on ``held_out``. Costs one run on either: what comes before the last step is the same.
    """
    ends = [sigma for sigma in END_SIGMAS if sigma <= largest and sigma < schedule.sigmas[-2] * math.exp(-LEAST_STEP)]
    others = [
        MultistepSchedule((*schedule.sigmas[:-1], sigma), (*schedule.factors[:-1], factor))
        for sigma in ends
        for factor in (0.0, 1.0)
    ]
    if not others:
        return schedule
    candidates = [schedule, *others]
    errors = _decoded_errors(candidates, fit, decode)
    chosen = candidates[int(np.argmin(errors))]
    if chosen is schedule:
        return schedule
    kept, zero = _decoded_errors([chosen, schedule], held_out, decode)
    return chosen if kept < zero else schedule


def _decoded_errors(schedules: Sequence[MultistepSchedule], target: Trajectories, decode: Decode) -> list[float]:
    """RMS over pixels to the decoded endpoints, of schedules that differ in their last step only; inf if not finite."""
    path = _Path.along(target.model, target.noise, schedules[0])
    last = schedules[0].steps - 1
    ends = [path.again(target.model, schedule, last).split(DECODED_AT_ONCE) for schedule in schedules]
    means: list[list[float]] = [[] for _ in schedules]
    for index, latents in enumerate(target.endpoints.split(DECODED_AT_ONCE)):
        aim = decode(latents)
        for found, parts in zip(means, ends):
            found.append(rms(decode(parts[index]) - aim) ** 2 * len(latents))
    errors = [math.sqrt(sum(found) / len(target.endpoints)) for found in means]
    return [error if math.isfinite(error) else math.inf for error in errors]
