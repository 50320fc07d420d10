"""Validation of a dataset's manifest, index and captions, which may come from anyone.

Every value that reading needs has its type, and every name stays inside the folder.
"""

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import NoReturn, NotRequired, TypedDict, cast

from cubediff.data.format.manifest import FORMAT, VERSION, IndexReference, LatentsRecord, SettingsRecord, SplitManifest
from cubediff.utils.errors import DataError, check_version
from cubediff.utils.files import read_json_lines
from cubediff.utils.json_text import parse_json
from cubediff.utils.text import is_unicode

MAX_MANIFEST = 1 << 26  # bytes; a shard takes about 150
MAX_INDEX = 1 << 30  # bytes; a sample takes about 30
MAX_CAPTION = 1 << 16  # characters

_SHA256 = re.compile(r"[0-9a-f]{64}")
# A part of a shard's name: no separator of Windows or of a URL, no drive, escape or wildcard, no control character.
_PART = re.compile(r"[^\\/:?#%*\[\]\x00-\x1f\x7f\ud800-\udfff]+")


class ReadableManifest(TypedDict):
    """The keys of a manifest, of panoramas or of latents, that reading needs."""

    splits: dict[str, SplitManifest]
    index: IndexReference
    settings: NotRequired[SettingsRecord]
    latents: NotRequired[LatentsRecord]
    shapes: NotRequired[dict[str, list[int]]]


def is_inside(name: str) -> bool:
    """Whether a relative name of a file stays inside its folder, on every system and in every URL.

    Example:
        >>> is_inside("train-000000.tar"), is_inside("../train-000000.tar"), is_inside("/etc/passwd")
        (True, False, False)
    """
    return all(_PART.fullmatch(part) and part.strip(". ") for part in name.split("/"))


def parse_manifest(content: bytes, file: str) -> ReadableManifest:
    """Parses a manifest.

    Args:
        content: Of manifest.json.
        file: Its path or URL, for messages.

    Raises:
        DataError: If it is not JSON, has another format or version, or a value has the wrong type; names the key.
    """
    try:
        manifest: object = parse_json(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({error}): build the shards again") from None
    checked = _Values(manifest, file)
    if checked.get("format") == FORMAT:
        check_version(checked.get("version"), VERSION, file)
    if (checked.get("format"), checked.get("version")) != (FORMAT, VERSION):
        raise DataError(
            f"{file} has the format {checked.get('format')!r} version {checked.get('version')!r}, this cubediff reads "
            f"{FORMAT} version {VERSION}: build the shards again"
        )
    checked.inner("index").sha256("sha256")
    splits = checked.inner("splits")
    for split in ("train", "val"):
        for shard in splits.inner(split).items("shards"):
            shard.name("file")
            shard.count("samples")
            shard.count("bytes")
            shard.sha256("sha256")
    if checked.get("settings") is not None:
        checked.inner("settings")
    if checked.get("latents") is not None:
        latents = checked.inner("latents")
        latents.count("face_size")
        latents.number("fov")
        latents.text("encoders")
    if checked.get("shapes") is not None:
        checked.inner("shapes").shapes()
    return cast(ReadableManifest, manifest)


def parse_index(content: bytes, file: str) -> dict[str, tuple[list[str], list[int]]]:
    """Parses an index: the keys and offsets of the samples, by shard.

    Args:
        content: Of index.jsonl.
        file: Its path or URL, for messages.

    Raises:
        DataError: If a line is not JSON, or a value has the wrong type.
    """
    index: dict[str, tuple[list[str], list[int]]] = {}
    try:
        for number, line in read_json_lines(content.decode()):
            checked = _Values(line, f"{file}, line {number}")
            name, keys, offsets = checked.text("file"), checked.get("keys"), checked.get("offsets")
            if not (isinstance(keys, list) and all(isinstance(key, str) and "\0" not in key for key in keys)):
                checked.refuse("keys", "a list of texts", keys)
            if not (
                isinstance(offsets, list)
                and len(offsets) == len(keys) + 1
                and all(type(offset) is int for offset in offsets)
                and offsets[0] >= 0
                and offsets[-1] < 1 << 63
                and all(before <= after for before, after in pairwise(offsets))
            ):
                checked.refuse("offsets", "increasing integers, one more than keys", offsets)
            index[name] = keys, offsets
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} is not JSON lines ({error}): copy the folder again, or build it again") from None
    return index


def caption_text(value: object, name: str) -> str:
    """A caption of a sample's record.

    Args:
        value: From the record.
        name: Its key, for messages.

    Raises:
        TypeError: If it is not a text.
        ValueError: If it is longer than `MAX_CAPTION` characters, or holds a lone surrogate, which no tokenizer takes.
    """
    if not isinstance(value, str):
        raise TypeError(f"its {name} must be a text, got {ascii(value)[:40]}")
    if len(value) > MAX_CAPTION:
        raise ValueError(f"its {name} has {len(value)} characters, more than {MAX_CAPTION}")
    if not is_unicode(value):
        raise ValueError(f"its {name} holds a lone surrogate, which is not valid text")
    return value


class _Values:
    """The values of a JSON object, each refused by its key unless it has its type."""

    def __init__(self, values: object, where: str, prefix: str = "") -> None:
        self.where, self.prefix = where, prefix
        if not isinstance(values, Mapping):
            self.refuse("", "an object", values)
        self.values: Mapping[str, object] = values

    def refuse(self, key: str, expected: str, value: object) -> NoReturn:
        name = (self.prefix + key).strip(".") or "its content"
        raise DataError(
            f"{self.where}: {name} must be {expected}, got {ascii(value)[:80]}: copy the file again, or build the "
            "shards again"
        )

    def get(self, key: str) -> object:
        return self.values.get(key)

    def inner(self, key: str) -> "_Values":
        return _Values(self.get(key), self.where, f"{self.prefix}{key}.")

    def items(self, key: str) -> "list[_Values]":
        items = self.get(key)
        if not isinstance(items, list):
            self.refuse(key, "a list", items)
        return [_Values(item, self.where, f"{self.prefix}{key}[{number}].") for number, item in enumerate(items)]

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            self.refuse(key, "a text", value)
        return value

    def name(self, key: str) -> None:
        value = self.get(key)
        if not (isinstance(value, str) and is_inside(value)):
            self.refuse(key, "a file name inside the folder", value)

    def sha256(self, key: str) -> None:
        value = self.get(key)
        if not (isinstance(value, str) and _SHA256.fullmatch(value)):
            self.refuse(key, "a SHA-256 of 64 hexadecimal digits", value)

    def count(self, key: str) -> None:
        value = self.get(key)
        if type(value) is not int or not 0 <= value < 1 << 63:
            self.refuse(key, "a non-negative integer", value)

    def shapes(self) -> None:
        for key, value in self.values.items():
            if not (isinstance(value, list) and all(type(size) is int and size > 0 for size in value)):
                self.refuse(key, "a list of positive integers", value)

    def number(self, key: str) -> None:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.refuse(key, "a number", value)
