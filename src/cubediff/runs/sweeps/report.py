"""The report of a sweep: a table as text, and a page with curves."""

from collections import Counter
from pathlib import Path

from cubediff.pages.charts import Series, chart, color
from cubediff.runs.sweeps.results import Result

ABSENT = "–"  # a key that a job was not given


def settings(result: Result) -> dict[str, str]:
    """The words of the command line: keys and values."""
    parted = (word.partition("=") for word in result.overrides)
    return {key: value for key, _, value in parted if key.lstrip("+") != "run_dir"}


def differing(results: list[Result]) -> tuple[list[str], dict[str, str]]:
    """The keys whose values differ, and what all share."""
    given = [settings(result) for result in results]
    keys = dict.fromkeys(key for one in given for key in one)
    varied = [key for key in keys if len({one.get(key, ABSENT) for one in given}) > 1]
    return varied, {key: given[0][key] for key in keys if key not in varied}


def best(result: Result) -> tuple[int, float] | None:
    """Step and value of the lowest val/loss."""
    points = [(step, value) for step, value in result.curves.get("val/loss", []) if value is not None]
    return min(points, key=lambda point: point[1]) if points else None


def cells(name: str, result: Result, keys: list[str]) -> list[str]:
    """A row of the table, without the error's text."""
    given, low = settings(result), best(result)
    loss = ABSENT if result.loss is None else f"{result.loss:.4f}"
    lowest = f"{low[1]:.4f} at {low[0]}" if low else ABSENT
    return [name, *(given.get(key, ABSENT) for key in keys), loss, lowest, result.status, f"{result.seconds:.0f}"]


HEAD = ["val/loss", "lowest, at step", "status", "seconds"]


def table(runs: list[tuple[str, Result]], keys: list[str]) -> str:
    """As text, the best first."""
    rows = [["job", *keys, *HEAD], *(cells(name, result, keys) for name, result in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def html(folder: Path, runs: list[tuple[str, Result]]) -> str:
    """The page's text."""
    from cubediff.pages.html import escape, fill_template, read_template

    results = [result for _, result in runs]
    keys, shared = differing(results)
    colors = [color(i) for i in range(len(runs))]
    titles = [
        escape(f"job {name}: " + ", ".join(f"{key}={settings(result).get(key, ABSENT)}" for key in keys))
        for name, result in runs
    ]
    figures = []
    for loss in ("val/loss", "train/loss"):
        drawn = [
            Series([(float(s), v) for s, v in result.curves.get(loss, []) if v is not None], c, title)
            for result, c, title in zip(results, colors, titles, strict=True)
        ]
        figures.append((f"{loss} by step", chart(drawn, f"{loss} by step", "step", lines=True)))
    for key in keys:
        values = [settings(result).get(key, ABSENT) for result in results]
        numbers, order = _numbers(values), sorted(set(values))
        x = numbers or [float(order.index(value)) for value in values]
        drawn = [
            Series([(place, result.loss)] if result.loss is not None else [], c, title)
            for place, result, c, title in zip(x, results, colors, titles, strict=True)
        ]
        name = escape(key)
        categories = [] if numbers else [escape(_short(value, len(order))) for value in order]
        figures.append((f"val/loss by {name}", chart(drawn, f"val/loss by {name}", name, False, categories)))
    head = "".join(f"<th>{escape(name)}</th>" for name in ["job", *keys, *HEAD, "error"])
    body = "".join(
        "<tr>"
        + f'<td><i style="background: {c}"></i>{escape(name)}</td>'
        + "".join(f'<td class="{_class(cell)}">{escape(cell)}</td>' for cell in cells(name, result, keys)[1:])
        + f'<td class="error">{escape(result.error or "")}</td></tr>'
        for (name, result), c in zip(runs, colors, strict=True)
    )
    counts = Counter(result.status for result in results)
    tiles = {"jobs": str(len(runs)), **{status: str(n) for status, n in counts.items()}}
    if runs[0][1].loss is not None:
        tiles |= {"lowest last val/loss": f"{runs[0][1].loss:.4f}"}
    tiles |= {"hours of all jobs": f"{sum(result.seconds for result in results) / 3600:.2f}"}
    filled = {
        "title": escape(str(folder)),
        "shared": escape(" ".join(f"{key}={value}" for key, value in shared.items())),
        "tiles": "".join(f"<li><b>{n}</b> {what}</li>" for what, n in tiles.items()),
        "head": head,
        "body": body,
        "figures": "".join(f"<figure><figcaption>{name}</figcaption>{svg}</figure>" for name, svg in figures),
    }
    return fill_template(read_template("cubediff.runs.sweeps", "report.html"), filled)


def _numbers(values: list[str]) -> list[float]:
    """The values as numbers, or nothing where one is none."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return []


def _short(value: str, of: int) -> str:
    """As long as there is room for under the chart."""
    room = max(4, 80 // of)
    return value if len(value) <= room else f"{value[: room - 1]}…"


def _class(cell: str) -> str:
    return cell if cell in ("done", "failed", "running", "cut") else ""
