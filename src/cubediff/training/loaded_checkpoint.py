"""Reads a checkpoint once: its content, and in the same pass its checksums, which torch does not verify."""

import io
import stat
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from struct import unpack
from typing import BinaryIO, NamedTuple, cast

import torch
from typing_extensions import Buffer

from cubediff.training.checkpoint_errors import DAMAGE, retry_storage

_HEADER = 30  # bytes of a record's local header before its name


class LoadedCheckpoint:
    """The content of the checkpoint that was verified last, kept in memory until a run is restored from it."""

    def __init__(self) -> None:
        self._version: tuple[Path, int, int, int] | None = None
        self._content: object = None

    def verify(self, file: Path) -> str | None:
        """Reads a checkpoint, and verifies it as `find_damage` does.

        Returns:
            A description of the damage; None for an undamaged file, whose content is kept if torch can read it.

        Raises:
            FileNotFoundError: If there is no such file.
            CheckpointError: If the file cannot be read, which says nothing about its content.
        """
        self.forget()
        damage, content = retry_storage(file, lambda: _read(file))
        if content is not None:
            self._version, self._content = _version(file), content
        return damage

    def content(self, file: Path) -> object:
        """The content of `file`; None if another file is kept, or it has changed since."""
        return self._content if self._version is not None and self._version == _version(file) else None

    def take(self, file: Path) -> object:
        """As `content`, which is not kept any longer."""
        content = self.content(file)
        self.forget()
        return content

    def forget(self) -> None:
        """Releases the memory."""
        self._version = self._content = None


def _version(file: Path) -> tuple[Path, int, int, int]:
    status = file.stat()
    return file.resolve(), status.st_ino, status.st_size, status.st_mtime_ns


def _read(file: Path) -> tuple[str | None, object]:
    """The damage of a checkpoint, or its content; neither for an undamaged file of another program."""
    if not stat.S_ISREG(file.stat().st_mode):
        return "it is not a regular file", None
    try:
        with file.open("rb") as opened, zipfile.ZipFile(opened) as archive:
            return _read_archive(opened, archive)
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
        return str(error), None
    except Exception as error:  # zipfile raises errors of many classes for damaged headers
        return str(error) or type(error).__name__, None


def _read_archive(file: io.BufferedReader, archive: zipfile.ZipFile) -> tuple[str | None, object]:
    spans = list(_spans(file, archive))
    tensors = [span for span in spans if "/data/" in span.record.filename and not span.record.compress_type]
    for span in spans:
        if span not in tensors and not _is_intact(archive, span.record):  # before torch interprets them
            return _differs(span.record), None
    read = _ChecksummedFile(file, tensors)
    content, fault = None, None
    file.seek(0)  # where torch looks for the archive
    try:
        content = torch.load(cast(BinaryIO, read), map_location="cpu", weights_only=True)
    except OSError:
        raise
    except RuntimeError as error:
        fault = str(error).splitlines()[0] if "PytorchStreamReader" in str(error) else None
    except Exception:  # a file of another program, which is not damaged
        pass
    for span in tensors:
        checksum = read.checksum(span)
        if checksum != span.record.CRC and (checksum is not None or not _is_intact(archive, span.record)):
            return _differs(span.record), None
    return fault, content if fault is None else None


def _differs(record: zipfile.ZipInfo) -> str:
    return f"the checksum of {record.filename} in it differs"


def _is_intact(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(record) as opened:
            while opened.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


class _Span(NamedTuple):
    """The bytes from `start` to `end` of a file are those of a record."""

    start: int
    end: int
    record: zipfile.ZipInfo


def _spans(file: io.BufferedReader, archive: zipfile.ZipFile) -> Iterator[_Span]:
    for record in sorted(archive.infolist(), key=lambda record: record.header_offset):
        archive.open(record).close()  # verifies its local header
        file.seek(record.header_offset + _HEADER - 4)
        name, extra = unpack("<HH", file.read(4))
        start = record.header_offset + _HEADER + name + extra
        yield _Span(start, start + record.compress_size, record)


class _ChecksummedFile(io.RawIOBase):
    """A file that computes the checksums of the records that are read in order from begin to end."""

    def __init__(self, file: io.BufferedReader, spans: list[_Span]) -> None:
        self._file, self._spans = file, spans
        self._starts = [span.start for span in spans]
        self._read = {span.start: (span.start, 0) for span in spans}  # position up to which it is read, and checksum

    def checksum(self, span: _Span) -> int | None:
        """The CRC-32 of a record; None if not all of it was read."""
        position, checksum = self._read[span.start]
        return checksum if position == span.end else None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        position = self._file.tell()
        data = self._file.read(size)
        self._note(position, data)
        return data

    def readinto(self, buffer: Buffer) -> int:
        position, view = self._file.tell(), memoryview(buffer)
        count = self._file.readinto(view)
        self._note(position, view[:count])
        return count

    def _note(self, position: int, data: bytes | memoryview) -> None:
        number = bisect_right(self._starts, position) - 1
        if number < 0:
            return
        span = self._spans[number]
        until, checksum = self._read[span.start]
        if position == until:
            within = data[: span.end - position]
            self._read[span.start] = position + len(within), zlib.crc32(within, checksum)
