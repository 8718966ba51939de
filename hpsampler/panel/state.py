"""What goes into the panel's answer and what comes out of it: the page's controls, what the server knows, the view."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from ..calibration.choice import PICTURES
from ..calibration.profile import Profile, ProfileStore
from ..effects import Use
from ..fields import Field
from ..noise import NoiseModel
from ..presets import Preset
from ..recipes import Recipe
from ..settings import Settings

__all__ = ["Control", "Known", "Offer", "Page", "PassView", "Snapshot", "View"]

SAME_SAMPLER, SAME_SCHEDULE = "Use same sampler", "Use same scheduler"


class Snapshot(ProfileStore):
    """The calibrations of a folder, read once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._found = super().read()

    def read(self) -> tuple[list[Profile], list[str]]:
        return self._found


@dataclass(frozen=True)
class Known:
    """What the server knows beside the page's controls.

    Attributes:
        model: the loaded checkpoint's name, for people; empty while none is loaded.
        problem: why the loaded model cannot be sampled with ours; empty where it can.
        presets: the built-in and a person's own.
        calibrations: those that people keep; None where there can be none.
        statistics: the folder of DPM-Solver-v3's; None where there are none.
        measured: whether there are statistics of the loaded model.
        follow: whether presets follow the model.
        plot: whether the schedule is drawn.
        off: the settings of a picture that is drawn while the accordion is off.
        aim: what Auto aims at, of :data:`~hpsampler.calibration.choice.AIMS`.
    """

    family: str
    noise: NoiseModel
    model: str = ""
    hashes: tuple[str, ...] = ()
    problem: str = ""
    presets: tuple[Preset, ...] = ()
    calibrations: Optional[ProfileStore] = None
    statistics: Optional[Path] = None
    measured: Callable[[], bool] = lambda: False
    follow: bool = False
    plot: bool = True
    off: Settings = field(default_factory=Settings)
    aim: str = PICTURES

    @property
    def of_model(self) -> list[Profile]:
        """Calibrations of the loaded model."""
        profiles = self.calibrations.read()[0] if self.calibrations else []
        return [each for each in profiles if not each.model_mismatch(self.hashes, self.noise)]


@dataclass(frozen=True)
class Page:
    """The page's own controls.

    Attributes:
        denoising: of img2img and of hires. fix.
        exact_steps: whether the host makes img2img run exactly as many steps as are set.
        hires: whether hires. fix is on; the next five are its own controls.
        hr_cfg: of a host whose second pass has a guidance scale of its own; 0 where it has that of the first.
        preset: the one that is chosen.
    """

    sampler: str = ""
    schedule: str = ""
    steps: float = 20
    cfg: float = 7.0
    width: int = 0
    height: int = 0
    img2img: bool = False
    denoising: float = 1.0
    exact_steps: bool = False
    hires: bool = False
    hr_sampler: str = ""
    hr_schedule: str = ""
    hr_steps: float = 0
    hr_scale: float = 2.0
    hr_cfg: float = 0
    preset: str = ""

    @classmethod
    def of(cls, values: Any) -> Page:
        """From what the page's script read; what it could not read keeps its default."""
        found: dict[str, Any] = {}
        for name, default in vars(cls()).items():
            value = values.get(name) if isinstance(values, Mapping) else None
            if isinstance(default, str):
                found[name] = value if isinstance(value, str) else default
            elif isinstance(default, bool):
                found[name] = bool(value) if value is not None else default
            else:
                found[name] = _number(value, default)
        return cls(**{**found, "width": int(found["width"]), "height": int(found["height"])})

    @property
    def second(self) -> Page:
        """The second pass of hires. fix as a page of its own."""
        return replace(
            self,
            sampler=self.sampler if self.hr_sampler in ("", SAME_SAMPLER) else self.hr_sampler,
            schedule=self.schedule if self.hr_schedule in ("", SAME_SCHEDULE) else self.hr_schedule,
            steps=self.hr_steps or self.steps,
            cfg=self.hr_cfg or self.cfg,
            width=int(self.width * self.hr_scale),
            height=int(self.height * self.hr_scale),
        )


def _number(value: Any, default: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return default
    if not math.isfinite(number):
        return default
    return int(number) if number.is_integer() else number


@dataclass
class PassView:
    """What one pass does.

    Attributes:
        error: what would stop the generation; ``wrong`` are the fields that it is about. Nothing else is told then.
        asked: whether our schedule is drawn with; the rest is what it would be.
        sigmas: at the points between the steps, those that img2img leaves out included.
        steps: for each of the steps between two points, the number of its first UNet call, from 1; 0 where none is
            made there.
        skipped: steps that are left out at the start.
        calls: UNet calls, those for golden noise included; None where the sampler is the host's.
        freeu: UNet calls with Free-U, from 1: first and last of each window.
        base, cut: the base schedule and the point where it is cut; empty where something else says the end.
        karras: the schedule of DPM++ 2M Karras with as many steps.
        recipe: in force; ``named`` is the one that was chosen, without what was set beside it.
        calibration: the label of the one in use.
        auto_is_best: that a calibration found Auto's own recipe the best way to draw, in words; else empty.
        guidance: the guidance scale of each call, where it is another than the CFG scale.
        unchanged: whether strength 0 leaves the picture as it is, at no call.
    """

    use: Use
    notes: list[str] = field(default_factory=list)
    error: str = ""
    wrong: tuple[str, ...] = ()
    asked: bool = False
    sigmas: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    skipped: int = 0
    calls: Optional[int] = None
    made: int = 0
    golden: int = 0
    freeu: list[tuple[int, int]] = field(default_factory=list)
    base: list[float] = field(default_factory=list)
    cut: int = 0
    karras: list[float] = field(default_factory=list)
    recipe: Optional[Recipe] = None
    named: Optional[Recipe] = None
    calibration: str = ""
    auto_is_best: str = ""
    guidance: tuple[float, ...] = ()
    unchanged: bool = False

    @property
    def is_cut(self) -> bool:
        """Whether the schedule ends before the base schedule's last point."""
        return 0 < self.cut < len(self.base) - 1

    def tell(self, note: str) -> None:
        if note and note not in self.notes:
            self.notes.append(note)


@dataclass(frozen=True)
class Offer:
    """A number of steps that the present choice is made for, and a guidance scale where it is for one."""

    steps: int
    cfg: Optional[float]
    now: bool = False


@dataclass(frozen=True)
class Control:
    """What is said of one control.

    Attributes:
        idle: why it has no effect; empty where it has one.
        recipe: what the recipe says; empty where it says nothing of it.
        changed: whether it stands in place of the recipe's.
        wrong: whether the error is about it.
        highest: the end of its range, where that follows from the rest.
    """

    idle: str = ""
    recipe: str = ""
    changed: bool = False
    wrong: bool = False
    highest: Optional[int] = None


@dataclass
class View:
    """All that the page shows.

    Attributes:
        second: hires. fix's second pass, where there is one.
        changed: fields that differ from the recipe and have an effect, with their values.
        fitting, papers, others: presets for this model and number of steps, a person's own and Auto; the paper's;
            the rest.
        misfit: why the chosen preset is not made for this model or number of steps.
        settings: as they are drawn with; where something is wrong, those that can be read.
    """

    enabled: bool
    page: Page
    known: Known
    first: PassView
    second: Optional[PassView] = None
    controls: dict[str, Control] = field(default_factory=dict)
    changed: list[tuple[Field, str]] = field(default_factory=list)
    offers: list[Offer] = field(default_factory=list)
    fitting: list[str] = field(default_factory=list)
    papers: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    misfit: str = ""
    settings: Settings = field(default_factory=Settings)
