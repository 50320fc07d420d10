"""Names of panoramas as captions give them, and as the file system has them: macOS and editors differ in the Unicode
normal form of accented letters (é as one character or as two)."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from cubediff.data.sources.base import Rejection
from cubediff.utils.errors import DataError


def normal_form(name: str) -> str:
    """A name in NFC, in which equal text has equal characters."""
    return unicodedata.normalize("NFC", name)


class FileNames:
    """The names of a source's panoramas, found in any Unicode normal form.

    Args:
        files: The names, relative to the source, in sorted order.
        folder: The source, if captions may name other files in it, whose format is not supported: reading them gives
            the reason.
        rejected: The files that are rejected for other reasons than their captions.
    """

    def __init__(self, files: Sequence[str], folder: Path | None = None, rejected: Iterable[Rejection] = ()) -> None:
        self.files = files
        self._folder = folder
        self._known = set(files)
        self.refused = [rejection.file for rejection in rejected]
        self._refused = set(map(normal_form, self.refused))
        self._normal: defaultdict[str, list[str]] = defaultdict(list)
        for file in files:
            self._normal[normal_form(file)].append(file)
        self._similar: dict[str, str] | None = None

    def is_refused(self, name: str) -> bool:
        """Whether a panorama is rejected already."""
        return normal_form(name) in self._refused

    def contains(self, name: str) -> bool:
        """Whether a name that `find` returned, or that it did not find, is that of a file."""
        try:
            return name in self._known or (self._folder is not None and (self._folder / name).is_file())
        except (OSError, ValueError):  # the name is too long for the file system, or holds a NUL
            return False

    def find(self, name: str) -> str | None:
        """The panorama with a name, or None.

        Raises:
            DataError: If the names of several differ from it in their normal form only.
        """
        if name in self._known:
            return name
        found = self._normal.get(normal_form(name), [])
        if len(found) > 1:
            raise DataError(f"{len(found)} files have this name in different Unicode normal forms: rename one")
        return found[0] if found else None

    def example(self, name: str) -> str:
        """A hint to the panorama whose name is most similar to one that is missing; "" if there are none."""
        if self._similar is None:
            self._similar = {}
            for file in self.files:
                for key in _keys(file):
                    self._similar.setdefault(key, file)
        similar = next((self._similar[key] for key in _keys(name) if key in self._similar), None)
        if similar is not None:
            return f"; did you mean {similar}?"
        first = next(iter(self.files), None)
        return "" if first is None else f"; names are relative to SOURCE, such as {first}"


def _keys(file: str) -> list[str]:
    """What similar names have in common, the closest first: all but case, the last part, and that without suffix."""
    folded = normal_form(file).casefold()
    path = PurePosixPath(folded)
    return [folded, path.name, path.stem]
