"""The files below a folder by their suffix; links to folders are followed, and what cannot be read is rejected."""

import os
from collections.abc import Iterator
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


# Images of formats that are not read, so that none is left out without a reason.
OTHER_IMAGES = (".bmp", ".dds", ".dng", ".gif", ".heic", ".heif", ".insp", ".jp2", ".jxl", ".jxr", ".psd", ".tga")


def list_images(source: Path) -> tuple[list[str], list[Rejection]]:
    """Lists the images below a folder as `list_files` does, and rejects those of formats that are not supported."""
    names, rejected = list_files(source, (*IMAGE_SUFFIXES, *OTHER_IMAGES))
    images = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    known = set(images)
    for name in names:
        if name not in known:
            suffix = PurePosixPath(name).suffix
            rejected.append(Rejection(name, f"{suffix} is not supported: convert it to {', '.join(IMAGE_SUFFIXES)}"))
    return images, rejected


def list_files(source: Path, suffixes: tuple[str, ...]) -> tuple[list[str], list[Rejection]]:
    """Lists the files below a folder by their suffix, without hidden files and folders.

    Links are followed, except one to a folder that contains it.

    Args:
        source: The folder.
        suffixes: Suffixes in lower case, such as ".jpg"; those of the files may be in upper case.

    Returns:
        The names, relative to the folder and sorted, and rejections of broken links, special files and empty folders
        with such a suffix, of folders that cannot be listed, and of names that are not valid text, because no captions
        file and no shard can hold them.

    Raises:
        DataError: If `source` is not a folder.
    """
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: SOURCE is the folder that holds the panoramas")
    found = [f for f in _walk(source) if f.is_folder or PurePosixPath(f.name).suffix.lower() in suffixes]
    names, rejected = [], []
    for name, fault, _ in sorted(found):
        if not fault and not is_unicode(name):
            fault = "its name is not UTF-8 text: rename it"
        if fault:
            rejected.append(Rejection(escape_surrogates(name), fault))
        else:
            names.append(name)
    return names, rejected


def _walk(source: Path) -> Iterator[_Found]:
    """The files below a folder, and the folders below it that cannot be read."""
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]  # folders, and those that contain them
    while pending:
        folder, above = pending.pop()
        try:
            stat = (source / folder).stat()
            identity = (stat.st_dev, stat.st_ino)
            if identity in above:
                yield _Found(folder, "a link to a folder that contains it: it is not followed", is_folder=True)
                continue
            with os.scandir(source / folder) as scanned:
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


def _fault(entry: "os.DirEntry[str]") -> str:
    try:
        if entry.is_file():
            return ""
        return "a link to a file that is missing" if entry.is_symlink() else "not a regular file"
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
