"""Which sample stands at which position of a training run's stream: a function of the seed alone, computed and never
replayed, so that no number of readers changes it and any run resumes it."""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
from jaxtyping import Int64


class Order:
    """The samples of one dataset without end, each once an epoch: its shards in an order drawn for the epoch, laid end
    to end, and mixed within blocks of `shuffle_buffer` samples, so that few shards are needed at a time.

    `counts` are the shards' samples; sample numbers run through the shards as given. `order[position]` is a sample.
    """

    def __init__(self, counts: Sequence[int], shuffle_buffer: int, seed: Sequence[int]) -> None:
        self.counts = np.asarray(counts, np.int64)
        self.length = int(self.counts.sum())
        self.shuffle_buffer, self.seed = shuffle_buffer, tuple(seed)
        self._epoch = lru_cache(maxsize=4)(self._shuffled)  # readers are in an epoch, at its end, or looking ahead

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.length)
        return int(self._epoch(epoch)[place])

    def _shuffled(self, epoch: int) -> Int64[np.ndarray, " samples"]:
        draw = np.random.PCG64(np.random.SeedSequence([*self.seed, epoch])).random_raw  # the same in every NumPy
        shards = np.argsort(draw(len(self.counts)), kind="stable")
        counts = self.counts[shards]
        starts = (np.cumsum(self.counts) - self.counts)[shards]
        laid_out = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(self.length)
        blocks = np.arange(self.length) // self.shuffle_buffer
        order: Int64[np.ndarray, " samples"] = laid_out[np.lexsort((draw(self.length), blocks))]
        return order


class Mixture:
    """Several orders in one stream, each taken from in proportion to its weight as evenly as whole samples allow: over
    any stretch of as many samples as the weights add up to, as whole numbers in lowest terms, exactly.

    `mixture[position]` is a sample, numbered through the datasets as given.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[int | float]) -> None:
        self.orders = orders
        parts = [Fraction(str(weight)) for weight in weights]
        self.shares = [part / sum(parts[i:]) for i, part in enumerate(parts)]  # of what the ones before leave
        self.firsts = [sum(order.length for order in orders[:i]) for i in range(len(orders))]

    def __getitem__(self, position: int) -> int:
        dataset, place = self.place(position)
        return self.firsts[dataset] + self.orders[dataset][place]

    def place(self, position: int) -> tuple[int, int]:
        """The dataset whose turn it is, and how many samples it has given before."""
        for dataset, share in enumerate(self.shares):
            given = position * share.numerator // share.denominator
            if (position + 1) * share.numerator // share.denominator > given:
                return dataset, given
            position -= given
        raise AssertionError("the last dataset takes all that is left")
