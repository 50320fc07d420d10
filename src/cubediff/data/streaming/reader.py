"""Reads single samples of shards, in any order and from several threads."""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from cubediff.data.format.index import read_sample
from cubediff.data.streaming.catalog import Shard
from cubediff.data.streaming.remote import Cache, is_remote
from cubediff.data.streaming.retrying import retried
from cubediff.utils.errors import DataError
from cubediff.utils.files import open_regular

_OPEN_SHARDS_PER_THREAD = 32


class _Descriptors(dict[int, int]):
    """The file descriptors of one thread by shard, least recently used first; closes them when the thread ends."""

    def __del__(self) -> None:
        for descriptor in self.values():
            os.close(descriptor)


class _ThreadState(threading.local):
    """The open shards of the current thread."""

    def __init__(self) -> None:
        self.descriptors = _Descriptors()


class ShardReader:
    """Random access to the samples of several shards, which are numbered through all of them.

    Args:
        shards: In the order of the numbering.
        cache: Fetches and keeps remote shards.
    """

    def __init__(self, shards: Sequence[Shard], cache: Cache) -> None:
        self.shards, self.cache = shards, cache
        self.firsts = np.cumsum([0, *map(len, shards)])  # the number of each shard's first sample, and the total
        self._thread = _ThreadState()
        self._prefetching = threading.Thread()

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def locate(self, sample: int) -> tuple[int, int]:
        """The shard that holds a sample, and the sample's number within it."""
        shard = int(np.searchsorted(self.firsts, sample, side="right")) - 1
        return shard, sample - int(self.firsts[shard])

    def key(self, shard: int, number: int) -> str:
        """The key of a sample."""
        return self.shards[shard].keys.split("\0")[number]

    def open(self, shard: int) -> int:
        """The file descriptor of a shard, which is fetched first if it is remote; stays open for this thread.

        Raises:
            DataError: If the shard cannot be opened.
        """
        descriptors = self._thread.descriptors
        descriptor = descriptors.pop(shard, None)
        if descriptor is None:
            while len(descriptors) >= _OPEN_SHARDS_PER_THREAD:
                os.close(descriptors.pop(next(iter(descriptors))))
            descriptor = self._open(self.shards[shard])
        descriptors[shard] = descriptor
        return descriptor

    def prefetch(self, shard: int) -> None:
        """Fetches a remote shard in the background, one at a time; an error is left to `open`, which retries."""
        remote = self.shards[shard]
        if not is_remote(remote.name) or self._prefetching.is_alive():
            return

        def fetch() -> None:
            with suppress(DataError):
                self.cache.open(remote.name, remote.size, remote.sha256, retry=False).close()

        self._prefetching = threading.Thread(target=fetch, name="prefetch", daemon=True)
        self._prefetching.start()

    def read(self, shard: int, number: int) -> dict[str, bytes]:
        """The content of a sample's tar members, by suffix.

        Raises:
            DataError: If the shard cannot be opened.
            EOFError, tarfile.TarError, OSError: If the sample's bytes are damaged.
        """
        begin, end = self.shards[shard].offsets[number : number + 2].tolist()
        return read_sample(self.open(shard), begin, end)

    def _open(self, shard: Shard) -> int:
        if not is_remote(shard.name):
            return retried(lambda: _open_local(shard), shard.name, self.cache.retry_minutes)
        with self.cache.open(shard.name, shard.size, shard.sha256) as file:
            return os.dup(file.fileno())


def _open_local(shard: Shard) -> int:
    with open_regular(Path(shard.name)) as file:
        return os.dup(file.fileno())
