"""Errors of reading and writing checkpoints, and which of them say that a file is damaged."""

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

DAMAGE = (errno.EINVAL, errno.EOVERFLOW)  # of seeking to a position that damaged bytes name

_RETRY_AFTER = (1.0, 2.0, 4.0)  # seconds after a storage error

ResultT = TypeVar("ResultT")


class CheckpointError(ValueError):
    """A checkpoint cannot be written, read or resumed from; the message says what to do."""


def retry_storage(file: Path, read: Callable[[], ResultT]) -> ResultT:
    """Reads a file, repeatedly after errors of the storage, such as those of a network file system.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If the file is damaged, so that reading it makes no sense.
        CheckpointError: If every attempt fails.
    """
    for delay in (*_RETRY_AFTER, None):
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in DAMAGE:
                raise
            if delay is None:
                raise CheckpointError(
                    f"{file} cannot be read ({error}), {len(_RETRY_AFTER) + 1} attempts: the storage fails, which says "
                    "nothing about the checkpoint, so it is kept; make the file readable, then run the same command"
                ) from error
        time.sleep(delay)
    raise AssertionError("unreachable")
