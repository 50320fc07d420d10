"""Errors that a user can fix."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

_REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT), "free disk space; the same command resumes, a run from its last checkpoint"
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose another folder, or change its permissions"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file is where a folder is expected: choose another one"),
    errno.ENOENT: "check the name, and whether it was removed or renamed during the run",
}


class DataError(ValueError):
    """Invalid input data. Its message is one line: what was expected, what was found, what to do."""


@contextmanager
def naming(place: object) -> Iterator[None]:
    """A context that puts the name of a file or folder before the message of a DataError."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def storage_message(error: OSError) -> str:
    """The message of an error of a file or a disk: the file, the cause, and what to do.

    Example:
        >>> storage_message(FileNotFoundError(2, "No such file or directory", "shards"))
        'shards: No such file or directory: check the name, and whether it was removed or renamed during the run'
    """
    if error.errno is None:
        return str(error)
    place = f"{error.filename}: " if error.filename is not None else ""
    remedy = _REMEDIES.get(error.errno)
    return f"{place}{error.strerror}" + (f": {remedy}" if remedy else "")


def message_of(error: object) -> str:
    """The message of an error; that of a file or a disk with its remedy."""
    return storage_message(error) if isinstance(error, OSError) else str(error)


def reason(error: Exception) -> str:
    """The text of an error, for a message that names the file already.

    Example:
        >>> reason(FileNotFoundError(2, "No such file or directory", "photo.jpg"))
        'No such file or directory'
    """
    return getattr(error, "strerror", None) or str(error)


def check_version(version: object, newest: int, where: object) -> None:
    """Checks the version of a file's format.

    Args:
        version: The version in the file; None, for a file without one, is the first.
        newest: The newest version that this package reads.
        where: The file, for the message.

    Raises:
        DataError: If the file is newer, or its version is not a positive integer.
    """
    if version is None:
        return
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise DataError(f"{where} is damaged: expected a positive integer as its format's version, got {version!r}")
    if version > newest:
        raise DataError(
            f"{where} was written by a newer version of cubediff (format {version}, this one reads up to {newest}): "
            "upgrade cubediff"
        )
