"""A folder in which people keep named things, one small JSON file each.

There is no other state: what another process changed is seen at once. An interrupted write leaves the file as it was,
and a file that cannot be read is left as it is and told of; nothing is ever written over it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import reprlib
import threading
import time
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Optional, Protocol, TypeVar

__all__ = [
    "MAX_FILE",
    "MAX_NAME",
    "RESERVED",
    "Item",
    "Reader",
    "Store",
    "StoreError",
    "abbreviated",
    "clean_name",
    "write_atomically",
]

MAX_FILE = 4 * 2**20
MAX_NAME = 60

RESERVED = ("Auto", "Off")
"""Names that mean something else in the menus of calibrations and statistics."""


class StoreError(ValueError):
    """A file or a name that cannot be kept or used; the message is for people."""


class Item(Protocol):
    """What a store keeps: a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...

    def to_json(self) -> str: ...


T = TypeVar("T", bound=Item)


def abbreviated(value: Any) -> str:
    """A value as messages show it, cut short whatever it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    try:
        text = short.repr(value)
    except ValueError:  # Python refuses to write out huge whole numbers
        text = "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."


def parse_json(text: str, kind: str, form: str, version: int) -> dict[str, Any]:
    """The object in a file's text, of the right format and version.

    Raises:
        StoreError: it is none.
    """
    if not isinstance(text, str) or len(text) > MAX_FILE:
        raise StoreError(f"not a JSON file: it must be a text of at most {MAX_FILE >> 20} MB")
    try:
        # some editors begin a file with a byte order mark
        data = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"not a JSON file: {str(error)[:80]}") from None
    if not isinstance(data, dict) or data.get("format") != form:
        raise StoreError(f"not a {kind} of HP Sampler: format must be {form!r}")
    given = data.get("version")
    if type(given) is not int or given != version:
        raise StoreError(f"version must be {version}, got {abbreviated(given)}; update HP Sampler to read it")
    return data


class Reader:
    """Typed access to parsed JSON, with the path of each field in the messages."""

    def __init__(self, data: Any, path: str = "") -> None:
        self.data, self.path = data, path

    def at(self, name: str) -> Reader:
        path = f"{self.path}.{name}" if self.path else name
        if not isinstance(self.data, dict):
            raise self.error(f"an object that has {name}")
        if name not in self.data:
            raise StoreError(f"{path} is missing")
        return Reader(self.data[name], path)

    def error(self, allowed: str) -> StoreError:
        return StoreError(f"{self.path} must be {allowed}, got {abbreviated(self.data)}")

    def text(self, name: str = "") -> str:
        here = self.at(name) if name else self
        if (
            not isinstance(here.data, str)
            or not here.data.strip()
            or len(here.data) > 4096
            or has_lone_surrogate(here.data)
        ):
            raise here.error("a text of 1 to 4096 characters")
        return here.data

    def number(self, name: str, low: float, high: float) -> float:
        return (self.at(name) if name else self).as_number(low, high)

    def as_number(self, low: float, high: float) -> float:
        right = isinstance(self.data, (int, float)) and not isinstance(self.data, bool)
        if not right or not low <= self.data <= high:
            raise self.error(f"a number from {low:g} to {high:g}")
        return float(self.data)

    def whole(self, name: str, low: int, high: int) -> int:
        here = self.at(name)
        if not isinstance(here.data, int) or isinstance(here.data, bool) or not low <= here.data <= high:
            raise here.error(f"a whole number from {low} to {high}")
        return here.data

    def items(self, name: str, read: Callable[[Reader], Any], most: int = 4096) -> list[Any]:
        here = self.at(name)
        if not isinstance(here.data, list) or len(here.data) > most:
            raise here.error(f"a list of at most {most}")
        return [read(Reader(value, f"{here.path}[{index}]")) for index, value in enumerate(here.data)]

    def numbers(self, name: str, low: float, high: float) -> tuple[float, ...]:
        return tuple(self.items(name, lambda row: row.as_number(low, high)))


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds halves of surrogate pairs, which JSON can say and no page can show."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def clean_name(name: str, reserved: Collection[str] = ()) -> str:
    """A name as it may be kept.

    Raises:
        StoreError: empty, too long, with characters that a picture's text does not carry, or one of ``reserved``.
    """
    given = name
    # one spelling of what looks the same
    name = unicodedata.normalize("NFC", " ".join(name.split())) if isinstance(name, str) else ""
    # marks are vowels in some scripts
    allowed = all(each.isalnum() or each in "_ .()+-" or unicodedata.category(each)[0] == "M" for each in name)
    if not allowed or not 1 <= len(name) <= MAX_NAME or not name[0].isalnum():
        raise StoreError(
            f"name must be 1 to {MAX_NAME} letters, digits, blanks or . ( ) + - _, and begin with a letter or digit; "
            f"got {abbreviated(given)}"
        )
    if name.lower() in {each.lower() for each in reserved}:
        raise StoreError(f"name must be one that has no other meaning here, got {name!r}")
    return name


class Store(ABC, Generic[T]):
    """The things in a folder. A subclass says what they are, and how one is read."""

    kind: ClassVar[str]
    """What people call one of them."""

    reserved: ClassVar[tuple[str, ...]] = ()
    """Names that none may have, as they mean something else in menus; in any case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    @abstractmethod
    def parse(text: str) -> T:
        """One of them from a file's text.

        Raises:
            StoreError: naming the field, its value and what is allowed.
        """

    def read(self) -> tuple[list[T], list[str]]:
        """All of them by name, and a sentence for every file that cannot be read; such a file is left as it is."""
        found: dict[str, T] = {}
        problems = []
        for path, item in self._files():
            if isinstance(item, StoreError):
                problems.append(f"{path.name}: {item}")
            elif item.name in found:
                problems.append(f"{path.name}: another file holds a {self.kind} named {item.name!r}")
            else:
                found[item.name] = item
        return sorted(found.values(), key=lambda each: each.name.lower()), problems

    def names(self) -> list[str]:
        return [item.name for item in self.read()[0]]

    def get(self, name: str) -> T:
        """The one of that name.

        Raises:
            StoreError: there is none.
        """
        items = self.read()[0]
        for item in items:
            if item.name == name:
                return item
        listed = ", ".join(item.name for item in items) or "none yet"
        raise StoreError(f"there is no {self.kind} named {name!r}; there are: {listed}")

    def save(self, item: T, replacing: bool = False) -> T:
        """Write it; where its name is taken (and not ``replacing``) under the next free one, which it returns.

        Raises:
            StoreError: a name or a value that could not be read again.
            OSError: the folder cannot be written.
        """
        with _WRITING:
            name = clean_name(item.name, self.reserved)
            if not replacing:
                name = self.free_name(name, self.names())
            item = replace(item, name=name)
            text = item.to_json()
            self.parse(text)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path_of(name) or self._new_path(name), text)
        return item

    def rename(self, name: str, new_name: str) -> T:
        """Raises StoreError: no such one, or the new name is taken or cannot be kept."""
        with _WRITING:
            item, new_name = self.get(name), clean_name(new_name, self.reserved)
            if new_name != name and new_name in self.names():
                raise StoreError(f"name must be a new one; there is a {self.kind} named {new_name!r} already")
            item = replace(item, name=new_name)
            write_atomically(self._path_of(name) or self._new_path(new_name), item.to_json())
        return item

    def delete(self, name: str) -> None:
        """Raises StoreError: no such one."""
        with _WRITING:
            self.get(name)
            path = self._path_of(name)
            if path is not None:
                path.unlink(missing_ok=True)

    def import_json(self, text: str) -> T:
        """Import one from the text of another one's file. Raises StoreError: see :meth:`parse`."""
        return self.save(self.parse(text))

    def _files(self) -> Iterator[tuple[Path, T | StoreError]]:
        """Every file with what it holds, or why it cannot be read."""
        for path in sorted(self.folder.glob("*.json")):
            try:
                yield path, self.parse(_text_of(path))
            except FileNotFoundError:
                continue  # deleted since the folder was listed
            except (OSError, UnicodeError) as error:
                yield path, StoreError(f"cannot be read: {getattr(error, 'strerror', None) or error}")
            except StoreError as error:
                yield path, error

    def _path_of(self, name: str) -> Optional[Path]:
        return next(
            (path for path, each in self._files() if not isinstance(each, StoreError) and each.name == name), None
        )

    def _new_path(self, name: str) -> Path:
        stem = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or self.kind
        if re.fullmatch(r"con|prn|aux|nul|(com|lpt)\d", stem):
            stem = f"{self.kind}-{stem}"  # Windows takes these for devices
        # on some systems two names that differ in case are one file
        taken = {path.stem.lower() for path in self.folder.glob("*.[jJ][sS][oO][nN]")}
        return self.folder / f"{self.free_name(stem, taken, '-')}.json"

    @staticmethod
    def free_name(name: str, taken: Collection[str], joint: str = " ") -> str:
        """``name``, or with the first number that is not taken, no longer than a name may be."""
        numbered = (f"{joint}{number}" for number in range(2, len(taken) + 3))
        names = (name[: MAX_NAME - len(end)].rstrip() + end for end in numbered)
        return name if name not in taken else next(each for each in names if each not in taken)


def _text_of(path: Path) -> str:
    if not path.is_file() and path.exists():
        raise StoreError("not a file")
    if path.stat().st_size > MAX_FILE:
        raise StoreError(f"the file must be at most {MAX_FILE >> 20} MB")
    return path.read_text(encoding="utf-8")


_WRITING = threading.RLock()
"""One at a time, so that two threads never choose the same free name."""


def write_atomically(path: Path, text: str) -> None:
    """So that an interrupted write leaves the file as it was."""
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        _replaced(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _replaced(part: Path, path: Path, patience: int = 10) -> None:
    for left in reversed(range(patience)):
        try:
            return os.replace(part, path)
        except PermissionError:
            # Windows refuses while somebody reads the file
            if not left:
                raise
            time.sleep(0.02)
