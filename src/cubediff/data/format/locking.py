"""The lock of a dataset folder, so that only one process at a time writes to it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cubediff.utils.errors import DataError

LOCK = ".cubediff.lock"  # in the folder while a process writes to it; one of a killed process locks nobody out


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Creates a folder and locks it for this process, until the context or the process ends.

    Raises:
        DataError: If another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise DataError(f"another process is building in {folder}: wait until it has finished, or stop it") from None
    try:
        yield
    finally:
        try:
            with suppress(PermissionError):  # Windows does not remove an open file
                (folder / LOCK).unlink(missing_ok=True)
        finally:
            lock.release()
