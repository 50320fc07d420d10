"""Atomic writes, checksums and JSON lines."""

import errno
import glob
import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from cubediff.utils.errors import DataError
from cubediff.utils.json_text import parse_json

_KINDS = {
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def atomic_file(path: Path, *, sync: bool = False) -> Iterator[BinaryIO]:
    """Opens a new file that replaces `path` when the block ends; if the block raises, `path` stays as it was.

    Args:
        path: The file to write. Its folder must exist.
        sync: Flush the file and its folder to the disk, so that the write survives a power loss.

    Raises:
        OSError: If the file cannot be written; no temporary file remains.

    Example:
        >>> with atomic_file(Path("notes.txt")) as file:
        ...     _ = file.write(b"complete")
        >>> Path("notes.txt").read_text()
        'complete'
    """
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def remove_partial(path: Path) -> None:
    """Removes the temporary files of processes that were killed while they wrote `path` with `atomic_file`.

    Only where no other process can be writing it, for example under a lock.
    """
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        part.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str, *, sync: bool = False) -> None:
    """Writes a file completely or not at all; text as UTF-8. See `atomic_file`."""
    with atomic_file(path, sync=sync) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Gives a new folder whose files replace those of `folder` when the block ends; if it raises, nothing changes.

    Files of `folder` that the block does not write are kept. All files are flushed to the disk.

    Args:
        folder: The folder to write; its parents are created.

    Raises:
        OSError: If a file cannot be written.
    """
    folder = folder.resolve()
    part, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("part", "old"))
    if old.exists() and not folder.exists():  # of a process that was killed between the two renames below
        old.rename(folder)
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for written in (*part.rglob("*"), part):
            flush = sync_folder if written.is_dir() else _sync_file
            flush(written)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    for kept in old.glob("*"):
        if not os.path.lexists(folder / kept.name):
            kept.rename(folder / kept.name)
    shutil.rmtree(old, ignore_errors=True)
    sync_folder(folder.parent)


def _sync_file(path: Path) -> None:
    with path.open("r+b") as file:  # Windows flushes only files that are open for writing
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk, so that new and renamed files survive a power loss.

    Windows cannot open folders and does nothing here.
    """
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def set_aside(path: Path) -> Path:
    """Renames a damaged file to NAME.damaged, or NAME.damaged.2 and so on if that exists, and returns the new path."""
    target, number = path.with_name(f"{path.name}.damaged"), 2
    while os.path.lexists(target):
        target, number = path.with_name(f"{path.name}.damaged.{number}"), number + 1
    path.rename(target)
    return target


def open_regular(path: Path) -> io.BufferedReader:
    """Opens a file for reading in binary mode, unless it is a FIFO, a socket or a device, which could block.

    Raises:
        DataError: If it is one of these.
        OSError: If it cannot be opened, or is a folder.
    """
    _check_regular(str(path), os.stat(path).st_mode)  # opening a device may already have an effect
    return open(path, "rb", opener=_open_without_waiting)


def _open_without_waiting(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a FIFO may have replaced the file since
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
    except DataError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path: str, mode: int) -> None:
    if (kind := _KINDS.get(stat.S_IFMT(mode))) is not None:
        raise DataError(f"{path} is {kind}: expected a regular file; remove it, or copy its content to a file")


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Reads up to `count` bytes from `offset`, independently of the descriptor's position.

    Windows has no `os.pread`; there the position changes, so threads must not share a descriptor.

    Raises:
        OSError: If the bytes cannot be read.
    """
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, count)


def read_limited(path: Path, limit: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: If it cannot be read, or has more than `limit` bytes.
        DataError: If it is a FIFO, a socket or a device.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"more than {limit} bytes", str(path))
    return content


def text_path(path: Path) -> str:
    """A path for libraries that end the process if it is not text (OpenCV 5.0, OpenEXR 3.5).

    Raises:
        DataError: If it is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError("the name of its folder is not UTF-8 text: rename the folder") from None
    return str(path)


def sha256_file(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file; raises the errors of `open_regular`."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: object, *, indent: int | None = 2, sync: bool = False) -> None:
    """Writes a JSON file atomically.

    Args:
        path: The file to write. Its folder must exist.
        value: The content.
        indent: Spaces per level; None: one line.
        sync: As in `atomic_file`.

    Raises:
        ValueError: If `value` contains NaN or infinity, which JSON does not have.
        TypeError: If `value` contains an object that JSON does not have.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n", sync=sync)


def read_json_lines(text: str) -> Iterator[tuple[int, object]]:
    """Parses JSON lines, skipping blank ones.

    Yields:
        Line number, from 1, and value.

    Raises:
        ValueError: If a line is not JSON; the message starts with its number.

    Example:
        >>> list(read_json_lines('{"a": 1}\\n\\n[2]'))
        [(1, {'a': 1}), (3, [2])]
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value: object = parse_json(line)
            except ValueError as error:
                raise ValueError(f"line {number}: not JSON ({error})") from error
            yield number, value


def json_lines(records: Iterable[object]) -> str:
    """Formats records as JSON lines.

    Example:
        >>> json_lines([{"prompt": "größer"}])
        '{"prompt": "größer"}\\n'
    """
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
