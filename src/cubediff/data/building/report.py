"""One page about a dataset: how many and how large, a contact sheet, what was refused, and what is there twice. It
needs no other file and no network."""

import base64
from collections import Counter
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

from cubediff.data.building.duplicates import Pairs
from cubediff.data.building.journal import read_jpeg
from cubediff.data.format.tars import Sample
from cubediff.data.sources import Rejection
from cubediff.pages.html import escape, fill_template, read_template

SHEET, PAIRS, REJECTIONS = 48, 24, 500  # at most so many are shown, the first two with pictures of about 10 kB
_THUMBNAIL = (288, 144)  # pixels, of a panorama
_BARS = 12


def report_html(manifest: dict[str, Any], samples: list[Sample], rejected: list[Rejection], pairs: Pairs) -> str:
    """The page's text. `pairs` are positions in `samples`. Raises DataError where a panorama is no longer the one that
    was accepted."""
    splits, settings = manifest["splits"], manifest["settings"]
    shards = [shard for split in splits.values() for shard in split["shards"]]
    shown = [samples[i * len(samples) // SHEET] for i in range(SHEET)] if len(samples) > SHEET else samples
    closest = np.argsort(pairs.distance, kind="stable")[:PAIRS]
    tiles = {
        "panoramas": len(samples),
        "to train on": splits["train"]["samples"],
        "to validate with": splits["val"]["samples"],
        "scenes": len({s.entry.scene for s in samples}),
        "with face captions": manifest["with_face_captions"],
        "refused": len(rejected),
        "near-duplicate pairs": len(pairs.distance),
        f"MB in {len(shards)} shard{'s' * (len(shards) != 1)}": f"{sum(s['bytes'] for s in shards) / 1e6:,.1f}",
    }
    values = {
        "tiles": "".join(f"<li><b>{n}</b> {escape(what)}</li>" for what, n in tiles.items()),
        "train": str(splits["train"]["samples"]),
        "val": str(splits["val"]["samples"]),
        "widths": _bars("Panoramas by width in pixels", [s.panorama.width for s in samples], few=True),
        "captions": _bars("Panoramas by words of their caption", [len(s.entry.caption.split()) for s in samples]),
        "sheet_note": _of(len(shown), len(samples), "panoramas"),
        "sheet": "".join(map(_figure, shown)),
        "pairs_note": _of(len(closest), len(pairs.distance), "pairs, the closest first"),
        "pairs": "".join(
            f"<li>{_figure(samples[pairs.first[k]])}{_figure(samples[pairs.second[k]])}"
            f"<p>{pairs.distance[k]} of 256 bits differ</p></li>"
            for k in closest
        ),
        "threshold": str(manifest["near_duplicates"]["threshold"]),
        "rejected_note": _of(min(len(rejected), REJECTIONS), len(rejected), "refusals"),
        "rejected": "".join(
            f'<tr><td dir="auto">{escape(r.file)}</td><td dir="auto">{escape(r.reason)}</td></tr>'
            for r in rejected[:REJECTIONS]
        ),
        "settings": escape(", ".join(f"{k.replace('_', ' ')} {v}" for k, v in settings.items() if v is not None)),
    }
    return fill_template(read_template("cubediff.data.building", "report.html"), values)


def _of(shown: int, total: int, what: str) -> str:
    return f"{shown} of {total} {what}" if shown < total else f"all {total}" if total else "none"


def _figure(sample: Sample) -> str:
    jpeg = np.frombuffer(read_jpeg(sample.panorama), np.uint8)
    large = sample.panorama.width >= 8 * _THUMBNAIL[0]
    image = cv2.imdecode(jpeg, cv2.IMREAD_REDUCED_COLOR_8 if large else cv2.IMREAD_COLOR)
    assert image is not None  # its hash was taken from it
    small = cv2.resize(image, _THUMBNAIL, interpolation=cv2.INTER_AREA)
    data = base64.b64encode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()).decode()
    name, caption = escape(sample.entry.file), escape(sample.entry.caption)
    size = f"{sample.panorama.width}×{sample.panorama.height}"
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{name}" loading="lazy"><figcaption>'
        f'<span class="{sample.split}">{sample.split}</span> <span class="file" dir="auto">{name}</span> {size}'
        f'<q dir="auto" title="{caption}">{caption}</q></figcaption></figure>'
    )


def _bars(title: str, values: Iterable[int], few: bool = False) -> str:
    """A histogram as SVG, a bar for each of at most twelve equal ranges; with `few` one for each value, where no more
    than that occur."""
    counts = Counter(values)
    step = 1
    if len(counts) > _BARS or not few:
        steps = (m * 10**power for power in range(9) for m in (1, 2, 5))
        step = next(s for s in steps if max(counts) // s - min(counts) // s < _BARS)
        grouped: Counter[int] = Counter()
        for value, n in counts.items():
            grouped[value // step] += n
        counts = Counter({i * step: grouped[i] for i in range(min(grouped), max(grouped) + 1)})
    bars = []
    for place, value in enumerate(sorted(counts)):
        height = 110 * counts[value] / max(counts.values())
        x, label = 44 * place, f"{value}–{value + step - 1}" if step > 1 else str(value)
        bars.append(
            f'<rect x="{x + 4}" y="{130 - height:.1f}" width="36" height="{height:.1f}" rx="3"/>'
            f'<text x="{x + 22}" y="{125 - height:.1f}">{counts[value] or ""}</text>'
            f'<text class="axis" x="{x + 22}" y="146">{label}</text>'
        )
    width = 44 * len(bars)
    return f'<svg viewBox="0 0 {width} 152" width="{width}" role="img" aria-label="{title}">{"".join(bars)}</svg>'
