"""The description of a job that measures statistics, checked, and what it costs.

It stands apart from the job, as a page that offers to measure needs this and not the estimator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from ..job_config import DEFAULT_PROMPTS, checked_fields, number
from ..store import MAX_NAME, RESERVED, StoreError, abbreviated

__all__ = ["StatisticsConfig", "calls_needed"]


def calls_needed(samples: int, batch: int, points: int, exact: bool = False) -> int:
    """The number of model calls for that many samples.

    Args:
        samples: number of trajectories.
        batch: trajectories sampled at once.
        points: grid points.
        exact: with forward-mode derivatives one (more expensive) call per point; finite differences need two.

    Raises:
        StatisticsError: naming the argument, its value and what is allowed.
    """
    from .coefficients import StatisticsError

    for name, value in (("samples", samples), ("batch", batch), ("points", points)):
        if type(value) is not int or value < 1:
            raise StatisticsError(f"{name} must be a whole number of at least 1, got {abbreviated(value)}")
    return math.ceil(samples / batch) * points * (1 if exact else 2)


@dataclass(frozen=True)
class StatisticsConfig:
    """What to measure.

    Attributes:
        cfg_scale: the guidance scale that they are measured at. Those of CFG 5 serve few calls at CFG 4 to 10, which
            get less than the CFG scale (:mod:`hpsampler.guidance`).
        low_cfg_scale: a lower one, at which further ones are measured that are kept beside them, for pictures that are
            drawn near that scale; None is no further ones.
        samples: number of trajectories, one per picture; they use ``prompts`` in turn.
        points: grid points from the noise table's largest sigma to its smallest; with fewer than about 20 the
            statistics are worse than none.
        per_pixel: whether there are statistics for every element of the latents, as in the paper, which fit one size
            only and need many samples; otherwise for every channel.
        batch: number of pictures in one call of the model; memory grows with it.
    """

    name: str
    cfg_scale: float = 5.0
    low_cfg_scale: Optional[float] = None
    width: int = 512
    height: int = 512
    prompts: tuple[str, ...] = DEFAULT_PROMPTS
    negative: str = ""
    samples: int = 64
    points: int = 51
    per_pixel: bool = False
    seed: int = 1
    batch: int = 4

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> StatisticsConfig:
        """From values by name, as the page, the API and the command line give them.

        Raises:
            StoreError: naming the field, its value and what is allowed.
        """
        checked = checked_fields(cls, values, RESERVED, _WHOLE_NUMBERS)
        if "cfg_scale" in values:
            checked["cfg_scale"] = float(number("cfg_scale", values["cfg_scale"], *_CFG_SCALES))
        if values.get("low_cfg_scale") is not None:
            low = float(number("low_cfg_scale", values["low_cfg_scale"], *_CFG_SCALES))
            high = checked.get("cfg_scale", cls.cfg_scale)
            if low >= high:
                raise StoreError(f"low_cfg_scale must be below cfg_scale, {high:g}, got {low:g}")
            checked["low_cfg_scale"] = low
        if "per_pixel" in values:
            if not isinstance(values["per_pixel"], bool):
                raise StoreError(f"per_pixel must be true or false, got {values['per_pixel']!r}")
            checked["per_pixel"] = values["per_pixel"]
        return cls(**checked)

    @property
    def cfg_scales(self) -> tuple[float, ...]:
        """All guidance scales that are measured at, the main one first."""
        return (self.cfg_scale,) if self.low_cfg_scale is None else (self.cfg_scale, self.low_cfg_scale)

    def name_at(self, cfg_scale: float) -> str:
        """What the statistics of one of the guidance scales are called."""
        if cfg_scale == self.cfg_scale:
            return self.name
        suffix = f" CFG {cfg_scale:g}"
        return self.name[: MAX_NAME - len(suffix)].rstrip() + suffix

    def most_calls(self) -> int:
        """Number of UNet calls, each for one picture."""
        return len(self.cfg_scales) * calls_needed(self.samples, 1, self.points)


_CFG_SCALES = (1, 30)

_WHOLE_NUMBERS = {
    "width": (64, 4096), "height": (64, 4096), "samples": (2, 100_000), "points": (21, 1001), "seed": (0, 2**31 - 1),
    "batch": (1, 256),
}  # fmt: skip
