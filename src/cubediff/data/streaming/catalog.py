"""Where the samples of a dataset lie, in shards here or elsewhere, with a manifest or without; and any one of them,
read alone."""

import hashlib
import json
import os
import re
import tarfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from webdataset.shardlists import expand_urls

from cubediff.data.format.index import index_tar, read_sample
from cubediff.data.format.layout import FORMAT, INDEX, MANIFEST, VERSION
from cubediff.data.streaming.remote import Cache, is_remote, read_bytes, retried
from cubediff.utils.errors import DataError

_OPEN_AT_A_TIME = 32
_REMEDY = "copy the folder again, or build the shards again"


@dataclass(frozen=True, eq=False)
class Shard:
    """A tar and where its samples lie in it: sample i takes the bytes offsets[i] to offsets[i + 1]."""

    name: str  # a local path or a URL
    keys: str  # all of them, joined by NUL
    offsets: Int64[np.ndarray, " places"]  # one more than samples
    size: int | None = None  # bytes; this and sha256 where a manifest tells
    sha256: str | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, eq=False)
class Catalog:
    """The shards of "train" and "val", and how their latents were made if they hold latents."""

    splits: dict[str, list[Shard]]
    latents: dict[str, Any] | None = None


def open_dataset(path: str, cache: Cache) -> Catalog:
    """The shards of a folder, here or at a URL, that `python -m cubediff.prepare` wrote; or of
    one tar or a brace range of tars, all of which are "train".

    Tars are indexed by their headers, remote ones fetched whole for it. Raises DataError where anything is missing or
    does not fit together.
    """
    path = path.removeprefix("file://")
    if path.startswith("pipe:") or re.search(r"\.tar(\?.*)?$", path):
        return Catalog({"train": [_indexed(tar, cache) for tar in expand_urls(path)], "val": []})
    return _catalogued(path.rstrip("/"))


def _indexed(tar: str, cache: Cache) -> Shard:
    try:
        with cache.open(tar) if is_remote(tar) else Path(tar).open("rb") as file:
            keys, offsets = index_tar(file)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{tar} cannot be read as a tar ({error}): give data.path another, or copy it again") from None
    return Shard(tar, "\0".join(keys), np.array(offsets, np.int64))


def _catalogued(folder: str) -> Catalog:
    remote = is_remote(folder)
    if not remote and not (Path(folder) / MANIFEST).is_file():
        raise DataError(
            f"{folder} holds no {MANIFEST}: build them with python -m cubediff.prepare SOURCE OUTPUT "
            "and give their folder as data.path=OUTPUT"
        )
    file = f"{folder}/{MANIFEST}"
    try:
        manifest = json.loads(read_bytes(file) if remote else Path(file).read_bytes())
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} is not JSON ({error}): build the shards again") from None
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise DataError(
            f"{file} is {manifest.get('format')} version {manifest.get('version')}, this cubediff reads "
            f"{FORMAT} version {VERSION}: build the shards again"
        )
    lines = _index(folder, remote, manifest)
    splits: dict[str, list[Shard]] = {}
    for split in ("train", "val"):
        splits[split] = []
        for entry in manifest["splits"][split]["shards"]:
            shard = f"{folder}/{entry['file']}"
            keys, offsets = lines.get(entry["file"], ([], [0]))
            if len(keys) != entry["samples"] or offsets[-1] > entry["bytes"]:
                raise DataError(f"{folder}/{INDEX} does not fit {shard}: {_REMEDY}")
            if not remote:
                size = Path(shard).stat().st_size if Path(shard).is_file() else None
                if size != entry["bytes"]:
                    found = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
                    raise DataError(f"{shard} {found}: {_REMEDY}")
            places = np.array(offsets, np.int64)
            splits[split].append(Shard(shard, "\0".join(keys), places, entry["bytes"], entry["sha256"]))
    return Catalog(splits, manifest.get("latents"))


def _index(folder: str, remote: bool, manifest: dict[str, Any]) -> dict[str, tuple[list[str], list[int]]]:
    file = f"{folder}/{INDEX}"
    try:
        content = read_bytes(file) if remote else Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}): {_REMEDY}") from None
    if hashlib.sha256(content).hexdigest() != manifest["index"]["sha256"]:
        raise DataError(f"{file} is not the one of {MANIFEST} (sha256 differs): {_REMEDY}")
    lines = map(json.loads, content.splitlines())
    return {line["file"]: (line["keys"], line["offsets"]) for line in lines}


class _Descriptors(dict[int, int]):
    """Of the shards that one thread holds open; closed with it."""

    def __del__(self) -> None:
        for descriptor in self.values():
            os.close(descriptor)


class Reader:
    """Any sample of some shards, numbered through them; each thread that reads keeps a few of its own open."""

    def __init__(self, shards: Sequence[Shard], cache: Cache) -> None:
        self.shards, self.cache = shards, cache
        self.firsts = np.cumsum([0, *map(len, shards)])
        self._own = threading.local()
        self._fetcher = threading.Thread()

    def locate(self, sample: int) -> tuple[int, int]:
        """The shard that holds a sample, and the sample's number in it."""
        shard = int(np.searchsorted(self.firsts, sample, side="right")) - 1
        return shard, sample - int(self.firsts[shard])

    def key(self, shard: int, number: int) -> str:
        return self.shards[shard].keys.split("\0")[number]

    def open(self, shard: int) -> int:
        """The file descriptor of a shard, which is fetched if it is remote. Raises DataError where it cannot be had."""
        opened = self._own.__dict__.setdefault("opened", _Descriptors())
        descriptor = opened.pop(shard, None)
        if descriptor is None:
            while len(opened) >= _OPEN_AT_A_TIME:
                os.close(opened.pop(next(iter(opened))))  # the one used longest ago
            one = self.shards[shard]
            if is_remote(one.name):
                with self.cache.open(one.name, one.size, one.sha256) as file:
                    descriptor = os.dup(file.fileno())
            else:
                descriptor = retried(lambda: os.open(one.name, os.O_RDONLY | os.O_CLOEXEC), one.name)
        opened[shard] = descriptor
        return int(descriptor)

    def prefetch(self, shard: int) -> None:
        """Fetches a remote shard in the background, unless another is just being fetched; where that fails, `open` will
        say so."""
        one = self.shards[shard]
        if not is_remote(one.name) or self._fetcher.is_alive():
            return

        def fetch() -> None:
            with suppress(DataError):
                self.cache.open(one.name, one.size, one.sha256).close()

        self._fetcher = threading.Thread(target=fetch, name="prefetch", daemon=True)
        self._fetcher.start()

    def read(self, shard: int, number: int) -> dict[str, bytes]:
        """A sample's members. Raises as `open` does, and what `read_sample` raises where its bytes are not whole."""
        begin, end = self.shards[shard].offsets[number : number + 2].tolist()
        return read_sample(self.open(shard), begin, end)
