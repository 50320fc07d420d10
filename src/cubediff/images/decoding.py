"""Contexts for decoders: errors with a reason, and this project's limits in place of Pillow's."""

import errno
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
from PIL import Image, UnidentifiedImageError

from cubediff.utils.errors import DataError, reason

COPY_AGAIN = "copy or save it again"  # the remedy for damaged files
EMPTY = f"unreadable: the file is empty: {COPY_AGAIN}"

# Errors of the machine, such as a full disk or lost network drive.
_MACHINE_ERRORS = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}


@contextmanager
def decoding() -> Iterator[None]:
    """A context for decoders: Pillow's limits and OpenCV's log are off, and exceptions become DataErrors with a reason.

    An OSError that is the machine's fault, not the file's, passes.
    """
    with _translated_errors(), without_pillow_limits():
        yield


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError("unreadable: not an image of a known kind: save it as JPEG or PNG") from error
    except Exception as error:  # decoders raise many types; one bad file must not end a build
        if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
            raise
        text = (reason(error).splitlines() or [""])[0] or type(error).__name__
        kind = "truncated" if "truncated" in text.lower() else "unreadable"
        is_of_system = isinstance(error, OSError) and error.errno is not None  # such as a missing file
        raise DataError(f"{kind}: {text}" if is_of_system else f"{kind}: {text}: {COPY_AGAIN}") from error


class _Limits:
    """Number of threads inside `without_pillow_limits`, and the global settings of the libraries before the first."""

    lock = threading.Lock()
    inside = 0
    pixels: int | None = None
    filters: warnings.catch_warnings | None = None
    opencv_log: int = 0


@contextmanager
def without_pillow_limits() -> Iterator[None]:
    """Lifts Pillow's limit of pixels, and silences its warnings and OpenCV's log; this project's checks apply instead.

    The context may be nested, and entered by several threads at once.
    """
    with _Limits.lock:
        if _Limits.inside == 0:
            _Limits.pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            _Limits.filters = warnings.catch_warnings()
            _Limits.filters.__enter__()
            warnings.filterwarnings("ignore", module="PIL")
            _Limits.opencv_log = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        _Limits.inside += 1
    try:
        yield
    finally:
        with _Limits.lock:
            _Limits.inside -= 1
            if _Limits.inside == 0 and _Limits.filters is not None:
                _Limits.filters.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = _Limits.pixels
                cv2.utils.logging.setLogLevel(_Limits.opencv_log)
