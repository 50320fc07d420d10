"""Splits that a dataset declares by the names of its folders and Parquet files."""

import re
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Literal

from cubediff.data.sources.base import Entry

Split = Literal["train", "val", "test"]

# Names of the splits, as the datasets library finds them in the names of folders and files.
_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def declare_splits(entries: list[Entry]) -> list[Entry]:
    """Gives each entry the split that its name declares; none if there is neither a validation nor a test split."""
    declared = {entry.file: declared_split(entry.file) for entry in entries}
    if not {"val", "test"} & set(declared.values()):
        return entries
    return [replace(entry, split=declared[entry.file]) for entry in entries]


def declared_split(name: str) -> Split | None:
    """The split that a file's name declares: a folder of that name, or a Parquet file whose name starts with it.

    >>> declared_split("data/validation-00000-of-00002.parquet/000001.jpg")
    'val'
    >>> declared_split("indoor/a.jpg") is None
    True
    """
    found = _declaration(name)
    return found[1] if found else None


def split_glob(name: str) -> str | None:
    """A glob for --include that matches the split which a file's name declares; None if it declares none.

    >>> split_glob("photos/Test/a.jpg"), split_glob("data/test-00000-of-00002.parquet/000001.jpg")
    ('Test', 'test*.parquet')
    """
    found = _declaration(name)
    return found[0] if found else None


def _declaration(name: str) -> tuple[str, Split] | None:
    for part in PurePosixPath(name).parts[:-1]:
        is_table = part.lower().endswith(".parquet")
        word = re.split(r"[-_. ]", part)[0] if is_table else part
        if split := _NAMES.get(word.lower()):
            return f"{word}*{part[-len('.parquet') :]}" if is_table else word, split
    return None
