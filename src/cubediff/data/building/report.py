"""The report of a build: one HTML page with counts, a contact sheet, rejections and near-duplicates. It needs no other
file and no network."""

import base64
from collections import Counter
from collections.abc import Iterable

import cv2
import numpy as np

from cubediff.data.building.duplicates import Pairs
from cubediff.data.building.journal import read_jpeg
from cubediff.data.building.rejections import MAX_REJECTIONS, rejections_html
from cubediff.data.building.shards import Sample
from cubediff.data.format.manifest import Manifest
from cubediff.data.sources import Rejection
from cubediff.pages.html import escape, fill_template, read_template

# Limits of a page; a panorama's thumbnail has about 10 kB.
MAX_PANORAMAS, MAX_PAIRS = 48, 24

_THUMBNAIL = (288, 144)  # width and height in pixels
_MAX_BARS = 12


def report_html(manifest: Manifest, samples: list[Sample], rejected: list[Rejection], pairs: Pairs) -> str:
    """The page of a dataset.

    Args:
        manifest: Manifest of the dataset.
        samples: Its samples.
        rejected: The rejected panoramas.
        pairs: Near-duplicates, as positions in `samples`.

    Raises:
        DataError: If a panorama has changed since it was accepted.
    """
    splits, settings = manifest["splits"], manifest["settings"]
    shards = [shard for split in splits.values() for shard in split["shards"]]
    shown = samples
    if len(samples) > MAX_PANORAMAS:
        shown = [samples[i * len(samples) // MAX_PANORAMAS] for i in range(MAX_PANORAMAS)]
    closest = np.argsort(pairs.distance, kind="stable")[:MAX_PAIRS]
    tiles = {
        "panoramas": len(samples),
        "training panoramas": splits["train"]["samples"],
        "validation panoramas": splits["val"]["samples"],
        "scenes": len({s.entry.scene for s in samples}),
        "with face captions": manifest["with_face_captions"],
        "rejected": len(rejected),
        "near-duplicate pairs": len(pairs.distance),
        f"MB in {len(shards)} shard{'s' * (len(shards) != 1)}": f"{sum(s['bytes'] for s in shards) / 1e6:,.1f}",
    }
    values = {
        "tiles": "".join(f"<li><b>{number}</b> {escape(label)}</li>" for label, number in tiles.items()),
        "train": str(splits["train"]["samples"]),
        "val": str(splits["val"]["samples"]),
        "widths": _histogram("Panoramas by width in pixels", [s.panorama.width for s in samples], per_value=True),
        "captions": _histogram("Panoramas by caption length in words", [len(s.entry.caption.split()) for s in samples]),
        "sheet_note": _count(len(shown), len(samples), "panoramas"),
        "sheet": "".join(map(_figure, shown)),
        "pairs_note": _count(len(closest), len(pairs.distance), "pairs, the closest first"),
        "pairs": "".join(
            f"<li>{_figure(samples[pairs.first[k]])}{_figure(samples[pairs.second[k]])}"
            f"<p>{pairs.distance[k]} of 256 bits differ</p></li>"
            for k in closest
        ),
        "threshold": str(manifest["near_duplicates"]["threshold"]),
        "rejected_note": _count(min(len(rejected), MAX_REJECTIONS), len(rejected), "rejections"),
        "rejected": rejections_html(rejected),
        "settings": escape(", ".join(f"{k.replace('_', ' ')} {v}" for k, v in settings.items() if v is not None)),
    }
    return fill_template(read_template("cubediff.data.building", "report.html"), values)


def _count(shown: int, total: int, label: str) -> str:
    return f"{shown} of {total} {label}" if shown < total else f"all {total}" if total else "none"


def _figure(sample: Sample) -> str:
    """A thumbnail with file name, size and caption."""
    jpeg = np.frombuffer(read_jpeg(sample.panorama), np.uint8)
    large = sample.panorama.width >= 8 * _THUMBNAIL[0]
    image = cv2.imdecode(jpeg, cv2.IMREAD_REDUCED_COLOR_8 if large else cv2.IMREAD_COLOR)
    assert image is not None  # its perceptual hash was computed from it
    small = cv2.resize(image, _THUMBNAIL, interpolation=cv2.INTER_AREA)
    data = base64.b64encode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()).decode()
    name, caption = escape(sample.entry.file), escape(sample.entry.caption)
    size = f"{sample.panorama.width}×{sample.panorama.height}"
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{name}" loading="lazy"><figcaption>'
        f'<span class="{sample.split}">{sample.split}</span> <span class="file" dir="auto">{name}</span> {size}'
        f'<q dir="auto" title="{caption}">{caption}</q></figcaption></figure>'
    )


def _histogram(title: str, values: Iterable[int], per_value: bool = False) -> str:
    """An SVG histogram with equal bins, at most twelve; with `per_value` one bar for each value, if so few occur."""
    counts = Counter(values)
    step = 1
    if len(counts) > _MAX_BARS or not per_value:
        steps = (m * 10**power for power in range(9) for m in (1, 2, 5))
        step = next(s for s in steps if max(counts) // s - min(counts) // s < _MAX_BARS)
        bins: Counter[int] = Counter()
        for value, n in counts.items():
            bins[value // step] += n
        counts = Counter({i * step: bins[i] for i in range(min(bins), max(bins) + 1)})
    bars = []
    for position, value in enumerate(sorted(counts)):
        height = 110 * counts[value] / max(counts.values())
        x, label = 44 * position, f"{value}–{value + step - 1}" if step > 1 else str(value)
        bars.append(
            f'<rect x="{x + 4}" y="{130 - height:.1f}" width="36" height="{height:.1f}" rx="3"/>'
            f'<text x="{x + 22}" y="{125 - height:.1f}">{counts[value] or ""}</text>'
            f'<text class="axis" x="{x + 22}" y="146">{label}</text>'
        )
    width = 44 * len(bars)
    return f'<svg viewBox="0 0 {width} 152" width="{width}" role="img" aria-label="{title}">{"".join(bars)}</svg>'
