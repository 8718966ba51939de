"""Where people's own files are kept: beside their models, so no update of the extension can lose them."""

from __future__ import annotations

from pathlib import Path

from modules import paths

from ..presets import PresetShelf
from ..profiles import Library

__all__ = ["library", "presets"]

FOLDER = Path(paths.models_path) / "hpsampler"


def library() -> Library:
    """The calibrations."""
    return Library(FOLDER / "calibrations")


def presets() -> PresetShelf:
    """The presets that people saved."""
    return PresetShelf(FOLDER / "presets")
