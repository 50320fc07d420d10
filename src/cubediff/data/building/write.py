"""Builds WebDataset shards with a manifest from panoramas and captions (the paper's training data, made
streamable). The same input gives the same bytes however often the build was cut short, and a folder has a manifest
only when all of its shards are whole."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL

import cubediff
from cubediff.data.building.duplicates import THRESHOLD, Pairs, near_duplicates
from cubediff.data.building.engines import Engine, Map, Progress, open_engine
from cubediff.data.building.journal import Accepted, accept
from cubediff.data.format.layout import (
    BUILDING,
    DUPLICATES,
    FORMAT,
    INDEX,
    MANIFEST,
    REJECTED,
    REPORT,
    VERSION,
    begin,
    clear,
    only_builder,
    publish,
)
from cubediff.data.format.tars import Sample, WrittenShard, write_shard
from cubediff.data.sources import Entry, Rejection, Source, open_source
from cubediff.utils.errors import DataError
from cubediff.utils.files import sync_folder, write_atomic

_TRIED = 16  # panoramas that a preview reads
_TAR_BLOCKS = 3072  # bytes that a sample takes beside its JPEG: two headers, its JSON, padding


def build_shards(
    source: Source | Path,
    output: Path,
    captions: Path | None = None,
    *,
    val_fraction: float = 0.1,
    shard_size: int = 256,
    max_width: int = 16384,
    quality: int = 95,
    limit: int | None = None,
    workers: int = 1,
    engine: Engine = "local",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Builds `output`/{train,val}-*.tar, manifest.json, index.jsonl, rejected.jsonl, duplicates.jsonl and report.html
    from a source, or from a folder of panoramas and its `captions`.

    Shards hold at most `shard_size` samples `{key}.jpg` + `{key}.json` in an order drawn by hash, each
    split's shards the same number up to one. Near-duplicates are on one side of the split. `limit` takes the first
    panoramas alone. `progress(iterable, total, what)` wraps what takes long; `workers` and `engine` are those of
    `open_engine`.

    Until the end all work is in `output`/.building, and whatever was in `output` before is untouched. A build that was
    cut short goes on from there when it is called again with the same arguments; `overwrite` throws away a build with
    other ones, and replaces the dataset that `output` holds. Returns the manifest. Raises DataError where an argument
    is out of range, where `output` already holds a dataset or another unfinished build, where another process builds
    in it, and where no panorama can be used (rejected.jsonl then says why).
    """
    if not 0 <= val_fraction < 1:
        raise DataError(f"--val-fraction {val_fraction} is not in [0, 1)")
    if shard_size < 1:
        raise DataError(f"--shard-size {shard_size}: a shard holds at least one panorama")
    check_output(output, overwrite)
    source = open_source(source, captions) if isinstance(source, Path) else source
    settings = {"val_fraction": val_fraction, "max_width": max_width, "quality": quality, "limit": limit}
    plan = {"source": repr(source), **settings, "shard_size": shard_size}
    plan |= {f"{module.__name__} version": module.__version__ for module in (cubediff, PIL, cv2)}
    build = output.absolute() / BUILDING
    entries, rejected = choose(source, limit)
    with only_builder(build):
        begin(build, plan, overwrite)
        if not (build / MANIFEST).exists():  # else the last build was cut short while it moved its files to `output`
            with open_engine(engine, workers) as mapped:
                read = partial(accept, source, build / "panoramas", max_width, quality)
                results: Iterable[Accepted | Rejection] = mapped(read, entries)
                results = progress(results, len(entries), "reading") if progress else results
                samples, refused = _sorted_out(entries, iter(results))
                rejected = sorted(rejected + refused, key=lambda r: (r.file, r.reason))
                _put_lines(build / REJECTED, [asdict(r) for r in rejected])
                if not samples:
                    (build / REJECTED).replace(output / REJECTED)
                    clear(build)
                    build.rmdir()
                    first = f"the first is {rejected[0].file}: {rejected[0].reason}" if rejected else "no captions"
                    raise DataError(f"no panorama can be used ({first}); all are listed in {output / REJECTED}")
                _finish(build, samples, rejected, settings, shard_size, mapped, progress)
        return publish(build, output)


def check_output(output: Path, overwrite: bool) -> None:
    """Raises DataError where no shards may be written to `output`."""
    if output.exists() and not output.is_dir():
        raise DataError(f"{output} is a file: OUTPUT is the folder to write shards into")
    if (output / MANIFEST).exists() and not overwrite and not (output / BUILDING / MANIFEST).exists():
        raise DataError(f"{output} already holds shards ({MANIFEST}): choose another folder or give --overwrite")


def choose(source: Source, limit: int | None) -> tuple[list[Entry], list[Rejection]]:
    """The entries that a build takes, and those that the source refuses unread. Raises DataError as the source does,
    and where `limit` is below 1."""
    if limit is not None and limit < 1:
        raise DataError(f"--limit {limit}: at least one panorama")
    entries, rejected = source.entries()
    return entries[:limit], rejected


class Preview(NamedTuple):
    """What a build would do; `refused` are those of the `read` panoramas, spread over all, that were tried."""

    panoramas: int
    scenes: int
    with_face_captions: int
    rejected: list[Rejection]
    read: int
    refused: list[Rejection]
    bytes: int  # of all shards, as those that were read suggest


def preview(source: Source, limit: int | None, max_width: int, quality: int) -> Preview:
    """Reads the captions and a few panoramas, and writes nothing. Raises DataError as `build_shards` does."""
    entries, rejected = choose(source, limit)
    tried = [entries[i * len(entries) // _TRIED] for i in range(_TRIED)] if len(entries) > _TRIED else entries
    refused: list[Rejection] = []
    size = 0
    for entry in tried:
        try:
            jpeg = source.load(entry, max_width, quality).jpeg
            size += len(jpeg) + _TAR_BLOCKS
        except DataError as error:
            refused.append(Rejection(entry.file, str(error)))
    return Preview(
        panoramas=len(entries),
        scenes=len({e.scene for e in entries}),
        with_face_captions=sum(e.faces is not None for e in entries),
        rejected=rejected,
        read=len(tried),
        refused=refused,
        bytes=size * len(entries) // max(1, len(tried)),
    )


# ---- the work ----------------------------------------------------------------------------------------------


def _put_lines(path: Path, records: list[dict[str, Any]]) -> bytes:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    write_atomic(path, text, sync=True)
    return text


def _sorted_out(entries: list[Entry], results: Iterator[Accepted | Rejection]) -> tuple[list[Sample], list[Rejection]]:
    samples, rejected = [], []
    for entry, key, result in zip(entries, _keys(e.file for e in entries), results, strict=True):
        if isinstance(result, Rejection):
            rejected.append(result)
        else:
            samples.append(Sample(entry, key, result))
    return samples, rejected


def _finish(
    build: Path,
    samples: list[Sample],
    rejected: list[Rejection],
    settings: dict[str, Any],
    shard_size: int,
    mapped: Map,
    progress: Progress | None,
) -> None:
    """Everything of the dataset in `build`, the manifest last."""
    from cubediff.data.building.report import report_html

    hashes = np.frombuffer(bytes.fromhex("".join(s.panorama.hash for s in samples)), np.uint8).reshape(len(samples), -1)
    pairs = near_duplicates(hashes)
    samples = _split(samples, pairs, settings["val_fraction"])
    shards = [shard for split in ("train", "val") for shard in _shards(samples, split, shard_size)]
    written: Iterable[WrittenShard] = mapped(partial(write_shard, build), shards)
    written = list(progress(written, len(shards), "writing") if progress else written)
    index = _put_lines(build / INDEX, [w.places for w in written])
    files = [s.entry.file for s in samples]
    found = zip(*(part.tolist() for part in pairs), strict=True)
    duplicates = [{"files": [files[i], files[j]], "distance": distance} for i, j, distance in found]
    _put_lines(build / DUPLICATES, duplicates)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "samples": len(samples),
        "rejected": len(rejected),
        "with_face_captions": sum(s.entry.faces is not None for s in samples),
        "widths": {str(w): n for w, n in sorted(Counter(s.panorama.width for s in samples).items())},
        "near_duplicates": {"pairs": len(duplicates), "threshold": THRESHOLD},
        "settings": settings,
        "splits": {
            split: {
                "samples": sum(s.split == split for s in samples),
                "with_face_captions": sum(s.split == split and s.entry.faces is not None for s in samples),
                "shards": [w.summary for w in written if w.summary["file"].startswith(f"{split}-")],
            }
            for split in ("train", "val")
        },
        "index": {"file": INDEX, "sha256": hashlib.sha256(index).hexdigest()},
    }
    write_atomic(build / REPORT, report_html(manifest, samples, rejected, pairs).encode(), sync=True)
    sync_folder(build)
    write_atomic(build / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode(), sync=True)
    sync_folder(build)


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


def _split(samples: list[Sample], pairs: Pairs, fraction: float) -> list[Sample]:
    """The samples with their split. Scenes that share a near-duplicate are one, under the name of their first."""
    first = {s.entry.scene: s.entry.scene for s in samples}

    def joined(scene: str) -> str:
        while first[scene] != scene:
            first[scene] = scene = first[first[scene]]
        return scene

    for i, j in zip(pairs.first, pairs.second, strict=True):
        one, other = sorted(joined(samples[k].entry.scene) for k in (i, j))
        first[other] = one
    val = _val_scenes({joined(scene) for scene in first}, fraction)
    return [replace(s, split="val" if joined(s.entry.scene) in val else "train") for s in samples]


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


def _shards(samples: list[Sample], split: str, shard_size: int) -> list[tuple[str, list[Sample]]]:
    mixed = sorted((s for s in samples if s.split == split), key=lambda s: _hash(s.key))  # no shard is one folder
    total = -(-len(mixed) // shard_size)
    parts = [mixed[i * len(mixed) // total : (i + 1) * len(mixed) // total] for i in range(total)]
    return [(f"{split}-{i:06d}.tar", part) for i, part in enumerate(parts)]
