"""Files that are written whole or not at all, however the writing ends, and that are known by their sum."""

import hashlib
import os
from pathlib import Path
from uuid import uuid4


def put(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Writes a whole file or none, whenever it is cut short; with `sync` even where the machine's power is."""
    part = path.with_name(f"{path.name}.{uuid4().hex}")
    with part.open("wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(part, path)


def sync(folder: Path) -> None:
    """After it the folder's new names outlive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
