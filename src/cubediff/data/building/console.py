"""Text and progress bars of the prepare command."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from cubediff.data.building.preview import Preview
from cubediff.data.building.selecting import TEST_SPLIT
from cubediff.data.format.manifest import REJECTED, REPORT, Manifest
from cubediff.utils.files import read_json_lines
from cubediff.utils.text import printable

ItemT = TypeVar("ItemT")

_UNITS = {"reading": "panoramas", "captioning": "panoramas", "writing": "shards", "checking": "shards"}
_MAX_LISTED = 20  # rejections that a preview lists


def progress_bar(items: Iterable[ItemT], total: int, step: str) -> Iterable[ItemT]:
    """Wraps `items` in a progress bar; `step` is reading, captioning, writing or checking."""
    bar: Iterable[ItemT] = tqdm(items, total=total, desc=step, unit=f" {_UNITS[step]}")
    return bar


def build_summary(output: Path, manifest: Manifest) -> str:
    """One line about a finished build: numbers of samples and shards, size, rejections and the report's path; and one
    about a test split that was left out."""
    train, val = manifest["splits"]["train"], manifest["splits"]["val"]
    shards = train["shards"] + val["shards"]
    rejected = manifest["rejected"]
    return (
        f"{output}: {train['samples']} training and {val['samples']} validation panoramas "
        f"({manifest['with_face_captions']} with face captions) in {len(shards)} shards, "
        f"{sum(s['bytes'] for s in shards) / 1e6:.1f} MB; "
        + (f"{rejected} rejected, reasons in {output / REJECTED}" if rejected else "none rejected")
        + f"; report: {output / REPORT}"
        + "".join(f"\n{line}" for line in _test_split_lines(_read_reasons(output / REJECTED)))
    )


def preview_lines(preview: Preview) -> Iterator[str]:
    """The text of a dry run: the first rejections, a test split that is left out, then one line of totals."""
    for rejection in preview.rejected[:_MAX_LISTED]:
        yield f"left out: {printable(rejection.file)}: {printable(rejection.reason)}"
    if len(preview.rejected) > _MAX_LISTED:
        yield f"left out: {len(preview.rejected) - _MAX_LISTED} more"
    yield from _test_split_lines([rejection.reason for rejection in preview.rejected])
    yield (
        f"{preview.panoramas} panoramas of {preview.scenes} scenes ({preview.with_face_captions} with face captions), "
        f"{len(preview.rejected)} left out for their captions or names; of {preview.read} that were read "
        f"{len(preview.refused)} would be rejected; about {preview.bytes / 1e6:.1f} MB of shards. Nothing was written."
    )


def _test_split_lines(reasons: Sequence[str]) -> Iterator[str]:
    found = [reason.removeprefix(TEST_SPLIT) for reason in reasons if reason.startswith(TEST_SPLIT)]
    if found:
        yield f"{len(found)} panoramas of the test split were left out: {printable(found[0])}"


def _read_reasons(rejected: Path) -> list[str]:
    lines = read_json_lines(rejected.read_text(encoding="utf-8"))
    return [str(line["reason"]) for _, line in lines if isinstance(line, dict)]
