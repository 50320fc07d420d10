"""A stream's batches in their order, made ahead by threads: reading, decoding and scaling leave Python's lock, and what
a thread makes is not copied between processes."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late  # in Python 3.10 not yet the builtin one
from typing import Any

import torch

log = logging.getLogger(__name__)

_AHEAD = 2  # batches for each thread
_SILENCE = 60.0  # seconds of waiting before it is said


class Loader:
    """`make(place)` for each of `places` (whose number is known), but what is None; calls `taken` for each. The batches
    are made by `threads` threads, or by none but the caller's; for CUDA in pinned memory."""

    def __init__(
        self,
        make: Callable[[Any], Mapping[str, Any] | None],
        places: Any,
        threads: int,
        taken: Callable[[], None] = lambda: None,
    ) -> None:
        self.make, self.places, self.taken = make, places, taken
        self._ahead = _AHEAD * threads
        self._pool = ThreadPoolExecutor(threads, "data") if threads else None

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for batch in map(self._made, self.places) if self._pool is None else self._made_ahead(self._pool):
            self.taken()
            if batch is not None:
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module's state says where an epoch that Lightning resumes in its middle goes on."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""

    def _made_ahead(self, pool: ThreadPoolExecutor) -> Iterator[Mapping[str, Any] | None]:
        pending: deque[tuple[Any, Future[Mapping[str, Any] | None]]] = deque()
        try:
            for place in self.places:
                pending.append((place, pool.submit(self._made, place)))
                if len(pending) == self._ahead:
                    yield _result(*pending.popleft())
            while pending:
                yield _result(*pending.popleft())
        finally:
            for _, future in pending:
                future.cancel()

    def _made(self, place: Any) -> Mapping[str, Any] | None:
        batch = self.make(place)
        if batch is None or not torch.cuda.is_available():
            return batch
        return {name: v.pin_memory() if isinstance(v, torch.Tensor) else v for name, v in batch.items()}


def _result(place: Any, future: "Future[Mapping[str, Any] | None]") -> Mapping[str, Any] | None:
    waited = 0.0
    while True:
        try:
            return future.result(_SILENCE)
        except Late:
            if future.done():  # it is the error of what was to be made
                raise
            waited += _SILENCE
            log.warning("waiting for the batch at %s of the stream since %.0f s: is the storage slow, or gone?", place,
                        waited)  # fmt: skip
