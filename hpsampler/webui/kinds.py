"""The two kinds of things that the Calibrate tab makes: how its form asks for each, what each costs and holds."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from ..calibration.config import CalibrationConfig
from ..jobs import JobRunner
from ..statistics.config import StatisticsConfig
from ..store import StoreError, abbreviated

if TYPE_CHECKING:
    from .runners import Runners

__all__ = ["CALIBRATION", "CHEAP", "FORM", "KINDS", "STATISTICS", "Kind"]

FORM = ("name", "steps", "cfg", "size", "prompts", "negative", "pictures", "effort", "per_pixel", "batch", "seed")
"""The form's controls."""

CHEAP = tuple(name for name in FORM if name not in ("prompts", "negative"))
"""Those that are sent as often as one likes: prompts may be long, and change no cost."""


class Kind(ABC):
    """One kind of thing that can be made."""

    title: ClassVar[str]
    """What *What to make*, and the lists' entries, call it."""
    button: ClassVar[str]
    about: ClassVar[str]
    fields: ClassVar[Mapping[str, str]]
    """Which field of the config each control of the form is; ``size`` is width and height."""

    @staticmethod
    def of(title: str) -> Kind:
        return next(kind for kind in KINDS if kind.title == title)

    def entry(self, name: str) -> str:
        """How the lists call one."""
        return f"{self.title}: {name}"

    @staticmethod
    def of_entry(entry: str) -> tuple[Kind, str]:
        """The kind and the name of an entry."""
        title, _, name = entry.partition(": ")
        return Kind.of(title), name

    def config(self, values: Mapping[str, Any]) -> Any:
        """The config that the form's values describe; controls that are not in ``values`` are left as usual.

        Raises:
            StoreError: naming the field, its value and what is allowed.
        """
        found = {field: values[control] for control, field in self.fields.items() if control in values}
        width, height = _size(values["size"])
        return self.config_of({**found, "width": width, "height": height})

    @abstractmethod
    def config_of(self, values: Mapping[str, Any]) -> Any: ...

    @abstractmethod
    def usual(self) -> Any:
        """The config that the form begins with."""

    @abstractmethod
    def form(self, control: str) -> dict[str, Any]:
        """What a control that both kinds share looks like for this one."""

    @abstractmethod
    def cost(self, config: Any) -> str:
        """What a config takes, in UNet calls."""

    @abstractmethod
    def runner(self, runners: Runners) -> JobRunner[Any]: ...

    @abstractmethod
    def details(self, runners: Runners, name: str) -> str:
        """What one of those that are kept holds, as HTML."""


class _Calibration(Kind):
    title, button = "Calibration", "Calibrate"
    about = (
        "Fits the steps of HP Sampler to the checkpoint, once for each number of steps and guidance scale. Then "
        "<b>HP Auto</b> and <b>HP DPM++ 2M</b> use it by themselves wherever it fits, and any sampler with the "
        "schedule type <b>HP calibrated</b>."
    )
    fields = MappingProxyType(
        {
            "name": "name", "steps": "steps", "cfg": "cfg_scales", "prompts": "prompts", "negative": "negative",
            "pictures": "trajectories", "effort": "runs", "batch": "batch", "seed": "seed",
        }
    )  # fmt: skip

    def config_of(self, values: Mapping[str, Any]) -> CalibrationConfig:
        return CalibrationConfig.of(values)

    def usual(self) -> CalibrationConfig:
        return CalibrationConfig("usual")

    def form(self, control: str) -> dict[str, Any]:
        usual = self.usual()
        steps, scales = (", ".join(f"{each:g}" for each in values) for values in (usual.steps, usual.cfg_scales))
        controls: dict[str, dict[str, Any]] = {
            "name": {"label": "Name", "value": "My calibration", "info": "Shown in menus and pictures."},
            "steps": {"label": "Steps", "value": steps, "info": "Each by itself, 2 to 20.", "visible": True},
            "cfg": {"label": "CFG scale", "value": scales, "info": "One or several: none carries over to another."},
            "pictures": {
                "label": "Trajectories", "value": usual.trajectories, "minimum": 4, "maximum": 64,
                "info": "Pictures to fit to; as many others judge the fit.",
            },
            "effort": {
                "label": "Runs", "value": usual.runs, "minimum": 25, "maximum": 200,
                "info": "How often one fit may draw them, its reference included.",
            },
            "per_pixel": {**_PER_PIXEL, "visible": False},
        }  # fmt: skip
        return controls[control]

    def cost(self, config: CalibrationConfig) -> str:
        cells = len(config.cells)
        return f"{cells} schedule{'s' if cells > 1 else ''} to fit, at most {config.most_calls():,} UNet calls"

    def runner(self, runners: Runners) -> JobRunner[Any]:
        return runners.calibrations

    def details(self, runners: Runners, name: str) -> str:
        from .report import profile_html

        profiles, problems = runners.calibrations.profiles.read()
        for profile in profiles:
            if profile.name == name:
                return _export(profile.name, profile.to_json()) + profile_html(profile, problems)
        return self.problems(runners)

    def problems(self, runners: Runners) -> str:
        """Files of calibrations that cannot be read."""
        problems = runners.calibrations.profiles.read()[1]
        return "".join(f"<p role='alert'>{escape(problem)}</p>" for problem in problems)


class _Statistics(Kind):
    title, button = "Statistics", "Measure"
    about = (
        "Measures how the checkpoint behaves, for the sampler <b>HP DPM-v3</b>, which uses it by itself with that "
        "checkpoint."
    )
    fields = MappingProxyType(
        {
            "name": "name", "cfg": "cfg_scale", "prompts": "prompts", "negative": "negative", "pictures": "samples",
            "effort": "points", "per_pixel": "per_pixel", "batch": "batch", "seed": "seed",
        }
    )  # fmt: skip

    def config_of(self, values: Mapping[str, Any]) -> StatisticsConfig:
        return StatisticsConfig.of(values)

    def usual(self) -> StatisticsConfig:
        return StatisticsConfig("usual")

    def form(self, control: str) -> dict[str, Any]:
        usual = self.usual()
        controls: dict[str, dict[str, Any]] = {
            "name": {"label": "Name", "value": "My statistics", "info": "Shown in menus and pictures."},
            "steps": {"visible": False},
            "cfg": {"label": "CFG scale", "value": f"{usual.cfg_scale:g}", "info": "One: statistics belong to it."},
            "pictures": {
                "label": "Samples", "value": usual.samples, "minimum": 8, "maximum": 1024,
                "info": "Pictures whose trajectory is walked, once each.",
            },
            "effort": {
                "label": "Grid points", "value": usual.points, "minimum": 21, "maximum": 251,
                "info": "Of the grid; two UNet calls each.",
            },
            "per_pixel": {**_PER_PIXEL, "visible": True},
        }  # fmt: skip
        return controls[control]

    def cost(self, config: StatisticsConfig) -> str:
        return f"{config.most_calls():,} UNet calls"

    def runner(self, runners: Runners) -> JobRunner[Any]:
        return runners.statistics

    def details(self, runners: Runners, name: str) -> str:
        from .report import statistics_html

        try:
            return statistics_html(name, runners.statistics.read_provenance(name))
        except StoreError as error:
            return f"<p role='alert'>{escape(str(error))}</p>"


_PER_PIXEL = MappingProxyType(
    {
        "label": "For every element of the latents",
        "value": False,
        "info": "As the paper has them: for one size only, and only with many samples.",
    }
)

CALIBRATION, STATISTICS = _Calibration(), _Statistics()
KINDS: tuple[Kind, ...] = (CALIBRATION, STATISTICS)


def _size(text: Any) -> tuple[str, str]:
    """Width and height of a text such as 512x768. Raises StoreError: another text."""
    found = re.fullmatch(r"\s*(\d+)\s*[x×*,]\s*(\d+)\s*", str(text))
    if found is None:
        raise StoreError(f"size must be width x height in pixels, such as 512x768, got {abbreviated(text)}")
    return found[1], found[2]


def _export(name: str, text: str) -> str:
    """A link that saves a calibration as a file."""
    data = b64encode(text.encode()).decode()
    return (
        f'<p><a class="hpsampler-export" download="{escape(name)}.json" href="data:application/json;base64,{data}">'
        "Export</a></p>"
    )
