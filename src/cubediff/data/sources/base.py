"""What every source of panoramas gives: entries to choose from, and panoramas as JPEG (the paper's training data: one
caption per panorama, or one per face)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cubediff.images.reading import Panorama
from cubediff.utils.errors import DataError


@dataclass(frozen=True)
class Entry:
    """A panorama with its caption. `file` is its name, relative to the source and unique there (POSIX), `scene` the
    group of panoramas that must stay on one side of the train/val split, `metadata` the keys that cubediff does not
    read."""

    file: str
    caption: str
    faces: dict[str, str] | None
    scene: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejection:
    """A panorama or a line of captions that is left out. `file` is always text that UTF-8 can hold."""

    file: str
    reason: str


@runtime_checkable
class Source(Protocol):
    """Where panoramas come from. Instances are picklable: worker processes load with copies of them."""

    def entries(self) -> tuple[list[Entry], list[Rejection]]:
        """The panoramas in a fixed order, and what cannot be one already by its name or its caption. Raises DataError
        where there is none at all."""
        ...

    def files(self, entry: Entry) -> list[Path]:
        """The files that the entry's panorama is read from: it is the same as long as their size and time are."""
        ...

    def load(self, entry: Entry, max_width: int = 16384, quality: int = 95) -> Panorama:
        """The panorama; `quality` is the JPEG's where it has to be encoded. Raises DataError with the reason where it
        cannot be used whatever the file holds, and OSError where the machine fails to read it."""
        ...


def printable(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 become \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") if _stray(name) else name


def list_files(source: Path, suffixes: tuple[str, ...]) -> tuple[list[str], list[Rejection]]:
    """Names of the files below a folder with one of these suffixes, sorted, hidden ones left out; and those whose names
    are not UTF-8, which no captions file and no shard can name. Raises DataError where `source` is no folder."""
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: SOURCE is the folder that holds the panoramas")
    names = sorted(_names(source, suffixes))
    bad = [Rejection(printable(n), "its name is not UTF-8 text: rename it") for n in names if _stray(n)]
    return [n for n in names if not _stray(n)], bad


def _names(source: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    for path in source.rglob("*"):
        relative = path.relative_to(source)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.suffix.lower() in suffixes and not hidden and path.is_file():
            yield relative.as_posix()


def _stray(name: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in name)
