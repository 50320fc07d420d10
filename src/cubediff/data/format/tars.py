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

from cubediff.data.building.journal import Accepted, read_jpeg
from cubediff.data.format.index import index_tar
from cubediff.data.sources import Entry
from cubediff.utils.files import sha256_file, write_atomic


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
                add_sample(tar, sample.key, {"jpg": read_jpeg(sample.panorama), "json": text})
        file.flush()
        os.fsync(file.fileno())
    written = described(part, name)
    os.replace(part, path)
    write_atomic(memory, json.dumps({"members": members, **written._asdict()}).encode())
    return written


def add_sample(tar: tarfile.TarFile, key: str, members: dict[str, bytes]) -> None:
    """The same bytes for the same members, whoever writes them and when."""
    for suffix, content in members.items():
        info = tarfile.TarInfo(f"{key}.{suffix}")  # its defaults: time, user, group 0, mode 644
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


def described(tar: Path, name: str) -> WrittenShard:
    """What is to be said of a tar that is, or will be, called `name`."""
    index = index_tar(tar)
    summary = {"file": name, "samples": len(index.keys), "bytes": tar.stat().st_size, "sha256": sha256_file(tar)}
    return WrittenShard(summary, {"file": name, **index._asdict()})


def _record(sample: Sample) -> dict[str, Any]:
    entry, panorama = sample.entry, sample.panorama
    record: dict[str, Any] = {"file": entry.file, "caption": entry.caption, "scene": entry.scene}
    record |= {"faces": entry.faces} if entry.faces else {}
    record |= {"width": panorama.width, "height": panorama.height, "crc32": panorama.crc32}
    record |= {"record": panorama.record} if panorama.record else {}
    record |= {"metadata": entry.metadata} if entry.metadata else {}
    return record
