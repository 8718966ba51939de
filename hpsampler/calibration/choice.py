"""Which way to draw a few calls is the best on one checkpoint: what was compared there, and what follows from it.

No table decides that for every checkpoint (docs/calibration.md), so a calibration compares the ways on held-out
prompts and seeds (:mod:`~hpsampler.calibration.compare`), and keeps their figures. What Auto draws with follows from
the figures and from what a person wants of Auto, :data:`AIMS`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from ..recipes import AUTO, MAX_STEPS
from ..store import Reader
from .rows import CALIBRATED

__all__ = [
    "AIMS", "FORMS", "PICTURES", "SAME_PICTURE", "Comparison", "Figures", "WithStatistics", "read_comparison",
]  # fmt: skip

PICTURES, SAME_PICTURE = "pictures", "the same picture as many steps"
AIMS = (PICTURES, SAME_PICTURE)
"""What Auto may aim at: pictures that are as good as those of many steps, or the nearest to the very same ones."""

FORMS: Mapping[str, tuple[int, bool]] = MappingProxyType(
    {
        "statistics, order 1": (1, False),
        "statistics, order 1, corrector": (1, True),
        "statistics, order 2": (2, False),
        "statistics, order 2, corrector": (2, True),
    }
)
"""DPM-Solver-v3 with statistics of the model, by name: its order, and whether the corrector is on."""

NEARNESS = 0.2
"""Weight of the log of the distance beside the figure of pictures, from both small models (docs/calibration.md)."""

WORST = 1e12
"""Stands for infinity, which JSON cannot express."""


@dataclass(frozen=True)
class Figures:
    """How one way to draw compares with many steps, on pictures that nothing was fitted to; smaller is better.

    Attributes:
        distance: RMSE of the latents relative to the RMS of the many-step latents.
        pictures: how much worse the model itself knows the pictures than the many-step ones, 0 where it is equal, see
            :mod:`~hpsampler.calibration.compare`.
    """

    distance: float
    pictures: float

    def worth(self, aim: str) -> float:
        """What ways are ranked by, the smallest first.

        Of pictures that are known about equally well, those near the many-step ones are preferred: what the model knows
        much better than those is often smoother than they are, and less varied.
        """
        if aim == SAME_PICTURE:
            return self.distance
        return self.pictures + NEARNESS * math.log(max(self.distance, 1e-12))

    @classmethod
    def of(cls, distance: float, pictures: float) -> Figures:
        """Rounded and finite, as a file has them; what is no number is as bad as can be."""
        return cls(*(float(f"{each:.5g}") if abs(each) < WORST else WORST for each in (distance, pictures)))


@dataclass(frozen=True)
class WithStatistics:
    """Drawing with DPM-Solver-v3 and statistics of the model, as one of the :data:`FORMS` has it.

    Attributes:
        statistics: label of the statistics, their name and a hash of their numbers.
    """

    steps: int
    form: str
    statistics: str

    @property
    def order(self) -> int:
        return FORMS[self.form][0]

    @property
    def corrector(self) -> bool:
        return FORMS[self.form][1]

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits of a hash of what determines the picture."""
        numbers = (self.steps, *FORMS[self.form], self.statistics.rpartition(" ")[2])
        return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Comparison:
    """The ways to draw with a number of steps at one guidance scale.

    Attributes:
        figures: by the way's name: ``"Auto"``, ``"calibrated"``, or one of the :data:`FORMS`.
        statistics: label of the statistics that the forms were drawn with; empty where there were none.
    """

    steps: int
    cfg_scale: float
    figures: Mapping[str, Figures]
    statistics: str = ""

    def ranked(self, aim: str) -> list[str]:
        """The ways' names, the best first; of equals Auto, which needs nothing that was made."""
        return sorted(self.figures, key=lambda name: (self.figures[name].worth(aim), name != AUTO))

    def with_statistics(self, name: str) -> WithStatistics:
        """What to draw with for one of the :data:`FORMS`."""
        return WithStatistics(self.steps, name, self.statistics)

    @property
    def rows(self) -> tuple[WithStatistics, ...]:
        """All that was drawn with statistics."""
        return tuple(self.with_statistics(name) for name in self.figures if name in FORMS)

    def to_dict(self) -> dict[str, object]:
        """The form in files and in the API."""
        found = asdict(self)
        if not self.statistics:
            del found["statistics"]
        return found


def read_comparison(row: Reader) -> Comparison:
    figures = row.at("figures")
    statistics = row.text("statistics") if isinstance(row.data, dict) and "statistics" in row.data else ""
    known = {AUTO, CALIBRATED, *FORMS}
    if not isinstance(figures.data, dict) or AUTO not in figures.data or not set(figures.data) <= known:
        raise figures.error(f"figures by name, of {', '.join(sorted(known))}, among them {AUTO}")
    if not statistics and set(figures.data) & set(FORMS):
        row.at("statistics")
    return Comparison(
        row.whole("steps", 2, MAX_STEPS),
        row.number("cfg_scale", 0.01, 1000),
        {name: _figures(figures.at(name)) for name in figures.data},
        statistics,
    )


def _figures(row: Reader) -> Figures:
    return Figures(row.number("distance", 0, WORST), row.number("pictures", -WORST, WORST))
