"""Signals that stop a process: kept until it is safe to stop, or raised at once where nothing can be lost."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


class Request(IntEnum):
    """What a signal requests, and what all ranks agree on: the maximum of their requests."""

    NONE = 0
    INTERRUPT = 1  # Ctrl-C
    STOP = 2
    REQUEUE = 3
    FAILED = 4  # another rank has raised an exception


class Stopped(SystemExit):
    """The process stops: exit code 130 for Ctrl-C, 143 for other signals, 1 if another rank has failed."""

    def __init__(self, request: Request) -> None:
        self.request = request
        if request == Request.FAILED:
            super().__init__("error: another rank has failed; its message is above")
        else:
            super().__init__(128 + (signal.SIGINT if request == Request.INTERRUPT else signal.SIGTERM))


class StopSignals:
    """Turns SIGTERM, SIGHUP and Ctrl-C into a request to stop; under SLURM also SIGUSR1 into one to requeue the job.

    The first signal raises `Stopped` at once, or after `defer` as soon as `check` or `raise_at_once` is called. Further
    signals have no effect, so that they cannot interrupt the writing of a checkpoint.
    """

    def __init__(self) -> None:
        self.request = Request.NONE
        self._deferred = self._raised = False
        self._pid = os.getpid()
        self._previous: dict[int, Handler] = {}

    def defer(self) -> None:
        """Keeps a signal from raising until the next `check` or `raise_at_once`."""
        self._deferred = True

    def raise_at_once(self) -> None:
        """Lets a signal raise wherever the main thread is, also one that has been deferred."""
        self._deferred = False
        self.check()

    def check(self) -> None:
        """Raises `Stopped` if there is a request."""
        if self.request:
            self._raised = True
            raise Stopped(self.request)

    def receive(self, request: Request) -> None:
        """Takes the request of another rank, from any thread, and wakes the main thread."""
        self.request = self.request or request
        main = threading.main_thread().ident
        if self._previous and main is not None and hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main, signal.SIGTERM)

    def install(self) -> None:
        """Handles the signals that are not ignored, as SIGHUP is under nohup; in the main thread only, as Python
        allows."""
        if threading.current_thread() is not threading.main_thread():
            return
        names = ["SIGINT", "SIGTERM", "SIGHUP", *(["SIGUSR1"] if "SLURM_JOB_ID" in os.environ else [])]
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):  # Windows lacks some
            previous = signal.getsignal(number)
            if previous is not signal.SIG_IGN:
                self._previous[number] = previous
                signal.signal(number, self._on_signal)

    def restore(self) -> None:
        """Restores the handlers that `install` has replaced."""
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a worker process that inherited the handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        others = {signal.SIGINT: Request.INTERRUPT, getattr(signal, "SIGUSR1", None): Request.REQUEUE}
        self.request = self.request or others.get(number, Request.STOP)
        if not self._deferred and not self._raised:
            self.check()


_active: list[StopSignals] = []


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Handles the signals inside the block; a block inside another one shares its object."""
    if _active:
        yield _active[0]
        return
    signals = StopSignals()
    signals.install()
    _active.append(signals)
    try:
        yield signals
    finally:
        _active.remove(signals)
        signals.restore()
