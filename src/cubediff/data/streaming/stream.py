"""Batches by their place in a run's stream, whatever their samples are decoded to; a sample that cannot be read is
counted, said, and replaced by the next one that can."""

import logging
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from threading import Lock
from typing import Any, Protocol, runtime_checkable

from cubediff.data.streaming.catalog import Reader
from cubediff.data.streaming.order import Mixture
from cubediff.utils.errors import DataError

log = logging.getLogger(__name__)

_PATIENCE = 100  # samples in a row that cannot be read, before there is no point in looking for the next


@runtime_checkable
class Decoder(Protocol):
    """Makes batches from samples, in several threads at a time."""

    def sample(self, key: str, members: Mapping[str, bytes], rng: random.Random | None) -> Any:
        """One sample of its members' bytes, at random by `rng` alone; raises where they are not whole."""

    def batch(self, samples: list[Any]) -> Any:
        """What a step gets, as a dict."""


class Damaged(Exception):
    """A sample that is there but cannot be read; says which and why."""


class Skips:
    """Counts the samples asked for, and those of each shard that cannot be read; warns at 1, 10, 100 … of them."""

    def __init__(self) -> None:
        self.asked = self.total = 0
        self.shards: Counter[str] = Counter()
        self._lock = Lock()

    def ask(self) -> None:
        with self._lock:
            self.asked += 1

    def add(self, shard: str, error: Damaged) -> None:
        with self._lock:
            self.total += 1
            self.shards[shard] += 1
            if self.total == 10 ** (len(str(self.total)) - 1):
                log.warning("%d samples skipped so far that cannot be read, the last %s", self.total, error)

    def check(self, share: float, enough: int) -> None:
        """Raises DataError where more than `share` of the samples cannot be read, whatever the next ones are of the
        `enough` that it takes to tell (an epoch, if it is small: what is damaged may all come first)."""
        if self.total <= share * math.ceil(self.asked / enough) * enough:
            return
        listed = ", ".join(f"{shard}: {count}" for shard, count in self.shards.most_common(20))
        raise DataError(
            f"{self.total} of {self.asked} samples cannot be read, more than data.max_skipped_share={share}: build or "
            f"copy their shards again ({listed}), or allow more"
        )


class Stream:
    """What both splits share: from a position of the stream to a sample. Several threads may ask at a time."""

    def __init__(self, reader: Reader, order: Mixture | range, decoder: Decoder, batch_size: int) -> None:
        self.reader, self.order, self.decoder, self.batch_size = reader, order, decoder, batch_size
        self.skips = Skips()

    def decoded(self, position: int, rng: random.Random | None, count: bool = True) -> Any:
        """The sample at a position. Raises Damaged, counted if `count`, and DataError where its shard is missing."""
        shard, number = self.reader.locate(self.order[position])
        if count:
            self.skips.ask()
        self.reader.open(shard)  # out here, for a missing shard is no damaged sample
        key = self.reader.key(shard, number)
        try:
            return self.decoder.sample(key, self.reader.read(shard, number), rng)
        except Exception as error:  # whatever the bytes make a decoder raise
            name = self.reader.shards[shard].name
            damaged = Damaged(f"{name}, sample {key}: {error or type(error).__name__}; build or copy the shard again")
            if count:
                self.skips.add(name, damaged)
            raise damaged from error


class TrainStream(Stream):
    """`stream[first]` is this rank's part of the batch of the whole job that begins at position `first`. What a
    position shows is a function of the seed and the position. Shards are fetched from `lookahead` positions ahead."""

    def __init__(self, *args: Any, rank: int, seed: int, lookahead: int) -> None:
        super().__init__(*args)
        self.rank, self.seed, self.lookahead = rank, seed, lookahead

    def __getitem__(self, first: int) -> Any:
        first += self.rank * self.batch_size
        self.reader.prefetch(self.reader.locate(self.order[first + self.lookahead])[0])
        positions = range(first, first + self.batch_size)
        return {**self.decoder.batch([self._readable(p) for p in positions]), "position": list(positions)}

    def _readable(self, position: int) -> Any:
        """The sample at a position, else the next one that can be read; turned as the position says."""
        for ahead in range(_PATIENCE):
            try:
                return self.decoded(position + ahead, random.Random(f"{self.seed} {position}"), count=ahead == 0)
            except Damaged as error:
                last = error
        raise DataError(f"{_PATIENCE} samples in a row cannot be read, the last {last}")


class ValStream(Stream):
    """`stream[i]` is the i-th batch of this rank's part of the samples, without those that cannot be read and unturned.

    All ranks have as many batches, for a network in parts runs on all of them together. Where nothing is left of one,
    any sample stands in, and `counted` is False.
    """

    def __init__(self, reader: Reader, samples: int, decoder: Decoder, batch_size: int, rank: int, world: int) -> None:
        super().__init__(reader, range(samples), decoder, batch_size)
        self.samples = range(samples)
        self.own = range(rank * samples // world, (rank + 1) * samples // world)
        self.batches = range(math.ceil(math.ceil(samples / world) / batch_size))

    def __getitem__(self, batch: int) -> Any:
        samples = dict(self._readable(self.own[batch * self.batch_size :][: self.batch_size]))
        if not samples:
            return {**self.first(1), "counted": False}
        return {**self.decoder.batch(list(samples.values())), "position": list(samples), "counted": True}

    def first(self, number: int) -> Any:
        """A batch of the first samples of all that can be read, the same on every rank."""
        samples = dict(islice(self._readable(self.samples, count=False), number))
        if not samples:
            raise DataError(f"none of the {len(self.samples)} validation panoramas can be read: build or copy their "
                            "shards again, or train with trainer.limit_val_batches=0")  # fmt: skip
        return {**self.decoder.batch(list(samples.values())), "position": list(samples)}

    def _readable(self, places: range, count: bool = True) -> Iterator[tuple[int, Any]]:
        for place in places:
            with suppress(Damaged):
                yield place, self.decoded(place, None, count)
