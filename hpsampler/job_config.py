"""What the config of a background job is checked with, and the prompts it has where none were given.

Each kind of job has a dataclass of its own (``CalibrationConfig``, ``StatisticsConfig``); here is what they share.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from .store import StoreError, abbreviated, clean_name

__all__ = ["DEFAULT_PROMPTS", "checked_fields", "number"]

DEFAULT_PROMPTS = tuple(
    line for line in (Path(__file__).parent / "prompts.txt").read_text(encoding="utf-8").splitlines() if line.strip()
)

MAX_PROMPTS = 4096

_EXTRA_NETWORK = re.compile(r"<\w+:[^>]+>")
"""How prompts of the WebUI call a LoRA and the like."""


def checked_fields(
    kind: type, values: Mapping[str, Any], reserved: Collection[str], whole: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    """Check the fields that every kind of job has: its name, whole numbers, the size of the pictures, the prompts.

    Args:
        kind: the job's dataclass, which says what fields there are.
        values: what was given, by name of field.
        reserved: names that mean something else in menus.
        whole: lowest and highest value of each field that is a whole number.

    Returns:
        The checked values of those fields that were given.

    Raises:
        StoreError: naming the field, its value and what is allowed.
    """
    known = {each.name for each in fields(kind)}
    for name in values:
        if name not in known:
            raise StoreError(f"unknown field {abbreviated(name)}; the fields are {', '.join(sorted(known))}")
    if "name" not in values:
        raise StoreError("name is missing")
    checked: dict[str, Any] = {"name": clean_name(values["name"], reserved)}
    for name, (low, high) in whole.items():
        if name in values:
            checked[name] = number(name, values[name], low, high, whole=True)
    for name in ("width", "height"):
        if checked.get(name, 512) % 8:
            raise StoreError(f"{name} must be a multiple of 8, got {checked[name]}")
    if "prompts" in values:
        checked["prompts"] = _prompts(values["prompts"])
    if "negative" in values:
        if not isinstance(values["negative"], str):
            raise StoreError(f"negative must be a text, got {abbreviated(values['negative'])}")
        checked["negative"] = values["negative"].strip()
    for name in ("prompts", "negative"):
        _check_networks(name, checked.get(name, ()))
    return checked


def _check_networks(name: str, prompts: str | Sequence[str]) -> None:
    for prompt in [prompts] if isinstance(prompts, str) else prompts:
        if _EXTRA_NETWORK.search(prompt):
            raise StoreError(
                f"{name} must not call extra networks, as what is made is of the checkpoint alone; got "
                f"{abbreviated(prompt)}"
            )


def number(name: str, value: Any, low: float, high: float, whole: bool = False) -> Any:
    """A number, or the text of one. Raises StoreError: naming the field, its value and what is allowed."""
    allowed = f"{name} must be a {'whole ' if whole else ''}number from {low} to {high}, got {abbreviated(value)}"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise StoreError(allowed)
    try:
        found = float(value)
    except (ValueError, OverflowError):
        raise StoreError(allowed) from None
    if not low <= found <= high or (whole and not found.is_integer()):
        raise StoreError(allowed)
    return int(found) if whole else found


def _prompts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.splitlines()
    if not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise StoreError(f"prompts must be texts, or one text with a prompt on each line, got {abbreviated(value)}")
    found = tuple(" ".join(each.split()) for each in value if each.strip())
    if not 1 <= len(found) <= MAX_PROMPTS:
        raise StoreError(f"prompts must be 1 to {MAX_PROMPTS}, got {len(found)}")
    return found
