"""The description of a calibration job, checked, and what it costs at most.

It stands apart from the job, as a page that offers calibrations needs this and not the fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

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
        fit: whether schedules are fitted; without, ways to draw are compared that need none.
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
    fit: bool = True

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
        if "fit" in values:
            if not isinstance(values["fit"], bool):
                raise StoreError(f"fit must be true or false, got {values['fit']!r}")
            checked["fit"] = values["fit"]
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

    def most_calls(
        self, fits: Optional[Sequence[int]] = None, comparisons: Optional[Sequence[tuple[int, float]]] = None
    ) -> int:
        """The largest number of UNet calls, each for one picture.

        Args:
            fits: numbers of steps that are still to be fitted; None are all.
            comparisons: numbers of steps and guidance scales that are still to be compared; None are all.
        """
        if fits is None:
            fits = self.cells if self.fit else ()
        if comparisons is None:
            comparisons = [(steps, scale) for steps in self.cells for scale in self.cfg_scales]
        references = 2 * REFERENCE_CALLS + BASELINE_STEPS if fits else REFERENCE_CALLS if comparisons else 0
        calls = references * self.pictures + sum(self.most_calls_of(steps) for steps in fits)
        return calls + sum(self.most_calls_of_comparison(steps) for steps, _ in comparisons)

    def most_calls_of(self, steps: int) -> int:
        """The largest number of UNet calls of one cell, without its references."""
        fit_calls = max(self.runs * steps - REFERENCE_CALLS, least_fit_calls(steps))
        return (fit_calls + _HELD_OUT_RUNS * steps) * self.pictures

    def most_calls_of_comparison(self, steps: int) -> int:
        """The largest number of UNet calls that comparing ways to draw at one guidance scale takes."""
        return comparing_calls(steps, self.per_scale, MOST_WAYS)


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


MOST_WAYS = 6
"""Ways to draw that are compared: Auto, the fit, and four with statistics."""

ASKING_CALLS = 1
"""Calls in which the model is asked about a picture, see :mod:`~hpsampler.calibration.compare`."""


def comparing_calls(steps: int, pictures: int, ways: int) -> int:
    """UNet calls, each for one picture, that comparing so many ways takes, with those about many-step pictures."""
    return pictures * (ways * (steps + ASKING_CALLS) + ASKING_CALLS)


def _several(name: str, value: Any) -> list[Any]:
    """A list from a number, a sequence, or a text of numbers. Raises StoreError."""
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    elif isinstance(value, (int, float)):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)) or not 1 <= len(value) <= 32:
        raise StoreError(f"{name} must be 1 to 32 numbers, got {abbreviated(value)}")
    return list(value)
