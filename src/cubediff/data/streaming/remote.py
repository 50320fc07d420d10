"""A local cache of remote files, which processes share.

Files are fetched as a whole and verified, failures are retried, and the least recently used files are evicted.
"""

import contextlib
import hashlib
import logging
import os
import re
import tempfile
from io import BufferedReader
from pathlib import Path
from typing import Protocol, runtime_checkable

import fsspec
from filelock import FileLock, Timeout
from webdataset.gopen import gopen

from cubediff.data.streaming.retrying import (
    RETRY_MINUTES,
    DamagedTransferError,
    InterruptedTransferError,
    TooLargeError,
    retried,
)
from cubediff.utils.errors import DataError, storage_message
from cubediff.utils.files import sha256_file, write_atomic
from cubediff.utils.text import redact

log = logging.getLogger(__name__)

_MAX_BYTES = 10**11  # of a shard whose size no manifest tells
_READ_TIMEOUT = 60.0  # seconds without a byte before an HTTP request fails


def is_remote(path: str) -> bool:
    """Whether a path is a URL or the output of a command (`pipe:COMMAND`), not a local file."""
    return path.startswith("pipe:") or "://" in path


def read_bytes(url: str, limit: int, retry_minutes: float = RETRY_MINUTES) -> bytes:
    """The content of a small remote file.

    Args:
        url: Of the file.
        limit: Its largest size, in bytes.
        retry_minutes: See `retried`.

    Raises:
        DataError: If it cannot be fetched, or is larger.
    """

    def read() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part"
            _fetch_file(url, part, limit)
            return part.read_bytes()

    return retried(read, url, retry_minutes)


class Cache:
    """A folder of fetched files that processes share; the least recently opened ones are evicted.

    A file is verified when it arrives, and again when this object first opens it: a damaged one is fetched again. An
    open file stays readable after its eviction, and occupies the disk until it is closed.

    Args:
        folder: Created when the first file is fetched.
        limit: Size limit, in bytes, of complete and partial files; a single larger file is kept nevertheless.
        retry_minutes: See `retried`.
    """

    def __init__(self, folder: Path, limit: float, retry_minutes: float = RETRY_MINUTES) -> None:
        self.folder, self.limit, self.retry_minutes = folder, limit, retry_minutes
        self._locks, self._parts, self._sums = folder / "locks", folder / "part", folder / "sums"
        self._verified: set[str] = set()

    def open(
        self, url: str, size: int | None = None, digest: str | None = None, *, retry: bool = True
    ) -> BufferedReader:
        """Opens a remote file for reading; fetches it first if the cache does not hold it undamaged.

        Args:
            url: Of the file.
            size: Its expected size in bytes, if known.
            digest: Its expected SHA-256, hexadecimal, if known.
            retry: Whether an error that may pass is logged and the file fetched again.

        Raises:
            DataError: If it cannot be fetched, or differs from what is expected, or the folder cannot be used.
        """
        shown = redact(url).partition("?")[0].rpartition("/")[2]
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", shown)[-60:]
        file = self.folder / f"{hashlib.sha256(f'{url} {digest}'.encode()).hexdigest()[:24]}-{name}"
        if file.name in self._verified and (opened := _opened(file)):
            return opened
        self._make_folders()
        with FileLock(self._locks / file.name):
            if (opened := self._open_undamaged(file, size, digest)) is None:
                self._make_room(file.name, size or 0)
                opened = self._fetch(url, file, size, digest, self.retry_minutes if retry else 0.0)
        self._verified.add(file.name)
        self._make_room(file.name)
        return opened

    def _make_folders(self) -> None:
        try:
            for folder in (self._locks, self._parts, self._sums):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"data.cache_dir={self.folder} cannot be used ({storage_message(error)}): set data.cache_dir=FOLDER"
            ) from error

    def _open_undamaged(self, file: Path, size: int | None, digest: str | None) -> BufferedReader | None:
        """The cached file if it is as it arrived; a damaged one is removed."""
        opened = _opened(file)
        if opened is None:
            return None
        # From here on another process may evict the file: only the open one is read.
        digest = digest or self._recorded_digest(file)
        damaged = size is not None and os.fstat(opened.fileno()).st_size != size
        if not damaged and (digest is None or hashlib.file_digest(opened, "sha256").hexdigest() == digest):
            opened.seek(0)
            return opened
        opened.close()
        file.unlink(missing_ok=True)
        log.warning("%s in the cache is damaged: it is fetched again", file)
        return None

    def _recorded_digest(self, file: Path) -> str | None:
        """The checksum that was recorded when a file arrived whose checksum no manifest tells."""
        try:
            return (self._sums / file.name).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def _fetch(self, url: str, file: Path, size: int | None, digest: str | None, minutes: float) -> BufferedReader:
        part = self._parts / file.name
        try:
            retried(lambda: _fetch(url, part, size, digest), url, minutes)
            if digest is None:
                write_atomic(self._sums / file.name, sha256_file(part))
            opened = part.open("rb")  # before another process can see and evict it
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
        return opened

    def _make_room(self, newest: str, incoming: int = 0) -> None:
        """Removes partial files of ended processes, and the least recently opened files, but not `newest`, until
        `incoming` bytes more are within the limit."""
        with FileLock(self._locks / "room"):
            total = incoming + sum(map(self._partial_bytes, self._parts.iterdir()))
            files = _files(self.folder)
            total += sum(found.st_size for found in files.values())
            for file, found in sorted(files.items(), key=lambda item: item[1].st_mtime_ns):
                if total > self.limit and file.name != newest:
                    file.unlink(missing_ok=True)
                    (self._sums / file.name).unlink(missing_ok=True)
                    total -= found.st_size

    def _partial_bytes(self, part: Path) -> int:
        """The size of a partial file; 0 after removing one that no process is fetching."""
        try:
            with FileLock(self._locks / part.name, timeout=0):
                part.unlink(missing_ok=True)
                return 0
        except (Timeout, RuntimeError):  # RuntimeError: this thread is fetching it
            try:
                return part.stat().st_size
            except FileNotFoundError:  # it has just arrived
                return 0


def _files(folder: Path) -> dict[Path, os.stat_result]:
    """The files of a folder from which other processes may remove some meanwhile."""
    found = {}
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            if entry.is_file():
                found[Path(entry)] = entry.stat()
    return found


def _opened(file: Path) -> BufferedReader | None:
    """The file of the cache, marked as just used; None if it is not there."""
    try:
        opened = file.open("rb")
    except FileNotFoundError:
        return None
    os.utime(opened.fileno())
    return opened


def _fetch(url: str, part: Path, size: int | None, digest: str | None) -> None:
    limit = _MAX_BYTES if size is None else size
    if url.startswith("pipe:"):
        _fetch_output(url, part, limit)
    else:
        _fetch_file(url, part, limit)
    found = part.stat().st_size
    if size is not None and found != size:
        raise DamagedTransferError(f"{found} bytes arrived instead of the {size} of its manifest")
    if digest is not None and sha256_file(part) != digest:
        raise DamagedTransferError("the file arrived damaged (sha256 differs)")


def _fetch_output(url: str, part: Path, limit: int) -> None:
    size = 0
    try:
        with gopen(url) as stream, part.open("wb") as file:
            while size <= limit and (block := stream.read(1 << 20)):
                file.write(block)
                size += len(block)
    except OSError as error:
        if size <= limit:  # else the command failed because nothing reads it any more
            status = re.search(r"exit \d+", str(error))
            raise OSError(f"the command ended with {status[0]}" if status else str(error)) from error
    if size > limit:
        raise TooLargeError(limit)


def _fetch_file(url: str, part: Path, limit: int) -> None:
    filesystem, path = _filesystem(url)
    received = _Limit(limit)
    try:
        filesystem.get_file(path, str(part), callback=received)
    except Exception as error:
        ends_early = type(error).__name__ == "ClientPayloadError" and received.size is not None  # of aiohttp
        if not ends_early:
            raise
        raise InterruptedTransferError(f"{received.value} bytes arrived instead of {received.size}") from error
    if part.stat().st_size > limit:  # of a file system that reports no progress
        raise TooLargeError(limit)


class _Limit(fsspec.Callback):
    """Ends a transfer at a number of bytes: a server may send more than it says, or compressed content."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def relative_update(self, inc: int = 1) -> None:
        """Counts bytes that have arrived."""
        super().relative_update(inc)
        if self.value > self.limit:
            raise TooLargeError(self.limit)


@runtime_checkable
class _FileSystem(Protocol):
    """The method of an fsspec file system that this module uses."""

    def get_file(self, rpath: str, lpath: str, callback: fsspec.Callback) -> None: ...


def _filesystem(url: str) -> tuple[_FileSystem, str]:
    options: dict[str, object] = {}
    if url.startswith(("http://", "https://")):
        from aiohttp import ClientTimeout  # here for start-up time

        # The default limits the whole transfer to five minutes.
        timeout = ClientTimeout(total=None, sock_connect=_READ_TIMEOUT, sock_read=_READ_TIMEOUT)
        options = {"client_kwargs": {"timeout": timeout}}
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except ValueError as error:
        if "Protocol not known" not in str(error):
            raise
        protocol = url.partition("://")[0]
        raise DataError(
            f"{redact(url)} has the unknown protocol {protocol}://: use s3://, gs://, https://, hf:// or "
            "a local path, or install the package that adds the protocol to fsspec"
        ) from error
    return filesystem, path
