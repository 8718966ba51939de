"""The coupled schedule: a Karras schedule is truncated, and its range is divided again, evenly in (warped) time.

As in arXiv 2510.02390, with n = ``base_steps``, k = ``truncation_index``::

    base_i = (smax^(1/rho) + i/(n-1) (smin^(1/rho) - smax^(1/rho)))^rho          i = 0 .. n-1
    t_0, t_end = t(base_0), t(base_k)                                            the truncation
    t_j = (t_0^(1/p) + j/steps (t_end^(1/p) - t_0^(1/p)))^p,  p = time_rho       j = 0 .. steps
    sigma_j = sigma(t_j)

So ``base_steps``, ``rho`` and ``truncation_index`` only determine where the schedule ends; ``end_sigma`` states it
directly.
"""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import torch

from .checks import abbreviated, finite, whole
from .noise import NoiseModel

__all__ = [
    "FINISHES",
    "base_karras",
    "bent_towards_karras",
    "coupled_sigmas",
    "insert_first_midpoint",
    "started_at_strength",
]

FINISHES = ("keep", "zero")

MOST_POINTS = 100_000
"""Largest number of steps and of base steps. No noise table has so many levels that float32 can tell apart."""


def base_karras(base_steps: int, rho: float, sigma_min: float, sigma_max: float) -> np.ndarray:
    """Karras' schedule (arXiv 2206.00364, eq. 5) without the final zero: ``base_steps`` values, decreasing."""
    return _warped(sigma_max, sigma_min, base_steps - 1, rho)


def coupled_sigmas(
    noise: NoiseModel,
    steps: int,
    base_steps: Optional[int] = None,
    rho: Optional[float] = None,
    truncation_index: Optional[int] = None,
    time_rho: float = 1.2,
    finish: str = "keep",
    *,
    end_sigma: Optional[float] = None,
    sigma_min: Optional[float] = None,
    sigma_max: Optional[float] = None,
) -> torch.Tensor:
    """Noise levels for ``steps`` UNet calls.

    Invariant: ``len(sigmas) == steps + 1``, strictly decreasing, last > 0 unless ``finish="zero"``.

    Args:
        noise: the model's noise table.
        steps: number of steps, at least 1.
        base_steps: number of points of the base Karras schedule (the paper's n), at least 2.
        rho: rho of the base schedule (the paper's p2), > 0.
        truncation_index: index of the base point to stop at, 1 to ``base_steps - 1`` (the paper's k).
        time_rho: exponent of the spacing in time (the paper's p1), > 0; 1 gives uniform timesteps.
        finish: ``"keep"`` ends at the truncated sigma and leaves that noise to the decoder; ``"zero"`` replaces the
            last sigma by 0.
        end_sigma: the last sigma, given instead of base_steps, rho and truncation_index. Must be within the table.
        sigma_min, sigma_max: ends of the base schedule; the table's ends by default.

    Returns:
        float32 tensor on the CPU, shape (steps + 1,).

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    if not isinstance(noise, NoiseModel):
        raise ValueError(f"noise must be a NoiseModel, got {abbreviated(noise)}")
    steps = _whole_from("steps", steps, 1)
    if not isinstance(finish, str) or finish not in FINISHES:
        raise ValueError(f"finish must be one of {', '.join(FINISHES)}, got {abbreviated(finish)}")
    time_rho = _positive("time_rho", time_rho)
    low = noise.sigma_min if sigma_min is None else _positive("sigma_min", sigma_min)
    high = noise.sigma_max if sigma_max is None else _positive("sigma_max", sigma_max)
    if low >= high:
        raise ValueError(f"sigma_min must be below sigma_max, got {low:g} and {high:g}")

    t_start = float(noise.sigma_to_t(high))
    if end_sigma is not None:
        end_sigma = _end_sigma(noise, end_sigma, high)
        t_end = noise.t_of_end(end_sigma)
        end = f"end_sigma={end_sigma:g}"
    else:
        base_steps, rho, truncation_index = _cut(base_steps, rho, truncation_index)
        t_end = float(noise.sigma_to_t(_truncated_sigma(base_steps, rho, truncation_index, low, high)))
        end = f"base_steps={base_steps}, rho={rho:g}, truncation_index={truncation_index}"
    if not t_end < t_start:
        raise ValueError(
            f"the schedule must end below its start: {end} ends at timestep {t_end:g}, the start is {t_start:g}"
        )

    sigmas = torch.tensor(noise.t_to_sigma(_warped(t_start, t_end, steps, time_rho)), dtype=torch.float32)
    if not (sigmas.diff() < 0).all():
        raise ValueError(
            f"the schedule's {steps} steps must stay apart, and some fall together with {end}, "
            f"time_rho={time_rho:g}; choose a time_rho nearer to 1.2, or another end"
        )
    if finish == "zero":
        sigmas[-1] = 0.0
    return sigmas


def _warped(start: float, end: float, steps: int, rho: float) -> np.ndarray:
    """``steps + 1`` values from ``start`` to ``end``, evenly spaced in their 1/rho-th power (Karras' formula)."""
    with np.errstate(over="ignore", invalid="ignore"):
        first, last = np.float64(start) ** (1 / rho), np.float64(end) ** (1 / rho)
        values = (first + np.linspace(0, 1, steps + 1) * (last - first)) ** rho
    # with a small rho the smaller end is lost to rounding
    values[-1] = end if steps else start
    return values


def bent_towards_karras(sigmas: torch.Tensor, bend: float, sigma_min: float, sigma_max: float) -> torch.Tensor:
    """A schedule that ends at 0, drawn towards Karras' of as many steps; same shape, still strictly decreasing.

    log sigma_i' = (1 - bend) log sigma_i + bend log karras_i, so 0 leaves it as it is and 1 is Karras' (rho 7).
    The time-spaced schedule ends in one long jump to 0 over all fine detail; bending it shortens that jump and spends
    the calls at small sigmas instead.

    Args:
        sigmas: shape (steps + 1,), decreasing, the last 0.
        bend: from 0 to 1.
        sigma_min, sigma_max: ends of Karras' schedule.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    bend = _share("bend", bend)
    _check_sigmas(sigmas, 1)
    if float(sigmas[-1]) != 0:
        raise ValueError(f"bend is for a schedule that ends at 0, this one ends at {float(sigmas[-1]):g}")
    if bend == 0 or len(sigmas) < 3:
        return sigmas
    points = sigmas[:-1].double().numpy()
    karras = base_karras(len(points), 7.0, sigma_min, sigma_max)
    bent = np.exp((1 - bend) * np.log(points) + bend * np.log(karras))
    bent[0] = points[0]
    return torch.tensor([*bent, 0.0], dtype=sigmas.dtype)


def started_at_strength(
    noise: NoiseModel, sigmas: torch.Tensor, first: int, strength: float, time_rho: float = 1.2
) -> torch.Tensor:
    """A schedule whose entry ``first`` is the noise level that an img2img strength means; same shape, still decreasing.

    A host runs the last part of a schedule for img2img. With few steps its entries are far apart, so every strength in
    a wide range would start at the same one. Here the start is that of a schedule with very many steps: the point at
    ``1 - strength`` of the warped time from the schedule's start to the table's smallest sigma. The calls from there on
    are spaced evenly in warped time down to the schedule's end. So the change grows with strength, and 0 leaves the
    picture as good as it was; 1 is the schedule itself.

    Args:
        sigmas: shape (n,), decreasing, the last above 0.
        first: index at which the host starts, from 0 to n - 2.
        strength: from 0 (nothing changes) to 1 (from pure noise).
        time_rho: exponent of the spacing in time, see :func:`coupled_sigmas`.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    _check_sigmas(sigmas, 2)
    start_at = whole(first)
    if start_at is None or not 0 <= start_at <= len(sigmas) - 2:
        raise ValueError(f"first must be a whole number from 0 to {len(sigmas) - 2}, got {abbreviated(first)}")
    first, strength, time_rho = start_at, _share("strength", strength), _positive("time_rho", time_rho)
    if strength == 1 and first == 0:
        return sigmas
    top, bottom = (noise.t_of_end(float(level)) for level in (sigmas[0], sigmas[-1]))
    calls = len(sigmas) - 1 - first
    # a hundredth of a table entry for every call keeps all points apart
    start = min(max(_warped_at(top, 0.0, 1 - strength, time_rho), 0.01 * (calls + 1)), top)
    before = _warped(top, start, first, time_rho)[:-1] if first else np.empty(0)
    times = np.concatenate([before, _warped(start, min(bottom, start / 2), calls, time_rho)])
    return torch.tensor(noise.t_to_sigma(times), dtype=sigmas.dtype)


def _warped_at(start: float, end: float, share: float, rho: float) -> float:
    """One point of :func:`_warped`, at ``share`` of the way."""
    first, last = start ** (1 / rho), end ** (1 / rho)
    return float((first + share * (last - first)) ** rho)


def insert_first_midpoint(noise: NoiseModel, sigmas: torch.Tensor) -> torch.Tensor:
    """Insert a point halfway in time between the first two sigmas.

    The analytical first step makes no model call. The point added here uses that call, so the number of calls stays the
    same (as in the paper's UniPC scripts). Shape (n,) -> (n + 1,).

    Raises:
        ValueError: fewer than 2 sigmas.
    """
    _check_sigmas(sigmas, 2)
    first, second = sigmas[:2].tolist()
    middle = float(noise.t_to_sigma((noise.t_of_end(first) + noise.t_of_end(second)) / 2))
    return torch.cat([sigmas[:1], sigmas.new_tensor([middle]), sigmas[1:]])


def _cut(base_steps: Any, rho: Any, truncation_index: Any) -> tuple[int, float, int]:
    """The three numbers that say where the base schedule is cut, checked."""
    for name, value in (("base_steps", base_steps), ("rho", rho), ("truncation_index", truncation_index)):
        if value is None:
            raise ValueError(f"{name} is required unless end_sigma is given")
    points, exponent, index = _whole_from("base_steps", base_steps, 2), _positive("rho", rho), whole(truncation_index)
    if index is None or not 1 <= index < points:
        raise ValueError(
            f"truncation_index must be a whole number from 1 to base_steps - 1 = {points - 1}, "
            f"got {abbreviated(truncation_index)}"
        )
    return points, exponent, index


def _truncated_sigma(base_steps: int, rho: float, truncation_index: int, low: float, high: float) -> float:
    sigma = float(base_karras(base_steps, rho, low, high)[truncation_index])
    if not np.isfinite(sigma):
        raise ValueError(f"rho must be larger: with rho={rho:g} the base schedule overflows")
    return sigma


def _end_sigma(noise: NoiseModel, end_sigma: Any, high: float) -> float:
    level = _positive("end_sigma", end_sigma)
    # with a small tolerance, as the table's smallest sigma must be accepted as it is displayed, rounded
    if not noise.sigma_min * (1 - 1e-4) <= level < high:
        raise ValueError(
            f"end_sigma must be from {noise.sigma_min:.4g} (the model's smallest) to below {high:.4g}, "
            f"got {abbreviated(end_sigma)}"
        )
    return level


def _whole_from(name: str, value: Any, least: int) -> int:
    number = whole(value)
    if number is None or not least <= number <= MOST_POINTS:
        raise ValueError(f"{name} must be a whole number from {least} to {MOST_POINTS}, got {abbreviated(value)}")
    return number


def _positive(name: str, value: Any) -> float:
    number = finite(value)
    if number is None or number <= 0:
        raise ValueError(f"{name} must be a finite number above 0, got {abbreviated(value)}")
    return number


def _share(name: str, value: Any) -> float:
    number = finite(value)
    if number is None or not 0 <= number <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {abbreviated(value)}")
    return number


def _check_sigmas(sigmas: Any, least: int) -> None:
    if not isinstance(sigmas, torch.Tensor) or sigmas.ndim != 1:
        raise ValueError(f"sigmas must be a one-dimensional tensor, got {abbreviated(sigmas)}")
    if len(sigmas) < least:
        raise ValueError(f"sigmas must hold at least {least} entries, got {len(sigmas)}")
