"""Measuring DPM-Solver-v3's statistics of a whole model: what is asked, counted in calls, stopped and resumed.

What is asked is a :class:`Survey`; what it is asked of is a :class:`~hpsampler.tuning.Source`. :class:`Measuring`
walks one batch of pictures after the other and keeps the sums of those that are done in a file, so that whatever stops
it costs one batch at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from .shelf import ShelfError
from .statistics import RESERVED, Estimator, Statistics, StatisticsError, calls_needed
from .statistics import Source as Origin
from .tuning import DEFAULT_PROMPTS, Job, Progress, Source, checked_values, number

__all__ = ["Measuring", "Survey"]

SUMS = "sums.safetensors"


@dataclass(frozen=True)
class Survey:
    """What is to be measured.

    Attributes:
        cfg_scale: guidance scale; statistics belong to one.
        samples: pictures whose trajectories are walked; their prompts are ``prompts``, again and again.
        points: of the grid, from the noise table's largest sigma to its smallest; with fewer than some 20 the
            statistics are worse than none.
        per_pixel: statistics of every element of the latents, as the paper has them; they fit one size and need many
            samples. Otherwise of every channel.
        batch: how many pictures the model draws at once; memory grows with it.
    """

    name: str
    cfg_scale: float = 7.0
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
    def of(cls, values: Mapping[str, Any]) -> Survey:
        """From named values, as the page, the API and the command line give them.

        Raises:
            ShelfError: naming the field, its value and what is allowed.
        """
        checked = checked_values(cls, values, RESERVED, _WHOLE)
        if "cfg_scale" in values:
            checked["cfg_scale"] = float(number("cfg_scale", values["cfg_scale"], 1, 30))
        if "per_pixel" in values:
            if not isinstance(values["per_pixel"], bool):
                raise ShelfError(f"per_pixel must be true or false, got {values['per_pixel']!r}")
            checked["per_pixel"] = values["per_pixel"]
        return cls(**checked)

    def most_calls(self) -> int:
        """UNet calls, each for one picture."""
        return calls_needed(self.samples, 1, self.points)


_WHOLE = {
    "width": (64, 4096), "height": (64, 4096), "samples": (2, 100_000), "points": (21, 1001), "seed": (0, 2**31 - 1),
    "batch": (1, 256),
}  # fmt: skip


class Measuring(Job):
    """Carries out a survey.

    Args:
        order: what is asked.
        source: of which model.
        folder: where the sums are kept until the end; None keeps none.
        turn: runs a function when it may use the model, such as between two pictures of a queue.

    Raises:
        ShelfError: what was kept is of another model, or of another order.
    """

    def __init__(
        self,
        order: Survey,
        source: Source,
        folder: Optional[Path] = None,
        turn: Callable[[Callable[[], Any]], Any] = lambda work: work(),
    ) -> None:
        super().__init__(turn)
        self.order, self.source = order, source
        self.path = None if folder is None else folder / SUMS
        self.progress = Progress(of=order.most_calls())
        self.estimator: Optional[Estimator] = self._kept()
        if self.estimator is not None:
            self.progress.of -= calls_needed(self.estimator.samples, 1, order.points) if self.estimator.samples else 0

    def run(self) -> Statistics:
        """Walk all batches that are not done yet.

        Raises:
            Cancelled: after :meth:`cancel`.
            ShelfError: a model whose output is not finite.
        """
        order = self.order
        while True:
            done = self.estimator.samples if self.estimator is not None else 0
            if done >= order.samples:
                break
            seeds = range(order.seed + done, order.seed + min(done + order.batch, order.samples))
            noise = self._turn(lambda: self.source.start(seeds, order.width, order.height))  # noqa: B023 - at once
            if self.estimator is None:
                self.estimator = self._new(noise)
            prompts = [order.prompts[(seed - order.seed) % len(order.prompts)] for seed in seeds]
            model = self._turn(lambda: self.source.denoiser(prompts, order.negative, order.cfg_scale))  # noqa: B023
            try:
                self.estimator.add(self._counted(model), noise * self.estimator.sigmas[0])
            except StatisticsError as error:
                raise ShelfError(str(error)) from None
            if self.path is not None:
                self.estimator.save(self.path)
        assert self.estimator is not None
        self.progress.log.append(f"{self.estimator.samples} pictures' trajectories at CFG {order.cfg_scale:g}")
        return self.estimator.statistics()

    def _kept(self) -> Optional[Estimator]:
        """The sums of an earlier run of the same order, if there are any that can be read."""
        if self.path is None or not self.path.exists():
            return None
        try:
            found = Estimator.load(self.path)
        except StatisticsError:
            return None  # cut off or damaged: measured anew
        if found.source.model_hash not in self.source.hashes:
            raise ShelfError(
                f"it was begun with the model {found.source.model_name}, and {self.source.model_name} is loaded now; "
                "load the first again, then resume"
            )
        return found

    def _new(self, noise: torch.Tensor) -> Estimator:
        order, table = self.order, self.source.noise
        grid = np.linspace(-math.log(table.sigma_max), -math.log(table.sigma_min), order.points)
        channels, height, width = noise.shape[1:]
        origin = Origin(
            # a file's name may hold bytes that no text has
            self.source.hashes[0], self.source.model_name.encode("utf-8", "replace").decode(), self.source.family,
            order.cfg_scale, height, width,
        )  # fmt: skip
        return Estimator(grid, (channels, height, width) if order.per_pixel else (channels, 1, 1), origin, order.seed)
