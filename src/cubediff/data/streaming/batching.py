"""The batches of the training and validation streams.

A position of the training stream shows the same sample with the same augmentation in every run of the same seed; the
next usable sample takes the position of a skipped one.
"""

import math
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Generic

from cubediff.data.streaming.skipping import SkippedSample
from cubediff.data.streaming.stream import BatchT, SampleT, Stream
from cubediff.utils.errors import DataError

_MAX_SKIPPED_IN_A_ROW = 100


@dataclass(frozen=True)
class TrainBatches(Generic[SampleT, BatchT]):
    """The batches of an endless stream, addressed by the position of their first sample.

    Args:
        stream: The training samples.
        batch_size: Samples per batch of one rank.
        rank: Of this process; its part of a batch follows those of the lower ranks.
        seed: Of the augmentations.
        lookahead: Positions ahead of a batch whose shard is fetched in the background.
        repeated: The batches repeat this many samples at the start of the stream, with the same augmentation; 0 for an
            endless stream. Their `position` counts on, so that their noise differs each time.
    """

    stream: Stream[SampleT, BatchT]
    batch_size: int
    rank: int
    seed: int
    lookahead: int
    repeated: int = 0

    def load(self, start: int) -> BatchT:
        """This rank's part of the batch of all ranks that starts at position `start`.

        Raises:
            DataError: If a shard cannot be opened, or too many samples in a row are skipped.
        """
        start += self.rank * self.batch_size
        first = start % self.repeated if self.repeated else start
        reader, order = self.stream.reader, self.stream.order
        reader.prefetch(reader.locate(order[first + self.lookahead])[0])
        positions = range(first, first + self.batch_size)
        batch = self.stream.decoder.collate([self._load_sample(position) for position in positions])
        batch["position"] = list(range(start, start + self.batch_size))
        return batch

    def _load_sample(self, position: int) -> SampleT:
        """The sample at a position or else the next usable one, augmented as the position determines."""
        for ahead in range(_MAX_SKIPPED_IN_A_ROW):
            rng = random.Random(f"{self.seed} {position}")
            try:
                return self.stream.load(position + ahead, rng, index=position, count=ahead == 0)
            except SkippedSample as error:
                last = error
        raise DataError(f"{_MAX_SKIPPED_IN_A_ROW} samples in a row were skipped, the last one: {last}")


@dataclass(frozen=True)
class ValBatches(Generic[SampleT, BatchT]):
    """The batches of this rank's part of the validation samples, without augmentation and without skipped samples.

    All ranks have the same number of batches, because a sharded network runs on all of them together. A rank that has
    no sample left repeats one with `counted` False.

    Args:
        stream: The validation samples.
        samples: Number of samples of all ranks.
        batch_size: Samples per batch of one rank.
        rank: Of this process.
        world_size: Number of ranks.
    """

    stream: Stream[SampleT, BatchT]
    samples: int
    batch_size: int
    rank: int
    world_size: int

    @property
    def indices(self) -> range:
        """The numbers of the batches."""
        return range(math.ceil(math.ceil(self.samples / self.world_size) / self.batch_size))

    def load(self, index: int) -> BatchT:
        """The batch with this number.

        Raises:
            DataError: If a shard cannot be opened, or no sample at all can be read.
        """
        own = range(self.rank * self.samples // self.world_size, (self.rank + 1) * self.samples // self.world_size)
        samples = dict(self._load_samples(own[index * self.batch_size :][: self.batch_size]))
        batch = self._collate(samples) if samples else self.first(1)
        batch["counted"] = bool(samples)
        return batch

    def first(self, count: int) -> BatchT:
        """A batch of the first usable samples, the same on every rank; fewer than `count` if there are no more.

        Raises:
            DataError: If no sample can be read.
        """
        samples = dict(islice(self._load_samples(range(self.samples), count=False), count))
        if not samples:
            raise DataError(
                f"none of the {self.samples} validation samples can be read: build or copy their shards again, or "
                "train with trainer.limit_val_batches=0"
            )
        return self._collate(samples)

    def _collate(self, samples: dict[int, SampleT]) -> BatchT:
        batch = self.stream.decoder.collate(list(samples.values()))
        batch["position"] = list(samples)
        return batch

    def _load_samples(self, positions: range, count: bool = True) -> Iterator[tuple[int, SampleT]]:
        """The usable samples with their positions."""
        for position in positions:
            with suppress(SkippedSample):
                yield position, self.stream.load(position, None, count=count)
