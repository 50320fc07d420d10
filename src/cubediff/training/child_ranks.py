"""The processes of the ranks that Lightning's launcher on rank 0 has started."""

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lightning.pytorch.strategies.launchers import subprocess_script

from cubediff.utils.exits import hard_exit

_POLL_SECONDS = 0.2
_GRACE = 20.0  # seconds in which the main thread meets the error of a connection and starts to write a checkpoint
_ENDING = 5.0  # seconds in which the other ranks end by themselves; one that waits for rank 0 never would


class ChildRanks:
    """Watches the processes of the other ranks, instead of Lightning's observer, which kills rank 0 without a word.

    When one fails, the error of the main thread, whose connection to it breaks, ends the run. A main thread that waits
    longer than the grace period is ended.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._done = threading.Event()

    def watch(self, processes: "list[subprocess.Popen[bytes]]") -> None:
        """Starts the thread; called by Lightning's launcher."""
        self._processes = processes
        threading.Thread(target=self._watch, daemon=True, name="child-ranks").start()

    def wait_for_failure(self, seconds: float) -> str | None:
        """Waits for a process to fail, and names it; None if none does."""
        deadline = time.monotonic() + seconds
        while self._processes and self.failure is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return self.failure

    def end(self, failed: bool) -> None:
        """Waits for the processes to end, with a request to stop after a failure; then kills them."""
        self._done.set()
        for process in self._processes if failed else ():
            process.terminate()
        deadline = time.monotonic() + (_ENDING if failed else _GRACE)
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def _watch(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            for rank, process in enumerate(self._processes, 1):
                if process.poll():
                    self.failure = f"rank {rank} (process {process.pid}) {_describe(process.returncode)}"
                    if not self._done.wait(_GRACE):
                        for other in self._processes:
                            other.kill()
                        hard_exit(self.failure)
                    return


@contextmanager
def child_ranks() -> Iterator[ChildRanks]:
    """Watches the processes that a trainer starts inside the block, and ends them with it."""
    children, launcher, name = ChildRanks(), vars(subprocess_script), "_launch_process_observer"
    lightnings, launcher[name] = launcher[name], children.watch
    failed = True
    try:
        yield children
        failed = False
    finally:
        launcher[name] = lightnings
        children.end(failed)


def _describe(code: int) -> str:
    if code >= 0:
        return f"has ended with exit code {code}; its message is above"
    name = str(-code)
    with suppress(ValueError):
        name = signal.Signals(-code).name
    return f"was killed by {name}; the same command resumes from the last checkpoint"
