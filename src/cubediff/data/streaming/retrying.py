"""Repeats reads that fail for a reason that passes, such as an interrupted connection or an overloaded server."""

import logging
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from cubediff.utils.errors import DataError, reason
from cubediff.utils.text import printable, redact

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

RETRY_MINUTES = 10.0
FIRST_DELAY = 1.0  # seconds, doubled from attempt to attempt
_LONGEST_DELAY = 30.0
_DAMAGED_ATTEMPTS = 6
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError)
_PERMANENT_NAMES = ("NoCredentialsError", "PartialCredentialsError", "LocalTokenNotFoundError")  # of optional packages
_PASSING_STATUS = (408, 425, 429)  # HTTP: request timeout, too early, too many requests
_jitter = random.SystemRandom()  # leaves the run's global generator alone


class TooLargeError(Exception):
    """More bytes arrive than expected."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit} bytes")


class TransferError(OSError):
    """A file did not arrive as expected."""

    remedy = ""


class DamagedTransferError(TransferError):
    """A file arrived with another size or checksum than expected."""

    remedy = "it is incomplete or damaged where it is stored, upload it there again"


class InterruptedTransferError(TransferError):
    """A file's content ended before the length that its server had announced."""

    remedy = "check the network, and upload it to its server again if it stays so"


def retried(action: Callable[[], ResultT], source: str, minutes: float = RETRY_MINUTES) -> ResultT:
    """Calls `action` until it succeeds, with exponential backoff, as long as its errors may pass.

    A missing file, a refused permission and HTTP's client errors do not pass; a file that arrives damaged is fetched
    six times.

    Args:
        action: Reads from a disk or a network.
        source: The path or URL, for messages.
        minutes: Time after which it gives up.

    Raises:
        DataError: If `action` fails for good, or a package is missing.
    """
    protocol, source = source.partition("://")[0], printable(redact(source))
    began, attempt = time.monotonic(), 0
    while True:
        attempt += 1
        try:
            return action()
        except DataError:  # names its file
            raise
        except TooLargeError as error:
            raise DataError(
                f"{source} is larger than expected ({error}): build or copy its folder again, or choose another"
            ) from None
        except ImportError as error:
            extra = f"pip install 'cubediff[{_EXTRAS[protocol]}]'" if protocol in _EXTRAS else "install it"
            raise DataError(f"{source} needs another package ({error}): {extra}") from error
        except Exception as error:  # every filesystem has its own exceptions
            cause = printable(redact(_cause(error)))
            delay = min(FIRST_DELAY * 2 ** (attempt - 1), _LONGEST_DELAY) * _jitter.uniform(0.5, 1.0)
            left = began + 60 * minutes - time.monotonic() - delay
            is_damaged = isinstance(error, DamagedTransferError) and attempt == _DAMAGED_ATTEMPTS
            if left < 0 or is_damaged or _is_permanent(error):
                raise DataError(_final_message(source, attempt, cause, error)) from error
            log.warning("%s: attempt %d failed (%s); tries for %.1f minutes more", source, attempt, cause, left / 60)
            time.sleep(delay)


def _cause(error: Exception) -> str:
    if isinstance(error, TransferError):
        return str(error)
    return f"{type(error).__name__}: {reason(error)}"


def _final_message(source: str, attempts: int, cause: str, error: Exception) -> str:
    tries = f" after {attempts} attempts" if attempts > 1 else ""
    remedy = "check that it exists and that this machine may read it"
    if isinstance(error, TransferError):
        remedy = error.remedy
    return f"{source} cannot be read{tries} ({cause}): {remedy}"


def _is_permanent(error: Exception) -> bool:
    if isinstance(error, _PERMANENT) or type(error).__name__ in _PERMANENT_NAMES:
        return True
    if isinstance(error, OSError) and re.search(r"exit 12[67]\b", str(error)):  # a command that does not exist
        return True
    status = _http_status(error)
    return status is not None and 400 <= status < 500 and status not in _PASSING_STATUS


def _http_status(error: Exception) -> int | None:
    """The status of an HTTP error of aiohttp, huggingface_hub (requests, httpx), botocore or gcsfs."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        value: object = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif response is not None:
        value = getattr(response, "status_code", None)
    else:
        value = error.status if hasattr(error, "status") else getattr(error, "code", None)
    return int(str(value)) if str(value).isdecimal() else None
