"""A data loader that prepares batches in threads and yields them in order.

Threads suffice: reading, JPEG decoding and resizing release Python's lock, and batches need no copy between processes.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Generic, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch.utils._pytree import tree_map_only

from cubediff.data.streaming.threads import LoadingThreads

log = logging.getLogger(__name__)

_BATCHES_AHEAD = 2  # per thread
_STALL_WARNING = 60.0  # seconds without a batch before a warning is logged

PositionT = TypeVar("PositionT")
PositionT_co = TypeVar("PositionT_co", covariant=True)
BatchT = TypeVar("BatchT")


@runtime_checkable
class Positions(Protocol[PositionT_co]):
    """The positions that a loader iterates over, once per epoch."""

    def __iter__(self) -> Iterator[PositionT_co]: ...

    def __len__(self) -> int: ...


class Loader(Generic[PositionT, BatchT]):
    """Calls `load(position)` in threads and yields the results in order, in pinned memory if CUDA is available.

    Args:
        load: Returns the batch of a position; None skips the position.
        positions: The positions of an epoch.
        num_threads: Threads that call `load`, each two batches ahead; 0 calls it when its batch is needed. A batch
            that does not arrive is reported every minute, and signals are handled meanwhile.
        on_batch: Called in the thread that iterates, in order, for every position whose batch is next.
    """

    def __init__(
        self,
        load: Callable[[PositionT], BatchT | None],
        positions: Positions[PositionT],
        num_threads: int,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self.load, self.positions, self.on_batch = load, positions, on_batch
        self._ahead = _BATCHES_AHEAD * num_threads or 1
        self._threads = LoadingThreads[BatchT | None](num_threads or 1)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[BatchT]:
        for batch in self._prefetched():
            self.on_batch()
            if batch is not None:
                yield batch

    def state_dict(self) -> dict[str, object]:
        """Empty: the data module's state holds the position at which an interrupted epoch resumes."""
        return {}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Restores nothing."""

    def _prefetched(self) -> Iterator[BatchT | None]:
        pending: deque[tuple[PositionT, Future[BatchT | None]]] = deque()
        try:
            for position in self.positions:
                pending.append((position, self._threads.submit(partial(self._load, position))))
                if len(pending) == self._ahead:
                    yield _result(*pending.popleft())
            while pending:
                yield _result(*pending.popleft())
        finally:
            for _, future in pending:
                future.cancel()

    def _load(self, position: PositionT) -> BatchT | None:
        batch = self.load(position)
        if not isinstance(batch, dict) or not torch.cuda.is_available():
            return batch
        return cast(BatchT, tree_map_only(torch.Tensor, torch.Tensor.pin_memory, batch))


def _result(position: PositionT, future: "Future[BatchT | None]") -> BatchT | None:
    """Waits for a batch, and logs a warning for every minute of waiting."""
    waited = 0.0
    while True:
        try:
            return future.result(_STALL_WARNING)
        except TimeoutError:
            if future.done():  # the error was raised by `load`
                raise
            waited += _STALL_WARNING
            log.warning(
                "waiting for the batch at position %s for %.0f s: check whether the storage is slow or unreachable",
                position,
                waited,
            )
