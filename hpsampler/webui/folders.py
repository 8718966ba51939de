"""Where people's own files are kept: beside their models, so no update of the extension can lose them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from modules import paths

from ..presets import PresetStore

if TYPE_CHECKING:
    from ..calibration.profile import ProfileStore

__all__ = ["library", "menus", "npnets", "presets", "statistics_folder"]

FOLDER = Path(paths.models_path) / "hpsampler"


def library() -> ProfileStore:
    """The calibrations."""
    # here and below, as a start of the WebUI needs none of it
    from ..calibration.profile import ProfileStore

    return ProfileStore(FOLDER / "calibrations")


def statistics_folder() -> Path:
    """Where DPM-Solver-v3's statistics lie."""
    return FOLDER / "statistics"


def npnets() -> dict[str, Path]:
    """NPNet's weights by name."""
    return {path.stem: path for path in sorted((FOLDER / "npnet").glob("*.safetensors"))}


def menus() -> dict[str, Callable[[], list[str]]]:
    """Names that people may choose from, by the field that takes one."""
    return {
        "calibration": lambda: library().names(),
        "statistics": _statistics,
        "golden_noise": lambda: list(npnets()),
    }


def _statistics() -> list[str]:
    from ..statistics.files import statistics_files

    return list(statistics_files(statistics_folder()))


def presets() -> PresetStore:
    """The presets that people saved."""
    return PresetStore(FOLDER / "presets")
