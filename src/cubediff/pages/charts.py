"""SVG charts for self-contained pages: lines over steps, points over the values of a config key, and distributions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 34  # margins, for the labels of the axes
_ROW = 150  # height of a distribution
_BINS = 40
_MAX_DOTS = 150  # a distribution of more values has bars
_INTERVAL = (150, 18)  # width and height of an interval


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


@dataclass(frozen=True)
class Mark:
    """A value with an interval.

    Args:
        value: The value.
        low: Lower end of the interval; NaN: there is none.
        high: Upper end of the interval.
        color: A CSS colour.
        title: Tooltip, as HTML.
        dashed: Whether its lines are dashed.
    """

    value: float
    low: float
    high: float
    color: str
    title: str
    dashed: bool = False

    def numbers(self) -> list[float]:
        """The finite ones of its numbers."""
        return [number for number in (self.value, self.low, self.high) if math.isfinite(number)]


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


def distribution(values: Sequence[float], title: Callable[[int], str], marks: Sequence[Mark], label: str) -> str:
    """Draws how values are distributed: a stack of dots in each bin, or bars if there are more than 150 values.

    Args:
        values: What is counted, finite.
        title: Maps the index of a value to the tooltip of its dot, as HTML.
        marks: Values to compare with, as vertical lines with bands.
        label: Accessible name of the chart, as HTML.

    Returns:
        An `<svg>` element with a logarithmic axis if all numbers are positive and span more than a factor of 20, or a
        paragraph if there is no value.
    """
    if not values:
        return '<p class="soft">no value is finite</p>'
    left, bottom = 12, _ROW - 22
    length = WIDTH - 2 * left
    axis = _Axis([*values, *(number for mark in marks for number in mark.numbers())], length)
    bins: list[list[int]] = [[] for _ in range(_BINS)]
    for index, value in sorted(enumerate(values), key=lambda pair: pair[1]):
        bins[min(_BINS - 1, int(axis.position(value) / length * _BINS))].append(index)
    most, width = max(map(len, bins)), length / _BINS
    parts = [f'<path class="grid" d="M{left} {bottom}H{WIDTH - left}"/>']
    for tick, text in axis.ticks():
        x = left + axis.position(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {bottom}v4"/>'
                     f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{text}</text>')  # fmt: skip
    for number, members in enumerate(bins):
        x = left + number * width
        if len(values) > _MAX_DOTS:
            height = (bottom - 14) * len(members) / most
            parts.append(f'<rect x="{x + 0.5:.1f}" y="{bottom - height:.1f}" width="{width - 1:.1f}" '
                         f'height="{height:.1f}"><title>{len(members)}</title></rect>' if members else "")  # fmt: skip
        else:
            step = min(width, (bottom - 14) / most)
            radius = min(5.0, 0.46 * step)
            parts += [
                f'<circle cx="{x + width / 2:.1f}" cy="{bottom - (place + 0.5) * step:.1f}" r="{radius:.1f}">'
                f"<title>{title(index)}</title></circle>"
                for place, index in enumerate(members)
            ]
    parts += [_upright(mark, axis, left, bottom) for mark in marks]
    return f'<svg class="spread" viewBox="0 0 {WIDTH} {_ROW}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def interval(marks: Sequence[Mark], label: str) -> str:
    """Draws values with their intervals on one axis, which begins at 0 if none is negative.

    Args:
        marks: The values; those that are not finite are left out.
        label: Accessible name of the chart, as HTML.
    """
    width, height = _INTERVAL
    numbers = [0.0, *(number for mark in marks for number in mark.numbers())]
    low, span = min(numbers), max(numbers) - min(numbers) or 1.0

    def place(number: float) -> float:
        return 6 + (width - 12) * (number - low) / span

    parts = [f'<path class="grid" d="M0 {height - 1.5}H{width}M{place(0.0):.1f} 0V{height}"/>']
    for mark in reversed(marks):  # the first on top
        if not math.isfinite(mark.value):
            continue
        y = height / 2 - 1
        bar = (
            f'<path d="M{place(mark.low):.1f} {y}H{place(mark.high):.1f}" stroke="{mark.color}" stroke-width="6" '
            'opacity=".45"/>'
            if math.isfinite(mark.low) and math.isfinite(mark.high)
            else ""
        )
        dash = ' stroke-dasharray="3 2"' if mark.dashed else ""
        parts.append(f'<g><title>{mark.title}</title>{bar}<path d="M{place(mark.value):.1f} 1V{height - 3}" '
                     f'stroke="{mark.color}" stroke-width="2.5"{dash}/></g>')  # fmt: skip
    return (
        f'<svg class="interval" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def _upright(mark: Mark, axis: "_Axis", left: int, bottom: int) -> str:
    """A line at the mark's value over a band of its interval."""
    if not math.isfinite(mark.value):
        return ""
    x, dash = left + axis.position(mark.value), ' stroke-dasharray="5 4"' if mark.dashed else ""
    band = ""
    if math.isfinite(mark.low) and math.isfinite(mark.high):
        low, high = (left + axis.position(number) for number in (mark.low, mark.high))
        band = f'<path d="M{low:.1f} 4H{high:.1f}V{bottom}H{low:.1f}Z" fill="{mark.color}" opacity=".18"/>'
    line = f'<path d="M{x:.1f} 4V{bottom}" stroke="{mark.color}"{dash}/>'
    return f"<g><title>{mark.title}</title>{band}{line}</g>"


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
