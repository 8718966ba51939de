"""What one setting is: how it is named, what it may be, and the message where it is not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

__all__ = ["Field", "SettingsError"]

LONGEST_TEXT = 400


class SettingsError(ValueError):
    """A setting that cannot be used; the message is for people, ``names`` are the fields that it is about."""

    def __init__(self, message: str, *names: str) -> None:
        super().__init__(message)
        self.names = names


@dataclass(frozen=True)
class Field:
    """One setting: how it is named, what it may be, and what it does.

    ``name`` is the API's; ``label`` the page's, and with "HP " before it the infotext's. A number is a whole one where
    ``whole``; ``neutral`` is allowed beside the range ``low`` to ``high``, and means "as the recipe says". A text
    without ``choices`` is one of ``words`` or, where there is a range, a number in it; else it is any name.
    ``formerly`` is what older pictures call it; ``suggestions`` are numbers that a menu offers beside the words.
    """

    name: str
    label: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float = 1
    neutral: Optional[float] = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    formerly: str = ""
    suggestions: tuple[str, ...] = ()

    @property
    def infotext(self) -> str:
        return "HP " + self.label

    @property
    def whole(self) -> bool:
        return isinstance(self.default, int) and not isinstance(self.default, bool)

    @property
    def ranged(self) -> bool:
        """Whether it is a number within a range, or a word in its place."""
        return self.high > self.low

    def parse(self, value: Any) -> Any:
        """The value in its proper type.

        Raises:
            SettingsError: wrong type or out of range.
        """
        if isinstance(self.default, bool):
            if isinstance(value, bool):
                return value
            raise self.error(value, "true or false")
        if self.choices:
            return self._choice(value)
        if not isinstance(self.default, str):
            return self._number(value)
        return self._word_or_number(value) if self.ranged else self._text(value)

    def error(self, value: Any, allowed: str) -> SettingsError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return SettingsError(f"HP Sampler: {self.label} ({self.name}) must be {allowed}, got {shown}", self.name)

    def _choice(self, value: Any) -> str:
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            spelling = str(value).strip().lower()
            for choice in self.choices:
                if spelling in (choice.lower(), self.aliases.get(choice, choice).lower()):
                    return choice
        raise self.error(value, "one of " + ", ".join(self.choices))

    def _text(self, value: Any) -> str:
        if isinstance(value, str) and 0 < len(value.strip()) <= LONGEST_TEXT:
            text = value.strip()
            return next((word for word in self.words if word.lower() == text.lower()), text)
        raise self.error(value, f"{', '.join(self.words)} or a name of at most {LONGEST_TEXT} characters")

    def _word_or_number(self, value: Any) -> str:
        """One of the words, or the shortest text of a number within the range."""
        if isinstance(value, str):
            for word in self.words:
                if word.lower() == value.strip().lower():
                    return word
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not self.low <= number <= self.high:
            raise self.error(value, f"{', '.join(self.words)} or a number from {self.low:g} to {self.high:g}")
        return f"{number:.4g}"

    def _number(self, value: Any) -> float:
        allowed = f"a {'whole ' if self.whole else ''}number from {self.low:g} to {self.high:g}"
        if self.neutral is not None and self.neutral < self.low:
            allowed += f", or {self.neutral:g}"
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise self.error(value, allowed)
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise self.error(value, allowed) from None
        inside = math.isfinite(number) and (self.low <= number <= self.high or number == self.neutral)
        if not inside or (self.whole and not number.is_integer()):
            raise self.error(value, allowed)
        return int(number) if self.whole else number
