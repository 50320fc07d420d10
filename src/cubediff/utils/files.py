"""Atomic writes, checksums and JSON lines."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4


@contextmanager
def atomic_file(path: Path, *, sync: bool = False) -> Iterator[BinaryIO]:
    """Opens a new file that replaces `path` when the block ends; if the block raises, `path` stays as it was.

    Args:
        path: The file to write. Its folder must exist.
        sync: Flush the file and its folder to the disk, so that the write survives a power loss.

    Raises:
        OSError: If the file cannot be written; nothing is left beside `path`.
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


def write_atomic(path: Path, content: bytes | str, *, sync: bool = False) -> None:
    """Writes a whole file or nothing; text as UTF-8. See `atomic_file`."""
    with atomic_file(path, sync=sync) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk, so that new names survive a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: Any, *, indent: int | None = 2, sync: bool = False) -> None:
    """Writes a JSON file atomically; NaN and infinity are refused, since JSON has neither.

    Raises:
        ValueError: If `value` holds a number that is not finite.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n", sync=sync)


def read_json_lines(text: str) -> Iterator[tuple[int, Any]]:
    """Line numbers (from 1) and values of JSON lines; blank lines are skipped.

    Raises:
        ValueError: If a line is not JSON; the message starts with its number.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: not JSON ({error})") from error
            yield number, value


def json_lines(records: Iterable[Any]) -> str:
    """Records as JSON lines."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
