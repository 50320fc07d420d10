"""The catalog of a dataset: its shards, local or remote, with or without a manifest, and its samples."""

import hashlib
import re
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from webdataset.shardlists import expand_urls

from cubediff.data.format.index import index_tar, read_sample
from cubediff.data.format.manifest import BUILDING, INDEX, MANIFEST, SETTINGS, LatentsRecord
from cubediff.data.format.validation import MAX_INDEX, MAX_MANIFEST, ReadableManifest, parse_index, parse_manifest
from cubediff.data.streaming.remote import Cache, is_remote, read_bytes
from cubediff.utils.errors import DataError, reason
from cubediff.utils.files import open_regular, read_limited
from cubediff.utils.json_text import parse_json
from cubediff.utils.text import printable, redact

_REMEDY = "copy the folder again, or build the shards again"


@dataclass(frozen=True, eq=False)
class Shard:
    """A tar and the location of its samples: sample i takes the bytes offsets[i] to offsets[i + 1]."""

    name: str  # a local path or a URL
    keys: str  # of all samples, joined by NUL
    offsets: Int64[np.ndarray, " n"]  # one more than samples
    size: int | None = None  # bytes; size and sha256 are known from a manifest only
    sha256: str | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, eq=False)
class Catalog:
    """The shards of a dataset by split ("train", "val"); if it holds latents, their settings, and the shapes of a
    sample's tensors if its manifest has them."""

    splits: dict[str, list[Shard]]
    latents: LatentsRecord | None = None
    shapes: dict[str, list[int]] | None = None


def open_dataset(path: str, cache: Cache) -> Catalog:
    """Finds the shards and samples of a dataset.

    Tars without a manifest are indexed by their headers; remote ones are fetched for it.

    Args:
        path: A folder or URL that `cubediff prepare` or `cubediff cache` wrote; or one tar, a brace range of tars, or
            `pipe:COMMAND`, all of whose samples are in the split "train".
        cache: Fetches and keeps remote shards.

    Raises:
        DataError: If a file is missing, damaged, does not match the manifest, or is a tar of other software.
    """
    path = path.removeprefix("file://")
    if names_tars(path):
        tars = [path] if Path(path).is_file() else expand_urls(path)  # a name may contain braces
        return Catalog({"train": [_index_shard(tar, cache) for tar in tars], "val": []})
    return _read_catalog(path.rstrip("/"), cache.retry_minutes)


def names_tars(path: str) -> bool:
    """Whether a path of `data.path` names tars, which have no manifest, and not a folder."""
    return path.startswith("pipe:") or (bool(re.search(r"\.tar(\?.*)?$", path)) and not Path(path).is_dir())


def needs_fetching(path: str) -> bool:
    """Whether `open_dataset` runs a command or downloads a shard, because a remote tar has no manifest."""
    return is_remote(path.removeprefix("file://")) and names_tars(path.removeprefix("file://"))


def _index_shard(tar: str, cache: Cache) -> Shard:
    try:
        with cache.open(tar) if is_remote(tar) else open_regular(Path(tar)) as file:
            keys, offsets = index_tar(file)
            first = _first_samples(file.fileno(), offsets)
    except FileNotFoundError:
        raise DataError(
            f"{printable(redact(tar))} does not exist: copy it there, or set data.path to tars that exist, for "
            "example a brace range, DIR/train-{000000..000041}.tar"
        ) from None
    except (OSError, DataError, tarfile.TarError) as error:
        if isinstance(error, DataError) and is_remote(tar):
            raise
        raise DataError(
            f"{printable(redact(tar))} cannot be read as a tar ({reason(error)}): copy it again, or choose another "
            "data.path"
        ) from None
    if first and not any(map(_is_ours, first)):  # one of ours may be damaged
        raise DataError(
            f"{printable(redact(tar))} is no shard of cubediff: its first sample, {printable(keys[0])}, has "
            f"{printable(', '.join(sorted(first[0])))} and no "
            "checksum. Build shards from these tars with python -m cubediff.prepare SOURCE OUTPUT and set "
            "data.path=OUTPUT"
        )
    return Shard(tar, "\0".join(keys), np.array(offsets, np.int64))


def _first_samples(descriptor: int, offsets: list[int]) -> list[dict[str, bytes]]:
    """The first two samples of a shard, as far as they can be read."""
    samples = []
    for start, end in islice(pairwise(offsets), 2):
        with suppress(EOFError, tarfile.TarError):
            samples.append(read_sample(descriptor, start, end))
    return samples


def _is_ours(sample: dict[str, bytes]) -> bool:
    """Whether a sample has the record of `cubediff prepare` or `cubediff cache`, or one that is damaged."""
    if "json" not in sample:
        return False
    try:
        record: object = parse_json(sample["json"])
    except (ValueError, RecursionError):
        return True  # counted as damaged when it is read
    return isinstance(record, dict) and "crc32" in record


def _read_catalog(folder: str, retry_minutes: float) -> Catalog:
    manifest = _read_manifest(folder, retry_minutes)
    index = _read_index(folder, manifest, retry_minutes)
    splits: dict[str, list[Shard]] = {"train": [], "val": []}
    for split, shards in splits.items():
        for entry in manifest["splits"][split]["shards"]:
            name = f"{folder}/{entry['file']}"
            keys, offsets = index.get(entry["file"], ([], [0]))
            if len(keys) != entry["samples"] or offsets[-1] > entry["bytes"]:
                raise DataError(f"{redact(folder)}/{INDEX} does not match {redact(name)}: {_REMEDY}")
            if not is_remote(folder):
                _check_size(Path(name), entry["bytes"])
            shards.append(Shard(name, "\0".join(keys), np.array(offsets, np.int64), entry["bytes"], entry["sha256"]))
    return Catalog(splits, manifest.get("latents"), manifest.get("shapes"))


def _read_manifest(folder: str, retry_minutes: float) -> ReadableManifest:
    """The checked manifest of a folder or URL."""
    if not is_remote(folder) and not (Path(folder) / MANIFEST).exists():
        if not Path(folder).is_dir():
            problem = "is a file and no tar" if Path(folder).exists() else "does not exist"
            raise DataError(
                f"data.path={folder} {problem}: set data.path to a folder of shards that cubediff prepare wrote, "
                "to its URL, or to tars"
            )
        if (Path(folder) / SETTINGS).exists():
            raise DataError(
                f"{folder} holds no {MANIFEST} yet: caching its latents was interrupted; complete it with the same "
                "cubediff cache command"
            )
        if (Path(folder) / BUILDING / MANIFEST).exists():
            raise DataError(
                f"{folder} holds no {MANIFEST} yet: the move of its finished shards was interrupted; complete it with "
                "the same cubediff prepare command"
            )
        raise DataError(
            f"{folder} holds no {MANIFEST}: build shards with cubediff prepare SOURCE OUTPUT and set data.path=OUTPUT"
        )
    file = f"{folder}/{MANIFEST}"
    return parse_manifest(_read_file(file, MAX_MANIFEST, retry_minutes), redact(file))


def _read_index(
    folder: str, manifest: ReadableManifest, retry_minutes: float
) -> dict[str, tuple[list[str], list[int]]]:
    """The keys and offsets of the samples, by shard."""
    file = f"{folder}/{INDEX}"
    content = _read_file(file, MAX_INDEX, retry_minutes)
    if hashlib.sha256(content).hexdigest() != manifest["index"]["sha256"]:
        raise DataError(f"{redact(file)} does not belong to {MANIFEST} (sha256 differs): {_REMEDY}")
    return parse_index(content, redact(file))


def _check_size(shard: Path, expected: int) -> None:
    size = shard.stat().st_size if shard.is_file() else None
    if size != expected:
        found = (
            f"is missing although {MANIFEST} lists it" if size is None else f"has {size} bytes instead of {expected}"
        )
        raise DataError(f"{shard} {found}: {_REMEDY}")


def _read_file(file: str, limit: int, retry_minutes: float) -> bytes:
    if is_remote(file):
        return read_bytes(file, limit, retry_minutes)
    try:
        return read_limited(Path(file), limit)
    except (OSError, DataError) as error:
        raise DataError(f"{file} cannot be read ({reason(error)}): {_REMEDY}") from None
