"""The order of the training stream: the sample at every position, as a function of the seed.

It is computed and never replayed, so any number of ranks and workers sees the same stream, and a run resumes at any
position.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
from jaxtyping import Int64


class Order:
    """The shuffled samples of one dataset, epoch after epoch; `order[position]` is the index of a sample.

    Every epoch concatenates the shards in a random order and shuffles the samples within blocks of `shuffle_buffer`, so
    that only the shards of a block are needed at a time.

    Args:
        counts: Number of samples of each shard; sample indices count through the shards in this order.
        shuffle_buffer: Samples per block.
        seed: Integers that determine the order.

    >>> order = Order([2, 2], shuffle_buffer=4, seed=[0])
    >>> sorted(order[position] for position in range(4))
    [0, 1, 2, 3]
    """

    def __init__(self, counts: Sequence[int], shuffle_buffer: int, seed: Sequence[int]) -> None:
        self.counts = np.asarray(counts, np.int64)
        self.length = int(self.counts.sum())
        self.shuffle_buffer, self.seed = shuffle_buffer, tuple(seed)
        self._epoch = lru_cache(maxsize=4)(self._shuffled)  # readers at an epoch's end look ahead into the next

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self.length)
        return int(self._epoch(epoch)[index])

    def _shuffled(self, epoch: int) -> Int64[np.ndarray, " samples"]:
        draw = np.random.PCG64(np.random.SeedSequence([*self.seed, epoch])).random_raw  # the same in every NumPy
        shards = np.argsort(draw(len(self.counts)), kind="stable")
        counts = self.counts[shards]
        starts = (np.cumsum(self.counts) - self.counts)[shards]
        concatenated = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(self.length)
        blocks = np.arange(self.length) // self.shuffle_buffer
        order: Int64[np.ndarray, " samples"] = concatenated[np.lexsort((draw(self.length), blocks))]
        return order


class Mixture:
    """Several orders interleaved by weight; `mixture[position]` is the index of a sample through all datasets.

    Every dataset is sampled as evenly as possible. If the weights are integers in lowest terms that sum to
    n, then any n consecutive positions from a multiple of n on show exactly as many samples of each as its weight.

    Args:
        orders: Of the datasets.
        weights: A positive one for each dataset.

    >>> mixture = Mixture([Order([1], 1, [0]), Order([1], 1, [1])], weights=[1, 3])
    >>> [mixture.locate(position)[0] for position in range(4)].count(1)
    3
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[int | float]) -> None:
        self.orders = orders
        fractions = [Fraction(str(weight)) for weight in weights]
        # Each dataset's share of the positions that the datasets before it leave.
        self.shares = [fraction / sum(fractions[i:]) for i, fraction in enumerate(fractions)]
        self.firsts = [sum(order.length for order in orders[:i]) for i in range(len(orders))]

    def __getitem__(self, position: int) -> int:
        dataset, index = self.locate(position)
        return self.firsts[dataset] + self.orders[dataset][index]

    def locate(self, position: int) -> tuple[int, int]:
        """The dataset of the sample at a position, and the sample's position in the dataset's own order."""
        for dataset, share in enumerate(self.shares):
            earlier = position * share.numerator // share.denominator
            if (position + 1) * share.numerator // share.denominator > earlier:
                return dataset, earlier
            position -= earlier
        raise AssertionError("the last dataset takes every remaining position")
