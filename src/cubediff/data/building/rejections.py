"""Rejected panoramas grouped by reason, for the report of a build."""

import re
from collections import defaultdict
from collections.abc import Iterable

from cubediff.data.sources import Rejection
from cubediff.pages.html import escape

MAX_REJECTIONS = 500  # that a page lists

_FILE = re.compile(r"^[^:]+\.\w+: ")  # the face of a cubemap in front of its reason
_NUMBER = re.compile(r"-?\d[\d.,]*")
_DETAIL = re.compile(r": |; | \(")  # what follows differs from file to file, or says what to do


def group_by_reason(rejected: Iterable[Rejection]) -> list[tuple[str, list[Rejection]]]:
    """Groups rejections whose reasons differ in numbers, names and remedies only.

    Returns:
        The reason of each group, as its first rejection has it, and its rejections; the largest group first.

    >>> tall, wide = Rejection("a.jpg", "3x4 is not 2:1: pad it"), Rejection("b.jpg", "9x4 is not 2:1: crop it")
    >>> [(reason, len(files)) for reason, files in group_by_reason([tall, wide, Rejection("c.jpg", "truncated")])]
    [('3x4 is not 2:1', 2), ('truncated', 1)]
    """
    groups: dict[str, list[Rejection]] = defaultdict(list)
    for rejection in rejected:
        groups[_NUMBER.sub("0", _short(rejection.reason))].append(rejection)
    ordered = sorted(groups.values(), key=len, reverse=True)
    return [(_short(group[0].reason), group) for group in ordered]


def rejections_html(rejected: Iterable[Rejection]) -> str:
    """A list of the groups with their sizes; each opens to its files, of which there are 500 in all at most."""
    groups = group_by_reason(rejected)
    left, parts = MAX_REJECTIONS, []
    for number, (reason, group) in reversed(list(enumerate(groups, start=1))):  # small groups completely
        shown = group[: left // number]
        left -= len(shown)
        rows = "".join(
            f'<tr><td dir="auto">{escape(r.file)}</td><td dir="auto">{escape(r.reason)}</td></tr>' for r in shown
        )
        more = f"<p>{len(group) - len(shown)} more in rejected.jsonl</p>" if len(shown) < len(group) else ""
        parts.append(
            f'<details><summary dir="auto"><b>{len(group)}</b> {escape(reason)}</summary>'
            f'<div class="table"><table><tbody>{rows}</tbody></table></div>{more}</details>'
        )
    return "".join(reversed(parts))


def _short(reason: str) -> str:
    """A reason without the name of a face in front of it, and without details after its first words."""
    text = _FILE.sub("", reason)
    ends = [match.start() for match in _DETAIL.finditer(text) if " " in text[: match.start()]]
    return text[: ends[0]] if ends else text
