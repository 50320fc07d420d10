"""One panorama of a build, and the memory of it on disk: a build that was cut short finds what it had finished, and
does again what has changed since."""

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cubediff.data.building.duplicates import hash_jpeg
from cubediff.data.sources import Entry, Rejection, Source
from cubediff.utils.errors import DataError
from cubediff.utils.files import write_atomic


@dataclass(frozen=True)
class Accepted:
    """A panorama that can be trained on, its JPEG still in a file: the source's own or a re-encoded copy. `hash` is its
    perceptual hash in hexadecimal digits."""

    jpeg: str
    crc32: int
    bytes: int
    width: int
    height: int
    hash: str
    record: dict[str, Any]


def accept(source: Source, folder: Path, max_width: int, quality: int, entry: Entry) -> Accepted | Rejection:
    """Reads and checks a panorama, unless `folder` remembers it and its files are still as they were then.

    What is found is written to `folder`: a JSON file, and the JPEG where it is not a file's own bytes. For one `folder`
    `max_width` (pixels) and `quality` must not change.
    """
    name = hashlib.sha256(entry.file.encode()).hexdigest()[:32]
    memory, copy = folder / f"{name}.json", folder / f"{name}.jpg"
    try:
        stats = [(str(path.absolute()), path.stat()) for path in source.files(entry)]
    except OSError as error:
        return Rejection(entry.file, f"unreadable: {error.strerror}")
    stamp = hashlib.sha256(repr([(p, s.st_size, s.st_mtime_ns) for p, s in stats]).encode()).hexdigest()
    if (known := _recall(memory, copy, stamp, entry)) is not None:
        return known
    result: Accepted | Rejection
    try:
        panorama = source.load(entry, max_width, quality)
        digest = hash_jpeg(panorama.jpeg, panorama.width).tobytes().hex()
    except OSError as error:
        remedy = "when it can, or is taken away, the same command goes on"
        raise OSError(error.errno, f"{entry.file} cannot be read ({error.strerror}): {remedy}") from error
    except ValueError as error:  # a DataError among them
        result = Rejection(entry.file, str(error))
        told: dict[str, Any] = {"reason": result.reason}
    else:
        if panorama.original is None:
            write_atomic(copy, panorama.jpeg)
        result = Accepted(
            jpeg=str(copy if panorama.original is None else panorama.original.absolute()),
            crc32=zlib.crc32(panorama.jpeg),
            bytes=len(panorama.jpeg),
            width=panorama.width,
            height=panorama.height,
            hash=digest,
            record=panorama.record,
        )
        told = asdict(result) | ({"jpeg": None} if panorama.original is None else {})  # so that OUTPUT can be moved
    write_atomic(memory, json.dumps({"stamp": stamp, **told}).encode())
    return result


def _recall(memory: Path, copy: Path, stamp: str, entry: Entry) -> Accepted | Rejection | None:
    try:
        told = json.loads(memory.read_bytes())
    except (OSError, ValueError):  # none yet, or cut off with the machine's power
        return None
    if told.pop("stamp") != stamp:
        return None
    if "reason" in told:
        return Rejection(entry.file, told["reason"])
    if told["jpeg"] is None:
        if not copy.is_file() or zlib.crc32(copy.read_bytes()) != told["crc32"]:
            return None
        told["jpeg"] = str(copy)
    return Accepted(**told)


def read_jpeg(accepted: Accepted) -> bytes:
    """Raises DataError where the file is not the one that was accepted."""
    try:
        jpeg = Path(accepted.jpeg).read_bytes()
    except FileNotFoundError:
        jpeg = b""
    if zlib.crc32(jpeg) != accepted.crc32:
        raise DataError(f"{accepted.jpeg} changed while the shards were built: start again, the rest is kept")
    return jpeg
