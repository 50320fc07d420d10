"""Reading single samples of tar shards by WebDataset's rules: consecutive members with the same key are a sample."""

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from webdataset.tariterators import base_plus_ext

from cubediff.utils.files import read_at

_METADATA = re.compile(r"__[^/]*__($|/)")  # names of members that webdataset skips


class ShardIndex(NamedTuple):
    """Sample i has the key keys[i] and the bytes offsets[i] to offsets[i + 1] of the tar."""

    keys: list[str]
    offsets: list[int]  # one more than keys


def sample_members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yields key, extension in lower case and header of the members that webdataset reads.

    The key ends at the first dot of the file name. Folders, links, members without an extension and metadata members
    (`__name__`) are skipped.
    """
    for member in tar:
        key, extension = base_plus_ext(member.name)
        if member.isreg() and key is not None and not _METADATA.match(member.name):
            yield key, extension.lower(), member


def index_tar(shard: Path | BinaryIO) -> ShardIndex:
    """Indexes the samples of a shard by its headers.

    Raises:
        tarfile.TarError: If the shard is not a complete uncompressed tar.
        OSError: If it cannot be read.
    """
    keys: list[str] = []
    offsets: list[int] = []
    path, file = (shard, None) if isinstance(shard, Path) else (None, shard)
    with tarfile.open(path, "r:", file) as tar:
        for key, _, member in sample_members(tar):
            if [key] != keys[-1:]:
                keys.append(key)
                offsets.append(member.offset)
        return ShardIndex(keys, [*offsets, tar.offset] if keys else [0])


def read_sample(descriptor: int, start: int, end: int) -> dict[str, bytes]:
    """Reads the members of one sample, by extension, from bytes `start` to `end` of an open shard.

    Args:
        descriptor: File descriptor of the shard; its position is not used.
        start: Offset of the sample's first header.
        end: Offset of the next sample.

    Raises:
        EOFError: If the shard ends before `end`.
        tarfile.TarError: If the bytes are damaged.
        OSError: If they cannot be read.
    """
    data = read_at(descriptor, end - start, start)
    if len(data) < end - start:
        raise EOFError("the shard ends early")
    sample = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for _, extension, member in sample_members(tar):
            content = tar.extractfile(member)
            assert content is not None  # it is a regular file
            sample[extension] = content.read()
    return sample
