"""The report of an evaluation: one HTML page with values, intervals, distributions and panoramas. It needs no other
file and no network."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from cubediff.evaluation.measures import Better, Description, Family
from cubediff.evaluation.pictures import MAX_SHEET, Pictures, Shown, marks, spread
from cubediff.evaluation.results import TOGETHER, Results, Value, by_reason, flatten, interval_text, report_order
from cubediff.pages.charts import interval
from cubediff.pages.html import escape, fill_template, read_template
from cubediff.utils.files import write_atomic
from cubediff.utils.text import significant

__all__ = ["Shown", "write_report"]

_FAMILIES: Final[dict[Family, str]] = {
    "consistency": "Consistency",
    "distances": "Distances to the reference",
    "fidelity": "Fidelity to the condition",
    "captions": "Captions",
}
_HALVES = (
    "The intervals of distances are those of halves of both sets, drawn without replacement: distances of fewer "
    "panoramas are larger, so these intervals can lie above the values of the whole sets."
)
_SPREAD = (
    "A dot is a panorama, and a bar the number of panoramas with about this value. The line is the value of all "
    "panoramas together with its interval, the dashed line that of the originals. Beneath are the best and the worst "
    "panoramas, each above its original where there is one."
)
_COLUMNS = ("metric", "value", "95 % interval", "from 0")
_MAX_TEXT, _MAX_ROWS = 2000, 300  # of a value, and values of a section


def write_report(path: Path, results: Results, shown: Callable[[int], Shown]) -> Path:
    """Writes the page atomically; it has less than 3 MB for any number of panoramas.

    Args:
        path: The page to write. Its folder must exist.
        results: The results.
        shown: Maps the index of a panorama to what is shown of it; called only for those that are on the page.

    Returns:
        `path`.

    Raises:
        OSError: If it cannot be written.
        ValueError: If a thumbnail is not a JPEG.
    """
    pictures = Pictures(results.names, results.captions, shown)
    count = len(results.names)
    filled = {
        "evaluated": "".join(f"<dt>{title}</dt><dd>{escape(text)}</dd>" for title, text in _evaluated(results)),
        "notes": _notes(results),
        "tables": "".join(_section(results, family) for family in _FAMILIES),
        "distributions": _distributions(results, pictures),
        "sheet_note": f"{MAX_SHEET} of {count}" if count > MAX_SHEET else f"all {count}",
        "sheet": pictures.sheet(),
        "record": "".join(_details(key, value) for key, value in results.record.items() if value is not None),
        "pictures": pictures.css(),
    }
    write_atomic(path, fill_template(read_template("cubediff.evaluation", "report.html"), filled))
    return path


def _evaluated(results: Results) -> Iterator[tuple[str, str]]:
    """The model, the sets and the faces."""
    record = results.record
    settings = record.get("settings")
    model = settings.get("pipeline") if isinstance(settings, Mapping) else None
    if model is not None:
        yield "model", str(model)
    yield "samples", _set(record.get("samples")) or f"{len(results.names):,} panoramas"
    yield "reference", _set(record.get("reference")) or "none: only metrics without a reference have values"
    faces = record.get("faces")
    if isinstance(faces, Mapping):
        origin = "as they were generated, before blending" if faces.get("saved") else "cut from the panoramas"
        yield "faces", f"of {faces.get('size')} pixels, {origin}"


def _set(record: object) -> str:
    """The path, the number of panoramas and their height."""
    if not isinstance(record, Mapping):
        return ""
    count, height = record.get("panoramas"), record.get("height")
    numbers = [
        *([f"{count:,} panorama{'s' * (count != 1)}"] if isinstance(count, int) else []),
        *([f"{height} rows"] if isinstance(height, int) else []),
    ]
    return f"{record.get('path', '')}: {', '.join(numbers)}"


def _notes(results: Results) -> str:
    """Warnings, and the metrics without a value by the reason."""
    warnings = "".join(f'<p class="note">{escape(text)}</p>' for text in results.warnings)
    reasons = by_reason(results.left_out).items()
    rows = "".join(f"<li><b>{escape(', '.join(names))}</b> {escape(reason)}</li>" for reason, names in reasons)
    return warnings + (f'<div class="note"><p>Without a value:</p><ul>{rows}</ul></div>' if rows else "")


def _ordered(results: Results) -> dict[str, Value | None]:
    """The values in the order of the report; None for a metric that belongs to another one but was not measured."""
    names = [*results.values, *(TOGETHER if TOGETHER[0] in results.values else ())]
    return {name: results.values.get(name) for name in report_order(dict.fromkeys(names))}


def _section(results: Results, family: Family) -> str:
    """The table of a family; "" if it has no metric."""
    values = {name: value for name, value in results.values.items() if value.description.family == family}
    if not values:
        return ""
    columns = [*_COLUMNS]
    if any(value.reference is not None for value in values.values()):
        columns.append("originals")
    if any(value.reported is not None for value in values.values()):
        columns.append("reported")
    head = "".join(f"<th>{title}</th>" for title in columns)
    body = "".join(
        _unmeasured(name, results.left_out.get(name), len(columns)) if value is None else _row(name, value, columns)
        for name, value in _ordered(results).items()
        if name in values or (value is None and family == "consistency")
    )
    halves = f'<p class="soft">{_HALVES}</p>' if any(value.interval == "halves" for value in values.values()) else ""
    return (
        f'<h2>{_FAMILIES[family]}</h2><div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        f"</table></div>{halves}"
    )


def _row(name: str, value: Value, columns: Sequence[str]) -> str:
    reference = value.reference
    cells = {
        "value": f"<b>{_with_unit(value.estimate.value, value.description)}</b>",
        "95 % interval": interval_text(value.estimate),
        "from 0": interval(marks(value), f"{escape(name)} with its interval"),
        "originals": ""
        if reference is None
        else f"{significant(reference.value)} <small>{interval_text(reference)}</small>",
        "reported": "" if value.reported is None else significant(value.reported),
    }
    inner = "".join(f"<td>{cells[column]}</td>" for column in columns[1:])
    return f"<tr>{_label(name, value.description.text, value.description.better)}{inner}</tr>"


def _unmeasured(name: str, reason: str | None, columns: int) -> str:
    text = "not measured" if reason is None else f"not measured: {reason}"
    return f"<tr>{_label(name, text, 'neither')}<td>–</td>{'<td></td>' * (columns - 2)}</tr>"


def _label(name: str, text: str, better: Better) -> str:
    """The first cell of a row; long names break at underscores."""
    breakable = escape(name).replace("_", "_<wbr>")
    return f'<td class="name"><b>{breakable}</b> {_arrow(better)}<small>{escape(text)}</small></td>'


def _arrow(better: Better) -> str:
    if better == "neither":
        return ""
    arrow = "↓" if better == "lower" else "↑"
    return f'<span title="{better} is better" role="img" aria-label="{better} is better">{arrow}</span>'


def _with_unit(value: float, description: Description) -> str:
    unit = escape(description.unit) if math.isfinite(value) else ""
    return f"{significant(value)} {unit}".rstrip()


def _distributions(results: Results, pictures: Pictures) -> str:
    """The distribution of each metric over panoramas, with the best and the worst; "" if there are none to compare."""
    values = {
        name: results.of_each(name).tolist()
        for name, value in _ordered(results).items()
        if value is not None and name in results.terms
    }
    if len(results.names) < 2 or not values:
        return ""
    sections = "".join(_distribution(results, name, each, pictures) for name, each in values.items())
    return f'<h2>Distribution over panoramas</h2><p class="soft">{_SPREAD}</p><div class="metrics">{sections}</div>'


def _distribution(results: Results, name: str, values: Sequence[float], pictures: Pictures) -> str:
    description = results.values[name].description
    return (
        f"<section><h3>{escape(name)} {_arrow(description.better)}</h3>"
        f'<p class="soft">{escape(description.text)}</p>'
        f"{spread(results, name, values)}{pictures.ranked(values, description.better)}</section>"
    )


def _details(key: str, value: object) -> str:
    rows = list(flatten(value))
    shown = "".join(
        f"<tr><td>{escape(name or key)}</td><td>{escape(_shortened(_text(inner)))}</td></tr>"
        for name, inner in rows[:_MAX_ROWS]
    )
    more = f"<p>{len(rows) - _MAX_ROWS} more in metrics.json</p>" if len(rows) > _MAX_ROWS else ""
    return f'<details><summary>{escape(key)}</summary><div class="table"><table>{shown}</table></div>{more}</details>'


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} … (the whole is in metrics.json)"
