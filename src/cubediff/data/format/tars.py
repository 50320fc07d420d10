"""Writing tar shards with webdataset's TarWriter: equal samples produce equal bytes."""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from webdataset import TarWriter

from cubediff.data.format.index import index_tar
from cubediff.data.format.manifest import IndexLine, ShardSummary
from cubediff.utils.files import sha256_file


def shard_writer(file: BinaryIO) -> TarWriter:
    """A writer of an uncompressed tar whose headers contain no time and no user; closing it leaves `file` open."""
    return TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False)


def write_sample(writer: TarWriter, key: str, members: Mapping[str, bytes]) -> None:
    """Writes a sample's members, given by extension, in their order."""
    for extension, content in members.items():  # TarWriter would sort the members of one call
        writer.write({"__key__": key, extension: content})


def describe_shard(tar: Path, name: str) -> tuple[ShardSummary, IndexLine]:
    """Entries of the manifest and of the index for a finished tar, which the dataset calls `name`."""
    keys, offsets = index_tar(tar)
    summary: ShardSummary = {
        "file": name,
        "samples": len(keys),
        "bytes": tar.stat().st_size,
        "sha256": sha256_file(tar),
    }
    return summary, {"file": name, "keys": keys, "offsets": offsets}
