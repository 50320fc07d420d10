"""Existing WebDataset shards as a source, this project's own and others': an image and a .json or .txt of the same key
(the paper's training data, made streamable)."""

import io
import re
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cubediff.data.sources.base import Entry, Panorama, Rejection, list_files, printable
from cubediff.data.sources.captions import Listing, entry_from, parse_object
from cubediff.images.panorama import as_panorama, check_panorama
from cubediff.images.reading import decode, decoding
from cubediff.utils.errors import DataError

MEMBERS = ("jpg", "jpeg", "png", "webp")  # of a sample the first of these is its panorama

_OWN = ("file", "width", "height", "crc32")  # what cubediff's own shards say of the JPEG besides
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)  # key and suffix, as the webdataset library splits them

Place = tuple[int, int]  # a member's content: where it begins in the tar, and its size in bytes


@dataclass(frozen=True)
class Shards:
    """Tars below the folder `path`, or the tar `path`. An entry's file is SHARD/KEY.SUFFIX."""

    path: Path
    captioned: bool = True

    @property
    def identity(self) -> str:
        return f"{type(self).__qualname__}(path={self.path!r}, captioned={self.captioned!r})"

    def entries(self) -> Listing:
        tars, rejected = ([self.path.name], []) if self.path.is_file() else list_files(self.path, (".tar",))
        if not tars:
            raise DataError(f"{self.path} holds no shard (.tar)")
        entries: list[Entry] = []
        for tar in tars:
            try:
                samples, fault = _samples(*_version(self._tar(tar)))
            except DataError as error:
                samples, fault = {}, str(error)
            rejected += [Rejection(tar, fault)] if fault else []
            for key, places in samples.items():
                image = next((suffix for suffix in MEMBERS if suffix in places), None)
                file = f"{tar}/{key}.{image}" if image else f"{tar}/{key}"
                try:
                    entries.append(self._entry(self._tar(tar), file, places, image))
                except DataError as error:
                    rejected.append(Rejection(printable(file), str(error)))
        return entries, rejected

    def files(self, entry: Entry) -> list[Path]:
        return [self._tar(_split(entry.file)[0])]

    def load(self, entry: Entry, max_width: int = 16384, quality: int = 95) -> Panorama:
        tar, key, suffix = _split(entry.file)
        path = self._tar(tar)
        with decoding():
            data = _read(path, _samples(*_version(path))[0][key][suffix])

            def check(width: int, height: int) -> None:
                check_panorama(width, height, max_width)

            return as_panorama(decode(io.BytesIO(data), f"{key}.{suffix}", check), quality)

    def _tar(self, name: str) -> Path:
        return self.path if self.path.is_file() else self.path / name

    def _entry(self, tar: Path, file: str, places: dict[str, Place], image: str | None) -> Entry:
        if image is None:
            raise DataError(f"a sample without image: use {', '.join(MEMBERS)}")
        if printable(file) != file:
            raise DataError("its key is not UTF-8 text")
        suffix = "json" if "json" in places else "txt"
        try:
            text = _read(tar, places[suffix]).decode("utf-8-sig") if suffix in places else ""
        except UnicodeDecodeError as error:
            raise DataError(f"its .{suffix} is not UTF-8 text (byte {error.start})") from None
        record: dict[str, Any] = {"caption": text}
        if suffix == "json":
            try:
                record = _known(parse_object(text))
            except DataError as error:
                raise DataError(f"its .json is not JSON: {error}") from None
        return entry_from(file, record, self.captioned)


def _known(record: dict[str, Any]) -> dict[str, Any]:
    """A sample's JSON with the names of captions.jsonl."""
    if "crc32" in record and isinstance(record.get("metadata", {}), dict):
        metadata = record.pop("metadata", {})
        record = metadata | {key: value for key, value in record.items() if key not in _OWN}
    for theirs, ours in (("text", "caption"), ("scene", "asset")):
        if theirs in record and ours not in record:
            record[ours] = record.pop(theirs)
    return record


def _split(file: str) -> tuple[str, str, str]:
    """Shard, key and image suffix of an entry's file."""
    match = re.fullmatch(r"(.*?\.tar)/(.*)\.([a-z]+)", file, re.DOTALL | re.IGNORECASE)
    if match is None:
        raise DataError(f"{file} is no SHARD.tar/KEY.SUFFIX")
    return match[1], match[2], match[3]


def _version(path: Path) -> tuple[Path, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}") from None
    return path, stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=4)  # entries come shard by shard
def _samples(path: Path, size: int, mtime: int) -> tuple[dict[str, dict[str, Place]], str]:
    """Where each sample's members lie, by key and lower-case suffix, as far as the tar is whole; and what is wrong with
    it, or nothing."""
    samples: dict[str, dict[str, Place]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse() and (match := _NAME.fullmatch(member.name)):
                    places = samples.setdefault(match[1], {})
                    places.setdefault(match[2].lower(), (member.offset_data, member.size))
            mark = _read(path, (tar.offset, tarfile.BLOCKSIZE))
        return samples, "damaged: what follows its last readable sample is lost" if any(mark) else ""
    except Exception as error:  # tarfile raises half a dozen kinds on damaged headers
        return samples, f"truncated or no uncompressed tar: {(str(error).splitlines() or ['it ends early'])[0]}"


def _read(tar: Path, place: Place) -> bytes:
    offset, size = place
    with tar.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise DataError("truncated: the shard ends early")
    return data
