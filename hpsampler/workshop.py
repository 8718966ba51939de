"""Where calibrations are made: one at a time, in a thread of its own; what is unfinished lies in files and survives.

Beside the library's profiles a folder ``unfinished`` holds one folder for each calibration that was begun and has not
ended: the order, and the reference endpoints that were paid for already. What is finished of it is a profile like any
other and in use.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

from .profiles import Library, Profile
from .shelf import ShelfError, write_atomically
from .tuning import Cancelled, Order, Progress, Source, Tuning

__all__ = ["Status", "Unfinished", "Workshop"]

IDLE, RUNNING, STOPPED, FINISHED, FAILED = "idle", "running", "stopped", "finished", "failed"

Turn = Callable[[Callable[[], Any]], Any]


@dataclass(frozen=True)
class Unfinished:
    """A calibration that was begun."""

    order: Order
    model: str
    folder: Path

    @property
    def name(self) -> str:
        return self.order.name


@dataclass(frozen=True)
class Status:
    """What the workshop does, for those who watch.

    Attributes:
        state: idle, running, stopped, finished or failed.
        message: a sentence for people.
        progress: of the latest calibration, also after its end.
    """

    state: str
    order: Optional[Order]
    message: str
    progress: Progress


class Workshop:
    """Carries out orders.

    Args:
        library: where profiles are kept.
        source: makes a source for an order, of the model that is loaded now.
        turns: for each order, what runs a function when it may use the model.
    """

    def __init__(
        self, library: Library, source: Callable[[Order], Source], turns: Callable[[], Turn] = lambda: _at_once
    ) -> None:
        self.library, self._source, self._turns = library, source, turns
        self._lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        self._tuning: Optional[Tuning] = None
        self._order: Optional[Order] = None
        self._state, self._message = IDLE, "Nothing was calibrated since the start."
        self._stopping = False

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def status(self) -> Status:
        tuning = self._tuning
        return Status(self._state, self._order, self._message, tuning.progress if tuning else Progress())

    def start(self, order: Order) -> Order:
        """Begin an order; where its name is taken it gets the next free one.

        Returns:
            The order as it is carried out.

        Raises:
            ShelfError: another one is under way.
            OSError: the folder cannot be written.
        """
        with self._lock:
            self._check_free()
            taken = {*self.library.names(), *(each.name for each in self.unfinished())}
            order = Order.of({**_values(order), "name": self.library.free_name(order.name, taken)})
            self._begin(order)
        return order

    def resume(self, name: str) -> Order:
        """Go on with an unfinished one. Raises ShelfError: none of that name, or another is under way."""
        with self._lock:
            self._check_free()
            order = self._unfinished(name).order
            self._begin(order)
        return order

    def stop(self, wait: Optional[float] = None) -> None:
        """Stop before the next call of the model; what is finished is kept, the rest can be resumed."""
        self._stopping = True
        if self._tuning is not None:
            self._tuning.cancel()
        if wait is not None and self._thread is not None:
            self._thread.join(wait)

    def wait(self, seconds: float) -> bool:
        """Whether nothing is under way any more after so long at most."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.running

    def unfinished(self) -> list[Unfinished]:
        """All that were begun and have not ended; a folder that cannot be read is left out, and left as it is."""
        found = []
        for path in sorted(self._folder.glob("*/order.json")):
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                found.append(Unfinished(Order.of(data["order"]), str(data["model"]), path.parent))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    def discard(self, name: str) -> None:
        """Forget an unfinished one; its profile, with what is finished, stays. Raises ShelfError."""
        self._check_not_running(name)
        shutil.rmtree(self._unfinished(name).folder)

    def rename(self, name: str, new_name: str) -> Profile:
        """Of a profile, and of what is unfinished of it. Raises ShelfError."""
        self._check_not_running(name)
        others = {each.name: each for each in self.unfinished()}
        if new_name in others:
            raise ShelfError(f"name must be a new one; an unfinished calibration is named {new_name!r}")
        profile = self.library.rename(name, new_name)
        if name in others:
            left = others[name]
            _write_order(left.folder, Order.of({**_values(left.order), "name": profile.name}), left.model)
        return profile

    def delete(self, name: str) -> None:
        """Of a profile, and of what is unfinished of it. Raises ShelfError."""
        self._check_not_running(name)
        self.library.delete(name)
        for each in self.unfinished():
            if each.name == name:
                shutil.rmtree(each.folder)

    @property
    def _folder(self) -> Path:
        return self.library.folder / "unfinished"

    def _unfinished(self, name: str) -> Unfinished:
        for each in self.unfinished():
            if each.name == name:
                return each
        listed = ", ".join(each.name for each in self.unfinished()) or "none"
        raise ShelfError(f"there is no unfinished calibration named {name!r}; there are: {listed}")

    def _check_free(self) -> None:
        if self.running:
            assert self._order is not None
            raise ShelfError(f"the calibration {self._order.name!r} is under way; stop it first, or let it end")

    def _check_not_running(self, name: str) -> None:
        if self.running and self._order is not None and self._order.name == name:
            raise ShelfError(f"the calibration {name!r} is under way; stop it first")

    def _begin(self, order: Order) -> None:
        self._order, self._tuning, self._stopping = order, None, False
        self._state, self._message = RUNNING, "Waiting for the model."
        self._thread = threading.Thread(target=self._work, args=(order,), name="HP Sampler calibration", daemon=True)
        self._thread.start()

    def _work(self, order: Order) -> None:
        turn = self._turns()
        try:
            source = turn(lambda: self._source(order))
            folder = self._folder_of(order, source)
            tuning = Tuning(order, source, self._kept(order, source), self._keep, folder, turn)
            self._tuning = tuning
            if self._stopping:
                tuning.cancel()
            self._message = f"Calibrating to {source.model_name}."
            profile = tuning.run()
            shutil.rmtree(folder)
            made, refused = len(profile.fitted), len(profile.refused)
            self._end(FINISHED, f"{order.name} is ready: {made} calibrated, {refused} refused.")
        except Cancelled:
            self._end(STOPPED, f"{order.name} was stopped; what is finished is in use, the rest can be resumed.")
        except ShelfError as error:
            self._end(FAILED, f"{order.name}: {error}.")
        except Exception as error:
            traceback.print_exc()
            self._end(FAILED, f"{order.name} failed: {error} ({type(error).__name__}). It can be resumed.")

    def _end(self, state: str, message: str) -> None:
        self._state, self._message = state, message

    def _keep(self, profile: Profile) -> None:
        self.library.save(profile, replacing=True)

    def _kept(self, order: Order, source: Source) -> Optional[Profile]:
        """What is finished of an order.

        Raises:
            ShelfError: it is of another model.
        """
        if order.name not in self.library.names():
            return None
        profile = self.library.get(order.name)
        if not set(profile.hashes) & set(source.hashes):
            raise ShelfError(
                f"it was begun with the model {profile.model}, and {source.model_name} is loaded now; load the first "
                "again, then resume"
            )
        return profile

    def _folder_of(self, order: Order, source: Source) -> Path:
        """The folder of an order, made where it is new. Raises ShelfError: it was begun with another model."""
        for each in self.unfinished():
            if each.name == order.name:
                if each.model != source.model_name:
                    raise ShelfError(
                        f"it was begun with the model {each.model}, and {source.model_name} is loaded now; load the "
                        "first again, then resume"
                    )
                return each.folder
        stem = re.sub(r"[^A-Za-z0-9]+", "-", order.name).strip("-").lower() or "calibration"
        folder = self._folder / self.library.free_name(stem, {path.name for path in self._folder.glob("*")}, "-")
        folder.mkdir(parents=True)
        _write_order(folder, order, source.model_name)
        return folder


def _at_once(work: Callable[[], Any]) -> Any:
    return work()


def _values(order: Order) -> Mapping[str, Any]:
    return {**asdict(order), "prompts": list(order.prompts)}


def _write_order(folder: Path, order: Order, model: str) -> None:
    text = json.dumps({"order": _values(order), "model": model}, indent=1)
    write_atomically(folder / "order.json", text + "\n")
