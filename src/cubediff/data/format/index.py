"""Where each sample of a tar shard lies, so that any one is read alone (WebDataset's layout: the members of a sample
follow each other and share the name before the first dot after the folders)."""

import io
import os
import tarfile
from pathlib import Path
from typing import BinaryIO, NamedTuple


class ShardIndex(NamedTuple):
    """Sample i has the name keys[i] and takes the bytes offsets[i] to offsets[i + 1] of the tar."""

    keys: list[str]
    offsets: list[int]  # one more than keys


def index_tar(shard: Path | BinaryIO) -> ShardIndex:
    """The samples of a shard, from its headers. Raises tarfile.TarError or OSError where it is no whole tar."""
    keys: list[str] = []
    offsets: list[int] = []
    path, file = (shard, None) if isinstance(shard, Path) else (None, shard)
    with tarfile.open(path, "r:", file) as tar:
        for member in tar:
            key = _split(member.name)[0]
            if member.isfile() and [key] != keys[-1:]:
                keys.append(key)
                offsets.append(member.offset)
        return ShardIndex(keys, [*offsets, tar.offset] if keys else [0])


def read_sample(tar: int, offset: int, end: int) -> dict[str, bytes]:
    """A sample's members by what follows that dot in their names, from a shard's file descriptor. Raises EOFError,
    tarfile.TarError or OSError where these bytes of it are not whole."""
    data = os.pread(tar, end - offset, offset)
    if len(data) < end - offset:
        raise EOFError("the shard ends early")
    sample = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as members:
        for member in members:
            content = members.extractfile(member)
            if content is not None:
                sample[_split(member.name)[1]] = content.read()
    return sample


def _split(name: str) -> tuple[str, str]:
    """A member's sample, and which of its members it is: folders may have dots."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix
