"""Draws the metrics of a screening as an SVG: a row for each run, a column for each metric, with 95 % intervals.

    python experiments/ablations/figure.py METRICS FIGURE

METRICS is the metrics.json that screen.py wrote; the grey lines are the values of its first run.
"""

import argparse
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

COLUMNS = {
    "overlap_rms": "difference in overlaps",
    "step_beyond_overlap": "colour step beyond",
    "retrieval_psnr": "own scene is nearest",
    "sharpness": "sharpness",
}
COLOURS = {"text": "#2b6cb0", "photo": "#c05621"}
ROW, LABEL, COLUMN, HEAD = 22, 230, 170, 46
Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=Path, metavar="METRICS")
    parser.add_argument("figure", type=Path, metavar="FIGURE")
    args = parser.parse_args()
    args.figure.write_text(figure(json.loads(args.metrics.read_text())["runs"]))


def figure(runs: list[Run]) -> str:
    """The SVG of runs as metrics.json has them."""
    width, height = LABEL + COLUMN * len(COLUMNS), HEAD + ROW * len(runs) + 6
    seeds = {run["seed"] for run in runs}
    parts = [f'<rect width="{width}" height="{height}" fill="#fff"/>', *_legend(width)]
    for row, run in enumerate(runs):
        y = HEAD + ROW * (row + 0.5)
        name = run["variant"] + (f", seed {run['seed']}" if len(seeds) > 1 else "")
        parts.append(f'<text x="{LABEL - 12}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<path d="M0 {HEAD + ROW * row}H{width}" stroke="#eee"/>')
    for column, (metric, title) in enumerate(COLUMNS.items()):
        parts += _column(runs, metric, title, LABEL + COLUMN * column)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12">{"".join(parts)}</svg>\n'
    )


def _legend(width: int) -> Iterator[str]:
    for number, (condition, colour) in enumerate(COLOURS.items()):
        x = 12 + 90 * number
        yield f'<circle cx="{x}" cy="16" r="4" fill="{colour}"/><text x="{x + 9}" y="20">from {condition}</text>'


def _column(runs: list[Run], metric: str, title: str, left: int) -> Iterator[str]:
    """The dots and intervals of a metric; the axis spans all of them."""
    estimates = [run[condition][metric] for run in runs for condition in COLOURS]
    low, high = min(each["low"] for each in estimates), max(each["high"] for each in estimates)

    def place(value: float) -> float:
        return left + 8 + (COLUMN - 24) * (value - low) / ((high - low) or 1.0)

    yield f'<text x="{left + 8}" y="20" font-weight="bold">{escape(title)}</text>'
    yield f'<text x="{left + 8}" y="38" fill="#666">{low:.3g}</text>'
    yield f'<text x="{left + COLUMN - 16}" y="38" fill="#666" text-anchor="end">{high:.3g}</text>'
    bottom = HEAD + ROW * len(runs)
    for condition in COLOURS:
        yield f'<path d="M{place(runs[0][condition][metric]["value"]):.1f} {HEAD}V{bottom}" stroke="#bbb"/>'
    for row, run in enumerate(runs):
        for number, (condition, colour) in enumerate(COLOURS.items()):
            each, y = run[condition][metric], HEAD + ROW * (row + 0.35 + 0.3 * number)
            yield f'<path d="M{place(each["low"]):.1f} {y:.1f}H{place(each["high"]):.1f}" stroke="{colour}"/>'
            yield f'<circle cx="{place(each["value"]):.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'


if __name__ == "__main__":
    main()
