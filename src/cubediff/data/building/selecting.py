"""The entries of a source that a build reads."""

import json

from cubediff.data.sources import Entry, Rejection, Source
from cubediff.data.sources.selection import is_captioned
from cubediff.utils.errors import DataError
from cubediff.utils.text import escape_surrogates


def select_entries(source: Source, limit: int | None) -> tuple[list[Entry], list[Rejection]]:
    """The first `limit` entries of a source, and the panoramas that are rejected without reading them.

    Raises:
        DataError: If `limit` is below 1, or the source cannot list its panoramas.
    """
    if limit is not None and limit < 1:
        raise DataError(f"--limit {limit}: expected at least 1 panorama")
    entries, rejected = source.entries()
    captioned = is_captioned(source)
    usable: dict[str, Entry] = {}
    refused: list[Rejection] = []
    for entry in entries:
        if reason := "listed twice by its source" if entry.file in usable else _unusable(entry, captioned):
            refused.append(Rejection(escape_surrogates(entry.file), reason))
        else:
            usable[entry.file] = entry
    return list(usable.values())[:limit], [*rejected, *refused]


def _unusable(entry: Entry, captioned: bool) -> str:
    """Why an entry of any source cannot be written; "" if it can."""
    try:
        json.dumps([entry.file, entry.caption, entry.scene, entry.faces, entry.metadata], ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        return f"its name, caption or metadata is not JSON text in UTF-8 ({error})"
    return "empty caption" if captioned and not entry.caption.strip() else ""
