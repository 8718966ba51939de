"""How much residual noise a decoder tolerates, and whether a schedule should end there rather than at 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from .fit import MIN_STEP, RecordedRun
from .trajectories import MultistepSchedule, Trajectories, rms

__all__ = ["Decode", "decoder_curve", "with_best_final_sigma"]

END_SIGMAS = (0.03, 0.06, 0.1, 0.13, 0.2, 0.3, 0.45)
"""Last sigmas above 0 that are tried; the paper's truncated schedules end at 0.13 to 0.16."""

DECODED_AT_ONCE = 8
"""Pictures are a hundred times larger than their latents, so they are decoded in small batches."""

Decode = Callable[[torch.Tensor], torch.Tensor]
"""Latents (n, ...) to pictures (n, ...), values from 0 to 1."""


def decoder_curve(
    decode: Decode, latents: torch.Tensor, noise: torch.Tensor, sigmas: Sequence[float] = END_SIGMAS
) -> tuple[tuple[float, float], ...]:
    """For every sigma, (sigma, RMS change over pixels of the decoded latents when noise of that sigma is added)."""
    clean = decode(latents)
    return tuple((sigma, rms(decode(latents + sigma * noise) - clean)) for sigma in sigmas)


def with_best_final_sigma(
    schedule: MultistepSchedule, fit: Trajectories, held_out: Trajectories, decode: Decode, largest: float
) -> MultistepSchedule:
    """The schedule with the last sigma whose decoded pictures are nearest to the decoded reference endpoints.

    Candidates are 0 and the ``END_SIGMAS`` up to ``largest`` (the decoder's tolerance) and below the schedule's last
    point, with a last step of first or of second order. The best on ``fit`` is used only if it is also better than 0 on
    ``held_out``. This costs one run on either set, as the candidates differ only in the last step.
    """
    ends = [sigma for sigma in END_SIGMAS if sigma <= largest and sigma < schedule.sigmas[-2] * math.exp(-MIN_STEP)]
    alternatives = [
        MultistepSchedule((*schedule.sigmas[:-1], sigma), (*schedule.factors[:-1], factor))
        for sigma in ends
        for factor in (0.0, 1.0)
    ]
    if not alternatives:
        return schedule
    candidates = [schedule, *alternatives]
    errors = _decoded_errors(candidates, fit, decode)
    best = candidates[int(np.argmin(errors))]
    if best is schedule:
        return schedule
    error, error_at_zero = _decoded_errors([best, schedule], held_out, decode)
    return best if error < error_at_zero else schedule


def _decoded_errors(schedules: Sequence[MultistepSchedule], target: Trajectories, decode: Decode) -> list[float]:
    """RMS pixel errors to the decoded endpoints for schedules that differ in the last step only; inf if not finite."""
    run = RecordedRun.of(target.model, target.noise, schedules[0])
    last = schedules[0].steps - 1
    ends = [run.rerun(target.model, schedule, last).split(DECODED_AT_ONCE) for schedule in schedules]
    squared_errors: list[list[float]] = [[] for _ in schedules]
    for index, latents in enumerate(target.endpoints.split(DECODED_AT_ONCE)):
        reference = decode(latents)
        for sums, parts in zip(squared_errors, ends):
            sums.append(rms(decode(parts[index]) - reference) ** 2 * len(latents))
    errors = [math.sqrt(sum(sums) / len(target.endpoints)) for sums in squared_errors]
    return [error if math.isfinite(error) else math.inf for error in errors]
