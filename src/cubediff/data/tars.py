"""One shard of a dataset as a tar, written whole or not at all, and not again where it is there already."""

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import uuid4

from cubediff.data.index import index_tar
from cubediff.data.journal import Accepted, put, read_jpeg
from cubediff.data.sources import Entry


@dataclass(frozen=True)
class Sample:
    """A panorama of the dataset under the name that it has in its shard."""

    entry: Entry
    key: str
    panorama: Accepted
    split: Literal["train", "val"] = "train"


class WrittenShard(NamedTuple):
    """What the manifest and the index say of a shard."""

    summary: dict[str, Any]
    places: dict[str, Any]


def write_shard(folder: Path, shard: tuple[str, list[Sample]]) -> WrittenShard:
    """Writes the tar `shard` = (name, samples) to `folder` and, beside it, what it holds as {name}.json; reads the
    latter alone where it is there and is of the same samples. Raises DataError where a panorama is no longer the one
    that was accepted."""
    name, samples = shard
    path, memory = folder / name, folder / f"{name}.json"
    texts = [json.dumps(_record(sample), ensure_ascii=False).encode() for sample in samples]
    members = hashlib.sha256(repr([(s.key, text) for s, text in zip(samples, texts, strict=True)]).encode()).hexdigest()
    try:
        known = json.loads(memory.read_bytes())
        if known["members"] == members and path.stat().st_size == known["summary"]["bytes"]:
            return WrittenShard(known["summary"], known["places"])
    except (OSError, ValueError):
        pass
    memory.unlink(missing_ok=True)
    part = folder / f"{name}.{uuid4().hex}"
    with part.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample, text in zip(samples, texts, strict=True):
                for suffix, data in (("jpg", read_jpeg(sample.panorama)), ("json", text)):
                    info = tarfile.TarInfo(f"{sample.key}.{suffix}")  # its defaults: time, user, group 0, mode 644
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        file.flush()
        os.fsync(file.fileno())
    with part.open("rb") as file:
        digest = hashlib.sha256()
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    size = part.stat().st_size
    summary = {"file": name, "samples": len(samples), "bytes": size, "sha256": digest.hexdigest()}
    places = {"file": name, **index_tar(part)._asdict()}
    os.replace(part, path)
    put(memory, json.dumps({"members": members, "summary": summary, "places": places}).encode())
    return WrittenShard(summary, places)


def _record(sample: Sample) -> dict[str, Any]:
    entry, panorama = sample.entry, sample.panorama
    record: dict[str, Any] = {"file": entry.file, "caption": entry.caption, "scene": entry.scene}
    record |= {"faces": entry.faces} if entry.faces else {}
    record |= {"width": panorama.width, "height": panorama.height, "crc32": panorama.crc32}
    record |= {"record": panorama.record} if panorama.record else {}
    record |= {"metadata": entry.metadata} if entry.metadata else {}
    return record
