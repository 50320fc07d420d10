"""Tables and figure of sensitivity.py."""

import textwrap
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIGNS = {"rises": "+", "falls": "−", "stays": "=", "neither": "×", "open": "?"}
GREEN, RED, BLUE, BAND, INK = (34, 139, 87), (205, 50, 50), (70, 110, 190), (226, 226, 226), (40, 40, 40)
DISTANCES = (
    *("fd", "kd", "precision", "recall", "density", "coverage"),
    *("omnifd", "omnifd_pooled_sides", "omnifd_pooled"),
)
Results = dict[str, Any]


def metrics_of(results: Results) -> list[str]:
    return list(dict.fromkeys(metric for of in results["cells"].values() for metric in of))


def caught_by(cells: dict[str, Any]) -> list[str]:
    """The metrics that rise or fall as expected."""
    return [metric for metric, cell in cells.items() if cell["measured"] == cell["expected"] != "stays"]


def mark(cell: dict[str, Any]) -> str:
    """The expectation's sign; where it is open or wrong, with the measured one behind it."""
    sign, measured = SIGNS[cell["expected"]], SIGNS[cell["measured"]]
    return sign if sign == measured else f"? {measured}" if sign == "?" else f"**{sign} {measured}**"


def tables(results: Results) -> str:
    """The README's tables."""
    cells = results["cells"]
    rows = [f"| | {' | '.join(f'`{kind}`' for kind in cells)} |", "|---" * (len(cells) + 1) + "|"]
    for metric in metrics_of(results):
        marks = [mark(of[metric]) if metric in of else "" for of in cells.values()]
        rows.append(f"| `{metric}` | {' | '.join(marks)} |")
    rows.append(f"| caught by | {' | '.join(str(len(caught_by(of))) for of in cells.values())} |")
    rows += [
        "",
        "| faces | panoramas | `overlap_relative` | minus real | `overlap_rms` | `sharpness` |",
        "|---" * 6 + "|",
    ]
    for name, row in results["relative"].items():
        value, low, high = row["overlap_relative"]
        more, least, most = row["difference"]
        difference = "" if name == "real" else f"{more:+.3f} ({least:+.3f} to {most:+.3f})".replace("-", "−")
        rows.append(
            f"| {name} | {row['panoramas']} | {value:.3f} ({low:.3f} to {high:.3f}) | {difference} | "
            f"{row['overlap_rms']:.4f} | {row['sharpness']:.4f} |"
        )
    return "\n".join(rows)


def colour(cell: dict[str, Any]) -> tuple[int, int, int]:
    if cell["expected"] == "open":
        return BLUE
    return GREEN if cell["expected"] == cell["measured"] else RED


def figure(results: Results) -> Image.Image:
    """Plots the values of each metric (columns) against the strengths of each corruption (rows).

    The clean value is the first point; the grey band is its interval. Metrics that need a reference are a second block.
    """
    scale, wide, high, left, head, foot = 2, 72, 46, 82, 48, 28  # drawn at twice the size, for smooth lines
    kinds, metrics = list(results["cells"]), metrics_of(results)
    blocks = [[m for m in metrics if (m in DISTANCES) == among] for among in (False, True)]
    shown = [[k for k in kinds if any(m in results["cells"][k] for m in block)] for block in blocks]
    width = left + wide * max(map(len, blocks)) + 6
    image = Image.new("RGB", (width * scale, (sum(head + high * len(rows) for rows in shown) + foot) * scale), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(10.5 * scale)

    def text(x: float, y: float, words: str, anchor: str) -> None:
        draw.text((x * scale, y * scale), words, INK, font, anchor)

    top = 0
    for block, rows in zip(blocks, shown, strict=True):
        for column, metric in enumerate(block):
            words = textwrap.wrap(metric.replace("_", " "), 12, break_long_words=False)
            for line, part in enumerate(words):
                text(left + wide * (column + 0.5), top + head - 8 - 12 * (len(words) - 1 - line), part, "mm")
        top += head
        for kind in rows:
            text(left - 8, top + high / 2, kind, "rm")
            for column, metric in enumerate(block):
                if metric in results["cells"][kind]:
                    box = [left + wide * column + 3, top + 2, left + wide * (column + 1) - 3, top + high - 2]
                    _plot(draw, results["cells"][kind][metric], [scale * edge for edge in box], scale)
            top += high
    x = left
    for shade, words in (
        (GREEN, "as expected"),
        (RED, "not as expected"),
        (BLUE, "no expectation"),
        (BAND, "interval of the clean value"),
    ):
        draw.rectangle([x * scale, (top + 9) * scale, (x + 12) * scale, (top + 19) * scale], shade)
        text(x + 18, top + 14, words, "lm")
        x += 150
    return image.resize((width, image.height // scale), Image.Resampling.LANCZOS).quantize(128)


def _plot(draw: ImageDraw.ImageDraw, cell: dict[str, Any], box: list[float], scale: int) -> None:
    """One metric and corruption: six values with their intervals."""
    x0, y0, x1, y1 = box
    ends = [end for value in cell["values"] for end in value]
    least, most = min(ends), max(ends)
    pad = 5 * scale

    def y(value: float) -> float:
        share = 0.5 if most == least else (value - least) / (most - least)
        return y1 - pad - share * (y1 - y0 - 2 * pad)

    clean, shade = cell["values"][0], colour(cell)
    draw.rectangle([x0, y(clean[2]) - 1, x1, y(clean[1]) + 1], BAND)
    draw.rectangle(box, outline=(200, 200, 200))
    points = [(x0 + (x1 - x0) * (i + 0.5) / 6, y(value)) for i, (value, _, _) in enumerate(cell["values"])]
    draw.line(points, shade, 2 * scale)
    for (x, _), (_, low, high) in zip(points, cell["values"], strict=True):
        draw.line([(x, y(low)), (x, y(high))], shade, scale)
    for x, value in points:
        draw.ellipse([x - 2 * scale, value - 2 * scale, x + 2 * scale, value + 2 * scale], shade)
