"""The results of an evaluation, and the files that hold them.

`metrics.json` has the values with their intervals and all that determines them, and is written last: where it exists,
the other files are complete. `metrics.csv` has the values in one row. `panoramas.json` has the terms of each panorama,
of which `cubediff evaluate compare` makes paired differences.

Legend: P panoramas, K terms.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cubediff.evaluation import measures
from cubediff.evaluation.consistency import values_of
from cubediff.evaluation.intervals import Estimate
from cubediff.evaluation.measures import Description
from cubediff.utils.errors import DataError, check_version
from cubediff.utils.files import write_atomic, write_json
from cubediff.utils.json_text import parse_json
from cubediff.utils.text import aligned, printable, significant

METRICS: Final = "metrics.json"
TABLE: Final = "metrics.csv"
PANORAMAS: Final = "panoramas.json"
VERSION: Final = 1
TOGETHER: Final = ("overlap_rms", "overlap_relative", "sharpness")
"""Metrics that are shown one after the other: blur lowers the first, and only the others tell."""


@dataclass(frozen=True)
class Value:
    """A metric's value.

    Attributes:
        estimate: The value with its 95 % interval; NaN where there are too few panoramas for one.
        interval: What the interval is of: "panoramas" drawn with replacement, or "halves" of both sets, for a distance,
            which is larger for smaller sets.
        description: What it measures.
        reference: The same metric of the originals, if it needs no others.
        reported: The value that a publication reports.
    """

    estimate: Estimate
    interval: Literal["panoramas", "halves"]
    description: Description
    reference: Estimate | None = None
    reported: float | None = None

    def record(self) -> dict[str, object]:
        """The value as JSON; null for NaN."""
        fields: dict[str, object] = {
            **_finite(self.estimate),
            "interval": self.interval,
            **asdict(self.description),
        }
        if self.reference is not None:
            fields["reference"] = _finite(self.reference)
        if self.reported is not None:
            fields["reported"] = self.reported
        return fields


@dataclass
class Results:
    """All that an evaluation found out.

    Attributes:
        values: By metric, in the order of the report.
        names: Of the panoramas.
        captions: Of the panoramas, "" for one without.
        terms: Of the metrics that are means over panoramas, (P, K).
        left_out: Why metrics have no value.
        warnings: What a reader should know about the values.
        record: What determines the values: sets, views, extractors, settings, versions.
    """

    values: dict[str, Value]
    names: list[str]
    captions: list[str]
    terms: dict[str, Float[Tensor, "p k"]]
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    record: dict[str, object] = field(default_factory=dict)

    def of_each(self, name: str) -> Float[Tensor, " p"]:
        """The values of a metric of `terms` for each panorama."""
        return values_of(measures.metric(name), self.terms[name])


def write_results(folder: Path, results: Results) -> None:
    """Writes the files of the results; `metrics.json` last.

    Raises:
        OSError: If a file cannot be written.
    """
    write_json(
        folder / PANORAMAS,
        {
            "version": VERSION,
            "names": results.names,
            "captions": results.captions,
            "terms": {name: terms.tolist() for name, terms in results.terms.items()},
        },
        indent=None,
    )
    write_atomic(folder / TABLE, _table(results))
    write_json(
        folder / METRICS,
        {
            "version": VERSION,
            "metrics": {name: value.record() for name, value in results.values.items()},
            "left_out": results.left_out,
            "warnings": results.warnings,
            **results.record,
        },
    )


@dataclass(frozen=True)
class Stored:
    """The results in a folder, as far as comparisons need them.

    Attributes:
        folder: The folder.
        metrics: The content of `metrics.json`.
        names: Of the panoramas.
        terms: Of the metrics that are means over panoramas, (P, K).
    """

    folder: Path
    metrics: dict[str, Any]
    names: list[str]
    terms: dict[str, Float[Tensor, "p k"]]


def read_results(folder: Path) -> Stored:
    """Reads the results of a folder.

    Raises:
        DataError: If there are none, or a file is damaged or of a newer version.
    """
    metrics, panoramas = (_read(folder / name) for name in (METRICS, PANORAMAS))
    try:
        names: list[str] = panoramas["names"]
        terms = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in panoramas["terms"].items()}
        if any(each.ndim != 2 or len(each) != len(names) for each in terms.values()):
            raise TypeError("its lists differ in length")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / PANORAMAS} is damaged ({error!r}): evaluate again") from None
    if not isinstance(metrics.get("metrics"), dict):
        raise DataError(f"{folder / METRICS} is damaged: it has no metrics: evaluate again")
    return Stored(folder, metrics, names, terms)


def results_text(results: Results) -> str:
    """The values with their intervals as a table of text, and the metrics without a value by the reason."""
    rows = [("metric", "value", "95 % interval", "originals", "better")]
    for name in report_order(results.values):
        value = results.values[name]
        number = f"{significant(value.estimate.value)} {value.description.unit}".rstrip()
        originals = "" if value.reference is None else significant(value.reference.value)
        rows.append((name, number, interval_text(value.estimate), originals, value.description.better))
    lines = aligned(rows)
    if results.left_out:
        lines += ["", "without a value:"]
        lines += [f"  {', '.join(names)}: {reason}" for reason, names in by_reason(results.left_out).items()]
    return "\n".join(map(printable, lines))


def interval_text(estimate: Estimate) -> str:
    """The interval as "LOW to HIGH"; an en dash for too few panoramas."""
    low, high = significant(estimate.low), significant(estimate.high)
    return "–" if low == high == "–" else f"{low} to {high}"


def by_reason(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    """The metrics without a value, by the reason.

    Example:
        >>> by_reason({"fid": "no weights", "kid": "no weights"})
        {'no weights': ['fid', 'kid']}
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


def report_order(names: Iterable[str]) -> list[str]:
    """Metrics in their order, but for those of `TOGETHER`, which follow the first of them."""
    given = list(names)
    if TOGETHER[0] not in given:
        return given
    block = [name for name in TOGETHER if name in given]
    return [each for name in given if name not in TOGETHER[1:] for each in (block if name == TOGETHER[0] else [name])]


def flatten(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """The values of nested mappings, by dotted keys.

    Example:
        >>> list(flatten({"faces": {"saved": True, "size": 128}}))
        [('faces.saved', True), ('faces.size', 128)]
    """
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path.parent} holds no {path.name}: pass the output of `cubediff evaluate`")
    try:
        content = parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}): evaluate again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: expected an object, got a {type(content).__name__}: evaluate again")
    check_version(content.get("version"), VERSION, path)
    return content


def _finite(estimate: Estimate) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in estimate._asdict().items()}


def _table(results: Results) -> str:
    """A header, and one row of values with their intervals."""
    cells = list(_cells(results.values))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([name for name, _ in cells])
    writer.writerow([value for _, value in cells])
    return text.getvalue()


def _cells(values: Mapping[str, Value]) -> Iterator[tuple[str, float | None]]:
    for name, value in values.items():
        for key, number in _finite(value.estimate).items():
            if key != "n":
                yield name if key == "value" else f"{name}_{key}", number
