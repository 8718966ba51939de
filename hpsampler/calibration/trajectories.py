"""Reference trajectories of a model, and the multistep schedules that are compared to them."""

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
    """What is fitted. Invariant: ``len(sigmas) == steps + 1``, decreasing, last >= 0; ``len(factors) == steps``.

    The first factor has no past to scale and is 0.
    """

    sigmas: tuple[float, ...]
    factors: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.factors)

    def sample(self, model: Model, noise: torch.Tensor) -> torch.Tensor:
        """From unit noise (n, ...) to the last sigma, ``steps`` calls."""
        sigmas = torch.tensor(self.sigmas, dtype=torch.float64)
        return sample_dpmpp_2m(model, noise * self.sigmas[0], sigmas, factors=self.factors)

    @classmethod
    def of(cls, sigmas: Sequence[float], factor: float = 1.0, last: Optional[float] = None) -> MultistepSchedule:
        """A known schedule, its last sigma replaced by 0, with one factor for all steps, or another for the last."""
        points = tuple(float(sigma) for sigma in sigmas[:-1])
        factors = [0.0] + [factor] * (len(points) - 1)
        if last is not None and len(points) > 1:
            factors[-1] = last
        return cls((*points, 0.0), tuple(factors))


@dataclass(frozen=True)
class Trajectories:
    """Where the guided ODE leads from some noise under some conditions.

    Attributes:
        model: the guided denoiser, its conditions bound.
        noise: unit noise, shape (n, ...).
        endpoints: shape (n, ...), from :meth:`of`.
        calls: what the endpoints cost.
    """

    model: Model
    noise: torch.Tensor
    endpoints: torch.Tensor
    calls: int

    @classmethod
    def of(cls, model: Model, noise: torch.Tensor, table: NoiseModel, calls: int = REFERENCE_CALLS) -> Trajectories:
        """Solve them: DPM++ 2M on Karras' schedule down to the table's smallest sigma, then to 0.

        On the exact problems 60 calls are nearer to the solution by 4 to 40 times than 60 that are even in time, which
        leave too few for the small sigmas; on the demonstration's small model by 15 times.

        Raises:
            ValueError: the model's output is not finite.
        """
        sigmas = torch.tensor([*base_karras(calls, 7.0, table.sigma_min, table.sigma_max), 0.0], dtype=torch.float64)
        endpoints = sample_dpmpp_2m(model, noise * float(sigmas[0]), sigmas)
        if not torch.isfinite(endpoints).all():
            raise ValueError("the model's output is not finite; nothing can be calibrated to it")
        return cls(model, noise, endpoints, calls)

    def error(self, schedule: MultistepSchedule) -> float:
        """RMSE of the sampler's endpoints over the RMS of the endpoints; infinite where it blows up."""
        return self.error_of(schedule.sample(self.model, self.noise))

    def error_of(self, ends: torch.Tensor) -> float:
        """The same of ends that are at hand."""
        error = rms(ends - self.endpoints) / self.scale
        return error if math.isfinite(error) else math.inf

    def differences(self, ends: torch.Tensor) -> torch.Tensor:
        """Of every trajectory's end to its reference, (n, numbers), float64 on the CPU; its norm is the error."""
        rows = (ends - self.endpoints).cpu().double().flatten(1)
        return rows / (self.scale * rows.shape[1] ** 0.5)

    @property
    def scale(self) -> float:
        return float(self.endpoints.cpu().double().square().mean().sqrt())


def rms(difference: torch.Tensor) -> float:
    # to the CPU first: not every device has float64
    return float(difference.cpu().double().square().mean().sqrt())
