"""Runs whose states are kept, so that a schedule that differs late costs only the calls after the difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..guidance import with_guidance
from ..solvers import sample_dpmpp_2m
from ..solvers._core import Model, Run
from ..solvers.dpmpp import dpmpp_2m_steps
from .trajectories import MultistepSchedule

__all__ = ["RecordedRun"]


@dataclass(frozen=True)
class RecordedRun:
    """One run of the sampler with its states and model outputs before every step."""

    states: list[torch.Tensor]
    outputs: list[torch.Tensor]
    end: torch.Tensor

    @classmethod
    def of(cls, model: Model, noise: torch.Tensor, schedule: MultistepSchedule) -> RecordedRun:
        """Run the sampler from unit noise, and record it."""
        states: list[torch.Tensor] = []
        outputs: list[torch.Tensor] = []

        def record(state: dict[str, Any]) -> None:
            states.append(state["x"])
            # the model may overwrite its own tensor
            outputs.append(state["denoised"].clone())

        sigmas = torch.tensor(schedule.sigmas, dtype=torch.float64)
        guided = with_guidance(model, schedule.guidance)
        end = sample_dpmpp_2m(guided, noise * schedule.sigmas[0], sigmas, callback=record, factors=schedule.factors)
        return cls(states, outputs, end)

    def rerun(self, model: Model, schedule: MultistepSchedule, first: int, again: bool = False) -> torch.Tensor:
        """The end of the same run with a schedule that differs from step ``first`` on; later steps call the model.

        Args:
            again: whether the guidance of step ``first`` differs too, so that this step calls the model as well.
        """
        called = with_guidance(model, schedule.guidance[first if again else first + 1 :])
        run = Run.of(called, self.states[0], torch.tensor(schedule.sigmas, dtype=torch.float64))
        steps = dpmpp_2m_steps(run.sigmas, factors=schedule.factors)
        previous = self.outputs[first - 1 : first] if first else []
        x = self.states[first]
        denoised = run.denoised(first, x) if again else self.outputs[first]
        for index in range(first, schedule.steps):
            if index > first:
                denoised = run.denoised(index, x)
            x, denoised = steps[index].keeping(x, [denoised, *previous])
            previous = [denoised]
        return x
