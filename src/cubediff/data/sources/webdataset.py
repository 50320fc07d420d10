"""Existing WebDataset shards as a source, of this project or others: an image and a .json or .txt with the same key."""

import io
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, cast

from cubediff.data.format.index import MAX_SAMPLE, Headers, is_outside, sample_members
from cubediff.data.sources.base import Entry, Listing, PanoramaJpeg, Rejection
from cubediff.data.sources.captioned_path import CaptionedPath
from cubediff.data.sources.names import normal_form
from cubediff.data.sources.records import entry_from, has_caption, parse_object
from cubediff.images.decoding import decoding
from cubediff.images.limits import MAX_WIDTH, QUALITY
from cubediff.images.panorama_jpeg import as_panorama, check_panorama
from cubediff.images.reading import decode
from cubediff.utils.errors import DataError
from cubediff.utils.files import open_regular
from cubediff.utils.text import escape_surrogates, is_unicode

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")  # the first of these that a sample has is its panorama

_DERIVED_KEYS = ("file", "width", "height", "crc32")  # of this project's shards, computed again when they are written

Range = tuple[int, int]  # content of a member: offset in the tar, size in bytes


@dataclass(frozen=True)
class Shards(CaptionedPath):
    """The tars below a folder, or a single tar; entries are named SHARD.tar/KEY.EXTENSION.

    Args:
        path: The folder or the tar.
        captioned: Whether samples without a caption are rejected.
        tree: The files below `path`, if they have been listed already.
    """

    def entries(self) -> Listing:
        tars, rejected = ([self.path.name], []) if self.path.is_file() else self._listed().files(".tar")
        if not tars and not rejected:
            raise DataError(f"{self.path} holds no shard (.tar)")
        entries: list[Entry] = []
        for tar in tars:
            try:
                samples, refused, fault = _read_index(*_version(self._tar(tar)))
            except DataError as error:
                samples, refused, fault = {}, [], str(error)
            rejected += [Rejection(tar, fault)] if fault else []
            rejected += [Rejection(escape_surrogates(f"{tar}/{name}"), reason) for name, reason in refused]
            for key, members in samples.items():
                image = next((extension for extension in IMAGE_EXTENSIONS if extension in members), None)
                file = f"{tar}/{key}.{image}" if image else f"{tar}/{key}"
                try:
                    entries.append(self._entry(self._tar(tar), file, members, image))
                except DataError as error:
                    rejected.append(Rejection(escape_surrogates(file), str(error)))
        return entries, rejected

    def files(self, entry: Entry) -> list[Path]:
        return [self._tar(_split_name(entry.file)[0])]

    def load(self, entry: Entry, max_width: int = MAX_WIDTH, quality: int = QUALITY) -> PanoramaJpeg:
        tar, key, extension = _split_name(entry.file)
        path = self._tar(tar)
        with decoding():
            data = _read(path, _read_index(*_version(path)).samples[key][extension])

            def check(width: int, height: int) -> None:
                check_panorama(width, height, max_width)

            return as_panorama(decode(io.BytesIO(data), f"{key}.{extension}", check, sphere=True), quality)

    def _tar(self, name: str) -> Path:
        return self.path if self.path.is_file() else self.path / name

    def _entry(self, tar: Path, file: str, members: dict[str, Range], image: str | None) -> Entry:
        if image is None:
            raise DataError(f"a sample without image: use {', '.join(IMAGE_EXTENSIONS)}")
        if not is_unicode(file):
            raise DataError("its key is not UTF-8 text")
        record: dict[str, object] = {}
        if "json" in members:
            text = _read_text(tar, members, "json")
            try:
                record = _with_standard_keys(parse_object(text))
            except DataError as error:
                raise DataError(f"its .json is not JSON: {error}") from None
        if "txt" in members and not has_caption(record):
            record["caption"] = _read_text(tar, members, "txt")
        return entry_from(file, record, self.captioned)


def _read_text(tar: Path, members: dict[str, Range], extension: str) -> str:
    try:
        return _read(tar, members[extension]).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"its .{extension} is not UTF-8 text (byte {error.start})") from None


def _with_standard_keys(record: dict[str, object]) -> dict[str, object]:
    """A sample's JSON with the keys of captions.jsonl."""
    metadata = record.get("metadata", {})
    if "crc32" in record and isinstance(metadata, dict):  # a shard of this project
        own = {key: value for key, value in record.items() if key not in (*_DERIVED_KEYS, "metadata")}
        record = metadata | own
    for other, standard in (("text", "caption"), ("scene", "asset")):
        if other in record and standard not in record:
            record[standard] = record.pop(other)
    return record


def _split_name(file: str) -> tuple[str, str, str]:
    """Shard, key and image extension of an entry's file."""
    match = re.fullmatch(r"(.*?\.tar)/(.*)\.([a-z]+)", file, re.DOTALL | re.IGNORECASE)
    if match is None:
        raise DataError(f"{file} is not of the form SHARD.tar/KEY.EXTENSION")
    return match[1], match[2], match[3]


def _version(path: Path) -> tuple[Path, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}") from None
    return path, stat.st_size, stat.st_mtime_ns


class _Index(NamedTuple):
    """The content of a shard.

    Attributes:
        samples: The content of each sample's members, by key and extension.
        refused: Names of members or samples that cannot be used, and why.
        fault: The damage of the tar, after which nothing can be read; "" if there is none.
    """

    samples: dict[str, dict[str, Range]]
    refused: list[tuple[str, str]]
    fault: str


@lru_cache(maxsize=4)  # entries come shard by shard; size and time tell a changed file from the cached one
def _read_index(path: Path, size: int, mtime: int) -> _Index:
    blocks: list[tuple[str, list[tuple[str, Range]]]] = []  # consecutive members of one key
    refused: list[tuple[str, str]] = []
    fault = ""
    try:
        with open_regular(path) as file, tarfile.open(fileobj=cast(BinaryIO, Headers(file)), mode="r:") as tar:
            for key, extension, member in sample_members(tar):
                if member.issparse() or is_outside(member.name):
                    continue
                if not blocks or normal_form(blocks[-1][0]) != normal_form(key):
                    blocks.append((key, []))
                blocks[-1][1].append((extension, (member.offset_data, member.size)))
            end_mark = _read(path, (tar.offset, tarfile.BLOCKSIZE))
            refused = [(member.name, reason) for member in tar.getmembers() if (reason := _unusable(member))]
        fault = "damaged: the samples after the last readable one are lost" if any(end_mark) else ""
    except Exception as error:  # tarfile raises many types on damaged headers
        reason = (str(error).splitlines() or ["it ends early"])[0]
        fault = f"truncated or not an uncompressed tar: {reason}"
    samples, repeated = _join_blocks(blocks)
    return _Index(samples, refused + repeated, fault)


def _unusable(member: tarfile.TarInfo) -> str:
    """Why an image in a tar is no sample; "" for all other members."""
    if PurePosixPath(member.name).suffix.lower().removeprefix(".") not in IMAGE_EXTENSIONS or member.isdir():
        return ""
    if is_outside(member.name):
        return "its name lies outside of the tar: store it under a relative name without .."
    if member.issparse():
        return "a sparse file in the tar: store it without --sparse"
    return "" if member.isreg() else "a link or device in the tar: store the file itself (tar --hard-dereference -h)"


def _join_blocks(
    blocks: list[tuple[str, list[tuple[str, Range]]]],
) -> tuple[dict[str, dict[str, Range]], list[tuple[str, str]]]:
    """The samples by key, and those whose key occurs again.

    A key's members need not be consecutive (tar *.jpg *.txt); members that the sample has already belong to another
    sample of the same key, as in tars that were merged.
    """
    samples: dict[str, dict[str, Range]] = {}
    spelt: dict[str, str] = {}  # keys by their normal form
    repeated: list[tuple[str, str]] = []
    for key, members in blocks:
        key = spelt.setdefault(normal_form(key), key)
        known = samples.setdefault(key, {})
        again = bool(known) and any(extension in known for extension, _ in members)
        counts = Counter(extension for extension, _ in members)
        for _ in range(max(counts.values()) - (not again)):
            image = next((extension for extension in IMAGE_EXTENSIONS if extension in counts), None)
            name = f"{key}.{image}" if image else key
            repeated.append((name, "its key occurs again in this tar: the first sample counts; rename the others"))
        if not again:
            for extension, content in members:
                known.setdefault(extension, content)
    return samples, repeated


def _read(tar: Path, content: Range) -> bytes:
    offset, size = content
    if not 0 <= size <= MAX_SAMPLE:
        raise DataError(f"a member of {size} bytes: expected at most {MAX_SAMPLE}")
    with open_regular(tar) as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise DataError("truncated: the shard ends early")
    return data
