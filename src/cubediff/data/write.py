"""Builds WebDataset shards with a manifest from panoramas and captions (the paper's training data, made
streamable). The same input gives the same bytes, and a folder has a manifest only when all of its shards
are whole."""

import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from cubediff.data.index import index_tar
from cubediff.data.sources import DataError, Entry, Rejection, Source, open_source, own_limits

MANIFEST = "manifest.json"
INDEX = "index.jsonl"
REJECTED = "rejected.jsonl"
FORMAT = "cubediff-shards"
VERSION = 2

Progress = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass(frozen=True)
class _Sample:
    """An accepted panorama, its JPEG still in a file: the source itself or its re-encoded copy."""

    entry: Entry
    key: str
    jpeg: Path
    crc32: int
    width: int
    height: int


def build_shards(
    source: Path,
    output: Path,
    captions: Path | None = None,
    kind: str | None = None,
    *,
    val_fraction: float = 0.1,
    shard_size: int = 256,
    max_width: int = 16384,
    quality: int = 95,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Builds `output`/{train,val}-*.tar, manifest.json, index.jsonl and rejected.jsonl from a source of `kind`.

    Shards hold at most `shard_size` samples `{key}.jpg` + `{key}.json` in an order drawn by hash, each
    split's shards the same number up to one. `progress(iterable, total)` wraps the reading of the panoramas.
    Returns the manifest. Raises DataError where an argument is out of range, where `output` already holds a
    dataset, and where no panorama can be used (rejected.jsonl then says why); whatever was in `output` before
    is untouched by then.
    """
    if not 0 <= val_fraction < 1:
        raise DataError(f"--val-fraction {val_fraction} is not in [0, 1)")
    if shard_size < 1:
        raise DataError(f"--shard-size {shard_size}: a shard holds at least one panorama")
    if output.exists() and not output.is_dir():
        raise DataError(f"{output} is a file: OUTPUT is the folder to write shards into")
    if (output / MANIFEST).exists() and not overwrite:
        raise DataError(f"{output} already holds shards ({MANIFEST}): choose another folder or give --overwrite")
    opened = open_source(source, captions, kind)
    entries, rejected = opened.entries()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".building-") as scratch:
        build = Path(scratch)
        samples: list[_Sample] = []
        for result in _accept(opened, entries, build, max_width, quality, workers, progress):
            if isinstance(result, Rejection):
                rejected.append(result)
            else:
                samples.append(result)
        rejected.sort(key=lambda r: (r.file, r.reason))
        report = "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in rejected)
        (build / REJECTED).write_text(report, encoding="utf-8")
        if not samples:
            os.replace(build / REJECTED, output / REJECTED)
            first = f"the first is {rejected[0].file}: {rejected[0].reason}" if rejected else "no captions at all"
            raise DataError(f"no panorama of {source} can be used ({first}); all are listed in {output / REJECTED}")
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "samples": len(samples),
            "rejected": len(rejected),
            "with_face_captions": sum(s.entry.faces is not None for s in samples),
            "widths": {str(w): n for w, n in sorted(Counter(s.width for s in samples).items())},
            "settings": {"val_fraction": val_fraction, "max_width": max_width, "quality": quality},
            "splits": {},
        }
        val_scenes = _val_scenes({s.entry.scene for s in samples}, val_fraction)
        for split in ("train", "val"):
            chosen = [s for s in samples if (s.entry.scene in val_scenes) == (split == "val")]
            manifest["splits"][split] = _write_split(build, split, chosen, shard_size)
        shards = [shard["file"] for split in manifest["splits"].values() for shard in split["shards"]]
        index = "".join(json.dumps({"file": f, **index_tar(build / f)._asdict()}) + "\n" for f in shards)
        (build / INDEX).write_text(index, encoding="utf-8")
        manifest["index"] = {"file": INDEX, "sha256": hashlib.sha256(index.encode()).hexdigest()}
        _publish(build, output, manifest)
    return manifest


def _accept(
    source: Source,
    entries: list[Entry],
    build: Path,
    max_width: int,
    quality: int,
    workers: int,
    progress: Progress | None,
) -> Iterable[_Sample | Rejection]:
    keys = _keys(e.file for e in entries)

    def check(entry: Entry, key: str) -> _Sample | Rejection:
        try:
            panorama = source.load(entry, max_width, quality)
        except DataError as error:
            return Rejection(entry.file, str(error))
        path = panorama.original or build / f"{key}.jpg"
        if panorama.original is None:
            path.write_bytes(panorama.jpeg)
        return _Sample(entry, key, path, zlib.crc32(panorama.jpeg), panorama.width, panorama.height)

    with own_limits(), ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            results: Iterable[_Sample | Rejection] = pool.map(check, entries, keys)
            yield from progress(results, len(entries)) if progress else results
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _keys(files: Iterable[str]) -> list[str]:
    """A name for every file that tar and WebDataset take (no dots, no folders, ASCII), unique in any case."""
    keys: list[str] = []
    taken: set[str] = set()
    for file in files:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", file.rpartition(".")[0] or file)[:80].strip("_") or "panorama"
        key = next(k for n in count(1) if (k := stem if n == 1 else f"{stem}-{n}").lower() not in taken)
        taken.add(key.lower())
        keys.append(key)
    return keys


def _val_scenes(scenes: set[str], fraction: float) -> set[str]:
    """The scenes whose hash falls below `fraction`: adding panoramas moves no scene to the other side,
    save where one side would be empty, which then gets the scene nearest to it."""
    if fraction == 0 or len(scenes) < 2:
        return set()
    ordered = sorted(scenes, key=_hash)
    count = sum(_hash(s) < fraction * 2.0**64 for s in scenes)
    return set(ordered[: min(max(count, 1), len(scenes) - 1)])


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _write_split(build: Path, split: str, samples: list[_Sample], shard_size: int) -> dict[str, Any]:
    samples = sorted(samples, key=lambda s: _hash(s.key))  # mixed, so that one shard is not one folder
    total = -(-len(samples) // shard_size)
    shards = []
    for i in range(total):
        members = samples[i * len(samples) // total : (i + 1) * len(samples) // total]
        path = build / f"{split}-{i:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in members:
                _add(tar, sample)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        size = path.stat().st_size
        shards.append({"file": path.name, "samples": len(members), "bytes": size, "sha256": digest.hexdigest()})
    faces = sum(s.entry.faces is not None for s in samples)
    return {"samples": len(samples), "with_face_captions": faces, "shards": shards}


def _add(tar: tarfile.TarFile, sample: _Sample) -> None:
    entry = sample.entry
    jpeg = sample.jpeg.read_bytes()
    if zlib.crc32(jpeg) != sample.crc32:
        raise DataError(f"{sample.jpeg} changed while the shards were built: build them again")
    record: dict[str, Any] = {"file": entry.file, "caption": entry.caption, "scene": entry.scene}
    record |= {"faces": entry.faces} if entry.faces else {}
    record |= {"width": sample.width, "height": sample.height, "crc32": sample.crc32}
    record |= {"metadata": entry.metadata} if entry.metadata else {}
    text = json.dumps(record, ensure_ascii=False).encode()
    for suffix, data in (("jpg", jpeg), ("json", text)):
        member = tarfile.TarInfo(f"{sample.key}.{suffix}")  # its defaults: time, user and group 0, mode 644
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def _publish(build: Path, output: Path, manifest: dict[str, Any]) -> None:
    """Moves the whole dataset into place. The manifest goes first and comes last: a folder where this was
    cut short has none, so nobody trains on a mixture."""
    (output / MANIFEST).unlink(missing_ok=True)
    for old in output.iterdir():
        if re.fullmatch(r"(train|val)-\d{6}\.tar", old.name):
            old.unlink()
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            os.replace(build / shard["file"], output / shard["file"])
    for name in (INDEX, REJECTED):
        os.replace(build / name, output / name)
    (build / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    os.replace(build / MANIFEST, output / MANIFEST)
