"""What an argument is, asked so that nothing but the answer can come back: no TypeError, no OverflowError.

The functions that people call check their arguments with these, and say themselves what is allowed.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any, Optional

__all__ = ["abbreviated", "finite", "whole"]


def abbreviated(value: Any) -> str:
    """The text of a value for messages, at most 60 characters long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    try:
        text = short.repr(value)
    except ValueError:  # Python refuses to convert huge integers to text
        text = "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."


def finite(value: Any) -> Optional[float]:
    """The value as a float; None where it is no finite number. True and False, texts and rows of numbers are none."""
    # numpy's truth values are no numbers either, and know it only by their dtype
    is_truth = isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
    if is_truth or isinstance(value, (str, bytes, bytearray)) or getattr(value, "ndim", 0) != 0:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is torch's for meta tensors
        return None
    return number if math.isfinite(number) else None


def whole(value: Any) -> Optional[int]:
    """The value as an int; None where it is no whole number that a float can hold. 5.0 is one, True is none."""
    number = finite(value)
    return None if number is None or not number.is_integer() else int(number)
