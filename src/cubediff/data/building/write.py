"""Builds WebDataset shards with a manifest from panoramas and captions (the training data of arXiv 2501.17162).

The same input produces the same bytes, also after interruptions, and OUTPUT has a manifest only if all its shards are
complete."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypedDict, TypeVar, cast

import cv2
import numpy as np
import PIL
from typing_extensions import Unpack

import cubediff
from cubediff.data.building.duplicates import THRESHOLD, Pairs, near_duplicates
from cubediff.data.building.engines import Engine, Map, Progress, open_engine
from cubediff.data.building.journal import Accepted, accept
from cubediff.data.building.output_folder import check_files_outside, check_output, check_separate
from cubediff.data.building.publishing import Plan, begin_build, end_without_samples, publish
from cubediff.data.building.report import report_html
from cubediff.data.building.selecting import select_entries
from cubediff.data.building.shards import Sample, WrittenShard, write_shard
from cubediff.data.building.splitting import assign_shards, sample_keys, split_samples
from cubediff.data.format.folders import folder_lock
from cubediff.data.format.manifest import (
    BUILDING,
    DUPLICATES,
    FORMAT,
    INDEX,
    MANIFEST,
    REJECTED,
    REPORT,
    VERSION,
    BuildRecord,
    DuplicateLine,
    Manifest,
    SettingsRecord,
)
from cubediff.data.sources import Entry, Rejection, Source, check_source, open_source
from cubediff.images.limits import MAX_WIDTH, MAX_WIDTH_LIMIT, MIN_WIDTH, QUALITY
from cubediff.utils.errors import DataError
from cubediff.utils.files import json_lines, sync_folder, write_atomic, write_json

ItemT = TypeVar("ItemT")


class BuildOptions(TypedDict, total=False):
    """Keyword arguments of `build_shards`; the fields of `BuildSettings`."""

    val_fraction: float
    shard_size: int
    max_width: int
    quality: int
    limit: int | None
    workers: int
    engine: Engine
    overwrite: bool
    progress: Progress | None


@dataclass(frozen=True)
class BuildSettings:
    """Settings of a build and their defaults.

    Attributes:
        val_fraction: Fraction of the scenes for the validation split, in [0, 1).
        shard_size: Maximum number of samples in a shard.
        max_width: Maximum width of a panorama, in pixels; wider ones are rejected.
        quality: JPEG quality of re-encoded panoramas, from 1 to 100.
        limit: Use only the first panoramas of the source; None: all.
        workers: Number of processes, see `open_engine`.
        engine: Where the processes run, see `open_engine`.
        overwrite: Replace the dataset or the unfinished build in the output folder.
        progress: Wraps iterables that take long, called with (iterable, total, step).
    """

    val_fraction: float = 0.1
    shard_size: int = 256
    max_width: int = MAX_WIDTH
    quality: int = QUALITY
    limit: int | None = None
    workers: int = 1
    engine: Engine = "local"
    overwrite: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise DataError(f"--val-fraction {self.val_fraction}: expected a fraction in [0, 1)")
        if not MIN_WIDTH <= self.max_width <= MAX_WIDTH_LIMIT:
            raise DataError(f"--max-width {self.max_width}: expected {MIN_WIDTH} to {MAX_WIDTH_LIMIT} pixels")
        if self.shard_size < 1:
            raise DataError(f"--shard-size {self.shard_size}: expected at least 1 panorama in a shard")

    def record(self) -> BuildRecord:
        """The settings that the manifest keeps."""
        return {
            "val_fraction": self.val_fraction,
            "max_width": self.max_width,
            "quality": self.quality,
            "limit": self.limit,
        }

    def plan(self, source: Source) -> Plan:
        """Everything that the bytes of a build of `source` depend on."""
        return {
            "source": source.identity,
            **self.record(),
            "shard_size": self.shard_size,
            "cubediff version": cubediff.__version__,
            "PIL version": PIL.__version__,
            "cv2 version": cv2.__version__,
        }

    def show(self, items: Iterable[ItemT], total: int, step: str) -> Iterable[ItemT]:
        """The items, wrapped by `progress` if it is set."""
        return self.progress(items, total, step) if self.progress else items


def build_shards(
    source: Source | Path, output: Path, captions: Path | None = None, **options: Unpack[BuildOptions]
) -> Manifest:
    """Builds a dataset of tar shards from a source of panoramas.

    Writes `train-*.tar` and `val-*.tar`, manifest.json, index.jsonl, rejected.jsonl, duplicates.jsonl and report.html.
    The samples {key}.jpg + {key}.json are shuffled by hash; scenes and near-duplicates stay on one side of the split.
    Until all is done, work is kept in `output`/.building and the rest of `output` is not touched. The same call resumes
    an interrupted build.

    Args:
        source: The panoramas: a source, or a folder for `open_source`.
        output: Folder of the dataset.
        captions: Captions file, if `source` is a folder.
        **options: Fields of `BuildSettings`.

    Returns:
        The manifest.

    Raises:
        DataError: If an option is out of range, `output` holds a dataset or another unfinished build (and `overwrite`
            is off) or files of others, `output` is the source or above it, another process builds in `output`, or no
            panorama can be used; rejected.jsonl then has the reasons.
        OSError: If the machine fails to read a panorama.

    >>> import tempfile
    >>> from cubediff.data import create_example_dataset
    >>> folder = Path(tempfile.mkdtemp())
    >>> panoramas = create_example_dataset(4, folder / "panoramas", size=(32, 64))
    >>> build_shards(panoramas, folder / "shards", val_fraction=0.25)["samples"]
    4
    """
    settings = BuildSettings(**options)
    check_output(output, settings.overwrite)
    if isinstance(source, Path):
        check_separate(source, output)
        source = open_source(source, captions, output=output)
    source = check_source(source)
    build = output.absolute() / BUILDING
    entries, rejected = select_entries(source, settings.limit)
    check_files_outside((file for entry in entries for file in source.files(entry)), output)
    with folder_lock(output):
        check_output(output, settings.overwrite)  # again: another build may have finished meanwhile
        begin_build(build, settings.plan(source), settings.overwrite)
        if not (build / MANIFEST).exists():  # otherwise only the move to `output` was interrupted
            with open_engine(settings.engine, settings.workers) as mapped:
                read = partial(accept, source, build / "panoramas", settings.max_width, settings.quality)
                results: Iterable[Accepted | Rejection] = settings.show(mapped(read, entries), len(entries), "reading")
                samples, unreadable = _partition_results(entries, iter(results))
                rejected = sorted(rejected + unreadable, key=lambda r: (r.file, r.reason))
                write_atomic(build / REJECTED, json_lines(map(asdict, rejected)), sync=True)
                if not samples:
                    first = f"the first is {rejected[0].file}: {rejected[0].reason}" if rejected else "no captions"
                    listed = end_without_samples(build, output)
                    raise DataError(f"no panorama can be used ({first}); all are listed in {listed}")
                _write_dataset(build, samples, rejected, settings, mapped)
        return publish(build, output)


def _partition_results(
    entries: list[Entry], results: Iterator[Accepted | Rejection]
) -> tuple[list[Sample], list[Rejection]]:
    samples, rejected = [], []
    for entry, key, result in zip(entries, sample_keys(e.file for e in entries), results, strict=True):
        if isinstance(result, Rejection):
            rejected.append(result)
        else:
            samples.append(Sample(entry, key, result))
    return samples, rejected


def _write_dataset(
    build: Path, samples: list[Sample], rejected: list[Rejection], settings: BuildSettings, mapped: Map
) -> None:
    """Writes all files of the dataset to `build`, the manifest last."""
    hashes = np.frombuffer(bytes.fromhex("".join(s.panorama.hash for s in samples)), np.uint8).reshape(len(samples), -1)
    pairs = near_duplicates(hashes)
    samples = split_samples(samples, pairs, settings.val_fraction)
    train, val = (assign_shards(samples, split, settings.shard_size) for split in ("train", "val"))
    shards = train + val
    written = list(settings.show(mapped(partial(write_shard, build), shards), len(shards), "writing"))
    index = json_lines(shard.index_line for shard in written)
    write_atomic(build / INDEX, index, sync=True)
    write_atomic(build / DUPLICATES, json_lines(_duplicate_lines(samples, pairs)), sync=True)
    manifest = _manifest(samples, rejected, pairs, settings, written, hashlib.sha256(index.encode()).hexdigest())
    write_atomic(build / REPORT, report_html(manifest, samples, rejected, pairs), sync=True)
    sync_folder(build)
    write_json(build / MANIFEST, manifest, sync=True)


def _duplicate_lines(samples: list[Sample], pairs: Pairs) -> Iterator[DuplicateLine]:
    for i, j, distance in zip(*(column.tolist() for column in pairs), strict=True):
        yield {"files": [samples[i].entry.file, samples[j].entry.file], "distance": distance}


def _manifest(
    samples: list[Sample],
    rejected: list[Rejection],
    pairs: Pairs,
    settings: BuildSettings,
    written: list[WrittenShard],
    index_sha256: str,
) -> Manifest:
    with_faces = [s for s in samples if s.entry.faces is not None]
    record = cast(SettingsRecord, settings.record())
    if not all(s.entry.caption for s in samples):
        record["captions"] = "optional" if any(s.entry.caption for s in samples) else "none"
    if any(s.entry.split for s in samples):
        record["splits"] = "declared"
    return {
        "format": FORMAT,
        "version": VERSION,
        "samples": len(samples),
        "rejected": len(rejected),
        "with_face_captions": len(with_faces),
        "widths": {str(w): n for w, n in sorted(Counter(s.panorama.width for s in samples).items())},
        "near_duplicates": {"pairs": len(pairs.first), "threshold": THRESHOLD},
        "settings": record,
        "splits": {
            split: {
                "samples": sum(s.split == split for s in samples),
                "with_face_captions": sum(s.split == split for s in with_faces),
                "shards": [w.summary for w in written if w.summary["file"].startswith(f"{split}-")],
            }
            for split in ("train", "val")
        },
        "index": {"file": INDEX, "sha256": index_sha256},
    }
