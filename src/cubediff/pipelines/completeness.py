"""Refuses model folders that lack weights: diffusers and transformers only warn, and initialise these at random."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARIES = ("diffusers", "transformers")
# diffusers: … newly initialized: ['NAME']; transformers: a table with a row `NAME | MISSING |`.
_NAMES = re.compile(r"'([\w.]+)'|^([\w.]+) +\| MISSING", re.MULTILINE)


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.new: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "newly initialized" in message:
            self.new += [a or b for a, b in _NAMES.findall(message)] or [message]


@contextmanager
def complete_weights() -> Iterator[None]:
    """Inside the block, models are loaded whose files must hold all their weights.

    Raises:
        OSError: If a weight is missing.
    """
    warnings = _Warnings()
    for library in _LIBRARIES:
        logging.getLogger(library).addHandler(warnings)
    try:
        yield
    finally:
        for library in _LIBRARIES:
            logging.getLogger(library).removeHandler(warnings)
    if warnings.new:
        raise OSError(f"it has no weights for {', '.join(warnings.new[:5])}")
