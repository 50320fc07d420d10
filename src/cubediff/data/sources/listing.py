"""The files below a folder, found in one walk; links to folders are followed, and what cannot be read is rejected."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cubediff.data.sources.base import Rejection
from cubediff.images.reading import IMAGE_SUFFIXES
from cubediff.utils.errors import DataError
from cubediff.utils.text import escape_surrogates, is_unicode


class _Found(NamedTuple):
    """A file or folder, its name relative to the source with forward slashes, and why it cannot be read, or ""."""

    name: str
    fault: str
    is_folder: bool = False


_Identity = tuple[int, int]  # device and inode of a folder, equal for all its names

# Images of formats that are not read, so that none is left out without a reason.
OTHER_IMAGES = (".bmp", ".dds", ".dng", ".gif", ".heic", ".heif", ".insp", ".jp2", ".jxl", ".jxr", ".psd", ".tga")


class FileTree:
    """The files below a folder, without hidden files and folders; walked once, when they are first listed.

    Links are followed, except one to a folder that contains it. Another process walks again.

    Args:
        path: The folder.
        skipped: A folder that is left out if it lies below `path`, such as the output of a build; it need not exist.
    """

    def __init__(self, path: Path, skipped: Path | None = None) -> None:
        self.path, self.skipped = path, skipped

    def __reduce__(self) -> tuple[type["FileTree"], tuple[Path, Path | None]]:
        return FileTree, (self.path, self.skipped)

    def images(self) -> tuple[list[str], list[Rejection]]:
        """Lists the images as `files` does, and rejects those of formats that are not supported."""
        names, rejected = self.files(*IMAGE_SUFFIXES, *OTHER_IMAGES)
        images = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
        known = set(images)
        for name in names:
            if name not in known:
                suffix = PurePosixPath(name).suffix
                reason = f"{suffix} is not supported: convert it to {', '.join(IMAGE_SUFFIXES)}"
                rejected.append(Rejection(name, reason))
        return images, rejected

    def files(self, *suffixes: str) -> tuple[list[str], list[Rejection]]:
        """Lists the files with one of some suffixes.

        Args:
            *suffixes: In lower case, such as ".jpg"; those of the files may be in upper case.

        Returns:
            The names, relative to the folder and sorted, and rejections of broken links, special files and empty
            folders with such a suffix, of folders that cannot be listed, and of names that are not valid text, because
            no captions file and no shard can hold them.

        Raises:
            DataError: If `path` is not a folder.
        """
        names, rejected = [], []
        for name, fault, is_folder in self._found:
            if not is_folder and PurePosixPath(name).suffix.lower() not in suffixes:
                continue
            if not fault and not is_unicode(name):
                fault = "its name is not UTF-8 text: rename it"
            if fault:
                rejected.append(Rejection(escape_surrogates(name), fault))
            else:
                names.append(name)
        return names, rejected

    @cached_property
    def _found(self) -> list[_Found]:
        if not self.path.is_dir():
            raise DataError(f"{self.path} is not a folder: SOURCE is the folder that holds the panoramas")
        return sorted(self._walk())

    def _walk(self) -> Iterator[_Found]:
        """The files below the folder, and the folders below it that cannot be read."""
        skipped = _identity(self.skipped) if self.skipped is not None and self.skipped.is_dir() else None
        pending: list[tuple[str, frozenset[_Identity]]] = [("", frozenset())]  # folders, and those that contain them
        while pending:
            folder, above = pending.pop()
            try:
                identity = _identity(self.path / folder)
                if folder and identity == skipped:
                    continue
                if identity in above:
                    yield _Found(folder, "a link to a folder that contains it: it is not followed", is_folder=True)
                    continue
                with os.scandir(self.path / folder) as scanned:
                    entries = [entry for entry in scanned if not entry.name.startswith(".")]
                if folder and not entries:
                    yield _Found(folder, "an empty folder, not a file")
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir():
                        pending.append((name, above | {identity}))
                    else:
                        yield _Found(name, _fault(entry))
            except OSError as error:
                if not folder:
                    raise
                yield _Found(folder, f"a folder that cannot be listed: {error.strerror}", is_folder=True)


def _identity(folder: Path) -> _Identity:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _fault(entry: "os.DirEntry[str]") -> str:
    try:
        if entry.is_file():
            return ""
        return "a link to a file that is missing" if entry.is_symlink() else "not a regular file"
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
