"""Whole files from anywhere in a local folder: fetched once for all readers, checked, retried, and removed again when
the folder grows too large."""

import hashlib
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from filelock import FileLock
from webdataset.gopen import gopen

from cubediff.utils.errors import DataError
from cubediff.utils.files import sha256_file

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

ATTEMPTS = 6
FIRST_DELAY = 1.0  # seconds, doubled from attempt to attempt
_STALLED = 60.0  # seconds without a byte after which an HTTP connection counts as dropped
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_jitter = random.SystemRandom()  # of its own: the global one is the run's


def is_remote(path: str) -> bool:
    """Whether a path is no local file: a URL or the output of a command (`pipe:COMMAND`)."""
    return path.startswith("pipe:") or "://" in path


def read_bytes(url: str) -> bytes:
    """The content of a small remote file. Raises DataError where it cannot be had."""

    def read() -> bytes:
        filesystem, path = _filesystem(url)
        content: bytes = filesystem.cat_file(path)
        return content

    return retried(read, url)


def retried(action: Callable[[], ResultT], what: str) -> ResultT:
    """Tries again what a network may make fail, after longer and longer pauses; raises DataError in the end."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except ImportError as error:
            protocol = what.partition("://")[0]
            extra = f"pip install 'cubediff[{_EXTRAS[protocol]}]'" if protocol in _EXTRAS else "install it"
            raise DataError(f"{what} needs another package ({error}): {extra}") from error
        except Exception as error:  # each filesystem has exceptions of its own
            told = f"{type(error).__name__}: {error}"
            if attempt == ATTEMPTS:
                raise DataError(f"{what} cannot be read after {ATTEMPTS} attempts ({told}): is it there, and readable "
                                "from here?") from error  # fmt: skip
            log.warning("%s (%s): attempt %d of %d failed", what, told, attempt, ATTEMPTS)
            time.sleep(FIRST_DELAY * 2 ** (attempt - 1) * _jitter.uniform(0.5, 1.0))
    raise AssertionError("the last attempt returns or raises")


class Cache:
    """A folder of fetched files, which processes share, of at most `limit` bytes: the ones opened longest ago go first.
    What is open goes on being read where its file is removed, and takes its place on the disk until it is closed."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit

    def open(self, url: str, size: int | None = None, digest: str | None = None) -> BinaryIO:
        """A remote file, open to read, whole and of the given size and SHA-256 `digest` where these are known. Raises
        DataError where it cannot be had."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", url.rpartition("/")[2])[-60:]
        file = self.folder / f"{hashlib.sha256(f'{url} {digest}'.encode()).hexdigest()[:24]}-{name}"
        if opened := _opened(file):
            return opened
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / file.name):
            if opened := _opened(file):
                return opened  # another process has fetched it meanwhile
            part = self.folder / "part" / file.name
            part.parent.mkdir(exist_ok=True)
            retried(lambda: _fetch(url, part, size, digest), url)
            opened = part.open("rb")  # before others see it, who may remove it to make room
            os.replace(part, file)
        with FileLock(locks / "room"):
            self._make_room(file)
        return opened

    def _make_room(self, newest: Path) -> None:
        files = [(entry.stat(), Path(entry)) for entry in os.scandir(self.folder) if entry.is_file()]
        total = sum(stat.st_size for stat, _ in files)
        for stat, file in sorted(files, key=lambda f: f[0].st_mtime_ns):
            if total > self.limit and file != newest:
                file.unlink(missing_ok=True)
                total -= stat.st_size


def _opened(file: Path) -> BinaryIO | None:
    try:
        opened = file.open("rb")
    except FileNotFoundError:
        return None
    os.utime(opened.fileno())  # the last time of use
    return opened


def _fetch(url: str, part: Path, size: int | None, digest: str | None) -> None:
    if url.startswith("pipe:"):
        with gopen(url) as stream, part.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
    else:
        filesystem, path = _filesystem(url)
        filesystem.get_file(path, str(part))
    found = part.stat().st_size
    if size is not None and found != size:
        raise OSError(f"{found} bytes arrived instead of {size}")
    if digest is not None and sha256_file(part) != digest:
        raise OSError("what arrived is not what was written (sha256 differs)")


def _filesystem(url: str) -> tuple[Any, str]:
    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=_STALLED, sock_read=_STALLED)  # its own allows five minutes
        options = {"client_kwargs": {"timeout": timeout}}
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    return filesystem, path
