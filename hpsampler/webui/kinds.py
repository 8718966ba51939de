"""What the Calibrate tab makes: which job the one form asks for, what it costs, and what came of it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from ..calibration.config import CalibrationConfig
from ..jobs import JobRunner
from ..statistics.config import StatisticsConfig
from ..store import RESERVED, StoreError, abbreviated, clean_name
from .files import text_of

if TYPE_CHECKING:
    from .runners import Runners

__all__ = ["CALIBRATION", "CHEAP", "FORM", "GOALS", "KINDS", "STATISTICS", "Goal", "Kind", "size_of"]

FORM = (
    "name", "steps", "cfg", "size", "prompts", "negative", "trajectories", "runs", "samples", "points", "batch", "seed",
)  # fmt: skip
"""The form's controls."""

CHEAP = tuple(name for name in FORM if name not in ("prompts", "negative"))
"""Those that are sent as often as one likes: prompts may be long, and change no cost."""

LOW_CFG = 3.0
"""Pictures of about this guidance scale and below get statistics of their own: on both small models those of CFG 5 draw
a little worse there, and those of CFG 3 worse above."""

MOST_EXPORTED = 4 << 20
"""Bytes of the largest file that the page hands out by itself; the path of a larger one is told."""


class Kind(ABC):
    """One kind of result."""

    title: ClassVar[str]
    word: ClassVar[str]
    """What the list calls one."""
    setting: ClassVar[str]
    """The accordion's field that may name one."""
    users: ClassVar[str]
    """Samplers that use one by themselves."""
    fields: ClassVar[Mapping[str, str]]
    """Which field of the config each control of the form is; ``size`` is width and height."""

    def config(self, values: Mapping[str, Any]) -> Any:
        """The config that the form's values describe; controls that are not in ``values`` are left as usual.

        Raises:
            StoreError: naming the field, its value and what is allowed.
        """
        found = {field: values[control] for control, field in self.fields.items() if control in values}
        width, height = size_of(values["size"])
        return self.config_of({**found, "width": width, "height": height})

    @abstractmethod
    def config_of(self, values: Mapping[str, Any]) -> Any: ...

    @abstractmethod
    def cost(self, config: Any) -> str:
        """What a config takes, in UNet calls."""

    @abstractmethod
    def runner(self, runners: Runners) -> JobRunner[Any]: ...

    @abstractmethod
    def details(self, runners: Runners, name: str) -> str:
        """What one holds, as HTML. Raises StoreError: it cannot be read."""

    @abstractmethod
    def take(self, runners: Runners, path: Path) -> tuple[str, str]:
        """Keep the one in a file, unless it is here already.

        Returns:
            Its name here, and a sentence where that is not what was to be expected.

        Raises:
            StoreError: the file holds none.
        """


class _Calibration(Kind):
    title, word, setting, users = "Calibration", "calibration", "calibration", "HP Auto and HP DPM++ 2M"
    fields = MappingProxyType(
        {
            "name": "name", "steps": "steps", "cfg": "cfg_scales", "prompts": "prompts", "negative": "negative",
            "trajectories": "trajectories", "runs": "runs", "batch": "batch", "seed": "seed",
        }
    )  # fmt: skip

    def config_of(self, values: Mapping[str, Any]) -> CalibrationConfig:
        return CalibrationConfig.of(values)

    def cost(self, config: CalibrationConfig) -> str:
        cells = len(config.cells)
        what = f"{cells} schedule{'s' if cells > 1 else ''} to fit" if config.fit else "ways to draw to compare"
        return f"{what}, at most {config.most_calls():,} UNet calls"

    def runner(self, runners: Runners) -> JobRunner[Any]:
        return runners.calibrations

    def details(self, runners: Runners, name: str) -> str:
        from .report import profile_html

        profile = runners.calibrations.profiles.get(name)
        return _export(f"{name}.json", profile.to_json().encode(), "application/json") + profile_html(profile)

    def take(self, runners: Runners, path: Path) -> tuple[str, str]:
        kept, said = runners.calibrations.profiles.import_json(text_of(str(path)))
        return kept.name, said


class _Statistics(Kind):
    title, word, setting, users = "Statistics", "statistics", "statistics", "HP DPM-v3"
    fields = MappingProxyType(
        {
            "name": "name", "cfg": "cfg_scale", "prompts": "prompts", "negative": "negative", "samples": "samples",
            "points": "points", "batch": "batch", "seed": "seed",
        }
    )  # fmt: skip

    def config(self, values: Mapping[str, Any]) -> StatisticsConfig:
        found: StatisticsConfig = super().config({**values, "cfg": _middle(values["cfg"])})
        low = min(_scales(values["cfg"]), key=lambda scale: abs(scale - LOW_CFG))
        return replace(found, low_cfg_scale=low) if low <= LOW_CFG < found.cfg_scale else found

    def config_of(self, values: Mapping[str, Any]) -> StatisticsConfig:
        return StatisticsConfig.of(values)

    def cost(self, config: StatisticsConfig) -> str:
        scales = " and ".join(f"{each:g}" for each in sorted(config.cfg_scales))
        return f"statistics at CFG {scales}, {config.most_calls():,} UNet calls"

    def runner(self, runners: Runners) -> JobRunner[Any]:
        return runners.statistics

    def details(self, runners: Runners, name: str) -> str:
        from ..statistics.files import statistics_files
        from .report import statistics_html

        told = statistics_html(name, runners.statistics.read_provenance(name))
        path = statistics_files(runners.statistics.folder)[name]
        if path.is_file() and path.stat().st_size <= MOST_EXPORTED:
            return _export(path.name, path.read_bytes(), "application/octet-stream") + told
        return f"{told}<p>It lies in {escape(str(path))}.</p>"

    def take(self, runners: Runners, path: Path) -> tuple[str, str]:
        from ..statistics.coefficients import StatisticsError
        from ..statistics.files import add_statistics, load_statistics, statistics_files, statistics_label

        try:
            given = load_statistics(path)
        except StatisticsError as error:
            raise StoreError(str(error)) from None
        folder = runners.statistics.folder
        for name, kept in statistics_files(folder).items():
            # most differ in what is cheap to read
            try:
                source, shape = runners.statistics.read_provenance(name)
                if source != given.source or shape != given.l.shape or kept.is_dir():
                    continue
                if statistics_label("", load_statistics(kept)) == statistics_label("", given):
                    return name, f"the statistics in that file are here already, as {name!r}; nothing was added"
            except (StoreError, StatisticsError):
                continue
        wanted = clean_name(path.stem, RESERVED)
        name = add_statistics(given, folder, wanted)
        if name == wanted:
            return name, ""
        return name, (f"the statistics in that file are kept as {name!r}, as {wanted!r} is the name of other ones here")


CALIBRATION, STATISTICS = _Calibration(), _Statistics()
KINDS: tuple[Kind, ...] = (CALIBRATION, STATISTICS)


@dataclass(frozen=True)
class Goal:
    """What somebody wants the form's values for.

    Attributes:
        title: how the form calls it.
        about: what it is good for, as HTML.
        kinds: what is made for it, in this order.
        fits: whether schedules are fitted; a calibration without them compares ways to draw.
    """

    title: str
    about: str
    kinds: tuple[Kind, ...]
    fits: bool

    def configs(self, values: Mapping[str, Any]) -> list[tuple[Kind, Any]]:
        """What the form's values describe. Raises StoreError: see :meth:`Kind.config`."""
        made = [(kind, kind.config(values)) for kind in self.kinds]
        return [(kind, replace(config, fit=self.fits) if kind is CALIBRATION else config) for kind, config in made]


_ABOUT_CALIBRATION = (
    "A calibration finds the few steps that end nearest to where many steps end with this checkpoint. <b>HP Auto</b> "
    "and <b>HP DPM++ 2M</b> then take them by themselves where they are the best, and any sampler does with the "
    "schedule type <b>HP calibrated</b>."
)
_ABOUT_STATISTICS = (
    "Statistics say how the checkpoint behaves from noise to picture; <b>HP DPM-v3</b> then uses them by itself."
)
_ABOUT_COMPARING = "<b>HP Auto</b> then draws with what came out as the best on pictures of this checkpoint."

GOALS: Mapping[str, Goal] = MappingProxyType(
    {
        "statistics": Goal(
            "Good pictures (statistics)", f"{_ABOUT_STATISTICS} {_ABOUT_COMPARING}", (STATISTICS, CALIBRATION), False
        ),
        "calibration": Goal(
            "The same picture as many steps (a fitted schedule)", _ABOUT_CALIBRATION, (CALIBRATION,), True
        ),
        "both": Goal(
            "Both", f"{_ABOUT_STATISTICS} {_ABOUT_CALIBRATION} The statistics are made first. {_ABOUT_COMPARING}",
            (STATISTICS, CALIBRATION), True,
        ),
    }
)  # fmt: skip


def size_of(text: Any) -> tuple[str, str]:
    """Width and height of a text such as 512x768. Raises StoreError: another text."""
    found = re.fullmatch(r"\s*(\d+)\s*[x×*,]\s*(\d+)\s*", str(text))
    if found is None:
        raise StoreError(f"size must be width x height in pixels, such as 512x768, got {abbreviated(text)}")
    return found[1], found[2]


def _middle(scales: Any) -> Any:
    """The one guidance scale at which statistics are measured: where there are several, the nearest to the default."""
    given = _scales(scales)
    if len(given) == 1:
        return given[0]
    return min(max(StatisticsConfig.cfg_scale, given[0]), given[-1])


def _scales(scales: Any) -> tuple[float, ...]:
    """The guidance scales that the form names, rising. Raises StoreError: naming what is wrong."""
    return CalibrationConfig.of({"name": "x", "cfg_scales": scales}).cfg_scales


def _export(name: str, data: bytes, media: str) -> str:
    """A link that saves a file."""
    text = b64encode(data).decode()
    return (
        f'<p><a class="hpsampler-export" download="{escape(name)}" href="data:{media};base64,{text}">'
        f"Export {escape(name)}</a></p>"
    )
