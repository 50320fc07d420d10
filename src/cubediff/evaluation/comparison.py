"""Paired differences between two evaluations of the same panoramas, with intervals.

Numbers are compared only where both were measured in the same way: with the same views, heights, faces, extractors and
reference. Settings that differ are listed.

Legend: P panoramas of either set, Q of the reference, V views of each, D features.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, cast, get_args

from jaxtyping import Float
from torch import Tensor

from cubediff.evaluation import measures
from cubediff.evaluation.comparability import at, check_measured_equally, differing_settings, short, stored_distance
from cubediff.evaluation.consistency import value_of
from cubediff.evaluation.features import Progress, read_features
from cubediff.evaluation.intervals import Estimate, paired_difference, paired_halves
from cubediff.evaluation.measures import Better
from cubediff.evaluation.results import METRICS, PANORAMAS, Stored, by_reason, report_order
from cubediff.utils.errors import DataError
from cubediff.utils.text import aligned, escape_surrogates, printable, significant

VERSION: Final = 1
Verdict = Literal["A better", "B better", "A larger", "B larger", "no difference shown"]
_FEW = 10  # panoramas, of whose mean the interval holds the true value in about 90 % of cases instead of 95 %
_HEAD = ("metric", "A", "B", "B - A", "95 % interval", "verdict")


@dataclass(frozen=True)
class Difference:
    """By how much a metric of the second evaluation exceeds that of the first.

    Attributes:
        metric: Its name.
        first: The value of the first, A.
        second: The value of the second, B.
        estimate: B − A with its 95 % interval; NaN for fewer than two panoramas.
        better: Which values are better.
    """

    metric: str
    first: float
    second: float
    estimate: Estimate
    better: Better

    @property
    def verdict(self) -> Verdict:
        """Which one is better, or larger if neither is better, where the interval excludes 0."""
        b_larger = self.estimate.low > 0
        if not b_larger and not self.estimate.high < 0:
            return "no difference shown"
        if self.better == "neither":
            return "B larger" if b_larger else "A larger"
        return "B better" if b_larger == (self.better == "higher") else "A better"


@dataclass
class Comparison:
    """What two evaluations have in common, and what not.

    Attributes:
        first: The folder A.
        second: The folder B.
        differences: Of the metrics that both have, in the order of a report.
        left_out: Why metrics are not compared.
        settings: The values of settings that differ, by dotted key.
    """

    first: Path
    second: Path
    differences: list[Difference] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    settings: dict[str, tuple[object, object]] = field(default_factory=dict)


def compare(first: Stored, second: Stored, cache: Path, progress: Progress) -> Comparison:
    """Compares two evaluations of the same panoramas.

    Args:
        first: The first, A.
        second: The second, B.
        cache: The folder for features of references.
        progress: Shows the progress over metrics.

    Raises:
        DataError: If the panoramas have other names or another order, or a file is damaged.
    """
    _check_names(first, second)
    measures.add_installed_metrics()
    found = Comparison(first.folder, second.folder, settings=differing_settings(first, second))
    ours, theirs = first.metrics["metrics"], second.metrics["metrics"]
    for letter, own, other in (("A", ours, theirs), ("B", theirs, ours)):
        found.left_out.update({name: f"only {letter} has it" for name in own if name not in other})
    features = _Features(first, second, cache)
    names = report_order(name for name in ours if name in theirs)
    for index in progress(range(len(names)), len(names), "comparing"):
        name = names[index]
        better = _better(first, name)
        try:
            check_measured_equally(first, second, name)
            values = _of_terms(first, second, name) or features.compare(name)
        except DataError:
            raise
        except ValueError as error:
            found.left_out[name] = str(error)
        else:
            found.differences.append(Difference(name, *values, better))
    return found


def comparison_text(comparison: Comparison) -> str:
    """The differences as a table, and what is not compared and why."""
    rows = [_HEAD, *map(_row, comparison.differences)]
    lines = [f"A: {comparison.first}", f"B: {comparison.second}"]
    if comparison.differences:
        lines += ["", *aligned(rows)]
    few = min((each.estimate.n for each in comparison.differences), default=_FEW)
    if few < _FEW:
        number = f"{few} panorama{'s' * (few != 1)}"
        lines += ["", f"{number}: bootstrap intervals of fewer than {_FEW} are too narrow, verdicts may be wrong"]
    if comparison.left_out:
        reasons = by_reason(comparison.left_out).items()
        lines += ["", "not compared:", *(f"  {', '.join(names)}: {reason}" for reason, names in reasons)]
    if comparison.settings:
        shown = (f"  {key}: {short(a)} in A, {short(b)} in B" for key, (a, b) in comparison.settings.items())
        lines += ["", "settings that differ:", *shown]
    return "\n".join(map(printable, lines))


def comparison_record(comparison: Comparison) -> dict[str, object]:
    """The comparison as JSON; null for NaN."""
    return {
        "version": VERSION,
        "first": escape_surrogates(str(comparison.first)),
        "second": escape_surrogates(str(comparison.second)),
        "differences": {each.metric: _record(each) for each in comparison.differences},
        "left_out": {name: escape_surrogates(reason) for name, reason in comparison.left_out.items()},
        "settings": {key: {"first": a, "second": b} for key, (a, b) in comparison.settings.items()},
    }


def _row(difference: Difference) -> tuple[str, ...]:
    estimate = difference.estimate
    interval = f"{significant(estimate.low)} to {significant(estimate.high)}"
    numbers = (significant(number) for number in (difference.first, difference.second, estimate.value))
    return difference.metric, *numbers, interval, difference.verdict


def _record(difference: Difference) -> dict[str, object]:
    estimate = difference.estimate
    numbers = {
        "first": difference.first,
        "second": difference.second,
        "difference": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
    }
    finite = {key: number if math.isfinite(number) else None for key, number in numbers.items()}
    return {**finite, "n": estimate.n, "better": difference.better, "verdict": difference.verdict}


def _check_names(first: Stored, second: Stored) -> None:
    a, b = first.names, second.names
    for number, (one, other) in enumerate(zip(a, b, strict=False), 1):  # another length is refused below
        if one != other:
            raise DataError(
                f"panorama {number} is {one} in {first.folder}, and {other} in {second.folder}: compare evaluations of "
                "panoramas with the same names in the same order"
            )
    if len(a) != len(b):
        extra, folder = (a[len(b)], first.folder) if len(a) > len(b) else (b[len(a)], second.folder)
        raise DataError(
            f"{first.folder} has {len(a)} panoramas and {second.folder} {len(b)}, the first of the others is {extra} "
            f"of {folder}: evaluate both with count={min(len(a), len(b))}"
        )


def _better(stored: Stored, name: str) -> Better:
    better = at(stored.metrics, "metrics", name, "better")
    for known in get_args(Better):
        if better == known:
            return cast(Better, known)
    raise DataError(f"{stored.folder / METRICS} is damaged: metrics.{name}.better is {better!r}: evaluate again")


def _of_terms(first: Stored, second: Stored, name: str) -> tuple[float, float, Estimate] | None:
    """Both values and the paired difference of a mean over panoramas; None for another metric."""
    if name not in first.terms or name not in second.terms:
        return None
    metric, terms = measures.metric(name), (first.terms[name], second.terms[name])
    if terms[0].shape != terms[1].shape:
        raise DataError(
            f"{first.folder / PANORAMAS} and {second.folder / PANORAMAS} have {terms[0].shape[1]} and "
            f"{terms[1].shape[1]} terms of {name}: evaluate both with the same version"
        )
    estimate = paired_difference(metric, *terms)
    if estimate.n < 2:
        estimate = estimate._replace(low=math.nan, high=math.nan)
    return value_of(metric, terms[0]), value_of(metric, terms[1]), estimate


class _Features:
    """The stored features of two evaluations and of their reference.

    Args:
        first: The first evaluation.
        second: The second evaluation.
        cache: The folder for features of references.
    """

    def __init__(self, first: Stored, second: Stored, cache: Path) -> None:
        self._sets, self._cache = (first, second), cache
        self._read: dict[tuple[str, str], tuple[Tensor, Tensor, Tensor]] = {}

    def compare(self, name: str) -> tuple[float, float, Estimate]:
        """Both values and the paired difference of a distance.

        Raises:
            ValueError: If it is no distance, or features are missing or too few.
            DataError: If a file is damaged.
        """
        if (stored := stored_distance(self._sets[0], name)) is None:
            raise ValueError("neither its values for each panorama nor features for it are stored")
        extractor, protocol, distance = stored
        real, a, b = self._features(extractor, protocol)
        if (views := min(len(real), len(a)) // 2 * real.shape[1]) < distance.least:
            raise ValueError(f"halves have {views} views, at least {distance.least} are needed")

        def difference(chosen: Tensor, both: Tensor) -> float:
            return distance.compute(real[chosen], b[both]) - distance.compute(real[chosen], a[both])

        estimate = paired_halves(difference, (len(real), len(a)))
        return distance.compute(real, a), distance.compute(real, b), estimate

    def _features(self, extractor: str, protocol: str) -> tuple[Tensor, Tensor, Tensor]:
        """Of the reference, of A and of B."""
        if (known := self._read.get((extractor, protocol))) is not None:
            return known
        key = at(self._sets[0].metrics, "extractors", extractor, "features", protocol, "reference")
        real = read_features(self._cache, str(key))
        if real is None:
            raise ValueError(
                f"the reference's features of {extractor} are not in {self._cache}: evaluate again, or pass --cache DIR"
            )
        a, b = (self._of_samples(stored, f"{extractor}_{protocol}", real) for stored in self._sets)
        self._read[extractor, protocol] = real, a, b
        return real, a, b

    def _of_samples(self, stored: Stored, name: str, real: Float[Tensor, "q v d"]) -> Float[Tensor, "p v d"]:
        folder = stored.folder / "features"
        features = read_features(folder, name)
        if features is None:
            raise ValueError(f"{folder / name}.safetensors is missing: evaluate again")
        if features.shape != (len(stored.names), *real.shape[1:]):
            raise DataError(
                f"{folder / name}.safetensors has features of shape {tuple(features.shape)}, expected "
                f"{(len(stored.names), *real.shape[1:])}: evaluate again"
            )
        return features
