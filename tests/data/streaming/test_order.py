"""The order of the stream: every sample once an epoch, exact weights, random access to positions."""

from collections import Counter
from fractions import Fraction
from math import gcd, lcm
from time import process_time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cubediff.data.streaming.order import Mixture, Order

COUNTS = st.lists(st.integers(0, 20), min_size=1, max_size=9).filter(any)


@given(COUNTS, st.integers(1, 50), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_every_epoch_shows_every_sample_once_in_another_order(counts: list[int], buffer: int, seed: int) -> None:
    order = Order(counts, buffer, [seed])
    total = sum(counts)
    epochs = [[order[e * total + i] for i in range(total)] for e in range(3)]
    assert all(sorted(epoch) == list(range(total)) for epoch in epochs)
    shuffled = total > 20 and buffer > 10
    assert not shuffled or len(set(map(tuple, epochs))) == 3


@given(COUNTS, st.integers(1, 50), st.data())
@settings(max_examples=100, deadline=None)
def test_a_position_does_not_depend_on_the_positions_computed_before(
    counts: list[int], buffer: int, draw: st.DataObject
) -> None:
    positions = draw.draw(st.lists(st.integers(0, 10 * sum(counts)), min_size=1, max_size=20))
    order = Order(counts, buffer, [3])
    assert [order[p] for p in positions] == [Order(counts, buffer, [3])[p] for p in positions]


def test_only_the_shards_of_one_block_are_needed_at_a_time() -> None:
    """And the samples within a block are well mixed."""
    order = Order([10] * 40, 40, [0])
    epoch = np.array([order[i] for i in range(400)]).reshape(10, 40)
    for block in epoch:
        assert len(set(block // 10)) == 4
        assert sorted(block) != list(block)
        assert max(Counter(block[:10] // 10).values()) < 10


def test_every_seed_and_dataset_has_another_order() -> None:
    orders = {tuple(Order([16] * 4, 64, seed)[i] for i in range(64)) for seed in ([0, 0], [1, 0], [0, 1])}
    assert len(orders) == 3


def test_the_order_never_changes() -> None:
    """Checkpoints of other machines and earlier versions rely on it."""
    order = Order([3, 4, 2], 4, [0, 0])
    assert [order[i] for i in range(18)] == [7, 4, 8, 3, 6, 5, 1, 0, 2, 6, 4, 5, 3, 0, 2, 1, 7, 8]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 10**9), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_every_period_of_a_mixture_takes_exactly_the_weight_of_each_dataset(
    weights: list[int], start: int, seed: int
) -> None:
    whole = sum(weights) // gcd(*weights)
    mixture = Mixture([Order([7], 3, [seed, i]) for i in range(len(weights))], weights)
    start -= start % whole
    locations = [mixture.locate(start + i) for i in range(2 * whole)]
    for half in (locations[:whole], locations[whole:]):
        assert Counter(d for d, _ in half) == dict(enumerate(w // gcd(*weights) for w in weights))
    for dataset, weight in enumerate(weights):
        first = start * weight // sum(weights)  # exact, for start is a multiple
        indices = [index for d, index in locations if d == dataset]
        assert indices == list(range(first, first + len(indices)))  # none left out, none twice


@given(st.lists(st.decimals("0.01", "100", places=2), min_size=1, max_size=4), st.integers(0, 10**12))
@settings(max_examples=200, deadline=None)
def test_the_share_of_a_dataset_is_off_by_at_most_the_number_of_datasets(weights: list, position: int) -> None:
    """And a dataset's samples are shown in order without gaps."""
    mixture = Mixture([Order([1], 1, [0])] * len(weights), [float(w) for w in weights])
    shares = [Fraction(w) / sum(map(Fraction, weights)) for w in weights]
    stretch = min(500, 3 * lcm(*(share.denominator for share in shares)))
    next_index: dict[int, int] = {}
    for p in range(position, position + stretch):
        dataset, index = mixture.locate(p)
        assert index == next_index.get(dataset, index)
        next_index[dataset] = index + 1
        assert abs(index - p * shares[dataset]) <= len(weights)


@given(st.lists(COUNTS, min_size=1, max_size=3), st.data())
@settings(max_examples=50, deadline=None)
def test_a_mixture_shows_all_samples_of_a_dataset_before_repeating_one(counts: list, draw: st.DataObject) -> None:
    weights = draw.draw(st.lists(st.integers(1, 5), min_size=len(counts), max_size=len(counts)))
    mixture = Mixture([Order(c, 8, [1, i]) for i, c in enumerate(counts)], weights)
    sizes = [sum(c) for c in counts]
    edges = np.cumsum([0, *sizes])
    samples = [mixture[i] for i in range(1500)]
    for dataset, size in enumerate(sizes):
        own = [s - edges[dataset] for s in samples if edges[dataset] <= s < edges[dataset + 1]]
        for epoch in range(len(own) // size):
            assert sorted(own[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_a_million_samples_are_ordered_within_seconds() -> None:
    start = process_time()
    assert 0 <= Order([250] * 4000, 1024, [0])[5_000_001] < 1_000_000
    assert process_time() - start < 2  # seconds; some 0.3 on a laptop's core
