"""Files that people give to the page, or take from it; in gradio alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..store import StoreError

__all__ = ["offered", "text_of"]


def text_of(file: Any) -> str:
    """Of an uploaded file: gradio 3 gives an object with a name, gradio 4 the path.

    Raises:
        StoreError: not a text.
    """
    try:
        return Path(getattr(file, "name", file)).read_text(encoding="utf-8-sig")
    except UnicodeError:
        raise StoreError("the file must be a text in UTF-8") from None


def offered(name: str, text: str) -> str:
    """Path of a file for download."""
    path = Path(tempfile.mkdtemp()) / f"{name}.json"
    path.write_text(text, encoding="utf-8")
    return str(path)
