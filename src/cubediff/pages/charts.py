"""Small charts as SVG text, for pages that need no other file: lines over steps, and points over a swept key."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 34  # room for the labels of the axes


@dataclass(frozen=True)
class Series:
    """What one job drew: places (x, y), a colour of CSS, and HTML text that shows where a pointer rests."""

    points: Sequence[tuple[float, float]]
    color: str
    title: str


def color(number: int) -> str:
    """Colours that stay apart from their neighbours, for any number of them."""
    return f"hsl({number * 137.508 % 360:.0f} 65% {(62, 74, 52)[number % 3]}%)"


def chart(series: Sequence[Series], label: str, xlabel: str, lines: bool, categories: Sequence[str] = ()) -> str:
    """An SVG of `series`; axes become logarithmic where the values span more than a factor of 20.

    With `categories`, x is a position in them. `label`, `xlabel` and `categories` are HTML text.
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
        y = bottom - y_axis.place(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'
                     f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')  # fmt: skip
    for value, text in [(float(i), c) for i, c in enumerate(categories)] or x_axis.ticks():
        x = _LEFT + x_axis.place(value)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
    parts.append(f'<text class="axis" x="{WIDTH - _RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{xlabel}</text>')
    for one in series:
        placed = [(_LEFT + x_axis.place(x), bottom - y_axis.place(y)) for x, y in one.points]
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 if lines else 5}"/>' for x, y in placed)
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        drawn = f'<path d="M{path}" fill="none" stroke="{one.color}"/>' if lines and len(placed) > 1 else ""
        many = lines and len(placed) > 40  # dots would hide the line
        parts.append(f'<g fill="{one.color}"><title>{one.title}</title>{drawn}{"" if many else dots}</g>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


class _Axis:
    """Where values lie along `length` pixels; with `mark` its ticks are at the values, where they are few."""

    def __init__(self, values: Sequence[float], length: int, linear: bool = False, mark: bool = False) -> None:
        low, high = min(values), max(values)
        self.log = not linear and low > 0 and high / low > 20
        self.marked = sorted(set(values)) if mark and len(set(values)) <= 6 else []
        if self.log:
            low, high = math.log10(low), math.log10(high)
        margin = 0.06 * (high - low) or abs(low) * 0.06 or 1.0
        self.length, self.low, self.high = length, low - margin, high + margin

    def place(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        return self.length * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        if self.marked:
            values = self.marked
        elif self.log:
            few = self.high - self.low < 3
            values = [m * 10.0**e for e in range(math.floor(self.low), math.ceil(self.high) + 1)
                      for m in ((1, 2, 5) if few else (1,))]  # fmt: skip
            values = [v for v in values if self.low <= math.log10(v) <= self.high]
            values = values[:: math.ceil(len(values) / 8)]
        else:
            rough = (self.high - self.low) / 5
            unit = 10.0 ** math.floor(math.log10(rough))
            step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
            first = math.ceil(self.low / step)
            values = [i * step for i in range(first, math.floor(self.high / step) + 1)]
        return [(value, f"{value:.6g}") for value in values]
