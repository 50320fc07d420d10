"""Captions of a folder of panoramas: JSON lines, prompts.txt, or a .json or .txt file next to each panorama.

A panorama has one caption, and optionally one for each face (arXiv 2501.17162)."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from cubediff.data.format.folders import name_some
from cubediff.data.sources.base import Entry, Listing, Rejection
from cubediff.data.sources.listing import FileTree
from cubediff.data.sources.names import FileNames
from cubediff.data.sources.records import entry_from, parse_object, read_text
from cubediff.data.sources.sidecars import read_sidecars
from cubediff.utils.errors import DataError

CAPTION_FILES = ("captions.jsonl", "prompts.txt")


def read_captions(tree: FileTree, names: FileNames, captions: Path | None = None, captioned: bool = True) -> Listing:
    """Matches panoramas with their captions.

    Args:
        tree: The folder of the panoramas.
        names: Their names.
        captions: A .txt with one line per panorama in sorted order, or JSON lines with `file`, `caption` and optional
            `faces` and `asset`; None: captions.jsonl or prompts.txt in the folder, or files next to the panoramas.
        captioned: Whether panoramas without a caption are rejected; otherwise their caption is empty.

    Returns:
        The entries, and the panoramas and lines without a counterpart.

    Raises:
        DataError: If there are no captions at all, or a captions file cannot be read.
    """
    if captions is None:
        captions = find_captions_file(tree)
    elif not captions.is_file():
        raise DataError(f"captions file {captions} does not exist")
    if captions is None:
        return read_sidecars(tree, names, captioned)
    lines = read_text(captions).split("\n")
    if captions.suffix.lower() == ".txt":
        return _read_prompts(captions, lines, names, captioned)
    return match_records(captions.name, parse_lines(lines), names, captioned=captioned)


def find_captions_file(tree: FileTree) -> Path | None:
    """The captions.jsonl or else the prompts.txt in a folder, in upper or lower case; None if there is none."""
    found = {name.lower(): tree.path / name for name in reversed(tree.files(".jsonl", ".txt")[0])}
    return next((found[name] for name in CAPTION_FILES if name in found), None)


def parse_lines(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, object] | DataError]]:
    """The number of each JSON line that is not blank, from 1, and its object or the reason why it is none."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, parse_object(line)
            except DataError as error:
                yield number, DataError(f"not a JSON object: {error}")


def match_records(
    table: str,
    records: Iterable[tuple[int, dict[str, object] | DataError]],
    names: FileNames,
    *,
    key: str = "file",
    caption_keys: Sequence[str] = ("caption",),
    captioned: bool = True,
    folder: str = "",
) -> Listing:
    """Matches panoramas with the records of a captions file.

    Args:
        table: Name of the file; `table`:NUMBER is the name of a rejected record that names no panorama.
        records: Its records by line or row number, or the reason why a line is none.
        names: Names of the panoramas in the source.
        key: Key of the panorama's name in a record.
        caption_keys: Keys of the caption; the first that a record has counts.
        captioned: As in `read_captions`.
        folder: Folder that the names in the file are relative to, itself relative to the source.
    """
    entries: dict[str, Entry] = {}
    rejected: list[Rejection] = []
    named: set[str] = set()
    for number, record in records:
        if isinstance(record, DataError):
            rejected.append(Rejection(f"{table}:{number}", str(record)))
            continue
        file = record.pop(key, None)
        if not isinstance(file, str) or not file.strip():
            reason = f'names no panorama: expected {{"{key}": NAME, "caption": TEXT}}'
            rejected.append(Rejection(f"{table}:{number}", reason))
            continue
        path = PurePosixPath(folder, file.replace("\\", "/"))
        file = path.as_posix()
        if names.is_refused(file):
            continue  # listed with another reason
        try:
            if path.is_absolute() or ".." in path.parts or path.parts[0].endswith(":"):
                raise DataError("is outside SOURCE: write its path relative to that folder")
            file = names.find(file) or file
            if file in named:
                raise DataError(f"listed twice (again in line {number}): the first entry counts")
            named.add(file)
            if not names.contains(file):
                raise DataError(f"has a caption but the file is missing{names.example(file)}")
            if column := next((k for k in caption_keys if k in record), None):
                record["caption"] = record.pop(column)
            entries[file] = entry_from(file, record, captioned)
        except DataError as error:
            rejected.append(Rejection(file, str(error)))
    unnamed = [file for file in names.files if file not in named]
    if captioned:
        rejected += [Rejection(file, f"has no caption in {table}") for file in unnamed]
    else:
        entries |= {file: entry_from(file, {}, captioned) for file in unnamed}
    return [entries[file] for file in sorted(entries)], rejected


def _read_prompts(captions: Path, lines: list[str], names: FileNames, captioned: bool) -> Listing:
    files = names.files
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) != len(files):
        span = f", from {files[0]} to {files[-1]}" if files else ""
        span += f"; rejected files have no line: {name_some(names.refused)}" if names.refused else ""
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
