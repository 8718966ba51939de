"""A folder of named items that users save, each in a small JSON file.

There is no other state, so changes by another process are seen at once. Only one process writes at a time, so that none
overwrites what another has saved. An interrupted write leaves the file as it was.
A file that cannot be read is reported and left as it is; it is never overwritten.
"""

from __future__ import annotations

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Optional, Protocol, TypeVar

from .checks import abbreviated
from .files import locked, write_atomically

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
]

MAX_FILE = 4 * 2**20
MAX_NAME = 60

RESERVED = ("Auto", "Off")
"""Names that mean something else in the menus of calibrations and statistics."""


class StoreError(ValueError):
    """A file, name or value that cannot be stored or used; the message is meant for the user."""


class Item(Protocol):
    """What a store holds: a frozen dataclass with a name and a JSON form."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...

    def to_json(self) -> str: ...


T = TypeVar("T", bound=Item)


def parse_json(text: str, kind: str, form: str, version: int) -> dict[str, Any]:
    """The object in a file's text, after a check of its format and version, which is ``version`` or an earlier one.

    Raises:
        StoreError: the text is not such an object.
    """
    if not isinstance(text, str) or len(text) > MAX_FILE:
        raise StoreError(f"not a JSON file: it must be text of at most {MAX_FILE >> 20} MB")
    try:
        # some editors put a byte order mark at the beginning
        data = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"not a JSON file: {str(error)[:80]}") from None
    if not isinstance(data, dict) or data.get("format") != form:
        raise StoreError(f"not a {kind} of HP Sampler: format must be {form!r}")
    given = data.get("version")
    if type(given) is not int or not 1 <= given <= version:
        allowed = "1" if version == 1 else f"1 to {version}"
        raise StoreError(f"version must be {allowed}, got {abbreviated(given)}; update HP Sampler to read it")
    return data


class Reader:
    """Typed access to parsed JSON; messages name the field by its path. All methods raise StoreError."""

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
        field = self.at(name) if name else self
        if (
            not isinstance(field.data, str)
            or not field.data.strip()
            or len(field.data) > 4096
            or has_lone_surrogate(field.data)
        ):
            raise field.error("a text of 1 to 4096 characters")
        return field.data

    def number(self, name: str, low: float, high: float) -> float:
        return (self.at(name) if name else self).as_number(low, high)

    def as_number(self, low: float, high: float) -> float:
        is_number = isinstance(self.data, (int, float)) and not isinstance(self.data, bool)
        if not is_number or not low <= self.data <= high:
            raise self.error(f"a number from {low:g} to {high:g}")
        return float(self.data)

    def whole(self, name: str, low: int, high: int) -> int:
        field = self.at(name)
        if not isinstance(field.data, int) or isinstance(field.data, bool) or not low <= field.data <= high:
            raise field.error(f"a whole number from {low} to {high}")
        return field.data

    def items(self, name: str, read: Callable[[Reader], Any], most: int = 4096) -> list[Any]:
        field = self.at(name)
        if not isinstance(field.data, list) or len(field.data) > most:
            raise field.error(f"a list of at most {most}")
        return [read(Reader(value, f"{field.path}[{index}]")) for index, value in enumerate(field.data)]

    def numbers(self, name: str, low: float, high: float) -> tuple[float, ...]:
        return tuple(self.items(name, lambda row: row.as_number(low, high)))


def has_lone_surrogate(text: str) -> bool:
    """Whether a text has halves of surrogate pairs, which JSON can express but no page can display."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def clean_name(name: str, reserved: Collection[str] = ()) -> str:
    """A name in the form in which it is stored.

    Raises:
        StoreError: it is empty, too long, one of ``reserved``, or has characters that a picture's infotext cannot hold.
    """
    given = name
    # names that look the same are spelled the same
    name = unicodedata.normalize("NFC", " ".join(name.split())) if isinstance(name, str) else ""
    # combining marks are allowed, as some scripts write vowels with them
    allowed = all(char.isalnum() or char in "_ .()+-" or unicodedata.category(char)[0] == "M" for char in name)
    if not allowed or not 1 <= len(name) <= MAX_NAME or not name[0].isalnum():
        raise StoreError(
            f"name must be 1 to {MAX_NAME} letters, digits, blanks or . ( ) + - _, and begin with a letter or digit; "
            f"got {abbreviated(given)}"
        )
    if name.lower() in {word.lower() for word in reserved}:
        raise StoreError(f"name must be one that has no other meaning here, got {name!r}")
    return name


class Store(ABC, Generic[T]):
    """The items in a folder. A subclass defines what they are and how one is read."""

    kind: ClassVar[str]
    """The user's word for an item."""

    reserved: ClassVar[tuple[str, ...]] = ()
    """Names that no item may have, in upper or lower case, as they mean something else in menus."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    @abstractmethod
    def parse(text: str) -> T:
        """An item from a file's text.

        Raises:
            StoreError: naming the field, its value and what is allowed.
        """

    def read(self) -> tuple[list[T], list[str]]:
        """All items sorted by name, and a sentence for every file that cannot be read."""
        items: dict[str, T] = {}
        problems = []
        for path, item in self._files():
            if isinstance(item, StoreError):
                problems.append(f"{path.name}: {item}")
            elif item.name in items:
                problems.append(f"{path.name}: another file holds a {self.kind} named {item.name!r}")
            else:
                items[item.name] = item
        return sorted(items.values(), key=lambda item: item.name.lower()), problems

    def names(self) -> list[str]:
        return [item.name for item in self.read()[0]]

    def get(self, name: str) -> T:
        """The item of that name.

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
        """Write an item; unless ``replacing``, it gets the next free name if its own is taken.

        Returns:
            The item, with the name under which it was stored.

        Raises:
            StoreError: a name or a value that could not be read back.
            OSError: the folder cannot be written.
        """
        name = clean_name(item.name, self.reserved)
        # before the folder is made
        self.parse(replace(item, name=name).to_json())
        with locked(self.folder):
            while True:
                item = replace(item, name=name if replacing else self.free_name(name, self.names()))
                path = self._path_of(item.name)
                try:
                    write_atomically(path or self._new_path(item.name), item.to_json(), new=path is None)
                except FileExistsError:
                    continue  # a program that knows nothing of locks was quicker
                return item

    def rename(self, name: str, new_name: str) -> T:
        """Rename an item. Raises StoreError: there is no such item, or the new name is taken or not allowed."""
        new_name = clean_name(new_name, self.reserved)
        self.get(name)
        with locked(self.folder):
            item = self.get(name)
            if new_name != name and new_name in self.names():
                raise StoreError(f"name must be a new one; there is a {self.kind} named {new_name!r} already")
            item = replace(item, name=new_name)
            write_atomically(self._path_of(name) or self._new_path(new_name), item.to_json())
        return item

    def delete(self, name: str) -> None:
        """Delete an item. Raises StoreError: there is no such item."""
        self.get(name)
        with locked(self.folder):
            self.get(name)
            path = self._path_of(name)
            if path is not None:
                path.unlink(missing_ok=True)

    def import_json(self, text: str) -> tuple[T, str]:
        """Add the item in the text of a file, unless it is here already under whatever name.

        Returns:
            The item as it is kept, and what must be said of that: that it was here, or that it got another name.

        Raises:
            StoreError: see :meth:`parse`.
        """
        given = self.parse(text)
        for kept in self.read()[0]:
            if replace(kept, name=given.name) == given:
                return kept, f"the {self.kind} in that file is here already, as {kept.name!r}; nothing was added"
        kept = self.save(given)
        if kept.name == given.name:
            return kept, ""
        return kept, (
            f"the {self.kind} in that file is kept as {kept.name!r}, as {given.name!r} is the name of another one here"
        )

    def _files(self) -> Iterator[tuple[Path, T | StoreError]]:
        """Every file with its item, or with the error that says why it cannot be read."""
        for path in sorted(self.folder.glob("*.json")):
            try:
                yield path, self.parse(_read_text(path))
            except FileNotFoundError:
                continue  # deleted since the folder was listed
            except (OSError, UnicodeError) as error:
                yield path, StoreError(f"cannot be read: {getattr(error, 'strerror', None) or error}")
            except StoreError as error:
                yield path, error

    def _path_of(self, name: str) -> Optional[Path]:
        return next(
            (path for path, item in self._files() if not isinstance(item, StoreError) and item.name == name), None
        )

    def _new_path(self, name: str) -> Path:
        stem = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or self.kind
        if re.fullmatch(r"con|prn|aux|nul|(com|lpt)\d", stem):
            stem = f"{self.kind}-{stem}"  # on Windows these are devices
        # on some systems names that differ only in case are the same file
        taken = {path.stem.lower() for path in self.folder.glob("*.[jJ][sS][oO][nN]")}
        return self.folder / f"{self.free_name(stem, taken, '-')}.json"

    @staticmethod
    def free_name(name: str, taken: Collection[str], joint: str = " ", folded: bool = False) -> str:
        """``name``, or if it is taken, ``name`` with the first free number, shortened to MAX_NAME characters.

        Args:
            folded: whether a name that differs from another only in case counts as taken, as it does for names of files
                on some systems.
        """
        form: Callable[[str], str] = str.casefold if folded else str
        used = {form(each) for each in taken}
        numbers = (f"{joint}{number}" for number in range(2, len(used) + 3))
        numbered = (name[: MAX_NAME - len(number)].rstrip() + number for number in numbers)
        return name if form(name) not in used else next(other for other in numbered if form(other) not in used)


def _read_text(path: Path) -> str:
    if not path.is_file() and path.exists():
        raise StoreError("not a file")
    if path.stat().st_size > MAX_FILE:
        raise StoreError(f"the file must be at most {MAX_FILE >> 20} MB")
    return path.read_text(encoding="utf-8")
