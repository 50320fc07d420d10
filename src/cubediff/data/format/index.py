"""Reading single samples of tar shards by WebDataset's rules: consecutive members with the same key are a sample."""

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from webdataset.tariterators import base_plus_ext

from cubediff.utils.files import open_regular, read_at

MAX_SAMPLE = 1 << 30  # bytes of a sample, which is read into memory

_MAX_HEADER = 1 << 20  # bytes; a header's long name or attributes are read into memory, too
_METADATA = re.compile(r"__[^/]*__($|/)")  # names of members that webdataset skips


class ShardIndex(NamedTuple):
    """Sample i has the key keys[i] and the bytes offsets[i] to offsets[i + 1] of the tar."""

    keys: list[str]
    offsets: list[int]  # one more than keys


def sample_members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yields key, extension in lower case and header of the members that webdataset reads.

    The key ends at the first dot of the file name. Folders, links, devices, members without an extension and metadata
    members (`__name__`) are skipped.
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
    if isinstance(shard, Path):
        with open_regular(shard) as file:
            return index_tar(file)
    keys: list[str] = []
    offsets: list[int] = []
    with tarfile.open(fileobj=cast(BinaryIO, Headers(shard)), mode="r:") as tar:
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
        tarfile.TarError: If the bytes are damaged, more than `MAX_SAMPLE`, or a member's name leaves the archive.
        OSError: If they cannot be read.
    """
    if end - start > MAX_SAMPLE:
        raise tarfile.ReadError(f"the sample takes {end - start} bytes, more than {MAX_SAMPLE}")
    data = read_at(descriptor, end - start, start)
    if len(data) < end - start:
        raise EOFError("the shard ends early")
    sample = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for _, extension, member in sample_members(tar):
            check_member(member)
            content = tar.extractfile(member)
            assert content is not None  # it is a regular file
            sample[extension] = content.read()
    return sample


def check_member(member: tarfile.TarInfo) -> None:
    """Raises tarfile.ReadError for a member whose name is absolute or holds `..`, and for a sparse one, whose content
    may be larger than its archive."""
    if is_outside(member.name):
        raise tarfile.ReadError(f"the member {member.name!a} lies outside of the archive")
    if member.issparse():
        raise tarfile.ReadError(f"the member {member.name!a} is sparse")


def is_outside(name: str) -> bool:
    """Whether the name of a tar member is absolute or holds `..`, on any system.

    Example:
        >>> is_outside("a/b.jpg"), is_outside("../b.jpg"), is_outside("C:/b.jpg")
        (False, True, True)
    """
    return bool(re.match(r"[/\\]|[A-Za-z]:", name)) or ".." in re.split(r"[/\\]", name)


class Headers:
    """A tar as tarfile reads its headers; refuses the long reads that a hostile header asks for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Reads `size` bytes.

        Raises:
            tarfile.ReadError: If more than a header takes.
        """
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Changes the position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Returns the position."""
        return self._file.tell()
