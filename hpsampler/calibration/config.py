"""What a calibration is asked for, checked, and what it costs at most.

Apart from the job, as a page that offers calibrations needs this and not the fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..jobs import DEFAULT_PROMPTS, checked_fields, number
from ..store import RESERVED, StoreError, abbreviated

__all__ = ["BASELINE_STEPS", "MAX_RUNS", "REFERENCE_CALLS", "CalibrationConfig"]

MAX_RUNS = 60
"""Budget in runs of the fitted sampler over the calibration set, the reference endpoints included."""

REFERENCE_CALLS = 60
"""Of a reference endpoint."""

BASELINE_STEPS = 20
"""Of DPM++ 2M on Karras' schedule, which a calibration is compared to."""


@dataclass(frozen=True)
class CalibrationConfig:
    """What is to be calibrated.

    Attributes:
        steps: numbers of steps.
        cfg_scales: guidance scales; a calibration is worth nothing at one far from its own.
        prompts: every second one goes to the held-out trajectories.
        trajectories: how many to fit to; as many are held out.
        runs: budget of one cell in runs of the sampler over the calibration set, its reference included.
        batch: how many pictures the model draws at once; memory grows with it, the result does not depend on it.
    """

    name: str
    steps: tuple[int, ...] = (5, 6, 8)
    cfg_scales: tuple[float, ...] = (7.0,)
    width: int = 512
    height: int = 512
    prompts: tuple[str, ...] = DEFAULT_PROMPTS
    negative: str = ""
    trajectories: int = 24
    runs: int = MAX_RUNS
    seed: int = 1
    batch: int = 4

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> CalibrationConfig:
        """From named values, as the page, the API and the command line give them; texts of numbers are split.

        Raises:
            StoreError: naming the field, its value and what is allowed.
        """
        checked = checked_fields(cls, values, RESERVED, _WHOLE)
        if "steps" in values:
            checked["steps"] = tuple(
                sorted({int(number("steps", each, 2, 20, whole=True)) for each in _several("steps", values["steps"])})
            )
        if "cfg_scales" in values:
            scales = _several("cfg_scales", values["cfg_scales"])
            checked["cfg_scales"] = tuple(sorted({float(number("cfg_scales", each, 1, 30)) for each in scales}))
        return cls(**checked)

    @property
    def cells(self) -> list[tuple[float, int]]:
        """(guidance scale, steps), in the config in which they are calibrated."""
        return [(cfg_scale, steps) for cfg_scale in self.cfg_scales for steps in self.steps]

    def most_calls(self, without: Sequence[tuple[float, int]] = ()) -> int:
        """UNet calls, each for one picture, that the config takes at most; ``without`` the cells that are done."""
        left = [cell for cell in self.cells if cell not in without]
        references = len({cfg_scale for cfg_scale, _ in left})
        calls = references * (2 * REFERENCE_CALLS + BASELINE_STEPS)
        return calls * self.trajectories + sum(self.most_calls_of(steps) for _, steps in left)

    def most_calls_of(self, steps: int) -> int:
        """Of one cell, its references aside."""
        return (max(self.runs * steps - REFERENCE_CALLS, _least_calls(steps)) + _LOOKS * steps) * self.trajectories


_WHOLE = {
    "width": (64, 4096), "height": (64, 4096), "trajectories": (2, 1024), "runs": (25, 1000), "seed": (0, 2**32 - 1),
    "batch": (1, 256),
}  # fmt: skip

_LOOKS = 6
"""Runs of the held-out trajectories: four starts, what was calibrated, and one for the end."""


def _least_calls(steps: int) -> int:
    """What a fit takes of the calibration set however small its budget: starts, derivatives once, result, end."""
    return (4 + 1 + 1 + 1) * steps + (steps - 1) ** 2


def _several(name: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    elif isinstance(value, (int, float)):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)) or not 1 <= len(value) <= 32:
        raise StoreError(f"{name} must be 1 to 32 numbers, got {abbreviated(value)}")
    return list(value)
