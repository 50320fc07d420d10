"""Batches by their place in a run's stream, whatever their samples are decoded to; a sample that cannot be read is
counted, said, and replaced by the next one that can."""

import logging
import math
import random
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import Dataset, get_worker_info

from cubediff.data.catalog import Reader
from cubediff.data.order import Mixture
from cubediff.data.sources import DataError

log = logging.getLogger(__name__)

_PATIENCE = 100  # samples in a row that cannot be read, before there is no point in looking for the next


@runtime_checkable
class Decoder(Protocol):
    """Makes batches from samples; travels to the workers."""

    def sample(self, key: str, members: Mapping[str, bytes], rng: random.Random | None) -> Any:
        """One sample of its members' bytes, at random by `rng` alone; raises where they are not whole."""

    def batch(self, samples: list[Any]) -> Any:
        """What a step gets."""


class Damaged(Exception):
    """A sample that is there but cannot be read; says which and why."""


class Skips:
    """Counts, in memory that all workers of a device share, the samples asked for and those of each shard that cannot
    be read; warns at 1, 10, 100 … of them."""

    def __init__(self, workers: int, shards: list[str]) -> None:
        self.shards = shards
        self.asked = torch.zeros(max(1, workers), dtype=torch.int64).share_memory_()
        self.counts = torch.zeros(max(1, workers), len(shards), dtype=torch.int64).share_memory_()

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def add(self, shard: int, error: Damaged) -> None:
        before = self.total
        self.counts[_worker(), shard] += 1
        if before == 0 or len(str(before + 1)) > len(str(before)):
            log.warning("%d samples skipped so far that cannot be read, the last %s", before + 1, error)

    def check(self, share: float, enough: int) -> None:
        """Raises DataError where more than `share` of the samples cannot be read, whatever the next ones are of the
        `enough` that it takes to tell (an epoch, if it is small: what is damaged may all come first)."""
        skipped, asked = self.total, int(self.asked.sum())
        if skipped <= share * math.ceil(asked / enough) * enough:
            return
        worst = sorted(zip(self.counts.sum(0).tolist(), self.shards, strict=True), reverse=True)
        listed = ", ".join(f"{shard}: {count}" for count, shard in worst[:20] if count)
        raise DataError(
            f"{skipped} of {asked} samples cannot be read, more than data.max_skipped_share={share}: build or copy "
            f"their shards again ({listed}), or allow more"
        )


class Stream(Dataset[Any]):
    """What both splits share: from a position of the stream to a sample."""

    def __init__(self, reader: Reader, order: Mixture | range, decoder: Decoder, batch_size: int, workers: int) -> None:
        self.reader, self.order, self.decoder, self.batch_size = reader, order, decoder, batch_size
        self.skips = Skips(workers, [shard.name for shard in reader.shards])

    def decoded(self, position: int, rng: random.Random | None, count: bool = True) -> Any:
        """The sample at a position. Raises Damaged, counted if `count`, and DataError where its shard is missing."""
        shard, number = self.reader.locate(self.order[position])
        if count:
            self.skips.asked[_worker()] += 1
        self.reader.open(shard)  # out here, for a missing shard is no damaged sample
        key = self.reader.key(shard, number)
        try:
            return self.decoder.sample(key, self.reader.read(shard, number), rng)
        except Exception as error:  # whatever the bytes make a decoder raise
            where = f"{self.reader.shards[shard].name}, sample {key}"
            damaged = Damaged(f"{where}: {error or type(error).__name__}; build or copy the shard again")
            if count:
                self.skips.add(shard, damaged)
            raise damaged from error


class TrainStream(Stream):
    """`stream[first]` is this rank's part of the batch of the whole job that begins at position `first`, or a DataError
    for the training to raise. What a position shows is a function of the seed and the position."""

    def __init__(self, *args: Any, rank: int, seed: int) -> None:
        super().__init__(*args)
        self.rank, self.seed = rank, seed

    def __getitem__(self, first: int) -> Any:
        first += self.rank * self.batch_size
        try:
            return self.decoder.batch([self._readable(first + i) for i in range(self.batch_size)])
        except DataError as error:
            return error

    def _readable(self, position: int) -> Any:
        """The sample at a position, else the next one that can be read; turned as the position says."""
        for ahead in range(_PATIENCE):
            try:
                return self.decoded(position + ahead, random.Random(f"{self.seed} {position}"), count=ahead == 0)
            except Damaged as error:
                last = error
        raise DataError(f"{_PATIENCE} samples in a row cannot be read, the last {last}")


class ValStream(Stream):
    """`stream[i]` is the i-th batch of a range of samples, without those that cannot be read and unturned; None where
    nothing is left of it, or a DataError for the validation to raise."""

    def __init__(self, reader: Reader, samples: range, decoder: Decoder, batch_size: int, workers: int) -> None:
        super().__init__(reader, samples, decoder, batch_size, workers)
        self.length = len(samples)

    def __getitem__(self, batch: int) -> Any:
        samples = []
        for position in range(self.length)[batch * self.batch_size :][: self.batch_size]:
            try:
                samples.append(self.decoded(position, None))
            except Damaged:
                continue
            except DataError as error:
                return error
        return self.decoder.batch(samples) if samples else None


def _worker() -> int:
    info = get_worker_info()
    return info.id if info else 0
