"""A local cache of remote files, which processes share.

Files are fetched as a whole and verified, failures are retried, and the least recently used files are evicted.
"""

import hashlib
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar, runtime_checkable

import fsspec
from filelock import FileLock
from webdataset.gopen import gopen

from cubediff.utils.errors import DataError
from cubediff.utils.files import sha256_file

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

ATTEMPTS = 6
FIRST_DELAY = 1.0  # seconds, doubled from attempt to attempt
_READ_TIMEOUT = 60.0  # seconds without a byte before an HTTP request fails
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_jitter = random.SystemRandom()  # leaves the run's global generator alone


def is_remote(path: str) -> bool:
    """Whether a path is a URL or the output of a command (`pipe:COMMAND`), not a local file."""
    return path.startswith("pipe:") or "://" in path


def read_bytes(url: str) -> bytes:
    """The content of a small remote file.

    Raises:
        DataError: If it cannot be fetched.
    """

    def read() -> bytes:
        filesystem, path = _filesystem(url)
        return filesystem.cat_file(path)

    return retried(read, url)


def retried(action: Callable[[], ResultT], source: str) -> ResultT:
    """Calls `action` until it succeeds, with exponential backoff.

    Args:
        action: Reads from a disk or a network.
        source: The path or URL, for messages.

    Raises:
        DataError: If all attempts fail, or a package is missing.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except ImportError as error:
            protocol = source.partition("://")[0]
            extra = f"pip install 'cubediff[{_EXTRAS[protocol]}]'" if protocol in _EXTRAS else "install it"
            raise DataError(f"{source} needs another package ({error}): {extra}") from error
        except Exception as error:  # every filesystem has its own exceptions
            cause = f"{type(error).__name__}: {error}"
            if attempt == ATTEMPTS:
                raise DataError(
                    f"{source} cannot be read after {ATTEMPTS} attempts ({cause}): check that it exists and that this "
                    "machine may read it"
                ) from error
            log.warning("%s: attempt %d of %d failed (%s)", source, attempt, ATTEMPTS, cause)
            time.sleep(FIRST_DELAY * 2 ** (attempt - 1) * _jitter.uniform(0.5, 1.0))
    raise AssertionError("the last attempt returns or raises")


class Cache:
    """A folder of fetched files that processes share; the least recently opened ones are evicted.

    An open file stays readable after its eviction, and occupies the disk until it is closed.

    Args:
        folder: Created when the first file is fetched.
        limit: Size limit, in bytes; a single larger file is kept nevertheless.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit

    def open(self, url: str, size: int | None = None, digest: str | None = None) -> BinaryIO:
        """Opens a remote file for reading; fetches it first if it is not in the cache.

        Args:
            url: Of the file.
            size: Its expected size in bytes, if known.
            digest: Its expected SHA-256, hexadecimal, if known.

        Raises:
            DataError: If it cannot be fetched, or differs from what is expected.
        """
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
            opened = part.open("rb")  # before another process can see and evict it
            os.replace(part, file)
        with FileLock(locks / "room"):
            self._evict(file)
        return opened

    def _evict(self, newest: Path) -> None:
        """Removes the least recently opened files, but not `newest`, until the cache is within its limit."""
        files = [(entry.stat(), Path(entry)) for entry in os.scandir(self.folder) if entry.is_file()]
        total = sum(stat.st_size for stat, _ in files)
        for stat, file in sorted(files, key=lambda f: f[0].st_mtime_ns):
            if total > self.limit and file != newest:
                file.unlink(missing_ok=True)
                total -= stat.st_size


def _opened(file: Path) -> BinaryIO | None:
    """The file of the cache, marked as just used; None if it is not there."""
    try:
        opened = file.open("rb")
    except FileNotFoundError:
        return None
    os.utime(opened.fileno())
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
        raise OSError("the file arrived damaged (sha256 differs)")


@runtime_checkable
class _FileSystem(Protocol):
    """The methods of an fsspec file system that this module uses."""

    def cat_file(self, path: str) -> bytes: ...

    def get_file(self, rpath: str, lpath: str) -> None: ...


def _filesystem(url: str) -> tuple[_FileSystem, str]:
    options: dict[str, object] = {}
    if url.startswith(("http://", "https://")):
        from aiohttp import ClientTimeout  # here for start-up time

        # The default limits the whole transfer to five minutes.
        timeout = ClientTimeout(total=None, sock_connect=_READ_TIMEOUT, sock_read=_READ_TIMEOUT)
        options = {"client_kwargs": {"timeout": timeout}}
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    return filesystem, path
