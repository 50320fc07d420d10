"""Errors that a user can fix."""


class DataError(ValueError):
    """Invalid input data. Its message is one line: what was expected, what was found, what to do."""


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
