"""Tar shards of a build: each is written completely or not at all, and reused if an interrupted build finished it."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast
from uuid import uuid4

from cubediff.data.building.journal import Accepted, read_jpeg
from cubediff.data.format.manifest import IndexLine, SampleRecord, ShardSummary
from cubediff.data.format.tars import describe_shard, shard_writer, write_sample
from cubediff.data.sources import Entry
from cubediff.utils.files import write_atomic
from cubediff.utils.json_text import parse_json

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Sample:
    """An accepted panorama with its key in the shards and its side of the split."""

    entry: Entry
    key: str
    panorama: Accepted
    split: Split = "train"


class WrittenShard(NamedTuple):
    """A shard's entries in the manifest and in the index."""

    summary: ShardSummary
    index_line: IndexLine


def write_shard(folder: Path, shard: tuple[str, list[Sample]]) -> WrittenShard:
    """Writes one shard to `folder`, with a record {name}.json next to it.

    A shard whose record lists the same samples is not written again.

    Args:
        folder: The build's folder.
        shard: File name and samples, in the order in which they are written.

    Raises:
        DataError: If a panorama has changed since it was accepted.
    """
    name, samples = shard
    path, record_path = folder / name, folder / f"{name}.json"
    texts = [json.dumps(_sample_record(sample), ensure_ascii=False).encode() for sample in samples]
    members = hashlib.sha256(repr([(s.key, text) for s, text in zip(samples, texts, strict=True)]).encode()).hexdigest()
    try:
        record = parse_json(record_path.read_bytes())
        if record["members"] == members and path.stat().st_size == record["summary"]["bytes"]:
            return WrittenShard(record["summary"], record["places"])
    except (OSError, ValueError):  # not written yet, or interrupted
        pass
    record_path.unlink(missing_ok=True)
    part = folder / f"{name}.{uuid4().hex}"
    with part.open("wb") as file:
        with shard_writer(file) as writer:
            for sample, text in zip(samples, texts, strict=True):
                write_sample(writer, sample.key, {"jpg": read_jpeg(sample.panorama), "json": text})
        file.flush()
        os.fsync(file.fileno())
    written = WrittenShard(*describe_shard(part, name))
    os.replace(part, path)
    # The keys are those of earlier versions, whose builds resume.
    record = {"members": members, "summary": written.summary, "places": written.index_line}
    write_atomic(record_path, json.dumps(record))
    return written


def _sample_record(sample: Sample) -> SampleRecord:
    """The .json member; the order of its keys is part of the shard's bytes."""
    entry, panorama = sample.entry, sample.panorama
    record: dict[str, object] = {"file": entry.file, "caption": entry.caption, "scene": entry.scene}
    record |= {"faces": entry.faces} if entry.faces else {}
    record |= {"width": panorama.width, "height": panorama.height, "crc32": panorama.crc32}
    record |= {"record": panorama.record} if panorama.record else {}
    record |= {"metadata": entry.metadata} if entry.metadata else {}
    return cast(SampleRecord, record)
