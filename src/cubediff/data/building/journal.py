"""Checked panoramas of a build, recorded on disk: an interrupted build resumes from the records of unchanged files."""

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from cubediff.data.building.duplicates import hash_jpeg
from cubediff.data.sources import Entry, Rejection, Source
from cubediff.utils.errors import DataError
from cubediff.utils.files import write_atomic
from cubediff.utils.json_text import parse_json


@dataclass(frozen=True)
class Accepted:
    """A panorama that passed all checks.

    Attributes:
        jpeg: Path of its JPEG: the source file itself or a re-encoded copy in the build's folder.
        crc32: CRC-32 of the JPEG's bytes.
        bytes: Size of the JPEG.
        width: Width in pixels.
        height: Height in pixels.
        hash: Perceptual hash, hexadecimal.
        record: How the image was converted, as in `PanoramaJpeg`.
    """

    jpeg: str
    crc32: int
    bytes: int
    width: int
    height: int
    hash: str
    record: dict[str, object]


def accept(source: Source, folder: Path, max_width: int, quality: int, entry: Entry) -> Accepted | Rejection:
    """Reads and checks a panorama, or returns its recorded result if its files have not changed since.

    Writes the result to `folder`: a JSON record, and the JPEG unless it is the source file's own bytes.

    Args:
        source: The source of the entry.
        folder: Folder of the records; all its records are of one `max_width` and `quality`.
        max_width: Maximum width, in pixels.
        quality: JPEG quality of re-encoded panoramas, from 1 to 100.
        entry: The panorama to read.

    Raises:
        OSError: If the machine, not the file, fails; the panorama is neither accepted nor rejected then.
    """
    name = hashlib.sha256(entry.file.encode()).hexdigest()[:32]
    record_path, copy = folder / f"{name}.json", folder / f"{name}.jpg"
    try:
        stats = [(str(path.absolute()), path.stat()) for path in source.files(entry)]
    except OSError as error:
        return Rejection(entry.file, f"unreadable: {error.strerror}")
    stamp = hashlib.sha256(repr([(p, s.st_size, s.st_mtime_ns) for p, s in stats]).encode()).hexdigest()
    if (recorded := _load_record(record_path, copy, stamp, entry)) is not None:
        return recorded
    result: Accepted | Rejection
    try:
        panorama = source.load(entry, max_width, quality)
        digest = hash_jpeg(panorama.jpeg, panorama.width).tobytes().hex()
    except OSError as error:
        remedy = "once it can be read or is removed, the same command resumes"
        raise OSError(error.errno, f"{entry.file} cannot be read ({error.strerror}): {remedy}") from error
    except ValueError as error:  # includes DataError
        result = Rejection(entry.file, str(error))
        record: dict[str, object] = {"reason": result.reason}
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
        record = asdict(result) | ({"jpeg": None} if panorama.original is None else {})  # so that OUTPUT can be moved
    write_atomic(record_path, json.dumps({"stamp": stamp, **record}))
    return result


def _load_record(record_path: Path, copy: Path, stamp: str, entry: Entry) -> Accepted | Rejection | None:
    """None for a panorama that is not recorded yet, or whose record was lost in a power failure."""
    try:
        record = parse_json(record_path.read_bytes())
        if record.pop("stamp") != stamp:
            return None
        if "reason" in record:
            return Rejection(entry.file, str(record["reason"]))
        if record["jpeg"] is None:
            if not copy.is_file() or zlib.crc32(copy.read_bytes()) != record["crc32"]:
                return None
            record["jpeg"] = str(copy)
        kinds = dict.fromkeys(("jpeg", "hash"), str) | dict.fromkeys(("crc32", "bytes", "width", "height"), int)
        is_valid = all(isinstance(record[name], kind) for name, kind in kinds.items())
        return Accepted(**record) if is_valid and isinstance(record["record"], dict) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def read_jpeg(accepted: Accepted) -> bytes:
    """The bytes of an accepted panorama's JPEG.

    Raises:
        DataError: If the file has changed since it was accepted.
    """
    try:
        jpeg = Path(accepted.jpeg).read_bytes()
    except FileNotFoundError:
        jpeg = b""
    if zlib.crc32(jpeg) != accepted.crc32:
        raise DataError(
            f"{accepted.jpeg} changed while the shards were built: run the same command again, finished work is kept"
        )
    return jpeg
