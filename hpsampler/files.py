"""Files that several threads and programs write: whole or not at all, one writer of a folder at a time, none lost.

Two WebUIs may share one folder of models. What a killed program left behind is removed by the next that writes there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["CannotWrite", "FolderBusy", "held", "locked", "part_beside", "rename_new", "sweep", "write_atomically"]

LOCK = ".lock"
"""The end of a lock file's name. Lock files are empty, and stay."""

PATIENCE = 30.0
"""Seconds after which another program that writes in the folder is taken to hang."""

ABANDONED_AFTER = 3600.0
"""Seconds without a write after which a temporary file is nobody's any more."""

HOST = f"{zlib.crc32(platform.node().encode('utf-8', 'replace')):08x}"
"""Tells the processes of this machine from those of another one that shares the folder."""

PART = re.compile(r"\.(?:([0-9a-f]{8})-)?(\d+)-\d+\.part$")
"""The end of a temporary file's name: host, process and thread; versions before 0.8 left the host out."""

_THREADS = threading.RLock()
"""Only one thread of this process writes at a time; the lock of a folder is between processes."""


class CannotWrite(PermissionError):
    """A folder that cannot be written, whatever the reason; the message is meant for the user."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}"


class FolderBusy(CannotWrite):
    """Another program does not stop writing in a folder, or holds what is wanted."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Say of an error which folder it is about, and not the temporary file in it."""
    try:
        yield
    except (CannotWrite, FileExistsError):
        raise
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise CannotWrite(error.errno or errno.EIO, reason, str(folder)) from None


@contextlib.contextmanager
def locked(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """While this is entered, no other thread or program enters it for the same folder, which is made if it is missing.

    It must not be entered twice. The lock file lies beside the folder. Where there can be none, or where the file
    system knows no locks, threads alone are kept apart.

    Raises:
        FolderBusy: another program has held it all the time.
        CannotWrite: the folder cannot be made.
    """
    with _naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _THREADS, contextlib.ExitStack() as stack:
        lock = folder.with_name(f".{folder.name}{LOCK}")
        try:
            stack.enter_context(held(lock, patience, f"another program is writing in {folder}"))
        except FolderBusy:
            raise
        except CannotWrite:
            pass
        sweep(folder)
        yield


@contextlib.contextmanager
def held(path: Path, patience: float = 0.0, busy: str = "another program holds it") -> Iterator[None]:
    """Hold a lock file until the end of the ``with`` block, or of this process, however it ends.

    Raises:
        FolderBusy: with the message ``busy``, where another program holds it for that many seconds.
        CannotWrite: the file cannot be written.
    """
    until = time.monotonic() + patience
    with _naming(path.parent):
        opened = path.open("a+b")
    with opened as file:
        while not _lock(file):
            if time.monotonic() >= until:
                raise FolderBusy(errno.EBUSY, busy)
            time.sleep(0.01)
        try:
            yield
        finally:
            _unlock(file)


if os.name == "nt":
    import msvcrt

    def _lock(file: IO[bytes]) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError:
            return False
        return True

    def _unlock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined, unused-ignore]

else:
    import fcntl

    def _lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # some network file systems know no locks
        return True

    def _unlock(file: IO[bytes]) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def write_atomically(path: Path, content: str | bytes, new: bool = False) -> None:
    """Write to a temporary file first, so that an interrupted write leaves the file as it was.

    Args:
        new: whether there may be no such file yet.

    Raises:
        FileExistsError: there is one although it should be new.
        CannotWrite: it cannot be written.
    """
    with part_beside(path, new) as part:
        if isinstance(content, bytes):
            part.write_bytes(content)
        else:
            part.write_text(content, encoding="utf-8")


@contextlib.contextmanager
def part_beside(path: Path, new: bool = False) -> Iterator[Path]:
    """The path of a temporary file, which replaces ``path`` when the ``with`` block ends without an error.

    Raises:
        FileExistsError: there is a file ``path`` although it should be ``new``.
        CannotWrite: it cannot be written.
    """
    part = path.with_name(f"{path.name}.{HOST}-{os.getpid()}-{threading.get_ident()}.part")
    try:
        with _naming(path.parent):
            yield part
            if new:
                _create(part, path)
            else:
                _replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _create(part: Path, path: Path) -> None:
    """Give the file its name unless it is taken, also by a program that knows nothing of locks."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        path.open("xb").close()
    with contextlib.ExitStack() as stack:
        stack.callback(path.unlink, missing_ok=True)
        _replace(part, path)
        stack.pop_all()


def rename_new(path: Path, target: Path) -> None:
    """Rename a file or a folder, but over nothing.

    Raises:
        FileExistsError: something has that name.
        CannotWrite: it cannot be renamed.
    """
    with _naming(path.parent):
        # on some systems a name in other capitals is the same file's
        if target.exists() and not path.samefile(target):
            raise FileExistsError(errno.EEXIST, "there is one already", str(target))
        path.rename(target)


def _replace(part: Path, path: Path, attempts: int = 10) -> None:
    for attempts_left in reversed(range(attempts)):
        try:
            return os.replace(part, path)
        except PermissionError:
            # Windows refuses while another process reads the file
            if not attempts_left:
                raise
            time.sleep(0.02)


def sweep(folder: Path) -> None:
    """Remove the temporary files in a folder that nobody writes any more."""
    with contextlib.suppress(OSError):
        for path in folder.glob("*.part"):
            with contextlib.suppress(OSError):
                if _abandoned(path):
                    path.unlink()


def _abandoned(path: Path) -> bool:
    name = PART.search(path.name)
    if name is None:
        return False
    if name[1] in (None, HOST) and not _alive(int(name[2])):
        return True
    return time.time() - path.stat().st_mtime > ABANDONED_AFTER


def _alive(process: int) -> bool:
    """Whether this machine has that process, as far as can be told."""
    if os.name == "nt":
        return True  # there a signal would end it; the age of the file decides
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
