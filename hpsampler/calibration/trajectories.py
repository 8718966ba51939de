"""Reference endpoints of a model's trajectories, and the multistep schedules that are fitted to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch

from ..noise import NoiseModel
from ..schedule import base_karras
from ..solvers import sample_dpmpp_2m
from ..solvers._core import Model
from .config import REFERENCE_CALLS

__all__ = ["MultistepSchedule", "Trajectories"]


@dataclass(frozen=True)
class MultistepSchedule:
    """A schedule of DPM++ 2M with one factor per step, see :mod:`hpsampler.calibration.fit`.

    Invariant: ``len(sigmas) == steps + 1``, decreasing, last >= 0; ``len(factors) == steps``. The first factor is 0, as
    the first step has no past output.
    """

    sigmas: tuple[float, ...]
    factors: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.factors)

    def sample(self, model: Model, noise: torch.Tensor) -> torch.Tensor:
        """Sample from unit noise (n, ...) to the last sigma, with ``steps`` calls."""
        sigmas = torch.tensor(self.sigmas, dtype=torch.float64)
        return sample_dpmpp_2m(model, noise * self.sigmas[0], sigmas, factors=self.factors)

    @classmethod
    def of(cls, sigmas: Sequence[float], factor: float = 1.0, last: Optional[float] = None) -> MultistepSchedule:
        """The schedule ``sigmas`` with its last sigma replaced by 0; ``last`` is the factor of the last step."""
        levels = tuple(float(sigma) for sigma in sigmas[:-1])
        factors = [0.0] + [factor] * (len(levels) - 1)
        if last is not None and len(levels) > 1:
            factors[-1] = last
        return cls((*levels, 0.0), tuple(factors))


@dataclass(frozen=True)
class Trajectories:
    """The endpoints of the guided ODE from given noise and conditions.

    Attributes:
        model: the guided denoiser, which includes the conditions.
        noise: unit noise, shape (n, ...).
        endpoints: shape (n, ...).
        calls: model calls per trajectory that the endpoints took.
    """

    model: Model
    noise: torch.Tensor
    endpoints: torch.Tensor
    calls: int

    @classmethod
    def of(cls, model: Model, noise: torch.Tensor, table: NoiseModel, calls: int = REFERENCE_CALLS) -> Trajectories:
        """Solve the ODE with DPM++ 2M on Karras' schedule down to the table's smallest sigma, then to 0.

        On the exact problems 60 calls on this schedule are 4 to 40 times nearer to the solution than 60 calls evenly
        spaced in time, which leave too few for the small sigmas; on the demo's tiny model they are 15 times nearer.

        Raises:
            ValueError: the model's output is not finite.
        """
        sigmas = torch.tensor([*base_karras(calls, 7.0, table.sigma_min, table.sigma_max), 0.0], dtype=torch.float64)
        endpoints = sample_dpmpp_2m(model, noise * float(sigmas[0]), sigmas)
        if not torch.isfinite(endpoints).all():
            raise ValueError("the model's output is not finite; nothing can be calibrated to it")
        return cls(model, noise, endpoints, calls)

    def error(self, schedule: MultistepSchedule) -> float:
        """RMSE of a schedule's results relative to the RMS of the endpoints; infinite where it blows up."""
        return self.error_of(schedule.sample(self.model, self.noise))

    def error_of(self, ends: torch.Tensor) -> float:
        """The same for results that were already computed."""
        error = rms(ends - self.endpoints) / self.scale
        return error if math.isfinite(error) else math.inf

    def differences(self, ends: torch.Tensor) -> torch.Tensor:
        """Differences to the endpoints, (n, elements), float64 on the CPU; a row's norm is that trajectory's error."""
        rows = (ends - self.endpoints).cpu().double().flatten(1)
        return rows / (self.scale * rows.shape[1] ** 0.5)

    @property
    def scale(self) -> float:
        """RMS of the endpoints."""
        return float(self.endpoints.cpu().double().square().mean().sqrt())


def rms(difference: torch.Tensor) -> float:
    """Root mean square over all elements."""
    # to the CPU first, as not every device has float64
    return float(difference.cpu().double().square().mean().sqrt())
