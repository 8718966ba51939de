"""The description of a calibration job, checked, and what it costs at most.

It stands apart from the job, as a page that offers calibrations needs this and not the fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..job_config import DEFAULT_PROMPTS, checked_fields, number
from ..store import RESERVED, StoreError, abbreviated

__all__ = ["BASELINE_STEPS", "MAX_RUNS", "REFERENCE_CALLS", "CalibrationConfig"]

MAX_RUNS = 50
"""Default budget, in runs of the fitted sampler over the calibration set, including the reference endpoints."""

REFERENCE_CALLS = 60
"""Model calls per trajectory for the reference endpoints."""

BASELINE_STEPS = 20
"""Steps of DPM++ 2M on Karras' schedule, which a calibration is compared to."""


@dataclass(frozen=True)
class CalibrationConfig:
    """What to calibrate.

    Attributes:
        steps: numbers of steps, each of which is fitted by itself.
        cfg_scales: guidance scales that one fit covers, from the smallest to the largest; a single one is a fit
            for that one alone.
        prompts: every second one is used for the held-out trajectories.
        trajectories: number of trajectories to fit to, shared among the guidance scales; as many are held out.
        runs: budget of one number of steps, in runs of the sampler over the calibration set, including the reference.
        batch: number of pictures in one call of the model; memory grows with it, the result does not depend on it.
    """

    name: str
    steps: tuple[int, ...] = (5, 6, 8)
    cfg_scales: tuple[float, ...] = (2.0, 3.0, 5.0, 7.5, 10.0)
    width: int = 512
    height: int = 512
    prompts: tuple[str, ...] = DEFAULT_PROMPTS
    negative: str = ""
    trajectories: int = 60
    runs: int = MAX_RUNS
    seed: int = 1
    batch: int = 4

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> CalibrationConfig:
        """From values by name, as the page, the API and the command line give them; lists of numbers may be text.

        Raises:
            StoreError: naming the field, its value and what is allowed.
        """
        checked = checked_fields(cls, values, RESERVED, _WHOLE_NUMBERS)
        if len(set(checked.get("prompts", DEFAULT_PROMPTS))) < 2:
            raise StoreError(
                "prompts must be two at least that differ, as every second one judges the fit to the others; got "
                f"{abbreviated(checked['prompts'][0])}"
            )
        if "steps" in values:
            steps = _several("steps", values["steps"])
            checked["steps"] = tuple(sorted({int(number("steps", value, 2, 20, whole=True)) for value in steps}))
        if "cfg_scales" in values:
            scales = _several("cfg_scales", values["cfg_scales"])
            checked["cfg_scales"] = tuple(sorted({float(number("cfg_scales", value, 1, 30)) for value in scales}))
        return cls(**checked)

    @property
    def cells(self) -> list[int]:
        """The numbers of steps, in the order in which they are calibrated; a fit for each."""
        return list(self.steps)

    @property
    def per_scale(self) -> int:
        """Trajectories at each guidance scale."""
        return max(2, -(-self.trajectories // len(self.cfg_scales)))

    @property
    def pictures(self) -> int:
        """Trajectories at all guidance scales together."""
        return self.per_scale * len(self.cfg_scales)

    def most_calls(self, without: Sequence[int] = ()) -> int:
        """The largest number of UNet calls, each for one picture, apart from the finished cells ``without``."""
        remaining = [steps for steps in self.cells if steps not in without]
        references = (2 * REFERENCE_CALLS + BASELINE_STEPS) * self.pictures if remaining else 0
        return references + sum(self.most_calls_of(steps) for steps in remaining)

    def most_calls_of(self, steps: int) -> int:
        """The largest number of UNet calls of one cell, without its references."""
        fit_calls = max(self.runs * steps - REFERENCE_CALLS, least_fit_calls(steps))
        return (fit_calls + _HELD_OUT_RUNS * steps) * self.pictures


_WHOLE_NUMBERS = {
    "width": (64, 4096), "height": (64, 4096), "trajectories": (2, 1024), "runs": (25, 1000), "seed": (0, 2**32 - 1),
    "batch": (1, 256),
}  # fmt: skip

_HELD_OUT_RUNS = 6
"""Runs over the held-out trajectories: four initial schedules, the calibrated one, and one for the last sigma."""


def least_fit_calls(steps: int) -> int:
    """Calls per trajectory that a fit takes however small its budget is.

    These are the four initial schedules, a Jacobian with one step, and the last sigma.
    """
    return (4 + 1 + 1) * steps + jacobian_calls(steps)


def jacobian_calls(steps: int) -> int:
    """Calls per trajectory of a complete Jacobian: of the points, of the factors, and of the guidance."""
    return steps * (steps - 1) // 2 + (steps - 1) * (steps - 2) // 2 + steps * (steps + 1) // 2


def _several(name: str, value: Any) -> list[Any]:
    """A list from a number, a sequence, or a text of numbers. Raises StoreError."""
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    elif isinstance(value, (int, float)):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)) or not 1 <= len(value) <= 32:
        raise StoreError(f"{name} must be 1 to 32 numbers, got {abbreviated(value)}")
    return list(value)
