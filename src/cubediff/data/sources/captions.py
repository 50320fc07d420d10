"""Captions as people write them: JSON lines, prompts.txt, or a .json or .txt beside each panorama (the paper's training
data: one caption per panorama, or one per face)."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from cubediff.data.sources.base import Entry, Rejection
from cubediff.geometry.conventions import FACES
from cubediff.images.reading import IMAGE_SUFFIXES
from cubediff.utils.errors import DataError

Listing = tuple[list[Entry], list[Rejection]]

CAPTION_FILES = ("captions.jsonl", "prompts.txt")


def read_captions(
    source: Path,
    files: list[str],
    captions: Path | None = None,
    captioned: bool = True,
    exists: Callable[[str], bool] | None = None,
) -> Listing:
    """Entries for `files` (sorted names) with captions, and what has no counterpart.

    `captions` is a .txt with one line per panorama in sorted order, or else JSON lines with `file`, `caption`, optional
    `faces` and `asset`; by default captions.jsonl or prompts.txt of the folder, or the files beside the panoramas.
    `exists` says of a name in JSON lines that is not in `files` whether it is there all the same. Without `captioned` a
    panorama without a caption gets an empty one. Raises DataError where the captions are missing altogether.
    """
    if captions is None:
        captions = next((source / name for name in CAPTION_FILES if (source / name).is_file()), None)
    elif not captions.is_file():
        raise DataError(f"captions file {captions} does not exist")
    if captions is not None:
        lines = read_text(captions).split("\n")
        if captions.suffix.lower() == ".txt":
            return _read_prompts(captions, lines, files, captioned)
        return read_json_lines(captions.name, lines, files, captioned=captioned, exists=exists)
    beside = [_sidecar(source, file) for file in files]
    if captioned and not any(beside):
        raise DataError(
            f"{source} has no captions.jsonl, no prompts.txt and no .json or .txt beside a panorama: "
            "name one with --captions FILE"
        )
    entries, rejected = [], []
    for file, sidecar in zip(files, beside, strict=True):
        try:
            record = {} if sidecar is None else _read_sidecar(sidecar)
            if sidecar is None and captioned:
                raise DataError("has no .json and no .txt beside it")
            entries.append(entry_from(file, record, captioned))
        except DataError as error:
            rejected.append(Rejection(file, str(error)))
    return entries, rejected


def read_json_lines(
    name: str,
    lines: list[str],
    files: list[str],
    *,
    key: str = "file",
    caption_keys: tuple[str, ...] = ("caption",),
    captioned: bool = True,
    folder: str = "",
    exists: Callable[[str], bool] | None = None,
) -> Listing:
    """As read_captions, from the lines of a file called `name`; `key` holds the panorama's name, relative to `folder`,
    which is itself relative to the source, and the first of `caption_keys` that is there the caption."""
    entries: dict[str, Entry] = {}
    rejected: list[Rejection] = []
    known, named = set(files), set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            record = parse_object(line)
        except DataError as error:
            rejected.append(Rejection(where, f"not a line of JSON: {error}"))
            continue
        file = record.pop(key, None)
        if not isinstance(file, str) or not file.strip():
            rejected.append(Rejection(where, f'names no panorama: give {{"{key}": NAME, "caption": TEXT}}'))
            continue
        path = PurePosixPath(folder, file.replace("\\", "/"))
        file = path.as_posix()
        duplicate = file in named
        named.add(file)
        try:
            if path.is_absolute() or ".." in path.parts or path.parts[0].endswith(":"):
                raise DataError("lies outside SOURCE: give its path relative to that folder")
            if duplicate:
                raise DataError(f"listed twice (again in line {number}): the first entry counts")
            if file not in known and not (exists and exists(file)):
                raise DataError("has a caption but the file is missing")
            if column := next((k for k in caption_keys if k in record), None):
                record["caption"] = record.pop(column)
            entries[file] = entry_from(file, record, captioned)
        except DataError as error:
            rejected.append(Rejection(file, str(error)))
    unnamed = [f for f in files if f not in named]
    if captioned:
        rejected += [Rejection(f, f"has no caption in {name}") for f in unnamed]
    else:
        entries |= {f: entry_from(f, {}, captioned) for f in unnamed}
    return [entries[f] for f in sorted(entries)], rejected


def parse_object(text: str) -> dict[str, Any]:
    """An object of JSON that can be written as UTF-8 JSON again. Raises DataError with the reason."""
    try:
        record = json.loads(text, parse_constant=_no_constant)
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError("half a surrogate pair, which is no Unicode text") from None
    except (ValueError, RecursionError) as error:
        raise DataError(str(error).splitlines()[0]) from None
    if not isinstance(record, dict):
        raise DataError("no object {…}")
    return record


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def entry_from(file: str, record: dict[str, Any], captioned: bool = True) -> Entry:
    """An entry of a record's `caption`, `faces` and `asset`; what else the record has is metadata. Control characters
    of captions other than tab and newline are removed. Raises DataError with the reason."""
    record = dict(record)
    caption, faces, asset = (record.pop(key, None) for key in ("caption", "faces", "asset"))
    text = _clean(caption)
    if not text and captioned:
        raise DataError("empty caption")
    if faces is not None:
        if not isinstance(faces, dict) or set(faces) != set(FACES):
            raise DataError(f"faces must be a caption for each of {', '.join(FACES)}, or left out")
        faces = {face: _clean(faces[face]) for face in FACES}
        if empty := [face for face in FACES if not faces[face]]:
            raise DataError(f"empty caption of face {empty[0]}")
    if asset is not None and (not isinstance(asset, str) or not asset):
        raise DataError(f"asset must be the scene's name, not {asset!r}")
    return Entry(file, text, faces, asset or file, record)


def _clean(text: Any) -> str:
    """A caption without control characters, which no tokenizer means to see and terminals and logs act upon."""
    if not isinstance(text, str):
        return ""
    return "".join(c for c in text if c in "\t\n" or unicodedata.category(c) != "Cc").strip()


def read_text(path: Path) -> str:
    """A UTF-8 file's text. Raises DataError where it is not."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def _read_prompts(captions: Path, lines: list[str], files: list[str], captioned: bool) -> Listing:
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) != len(files):
        span = f", from {files[0]} to {files[-1]}" if files else ""
        raise DataError(
            f"{captions} has {len(lines)} lines but there are {len(files)} panoramas: give one for each, "
            f"in sorted file order{span}"
        )
    entries, rejected = [], []
    for file, line in zip(files, lines, strict=True):
        try:
            entries.append(entry_from(file, {"caption": line}, captioned))
        except DataError as error:
            rejected.append(Rejection(file, str(error)))
    return entries, rejected


def _sidecar(source: Path, file: str) -> Path | None:
    path = PurePosixPath(file)
    stem = file.removesuffix(path.suffix) if path.suffix.lower() in IMAGE_SUFFIXES else file
    both = [source / (stem + suffix) for suffix in (".json", ".txt")]
    return next((path for path in both if path.is_file()), None)


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path)
    except DataError:
        raise DataError(f"{path.name} beside it is not UTF-8 text: save it as UTF-8") from None
    if path.suffix == ".txt":
        return {"caption": text}
    try:
        return parse_object(text)
    except DataError as error:
        raise DataError(f"{path.name} beside it is not JSON: {error}") from None
