"""SVG charts for self-contained pages: lines over steps, and points over the values of a config key."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 34  # margins, for the labels of the axes


@dataclass(frozen=True)
class Series:
    """One line or one set of points of a chart.

    Args:
        points: (x, y) in the units of the axes.
        color: A CSS colour.
        title: Tooltip, as HTML.
    """

    points: Sequence[tuple[float, float]]
    color: str
    title: str


def color(number: int) -> str:
    """The CSS colour of a series by its number; neighbouring numbers differ clearly (golden-angle hues)."""
    return f"hsl({number * 137.508 % 360:.0f} 65% {(62, 74, 52)[number % 3]}%)"


def chart(series: Sequence[Series], label: str, xlabel: str, lines: bool, categories: Sequence[str] = ()) -> str:
    """Draws series as SVG. Axes are logarithmic if their values are positive and span more than a factor of 20.

    Args:
        series: What to draw; empty series are allowed.
        label: Accessible name of the chart, as HTML.
        xlabel: Label of the x axis, as HTML.
        lines: Draw lines on a linear x axis. False: draw points.
        categories: Labels of x = 0, 1, 2, …, as HTML; without them x is a number.

    Returns:
        An `<svg>` element, or a paragraph if no series has a point.

    Example:
        >>> chart([Series([(0.0, 1.0), (1.0, 0.5)], color(0), "job 0")], "loss by step", "step", lines=True)[:4]
        '<svg'
    """
    points = [point for one in series for point in one.points]
    if not points:
        return '<p class="soft">nothing was logged</p>'
    x_axis = (
        _Axis([-0.5, len(categories) - 0.5], WIDTH - _LEFT - _RIGHT, linear=True)
        if categories
        else _Axis([x for x, _ in points], WIDTH - _LEFT - _RIGHT, linear=lines, mark=not lines)
    )
    y_axis = _Axis([y for _, y in points], HEIGHT - _TOP - _BOTTOM)
    bottom = HEIGHT - _BOTTOM
    parts = []
    for value, text in y_axis.ticks():
        y = bottom - y_axis.position(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'
                     f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')  # fmt: skip
    for value, text in [(float(i), c) for i, c in enumerate(categories)] or x_axis.ticks():
        x = _LEFT + x_axis.position(value)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
    parts.append(f'<text class="axis" x="{WIDTH - _RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{xlabel}</text>')
    for one in series:
        positions = [(_LEFT + x_axis.position(x), bottom - y_axis.position(y)) for x, y in one.points]
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 if lines else 5}"/>' for x, y in positions)
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in positions)
        line = f'<path d="M{path}" fill="none" stroke="{one.color}"/>' if lines and len(positions) > 1 else ""
        crowded = lines and len(positions) > 40  # dots would hide the line
        parts.append(f'<g fill="{one.color}"><title>{one.title}</title>{line}{"" if crowded else dots}</g>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


class _Axis:
    """Maps values to `length` pixels. With `mark`, up to six different values are the ticks."""

    def __init__(self, values: Sequence[float], length: int, linear: bool = False, mark: bool = False) -> None:
        low, high = min(values), max(values)
        self.log = not linear and low > 0 and high / low > 20
        self.marked = sorted(set(values)) if mark and len(set(values)) <= 6 else []
        if self.log:
            low, high = math.log10(low), math.log10(high)
        margin = 0.06 * (high - low) or abs(low) * 0.06 or 1.0
        self.length, self.low, self.high = length, low - margin, high + margin

    def position(self, value: float) -> float:
        """The value's distance from the start of the axis, in pixels."""
        value = math.log10(value) if self.log else value
        return self.length * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Values and labels of the ticks."""
        if self.marked:
            values = self.marked
        elif self.log:
            narrow = self.high - self.low < 3
            values = [m * 10.0**e for e in range(math.floor(self.low), math.ceil(self.high) + 1)
                      for m in ((1, 2, 5) if narrow else (1,))]  # fmt: skip
            values = [v for v in values if self.low <= math.log10(v) <= self.high]
            values = values[:: math.ceil(len(values) / 8)]
        else:
            min_step = (self.high - self.low) / 5
            unit = 10.0 ** math.floor(math.log10(min_step))
            step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= min_step)
            first = math.ceil(self.low / step)
            values = [i * step for i in range(first, math.floor(self.high / step) + 1)]
        return [(value, f"{value:.6g}") for value in values]
