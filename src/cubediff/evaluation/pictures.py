"""The panoramas of a report: a contact sheet, and the distribution of a metric with its best and worst panoramas.

Each picture is in the page once, as the background of a CSS class, however often it is shown.
"""

import base64
import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import cv2

from cubediff.evaluation.measures import Better
from cubediff.evaluation.results import Results, Value
from cubediff.images.jpeg import decode_jpeg
from cubediff.images.writing import encode_jpeg
from cubediff.pages.charts import Mark, distribution
from cubediff.pages.html import escape
from cubediff.utils.text import significant

MAX_SHEET: Final = 48
MAX_BYTES: Final = 2_000_000  # of all pictures of a page, in base64
_EXTREMES = 3  # best and worst panoramas of a metric
_WIDTHS = (480, 360, 280, 200, 140)  # of a picture that is shrunk so that all fit, in pixels
_QUALITY = 75
_MAX_CAPTION = 1000  # characters


class Shown(NamedTuple):
    """What a report shows of a panorama.

    Attributes:
        thumbnail: A JPEG, twice as wide as high.
        original: The same of its original; None: there is none.
        link: Relative URL of its viewer page, percent-encoded; None: there is none.
    """

    thumbnail: bytes
    original: bytes | None
    link: str | None


class Pictures:
    """The pictures of one page.

    Args:
        names: Of all panoramas.
        captions: Of all panoramas.
        show: Maps the index of a panorama to what is shown of it; called once for each that is on the page.
    """

    def __init__(self, names: Sequence[str], captions: Sequence[str], show: Callable[[int], Shown]) -> None:
        self._names, self._captions, self._show = names, captions, show
        self._shown: dict[int, Shown] = {}
        self._used: dict[str, bytes] = {}

    def sheet(self) -> str:
        """Figures of the first panoramas, with their captions."""
        return "".join(map(self._with_caption, range(min(MAX_SHEET, len(self._names)))))

    def ranked(self, values: Sequence[float], better: Better) -> str:
        """Figures of the best and of the worst panoramas by their values, with their originals; "" if none is better.

        Args:
            values: Of all panoramas; those with NaN are left out.
            better: Which values are better.
        """
        if better == "neither":
            return ""
        ordered = sorted((index for index, value in enumerate(values) if not math.isnan(value)), key=values.__getitem__)
        if better == "higher":
            ordered.reverse()
        best = ordered[: min(_EXTREMES, (len(ordered) + 1) // 2)]
        worst = ordered[len(best) :][-_EXTREMES:][::-1]
        rows = (("best", best), ("worst", worst)) if worst else ()
        return "".join(
            f'<h4>{title}</h4><div class="ranked">{"".join(self._with_value(index, values[index]) for index in row)}'
            "</div>"
            for title, row in rows
        )

    def css(self) -> str:
        """The rules that hold the pictures, of what was shown before."""
        fitted = next(fit for width in _WIDTHS if (fit := self._fitted(width)) or width == _WIDTHS[-1])
        return "".join(
            f".{name} {{ background-image: url(data:image/jpeg;base64,{data}) }}\n" for name, data in fitted.items()
        )

    def _fitted(self, width: int) -> dict[str, str]:
        """The pictures in base64, at most so wide; empty if they are too large, unless they cannot be smaller."""
        encoded, total = {}, 0
        for name, jpeg in self._used.items():
            encoded[name] = base64.b64encode(_shrunk(jpeg, width)).decode()
            total += len(encoded[name])
            if total > MAX_BYTES and width != _WIDTHS[-1]:
                return {}
        return encoded

    def _with_caption(self, index: int) -> str:
        caption = escape(self._captions[index][:_MAX_CAPTION])
        quote = f'<q dir="auto" title="{caption}">{caption}</q>' if caption.strip() else ""
        picture = self._pictures(index, with_original=False)
        return f"<figure>{picture}<figcaption>{self._name(index)}{quote}</figcaption></figure>"

    def _with_value(self, index: int, value: float) -> str:
        return (
            f"<figure>{self._pictures(index, with_original=True)}<figcaption><b>{significant(value)}</b> "
            f"{self._name(index)}</figcaption></figure>"
        )

    def _name(self, index: int) -> str:
        return f'<span class="file" dir="auto">{escape(self._names[index])}</span>'

    def _pictures(self, index: int, *, with_original: bool) -> str:
        if index not in self._shown:
            self._shown[index] = self._show(index)
        shown, name = self._shown[index], escape(self._names[index])
        pictures = self._picture(f"p{index}", shown.thumbnail, name)
        if shown.link is not None:
            pictures = f'<a href="{escape(shown.link)}">{pictures}</a>'
        if with_original and shown.original is not None:
            pictures += self._picture(f"o{index}", shown.original, f"original of {name}")
        return pictures

    def _picture(self, key: str, jpeg: bytes, label: str) -> str:
        self._used[key] = jpeg
        return f'<i class="picture {key}" role="img" aria-label="{label}"></i>'


def spread(results: Results, name: str, values: Sequence[float]) -> str:
    """The distribution of a metric over panoramas, with the value of the set and that of the originals.

    Args:
        results: The results.
        name: The metric, one of `results.terms`.
        values: Its value for each panorama.
    """
    finite = [index for index, value in enumerate(values) if math.isfinite(value)]

    def title(number: int) -> str:
        return f"{escape(results.names[finite[number]])}: {significant(values[finite[number]])}"

    chart = distribution([values[index] for index in finite], title, marks(results.values[name]), escape(name))
    missing = len(values) - len(finite)
    note = f'<p class="soft">{missing} of {len(values)} panoramas have no finite value.</p>' if missing else ""
    return chart + note


def marks(value: Value) -> list[Mark]:
    """A value, that of the originals, and that of a publication, as charts show them."""
    estimate, reference = value.estimate, value.reference
    shown = [Mark(estimate.value, estimate.low, estimate.high, "var(--value)", significant(estimate.value))]
    if reference is not None:
        title = f"originals: {significant(reference.value)}"
        shown.append(Mark(reference.value, reference.low, reference.high, "var(--original)", title, dashed=True))
    if value.reported is not None:
        title = f"reported: {significant(value.reported)}"
        shown.append(Mark(value.reported, math.nan, math.nan, "var(--reported)", title))
    return shown


def _shrunk(jpeg: bytes, width: int) -> bytes:
    pixels = decode_jpeg(jpeg)
    if pixels.shape[1] <= width:
        return jpeg
    return encode_jpeg(cv2.resize(pixels, (width, width // 2), interpolation=cv2.INTER_AREA), _QUALITY)
