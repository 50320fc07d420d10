"""Captions of a folder of panoramas: JSON lines, prompts.txt, or a .json or .txt file next to each panorama.

A panorama has one caption, and optionally one for each face (arXiv 2501.17162)."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from cubediff.data.sources.base import Entry, Listing, Rejection
from cubediff.geometry.conventions import FACES
from cubediff.images.reading import IMAGE_SUFFIXES
from cubediff.utils.errors import DataError

CAPTION_FILES = ("captions.jsonl", "prompts.txt")


def read_captions(
    source: Path,
    files: list[str],
    captions: Path | None = None,
    captioned: bool = True,
    exists: Callable[[str], bool] | None = None,
) -> Listing:
    """Matches panoramas with their captions.

    Args:
        source: The folder of the panoramas.
        files: Their names in sorted order.
        captions: A .txt with one line per panorama in sorted order, or JSON lines with `file`, `caption` and optional
            `faces` and `asset`; None: captions.jsonl or prompts.txt in the folder, or files next to the panoramas.
        captioned: Whether panoramas without a caption are rejected; otherwise their caption is empty.
        exists: Whether a file exists that JSON lines name but `files` does not list.

    Returns:
        The entries, and the panoramas and lines without a counterpart.

    Raises:
        DataError: If there are no captions at all, or a captions file cannot be read.
    """
    if captions is None:
        captions = next((source / name for name in CAPTION_FILES if (source / name).is_file()), None)
    elif not captions.is_file():
        raise DataError(f"captions file {captions} does not exist")
    if captions is not None:
        lines = read_text(captions).split("\n")
        if captions.suffix.lower() == ".txt":
            return _read_prompts(captions, lines, files, captioned)
        return entries_from_lines(captions.name, lines, files, captioned=captioned, exists=exists)
    sidecars = [_sidecar(source, file) for file in files]
    if captioned and not any(sidecars):
        raise DataError(
            f"{source} has no captions.jsonl, no prompts.txt and no .json or .txt next to a panorama: "
            "pass a captions file with --captions FILE"
        )
    entries, rejected = [], []
    for file, sidecar in zip(files, sidecars, strict=True):
        try:
            record = {} if sidecar is None else _read_sidecar(sidecar)
            if sidecar is None and captioned:
                raise DataError("has no .json and no .txt next to it")
            entries.append(entry_from(file, record, captioned))
        except DataError as error:
            rejected.append(Rejection(file, str(error)))
    return entries, rejected


def entries_from_lines(
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
    """Entries of a captions file in JSON lines; an invalid line is a rejection named `name`:LINE.

    Args:
        name: Name of the file.
        lines: Its lines.
        files: Names of the panoramas in the source.
        key: Key of the panorama's name in a line.
        caption_keys: Keys of the caption; the first that a line has counts.
        captioned: As in `read_captions`.
        folder: Folder that the names in the file are relative to, itself relative to the source.
        exists: As in `read_captions`.
    """
    entries: dict[str, Entry] = {}
    rejected: list[Rejection] = []
    listed, named = set(files), set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            record = parse_object(line)
        except DataError as error:
            rejected.append(Rejection(where, f"not a JSON object: {error}"))
            continue
        file = record.pop(key, None)
        if not isinstance(file, str) or not file.strip():
            rejected.append(Rejection(where, f'names no panorama: expected {{"{key}": NAME, "caption": TEXT}}'))
            continue
        path = PurePosixPath(folder, file.replace("\\", "/"))
        file = path.as_posix()
        duplicate = file in named
        named.add(file)
        try:
            if path.is_absolute() or ".." in path.parts or path.parts[0].endswith(":"):
                raise DataError("is outside SOURCE: write its path relative to that folder")
            if duplicate:
                raise DataError(f"listed twice (again in line {number}): the first entry counts")
            if file not in listed and not (exists and exists(file)):
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


def parse_object(text: str) -> dict[str, object]:
    """Parses a JSON object that can be written as UTF-8 again.

    Raises:
        DataError: If it is something else; the message is the reason.
    """
    try:
        record: object = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError("half a surrogate pair, which is not Unicode text") from None
    except (ValueError, RecursionError) as error:
        raise DataError(str(error).splitlines()[0]) from None
    if not isinstance(record, dict):
        raise DataError("expected an object {…}")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def entry_from(file: str, record: dict[str, object], captioned: bool = True) -> Entry:
    """An entry with a record's `caption`, `faces` and `asset`; its other values are metadata.

    Control characters other than tab and newline are removed from captions.

    Args:
        file: Name of the panorama.
        record: The record of a captions file.
        captioned: As in `read_captions`.

    Raises:
        DataError: If a value is invalid, or the caption is empty and `captioned` is on.
    """
    record = dict(record)
    caption, faces, asset = (record.pop(key, None) for key in ("caption", "faces", "asset"))
    text = _clean(caption)
    if not text and captioned:
        raise DataError("empty caption")
    if faces is not None:
        if not isinstance(faces, dict) or set(faces) != set(FACES):
            raise DataError(f"faces must be a caption for each of {', '.join(FACES)}, or omitted")
        faces = {face: _clean(faces[face]) for face in FACES}
        if empty := [face for face in FACES if not faces[face]]:
            raise DataError(f"empty caption of face {empty[0]}")
    if asset is not None and (not isinstance(asset, str) or not asset):
        raise DataError(f"asset must be the scene's name, not {asset!r}")
    return Entry(file, text, faces, asset or file, record)


def _clean(text: object) -> str:
    """A caption without control characters, which terminals and logs would interpret."""
    if not isinstance(text, str):
        return ""
    return "".join(c for c in text if c in "\t\n" or unicodedata.category(c) != "Cc").strip()


def read_text(path: Path) -> str:
    """Reads a UTF-8 text file, with or without a byte order mark.

    Raises:
        DataError: If it is not UTF-8.
    """
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
            f"{captions} has {len(lines)} lines but there are {len(files)} panoramas: write one line for each, "
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
    candidates = [source / (stem + suffix) for suffix in (".json", ".txt")]
    return next((path for path in candidates if path.is_file()), None)


def _read_sidecar(path: Path) -> dict[str, object]:
    try:
        text = read_text(path)
    except DataError:
        raise DataError(f"{path.name} next to it is not UTF-8 text: save it as UTF-8") from None
    if path.suffix == ".txt":
        return {"caption": text}
    try:
        return parse_object(text)
    except DataError as error:
        raise DataError(f"{path.name} next to it is not JSON: {error}") from None
