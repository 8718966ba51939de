"""What was begun and has not ended: a folder for each job, with its description (``order.json``) and what is paid for.

Programs that share the folder see each other's jobs, and only one works on a job at a time.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from .files import LOCK, FolderBusy, held, locked, sweep, write_atomically
from .store import Store, StoreError

__all__ = ["JobConfig", "UnfinishedJob", "UnfinishedJobs", "started_with_another_model", "values_of"]

DESCRIPTION = "order.json"


class JobConfig(Protocol):
    """What the descriptions of all kinds of jobs have in common; they are frozen dataclasses."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...


C = TypeVar("C", bound=JobConfig)


@dataclass(frozen=True)
class UnfinishedJob(Generic[C]):
    """A job that was started and has not ended."""

    config: C
    model: str
    folder: Path

    @property
    def name(self) -> str:
        return self.config.name


class UnfinishedJobs(Generic[C]):
    """The unfinished jobs of one kind.

    Args:
        folder: where the results are kept; what is unfinished lies in ``unfinished`` inside.
        config_of: makes a config of named values; raises StoreError.
    """

    def __init__(self, folder: Path, config_of: Callable[[Mapping[str, Any]], C]) -> None:
        self.results, self.folder, self.config_of = folder, folder / "unfinished", config_of

    def read(self) -> list[UnfinishedJob[C]]:
        """All of them. A folder that cannot be read is left out, and left as it is."""
        found = []
        for path in sorted(self.folder.glob(f"*/{DESCRIPTION}")):
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                found.append(UnfinishedJob(self.config_of(data["order"]), str(data["model"]), path.parent))
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
        return found

    def names(self) -> list[str]:
        return [each.name for each in self.read()]

    def get(self, name: str) -> UnfinishedJob[C]:
        """The one of that name. Raises StoreError: there is none."""
        for each in self.read():
            if each.name == name:
                return each
        raise StoreError(f"nothing unfinished is named {name!r}; there are: {', '.join(self.names()) or 'none'}")

    def begin(self, config: C, model: str, finished: Callable[[], Collection[str]], fresh: bool) -> UnfinishedJob[C]:
        """The job of that config, made where it is new.

        Args:
            model: name of the model that it works on.
            finished: names of the results.
            fresh: whether it is to be a new one, which gets the next free name where another program took its own.

        Raises:
            StoreError: it was begun with another model.
            OSError: the folder cannot be written.
        """
        with locked(self.results):
            left = self.read()
            if fresh:
                taken = {*finished(), *(each.name for each in left)}
                config = self.config_of({**values_of(config), "name": Store.free_name(config.name, taken, folded=True)})
            for each in left:
                if each.name == config.name:
                    if each.model != model:
                        raise started_with_another_model(each.model, model)
                    sweep(each.folder)
                    return each
            stems = {path.name for path in self.folder.glob("*")}
            stem = re.sub(r"[^A-Za-z0-9]+", "-", config.name).strip("-").lower() or "job"
            job = UnfinishedJob(config, model, self.folder / Store.free_name(stem, stems, "-"))
            job.folder.mkdir(parents=True)
            _write(job)
            return job

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[None]:
        """Keep other programs from working on the job of that name, if there is one.

        Raises:
            StoreError: one of them does.
            OSError: its folder cannot be written.
        """
        folders = [each.folder for each in self.read() if each.name == name]
        if not folders:
            yield
            return
        try:
            with held(folders[0] / LOCK):
                yield
        except FolderBusy:
            raise StoreError(f"{name!r} is under way in another WebUI, which shares this folder") from None
        finally:
            # on Windows only what is not held any more can be removed
            if not (folders[0] / DESCRIPTION).exists():
                shutil.rmtree(folders[0], ignore_errors=True)

    def forget(self, name: str) -> None:
        """Forget the job of that name, which must be claimed; its folder goes with the claim."""
        for each in self.read():
            if each.name == name:
                (each.folder / DESCRIPTION).unlink(missing_ok=True)

    def rename(self, name: str, new_name: str) -> None:
        """Rename the job of that name, which must be claimed, if there is one."""
        for each in self.read():
            if each.name == name:
                config = self.config_of({**values_of(each.config), "name": new_name})
                _write(UnfinishedJob(config, each.model, each.folder))


def started_with_another_model(begun: str, loaded: str) -> StoreError:
    return StoreError(
        f"it was begun with the model {begun}, and {loaded} is loaded now; load the first again, then resume"
    )


def values_of(config: JobConfig) -> dict[str, Any]:
    """The values that describe a config, as JSON has them."""
    found = asdict(config)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _write(job: UnfinishedJob[Any]) -> None:
    text = json.dumps({"order": values_of(job.config), "model": job.model}, indent=1)
    write_atomically(job.folder / DESCRIPTION, text + "\n")
