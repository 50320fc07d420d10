"""Text and progress bars of the prepare command."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from cubediff.data.building.preview import Preview
from cubediff.data.format.manifest import REJECTED, REPORT, Manifest
from cubediff.utils.text import printable

ItemT = TypeVar("ItemT")

_UNITS = {"reading": "panoramas", "captioning": "panoramas", "writing": "shards", "checking": "shards"}
_MAX_LISTED = 20  # rejections that a preview lists


def progress_bar(items: Iterable[ItemT], total: int, step: str) -> Iterable[ItemT]:
    """Wraps `items` in a progress bar; `step` is reading, captioning, writing or checking."""
    bar: Iterable[ItemT] = tqdm(items, total=total, desc=step, unit=f" {_UNITS[step]}")
    return bar


def build_summary(output: Path, manifest: Manifest) -> str:
    """One line about a finished build: numbers of samples and shards, size, rejections and the report's path."""
    train, val = manifest["splits"]["train"], manifest["splits"]["val"]
    shards = train["shards"] + val["shards"]
    rejected = manifest["rejected"]
    return (
        f"{output}: {train['samples']} training and {val['samples']} validation panoramas "
        f"({manifest['with_face_captions']} with face captions) in {len(shards)} shards, "
        f"{sum(s['bytes'] for s in shards) / 1e6:.1f} MB; "
        + (f"{rejected} rejected, reasons in {output / REJECTED}" if rejected else "none rejected")
        + f"; report: {output / REPORT}"
    )


def preview_lines(preview: Preview) -> Iterator[str]:
    """The text of a dry run: the first rejections, then one line of totals."""
    for rejection in preview.rejected[:_MAX_LISTED]:
        yield f"left out: {printable(rejection.file)}: {printable(rejection.reason)}"
    if len(preview.rejected) > _MAX_LISTED:
        yield f"left out: {len(preview.rejected) - _MAX_LISTED} more"
    yield (
        f"{preview.panoramas} panoramas of {preview.scenes} scenes ({preview.with_face_captions} with face captions), "
        f"{len(preview.rejected)} left out for their captions or names; of {preview.read} that were read "
        f"{len(preview.refused)} would be rejected; about {preview.bytes / 1e6:.1f} MB of shards. Nothing was written."
    )
