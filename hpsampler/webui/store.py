"""Where people's own files are kept: beside their models, so no update of the extension can lose them."""

from __future__ import annotations

from pathlib import Path

from modules import paths

from ..profiles import Library

__all__ = ["library"]


def library() -> Library:
    """The calibrations."""
    return Library(Path(paths.models_path) / "hpsampler" / "calibrations")
