"""The report of a sweep: a table as text, and an HTML page with the loss curves and the effect of every swept key."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cubediff.pages.charts import Series, chart, color
from cubediff.pages.html import escape, fill_template, read_template
from cubediff.runs.sweeps.results import Result

ABSENT = "–"  # the value of a key that a job's command line does not have
HEAD = ["val/loss", "lowest, at step", "status", "seconds"]
_STATUSES = ("done", "failed", "running", "cut")  # CSS classes of the page


def overrides_by_key(result: Result) -> dict[str, str]:
    """The overrides of a run's command line, without run_dir."""
    split = (override.partition("=") for override in result.overrides)
    return {key: value for key, _, value in split if key.lstrip("+") != "run_dir"}


def compare_overrides(results: Sequence[Result]) -> tuple[list[str], dict[str, str]]:
    """The keys whose values differ between runs, and the overrides that all runs share."""
    overrides = [overrides_by_key(result) for result in results]
    keys = dict.fromkeys(key for each in overrides for key in each)
    varied = [key for key in keys if len({each.get(key, ABSENT) for each in overrides}) > 1]
    return varied, {key: overrides[0][key] for key in keys if key not in varied}


def lowest_loss(result: Result) -> tuple[int, float] | None:
    """Step and value of the lowest val/loss; None if there is none."""
    points = [(step, value) for step, value in result.curves.get("val/loss", []) if value is not None]
    return min(points, key=lambda point: point[1]) if points else None


def table_row(name: str, result: Result, keys: Sequence[str]) -> list[str]:
    """The cells of a run: its name, its values of `keys`, then those of `HEAD`."""
    overrides, lowest = overrides_by_key(result), lowest_loss(result)
    last = ABSENT if result.loss is None else f"{result.loss:.4f}"
    low = f"{lowest[1]:.4f} at {lowest[0]}" if lowest else ABSENT
    return [name, *(overrides.get(key, ABSENT) for key in keys), last, low, result.status, f"{result.seconds:.0f}"]


def text_table(runs: Sequence[tuple[str, Result]], keys: Sequence[str]) -> str:
    """The runs as a table of text, one line each, in their order."""
    rows = [["job", *keys, *HEAD], *(table_row(name, result, keys) for name, result in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def report_page(folder: Path, runs: Sequence[tuple[str, Result]]) -> str:
    """The HTML page, which needs no other file.

    Args:
        folder: The sweep's folder, for the title.
        runs: Names and results, the lowest loss first.
    """
    results = [result for _, result in runs]
    keys, shared = compare_overrides(results)
    figures = [*_loss_figures(runs, keys), *(_key_figure(runs, keys, key) for key in keys)]
    filled = {
        "title": escape(str(folder)),
        "shared": escape(" ".join(f"{key}={value}" for key, value in shared.items())),
        "tiles": "".join(f"<li><b>{number}</b> {label}</li>" for label, number in _tiles(results).items()),
        "head": "".join(f"<th>{escape(name)}</th>" for name in ["job", *keys, *HEAD, "error"]),
        "body": "".join(_html_row(number, name, result, keys) for number, (name, result) in enumerate(runs)),
        "figures": "".join(f"<figure><figcaption>{caption}</figcaption>{svg}</figure>" for caption, svg in figures),
    }
    return fill_template(read_template("cubediff.runs.sweeps", "report.html"), filled)


def _titles(runs: Sequence[tuple[str, Result]], keys: Sequence[str]) -> list[str]:
    return [
        escape(f"job {name}: " + ", ".join(f"{key}={overrides_by_key(result).get(key, ABSENT)}" for key in keys))
        for name, result in runs
    ]


def _loss_figures(runs: Sequence[tuple[str, Result]], keys: Sequence[str]) -> list[tuple[str, str]]:
    figures = []
    for loss in ("val/loss", "train/loss"):
        series = []
        for number, (title, (_, result)) in enumerate(zip(_titles(runs, keys), runs, strict=True)):
            points = [(float(step), value) for step, value in result.curves.get(loss, []) if value is not None]
            series.append(Series(points, color(number), title))
        figures.append((f"{loss} by step", chart(series, f"{loss} by step", "step", lines=True)))
    return figures


def _key_figure(runs: Sequence[tuple[str, Result]], keys: Sequence[str], key: str) -> tuple[str, str]:
    """The last loss by the values of a key: on an axis if all are numbers, else by category."""
    values = [overrides_by_key(result).get(key, ABSENT) for _, result in runs]
    numbers, categories = _as_numbers(values), sorted(set(values))
    positions = numbers or [float(categories.index(value)) for value in values]
    series = [
        Series([(x, result.loss)] if result.loss is not None else [], color(number), title)
        for number, (x, (_, result), title) in enumerate(zip(positions, runs, _titles(runs, keys), strict=True))
    ]
    labels = [] if numbers else [escape(_shortened(value, len(categories))) for value in categories]
    name = escape(key)
    return f"val/loss by {name}", chart(series, f"val/loss by {name}", name, False, labels)


def _html_row(number: int, name: str, result: Result, keys: Sequence[str]) -> str:
    cells = "".join(
        f'<td class="{cell if cell in _STATUSES else ""}">{escape(cell)}</td>'
        for cell in table_row(name, result, keys)[1:]
    )
    return (
        f'<tr><td><i style="background: {color(number)}"></i>{escape(name)}</td>{cells}'
        f'<td class="error">{escape(result.error or "")}</td></tr>'
    )


def _tiles(results: Sequence[Result]) -> dict[str, str]:
    counts = Counter(result.status for result in results)
    tiles = {"jobs": str(len(results)), **{status: str(number) for status, number in counts.items()}}
    if results[0].loss is not None:
        tiles |= {"lowest final val/loss": f"{results[0].loss:.4f}"}
    return tiles | {"total hours": f"{sum(result.seconds for result in results) / 3600:.2f}"}


def _as_numbers(values: Sequence[str]) -> list[float]:
    """Empty if one of the values is not a number."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return []


def _shortened(label: str, count: int) -> str:
    """Fits one of `count` labels under a chart."""
    length = max(4, 80 // count)
    return label if len(label) <= length else f"{label[: length - 1]}…"
