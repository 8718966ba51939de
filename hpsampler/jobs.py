"""Background jobs on the loaded model: how one is described, run one at a time, stopped, resumed and kept.

A job is described by a frozen dataclass (``CalibrationConfig``, ``StatisticsConfig``), works on a :class:`ModelSource`
(the WebUI's checkpoint, or the small model of the demo), and is carried out by a :class:`JobRunner` in a thread of its
own. What has been started and has not ended is kept, see :mod:`~hpsampler.unfinished`.
"""

from __future__ import annotations

import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Optional, Protocol, TypeVar

import torch

from .devices import finish
from .files import CannotWrite
from .store import Store, StoreError
from .unfinished import JobConfig, UnfinishedJob, UnfinishedJobs, values_of

if TYPE_CHECKING:
    from .noise import NoiseModel
    from .solvers._core import Model

__all__ = [
    "Cancelled", "Exclusively", "Job", "JobConfig", "JobRunner", "ModelSource", "Progress", "Status", "Timed",
    "at_once",
]  # fmt: skip


class Cancelled(Exception):
    """Somebody asked the job to stop."""


class ModelSource(Protocol):
    """The model that a job works on."""

    model_name: str
    hashes: tuple[str, ...]
    family: str
    noise: NoiseModel

    def denoiser(self, prompts: Sequence[str], negative: str, cfg_scale: float) -> Model:
        """The guided denoiser of as many trajectories as prompts; makes one batch of calls at a time."""

    def start(self, seeds: Sequence[int], width: int, height: int) -> torch.Tensor:
        """Unit noise of each seed's own generator, (n, channels, h, w)."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as pictures (n, 3, height, width), values from 0 to 1."""


@dataclass
class Progress:
    """Where a job stands; written by the job's thread, read by whoever watches.

    Attributes:
        calls: UNet calls made so far, each for one picture; ``of`` is the largest number there can be.
        seconds: time spent in those calls.
        cell: guidance scales and number of steps under way; None before the first and after the last.
        curve: (runs of the sampler, error) of the cell under way, and ``lines`` what it is compared to.
        log: sentences for people, the newest last.
    """

    calls: int = 0
    of: int = 0
    seconds: float = 0.0
    cell: Optional[tuple[tuple[float, ...], int]] = None
    curve: list[tuple[float, float]] = field(default_factory=list)
    lines: dict[str, float] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    cancelled: bool = False

    @property
    def seconds_left(self) -> Optional[float]:
        """An upper bound; None before the first call has been timed."""
        return self.seconds / self.calls * max(self.of - self.calls, 0) if self.calls else None


Exclusively = Callable[[Callable[[], Any]], Any]
"""Runs a function while nobody else uses the model, for example between two pictures of the WebUI's queue."""


def at_once(work: Callable[[], Any]) -> Any:
    """An :data:`Exclusively` for a model that nobody else uses."""
    return work()


class Job:
    """Calls the model when it is free, counts and times those calls, and can be cancelled between them.

    Args:
        exclusively: how the job gets the model to itself.
    """

    progress: Progress

    def __init__(self, exclusively: Exclusively) -> None:
        self.exclusively = exclusively

    def cancel(self) -> None:
        """Stop before the next call of the model."""
        self.progress.cancelled = True

    def _counted(self, model: Model) -> Model:
        def call(x: torch.Tensor, sigma: torch.Tensor, /, **extra_args: Any) -> torch.Tensor:
            def work() -> torch.Tensor:
                # the time spent waiting for the model is not the model's
                began = time.perf_counter()
                denoised = finish(model(x, sigma, **extra_args))
                self.progress.seconds += time.perf_counter() - began
                self.progress.calls += len(x)
                return denoised

            return self._on_model(work)

        return call

    def _on_model(self, work: Callable[[], Any]) -> Any:
        """One use of the model, unless it was cancelled before or while waiting."""

        def checked() -> Any:
            self._check_cancelled()
            # inside the function, which ``exclusively`` may run in another thread
            with torch.no_grad():
                return work()

        self._check_cancelled()
        return self.exclusively(checked)

    def _check_cancelled(self) -> None:
        if self.progress.cancelled:
            raise Cancelled


IDLE, RUNNING, STOPPED, FINISHED, FAILED = "idle", "running", "stopped", "finished", "failed"

POLL_SECONDS = 0.2
"""How often a job that waits for another looks whether it is to stop."""


C = TypeVar("C", bound=JobConfig)


@dataclass(frozen=True)
class Status(Generic[C]):
    """What a runner is doing, for whoever watches.

    Attributes:
        state: idle, running, stopped, finished or failed.
        message: a sentence for people.
        progress: of the latest job, also after its end.
        began: when the latest job was started or resumed, on the clock of :func:`time.monotonic`; 0 before the first.
        stopping: whether it was asked to stop and has not yet.
        before: of the job whose end this one waits for, or waited for.
    """

    state: str
    config: Optional[C]
    message: str
    progress: Progress
    began: float = 0.0
    stopping: bool = False
    before: Optional[Status[Any]] = None


@dataclass(frozen=True)
class Timed(Generic[C]):
    """How long one UNet call for one picture took, in seconds, in the job of that config on that model."""

    config: C
    model: str
    seconds: float


class JobRunner(ABC, Generic[C]):
    """Runs the jobs of one kind, one at a time. A subclass says which kind.

    Args:
        folder: where the results are kept.
        source: makes the source for a job from the model that is loaded now.
        queue: makes, for each job, its way to get the model to itself.
    """

    kind: ClassVar[str]
    """What people call a result, with its article."""

    def __init__(
        self, folder: Path, source: Callable[[C], ModelSource], queue: Callable[[], Exclusively] = lambda: at_once
    ) -> None:
        self.folder, self._source, self._queue = folder, source, queue
        self._unfinished = UnfinishedJobs(folder, self.config_of)
        self._lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        self._job: Optional[Job] = None
        self._config: Optional[C] = None
        self._state, self._message = IDLE, "Nothing was begun since the start."
        self._stopping, self._began = False, 0.0
        self._model = ""
        self._after: Optional[JobRunner[Any]] = None
        self._timed: Optional[Timed[C]] = None

    # ---- what a subclass says ----

    @staticmethod
    @abstractmethod
    def config_of(values: Mapping[str, Any]) -> C:
        """Describe a job by named values. Raises StoreError: naming the field, its value and what is allowed."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of the results that are kept."""

    @abstractmethod
    def _prepare(
        self, config: C, source: ModelSource, folder: Path, exclusively: Exclusively
    ) -> tuple[Job, Callable[[], str]]:
        """The job, and a function that runs it and says in a few words what came of it."""

    @abstractmethod
    def _rename_result(self, name: str, new_name: str) -> str: ...

    @abstractmethod
    def _delete_result(self, name: str) -> None: ...

    # ---- the rest ----

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def status(self) -> Status[C]:
        job, state = self._job, self._state
        stopping = self._stopping and state == RUNNING
        return Status(
            state,
            self._config,
            "Stopping after the UNet call that is under way." if stopping else self._message,
            job.progress if job else Progress(),
            self._began,
            stopping,
            self._after.status() if self._after else None,
        )

    @property
    def timed(self) -> Optional[Timed[C]]:
        """Of the latest job that has called the model; None before the first call."""
        job, config = self._job, self._config
        if job is None or config is None or not job.progress.calls:
            return self._timed
        return Timed(config, self._model, job.progress.seconds / job.progress.calls)

    def start(self, config: C, after: Optional[JobRunner[Any]] = None) -> C:
        """Start a job; where its name is taken it gets the next free one.

        Args:
            after: the job that this runner has under way is waited for; unless it finishes, this one counts as stopped.

        Returns:
            The job's description, with the name it has.

        Raises:
            StoreError: another one is under way.
            OSError: the folder cannot be written.
        """
        with self._lock:
            self._check_free()
            taken = {*self.names(), *self._unfinished.names()}
            config = self.config_of({**values_of(config), "name": Store.free_name(config.name, taken, folded=True)})
            self._launch(config, after, fresh=True)
        return config

    def resume(self, name: str, after: Optional[JobRunner[Any]] = None) -> C:
        """Go on with an unfinished one, ``after`` as in :meth:`start`.

        Raises:
            StoreError: none of that name, or another is under way.
        """
        with self._lock:
            self._check_free()
            config = self._unfinished.get(name).config
            self._launch(config, after)
        return config

    def stop(self, wait: Optional[float] = None) -> None:
        """Stop before the next call of the model; what is finished is kept, the rest can be resumed."""
        self._stopping = True
        if self._job is not None:
            self._job.cancel()
        if wait is not None and self._thread is not None:
            self._thread.join(wait)

    def wait(self, seconds: float) -> bool:
        """Wait at most so long for the job under way; True if none is running then."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.running

    def unfinished(self) -> list[UnfinishedJob[C]]:
        """All jobs that have not ended. A folder that cannot be read is left out, and left as it is."""
        return self._unfinished.read()

    def discard(self, name: str) -> None:
        """Forget an unfinished job; what it has finished stays. Raises StoreError."""
        self._check_not_running(name)
        self._unfinished.get(name)
        with self._unfinished.claimed(name):
            self._unfinished.forget(name)

    def rename(self, name: str, new_name: str) -> str:
        """Rename a result, and the unfinished job that makes it; returns the name it has then. Raises StoreError."""
        self._check_not_running(name)
        if new_name in self._unfinished.names():
            raise StoreError(f"name must be a new one; an unfinished job is named {new_name!r}")
        with self._unfinished.claimed(name):
            new_name = self._rename_result(name, new_name)
            self._unfinished.rename(name, new_name)
        return new_name

    def delete(self, name: str) -> None:
        """Delete a result, and the unfinished job that makes it. Raises StoreError."""
        self._check_not_running(name)
        with self._unfinished.claimed(name):
            self._delete_result(name)
            self._unfinished.forget(name)

    def _check_free(self) -> None:
        if self.running:
            assert self._config is not None
            raise StoreError(f"{self._config.name!r} is under way; stop it first, or let it end")

    def _check_not_running(self, name: str) -> None:
        if self.running and self._config is not None and self._config.name == name:
            raise StoreError(f"{name!r} is under way; stop it first")

    def _launch(self, config: C, after: Optional[JobRunner[Any]], fresh: bool = False) -> None:
        self._timed = self.timed
        self._config, self._job, self._stopping = config, None, False
        self._after, self._began = after, time.monotonic()
        self._state, self._message = RUNNING, "Waiting for the model."
        self._thread = threading.Thread(
            target=self._work, args=(config, fresh), name=f"HP Sampler {self.kind}", daemon=True
        )
        self._thread.start()

    def _work(self, config: C, fresh: bool) -> None:
        exclusively = self._queue()
        try:
            source = exclusively(lambda: self._source(config))
            self._model = source.model_name
            begun = self._unfinished.begin(config, source.model_name, self.names, fresh)
            self._config = config = begun.config
            if self._after is not None:
                self._wait_for(self._after)
            with self._unfinished.claimed(config.name):
                self._job, do = self._prepare(config, source, begun.folder, exclusively)
                if self._stopping:
                    self._job.cancel()
                self._message = f"Making {self.kind} of {source.model_name}."
                made = do()
                self._unfinished.forget(config.name)
            self._end(FINISHED, f"{config.name} is ready: {made}.")
        except Cancelled:
            self._end(STOPPED, f"{config.name} was stopped; what is finished is kept, the rest can be resumed.")
        except StoreError as error:
            self._end(FAILED, f"{config.name}: {error}.")
        except CannotWrite as error:
            self._end(FAILED, f"{config.name} failed: {error}.{self._resumable(config)}")
        except Exception as error:
            traceback.print_exc()
            self._end(FAILED, f"{config.name} failed: {error} ({type(error).__name__}).{self._resumable(config)}")

    def _resumable(self, config: C) -> str:
        return " It can be resumed." if config.name in self._unfinished.names() else ""

    def _wait_for(self, other: JobRunner[Any]) -> None:
        """Wait for the job of another runner. Raises Cancelled: it did not finish, or this one is to stop."""
        self._message = f"Waiting for {other.kind}."
        while not other.wait(POLL_SECONDS):
            if self._stopping:
                raise Cancelled
        if other.status().state != FINISHED:
            raise Cancelled

    def _end(self, state: str, message: str) -> None:
        self._state, self._message = state, message
