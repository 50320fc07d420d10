"""Threads that load batches."""

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, TypeVar

ResultT = TypeVar("ResultT")


class LoadingThreads(Generic[ResultT]):
    """Daemon threads that call functions in the order in which they are submitted; they end with this object.

    The threads of a `ThreadPoolExecutor` are joined at the end of the process, which a read that never returns, for
    example from an unreachable file system, would delay forever.

    Args:
        count: Number of threads.
    """

    def __init__(self, count: int) -> None:
        self._tasks: SimpleQueue[tuple[Future[ResultT], Callable[[], ResultT]] | None] = SimpleQueue()
        for _ in range(count):
            threading.Thread(target=_run, args=(self._tasks,), daemon=True, name="data").start()
        weakref.finalize(self, _end, self._tasks, count)

    def submit(self, function: Callable[[], ResultT]) -> "Future[ResultT]":
        """Calls a function in the next free thread; returns its future result."""
        future: Future[ResultT] = Future()
        self._tasks.put((future, function))
        return future


def _run(tasks: "SimpleQueue[tuple[Future[ResultT], Callable[[], ResultT]] | None]") -> None:
    while (task := tasks.get()) is not None:
        future, function = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
        del task, future, function  # their owner may be garbage while this thread waits


def _end(tasks: "SimpleQueue[tuple[Future[ResultT], Callable[[], ResultT]] | None]", count: int) -> None:
    for _ in range(count):
        tasks.put(None)
