"""Ending the process at once from any thread, while the main thread waits for something that never comes."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_on_hard_exit: list[Callable[[str], None]] = []
_unfinished = threading.Lock()
_MAX_UNFINISHED = 1800.0  # seconds


@contextmanager
def on_hard_exit(action: Callable[[str], None]) -> Iterator[None]:
    """Inside the block, `hard_exit` calls `action` with its message before it ends the process."""
    _on_hard_exit.append(action)
    try:
        yield
    finally:
        _on_hard_exit.remove(action)


@contextmanager
def before_hard_exit() -> Iterator[None]:
    """A block that `hard_exit` in another thread waits for: it writes a file, and waits for no other process."""
    with _unfinished:
        yield


def hard_exit(message: str) -> None:
    """Prints an error and ends the process with exit code 1, without waiting for any thread but one in a block of
    `before_hard_exit`."""
    _unfinished.acquire(timeout=_MAX_UNFINISHED)
    for action in reversed(_on_hard_exit):
        with suppress(Exception):  # nothing may keep the process from ending
            action(message)
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)
