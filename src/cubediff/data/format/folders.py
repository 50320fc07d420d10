"""A folder that a dataset is written to: its lock, so that only one process at a time writes, and the files in it that
are someone else's."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cubediff.utils.errors import DataError

LOCK = ".cubediff.lock"  # in the folder while a process writes to it; one of a killed process locks nobody out

_SYSTEM_FILES = {".DS_Store", "Thumbs.db", "desktop.ini", "lost+found"}  # written by file managers and file systems
_PART = re.compile(r"\.[\w-]+\.jsonl?\.[0-9a-f]{32}\.part")  # an interrupted `atomic_file` of this project
_MAX_NAMED = 3


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


def foreign_files(folder: Path, own: Collection[str]) -> list[str]:
    """The names in a folder, sorted, that are neither in `own` nor left by an interrupted write of this project nor by
    the operating system; none if the folder does not exist."""
    if not folder.exists():
        return []
    known = {LOCK, *_SYSTEM_FILES, *own}
    return sorted(p.name for p in folder.iterdir() if p.name not in known and not _PART.fullmatch(p.name))


def name_some(names: list[str]) -> str:
    """The first three names, and the number of the others.

    >>> name_some(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    shown = ", ".join(names[:_MAX_NAMED])
    return shown if len(names) <= _MAX_NAMED else f"{shown} and {len(names) - _MAX_NAMED} more"
