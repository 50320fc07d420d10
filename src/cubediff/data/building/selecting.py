"""The entries of a source that a build reads."""

import json
import shlex
from dataclasses import replace

from cubediff.data.sources import Entry, Rejection, Source
from cubediff.data.sources.records import face_captions
from cubediff.data.sources.selection import is_captioned
from cubediff.data.sources.splits import split_glob
from cubediff.utils.errors import DataError
from cubediff.utils.text import escape_surrogates

TEST_SPLIT = "belongs to the test split, and shards have a training and a validation split: "  # then what to do


def select_entries(source: Source, limit: int | None) -> tuple[list[Entry], list[Rejection]]:
    """The first `limit` entries of a source, and the panoramas that are rejected without reading them.

    A test split becomes the validation split if the source declares none, else it is rejected.

    Raises:
        DataError: If `limit` is below 1, or the source cannot list its panoramas.
    """
    if limit is not None and limit < 1:
        raise DataError(f"--limit {limit}: expected at least 1 panorama")
    entries, rejected = source.entries()
    captioned = is_captioned(source)
    usable: dict[str, Entry] = {}
    refused: list[Rejection] = []
    entries, left_out = _place_test_split(entries)
    for entry in entries:
        if reason := "listed twice by its source" if entry.file in usable else _unusable(entry, captioned):
            refused.append(Rejection(escape_surrogates(entry.file), reason))
        else:
            usable[entry.file] = entry
    return list(usable.values())[:limit], [*rejected, *left_out, *refused]


def _place_test_split(entries: list[Entry]) -> tuple[list[Entry], list[Rejection]]:
    if not any(entry.split == "val" for entry in entries):
        return [replace(entry, split="val") if entry.split == "test" else entry for entry in entries], []
    kept, left_out = [], []
    for entry in entries:
        if entry.split == "test":
            glob = split_glob(entry.file)
            remedy = "build it into another folder with --include " + (shlex.quote(glob) if glob else "GLOB")
            left_out.append(Rejection(escape_surrogates(entry.file), TEST_SPLIT + remedy))
        else:
            kept.append(entry)
    return kept, left_out


def _unusable(entry: Entry, captioned: bool) -> str:
    """Why an entry of any source cannot be written; "" if it can."""
    try:
        json.dumps([entry.file, entry.caption, entry.scene, entry.faces, entry.metadata], ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        return f"its name, caption or metadata is not JSON text in UTF-8 ({error})"
    try:
        if entry.faces is not None:
            face_captions(entry.faces)
    except DataError as error:
        return str(error)
    return "empty caption" if captioned and not entry.caption.strip() else ""
