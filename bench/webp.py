"""How pictures of the documents are written: WebP, a quarter of PNG's size at the same sharpness of text.

The same pixels make the same bytes, so a picture that is drawn again and did not change is no change to commit.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

__all__ = ["LOSSLESS", "LOSSY"]

LOSSLESS: MappingProxyType[str, Any] = MappingProxyType({"lossless": True, "quality": 100, "method": 6})
"""Pillow's arguments for plots and pages, whose flat colours are small that way."""

LOSSY: MappingProxyType[str, Any] = MappingProxyType({"quality": 80, "method": 6})
"""And for sheets of drawn pictures."""
