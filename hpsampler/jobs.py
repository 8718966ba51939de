"""Where calibrations and statistics are made: one at a time, in a thread of its own; what is unfinished lies in files.

Beside what is kept a folder ``unfinished`` holds one folder for each order that was begun and has not ended: the order,
and what was paid for already. What is finished of a calibration is a profile like any other and in use.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Optional, Protocol, TypeVar

from .measuring import Measuring, Survey
from .profiles import Library, Profile
from .shelf import Shelf, ShelfError, clean_name, write_atomically
from .statistics import RESERVED, StatisticsError, about, kept_in
from .statistics import Source as Origin
from .tuning import Cancelled, Job, Order, Progress, Source, Tuning

__all__ = ["CalibrationWorkshop", "StatisticsWorkshop", "Status", "Unfinished", "Workshop"]

IDLE, RUNNING, STOPPED, FINISHED, FAILED = "idle", "running", "stopped", "finished", "failed"

Turn = Callable[[Callable[[], Any]], Any]


class AnyOrder(Protocol):
    """What all orders have; frozen dataclasses."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...


O = TypeVar("O", bound=AnyOrder)  # noqa: E741 - one letter, as type variables are


@dataclass(frozen=True)
class Unfinished(Generic[O]):
    """An order that was begun."""

    order: O
    model: str
    folder: Path

    @property
    def name(self) -> str:
        return self.order.name


@dataclass(frozen=True)
class Status(Generic[O]):
    """What a workshop does, for those who watch.

    Attributes:
        state: idle, running, stopped, finished or failed.
        message: a sentence for people.
        progress: of the latest order, also after its end.
    """

    state: str
    order: Optional[O]
    message: str
    progress: Progress


class Workshop(ABC, Generic[O]):
    """Carries out orders. A subclass says of what kind.

    Args:
        folder: where what it makes is kept.
        source: makes a source for an order, of the model that is loaded now.
        turns: for each order, what runs a function when it may use the model.
    """

    kind: ClassVar[str]
    """What people call one of what it makes, with its article."""

    def __init__(
        self, folder: Path, source: Callable[[O], Source], turns: Callable[[], Turn] = lambda: _at_once
    ) -> None:
        self.folder, self._source, self._turns = folder, source, turns
        self._lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        self._job: Optional[Job] = None
        self._order: Optional[O] = None
        self._state, self._message = IDLE, "Nothing was begun since the start."
        self._stopping = False

    # ---- what a subclass says ----

    @staticmethod
    @abstractmethod
    def order_of(values: Mapping[str, Any]) -> O:
        """An order from named values. Raises ShelfError: naming the field, its value and what is allowed."""

    @abstractmethod
    def names(self) -> list[str]:
        """Of what is kept."""

    @abstractmethod
    def _begun(self, order: O, source: Source, folder: Path, turn: Turn) -> tuple[Job, Callable[[], str]]:
        """The job, and what does it and then says in a few words what came of it."""

    @abstractmethod
    def _renamed(self, name: str, new_name: str) -> str: ...

    @abstractmethod
    def _deleted(self, name: str) -> None: ...

    # ---- the rest ----

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def status(self) -> Status[O]:
        job = self._job
        return Status(self._state, self._order, self._message, job.progress if job else Progress())

    def start(self, order: O) -> O:
        """Begin an order; where its name is taken it gets the next free one.

        Returns:
            The order as it is carried out.

        Raises:
            ShelfError: another one is under way.
            OSError: the folder cannot be written.
        """
        with self._lock:
            self._check_free()
            taken = {*self.names(), *(each.name for each in self.unfinished())}
            order = self.order_of({**_values(order), "name": Shelf.free_name(order.name, taken)})
            self._begin(order)
        return order

    def resume(self, name: str) -> O:
        """Go on with an unfinished one. Raises ShelfError: none of that name, or another is under way."""
        with self._lock:
            self._check_free()
            order = self._unfinished(name).order
            self._begin(order)
        return order

    def stop(self, wait: Optional[float] = None) -> None:
        """Stop before the next call of the model; what is finished is kept, the rest can be resumed."""
        self._stopping = True
        if self._job is not None:
            self._job.cancel()
        if wait is not None and self._thread is not None:
            self._thread.join(wait)

    def wait(self, seconds: float) -> bool:
        """Whether nothing is under way any more after so long at most."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.running

    def unfinished(self) -> list[Unfinished[O]]:
        """All that were begun and have not ended; a folder that cannot be read is left out, and left as it is."""
        found = []
        for path in sorted(self._unfinished_folder.glob("*/order.json")):
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                found.append(Unfinished(self.order_of(data["order"]), str(data["model"]), path.parent))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    def discard(self, name: str) -> None:
        """Forget an unfinished one; what is finished of it stays. Raises ShelfError."""
        self._check_not_running(name)
        shutil.rmtree(self._unfinished(name).folder)

    def rename(self, name: str, new_name: str) -> str:
        """Of what is kept, and of what is unfinished of it; the name it has then. Raises ShelfError."""
        self._check_not_running(name)
        others = {each.name: each for each in self.unfinished()}
        if new_name in others:
            raise ShelfError(f"name must be a new one; an unfinished order is named {new_name!r}")
        new_name = self._renamed(name, new_name)
        if name in others:
            left = others[name]
            _write_order(left.folder, self.order_of({**_values(left.order), "name": new_name}), left.model)
        return new_name

    def delete(self, name: str) -> None:
        """Of what is kept, and of what is unfinished of it. Raises ShelfError."""
        self._check_not_running(name)
        self._deleted(name)
        for each in self.unfinished():
            if each.name == name:
                shutil.rmtree(each.folder)

    @property
    def _unfinished_folder(self) -> Path:
        return self.folder / "unfinished"

    def _unfinished(self, name: str) -> Unfinished[O]:
        for each in self.unfinished():
            if each.name == name:
                return each
        listed = ", ".join(each.name for each in self.unfinished()) or "none"
        raise ShelfError(f"nothing unfinished is named {name!r}; there are: {listed}")

    def _check_free(self) -> None:
        if self.running:
            assert self._order is not None
            raise ShelfError(f"{self._order.name!r} is under way; stop it first, or let it end")

    def _check_not_running(self, name: str) -> None:
        if self.running and self._order is not None and self._order.name == name:
            raise ShelfError(f"{name!r} is under way; stop it first")

    def _begin(self, order: O) -> None:
        self._order, self._job, self._stopping = order, None, False
        self._state, self._message = RUNNING, "Waiting for the model."
        self._thread = threading.Thread(target=self._work, args=(order,), name=f"HP Sampler {self.kind}", daemon=True)
        self._thread.start()

    def _work(self, order: O) -> None:
        turn = self._turns()
        try:
            source = turn(lambda: self._source(order))
            folder = self._folder_of(order, source)
            self._job, do = self._begun(order, source, folder, turn)
            if self._stopping:
                self._job.cancel()
            self._message = f"Making {self.kind} of {source.model_name}."
            made = do()
            shutil.rmtree(folder)
            self._end(FINISHED, f"{order.name} is ready: {made}.")
        except Cancelled:
            self._end(STOPPED, f"{order.name} was stopped; what is finished is kept, the rest can be resumed.")
        except ShelfError as error:
            self._end(FAILED, f"{order.name}: {error}.")
        except Exception as error:
            traceback.print_exc()
            self._end(FAILED, f"{order.name} failed: {error} ({type(error).__name__}). It can be resumed.")

    def _end(self, state: str, message: str) -> None:
        self._state, self._message = state, message

    def _folder_of(self, order: O, source: Source) -> Path:
        """The folder of an order, made where it is new. Raises ShelfError: it was begun with another model."""
        for each in self.unfinished():
            if each.name == order.name:
                if each.model != source.model_name:
                    raise _begun_with(each.model, source)
                return each.folder
        stem = re.sub(r"[^A-Za-z0-9]+", "-", order.name).strip("-").lower() or "order"
        taken = {path.name for path in self._unfinished_folder.glob("*")}
        folder = self._unfinished_folder / Shelf.free_name(stem, taken, "-")
        folder.mkdir(parents=True)
        _write_order(folder, order, source.model_name)
        return folder


class CalibrationWorkshop(Workshop[Order]):
    """Makes calibrations. ``profiles`` is where they are kept."""

    kind = "a calibration"

    def __init__(
        self, library: Library, source: Callable[[Order], Source], turns: Callable[[], Turn] = lambda: _at_once
    ) -> None:
        super().__init__(library.folder, source, turns)
        self.profiles = library

    @staticmethod
    def order_of(values: Mapping[str, Any]) -> Order:
        return Order.of(values)

    def names(self) -> list[str]:
        return self.profiles.names()

    def _begun(self, order: Order, source: Source, folder: Path, turn: Turn) -> tuple[Job, Callable[[], str]]:
        tuning = Tuning(order, source, self._kept(order, source), self._keep, folder, turn)

        def do() -> str:
            profile = tuning.run()
            return f"{len(profile.fitted)} calibrated, {len(profile.refused)} refused"

        return tuning, do

    def _renamed(self, name: str, new_name: str) -> str:
        return self.profiles.rename(name, new_name).name

    def _deleted(self, name: str) -> None:
        self.profiles.delete(name)

    def _keep(self, profile: Profile) -> None:
        self.profiles.save(profile, replacing=True)

    def _kept(self, order: Order, source: Source) -> Optional[Profile]:
        """What is finished of an order.

        Raises:
            ShelfError: it is of another model.
        """
        if order.name not in self.names():
            return None
        profile = self.profiles.get(order.name)
        if not set(profile.hashes) & set(source.hashes):
            raise _begun_with(profile.model, source)
        return profile


class StatisticsWorkshop(Workshop[Survey]):
    """Makes statistics for DPM-Solver-v3, one file each in ``folder``."""

    kind = "statistics"

    @staticmethod
    def order_of(values: Mapping[str, Any]) -> Survey:
        return Survey.of(values)

    def names(self) -> list[str]:
        return list(kept_in(self.folder))

    def _begun(self, order: Survey, source: Source, folder: Path, turn: Turn) -> tuple[Job, Callable[[], str]]:
        measuring = Measuring(order, source, folder, turn)

        def do() -> str:
            found = measuring.run()
            found.save(self._path_of(order.name))
            return f"{found.source.samples} pictures' trajectories, {len(found.lambdas)} grid points"

        return measuring, do

    def about(self, name: str) -> tuple[Origin, tuple[int, ...]]:
        """Where one of those that are kept comes from, and its shape. Raises ShelfError: none such, or unreadable."""
        try:
            return about(self._kept_path(name))
        except StatisticsError as error:
            raise ShelfError(str(error)) from None

    def _path_of(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _renamed(self, name: str, new_name: str) -> str:
        path, new_name = self._kept_path(name), clean_name(new_name, RESERVED)
        if new_name != name and new_name in self.names():
            raise ShelfError(f"name must be a new one; there are statistics named {new_name!r} already")
        path.rename(self.folder / new_name if path.is_dir() else self._path_of(new_name))
        return new_name

    def _deleted(self, name: str) -> None:
        path = self._kept_path(name)
        if path.is_dir():
            raise ShelfError(f"{name!r} is a folder in the published layout; delete it where it lies: {path}")
        path.unlink()

    def _kept_path(self, name: str) -> Path:
        kept = kept_in(self.folder)
        if name not in kept:
            raise ShelfError(f"there are no statistics named {name!r}; there are: {', '.join(kept) or 'none yet'}")
        return kept[name]


def _begun_with(model: str, source: Source) -> ShelfError:
    return ShelfError(
        f"it was begun with the model {model}, and {source.model_name} is loaded now; load the first again, then resume"
    )


def _at_once(work: Callable[[], Any]) -> Any:
    return work()


def _values(order: AnyOrder) -> dict[str, Any]:
    found = asdict(order)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _write_order(folder: Path, order: AnyOrder, model: str) -> None:
    text = json.dumps({"order": _values(order), "model": model}, indent=1)
    write_atomically(folder / "order.json", text + "\n")
