"""Intervals: they hold the true value as often as they say, and equal a restatement."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cubediff.evaluation.consistency import Metric, value_of
from cubediff.evaluation.intervals import bootstrap, paired_difference, subsample

ROOT = Metric(lambda faces, fov: faces, lambda terms: terms[0].sqrt())
RATIO = Metric(lambda faces, fov: faces, lambda terms: terms[0] / terms[1])


def squares(count: int, seed: int, size: int = 1) -> Tensor:
    return torch.rand(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).square()


def test_a_bootstrap_equals_a_restatement_with_numpy() -> None:
    terms = squares(20, 0, 2) + 0.1
    estimate = bootstrap(RATIO, terms, draws=200, seed=3)
    drawn = torch.randint(20, (200, 20), generator=torch.Generator().manual_seed(3)).numpy()
    values = [terms.numpy()[row, 0].sum() / terms.numpy()[row, 1].sum() for row in drawn]
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    assert (estimate.value, estimate.n) == (value_of(RATIO, terms), 20)
    assert estimate == bootstrap(RATIO, terms, draws=200, seed=3)


def test_most_intervals_hold_the_true_value() -> None:
    """The mean of x², uniform in [0, 1], is ⅓; a bootstrap of 40 values holds it a little less often than 95 %."""
    held = 0
    for seed in range(200):
        estimate = bootstrap(ROOT, squares(40, seed), draws=200, seed=seed)
        held += estimate.low <= (1 / 3) ** 0.5 <= estimate.high
    assert 0.88 <= held / 200 <= 0.99


def test_pairs_are_closer_than_sets() -> None:
    """Scenes differ much, and the second method is a little worse in each."""
    first = squares(30, 0)
    second = first * 1.1
    pair = paired_difference(ROOT, first, second)
    assert 0 < pair.low <= pair.value <= pair.high
    assert pair.high - pair.low < 0.2 * (bootstrap(ROOT, first).high - bootstrap(ROOT, first).low)
    same = paired_difference(ROOT, first, first)
    assert same[:3] == (0, 0, 0)
    with pytest.raises(ValueError, match="sets of 30 and 29 panoramas cannot be compared in pairs"):
        paired_difference(ROOT, first, second[:29])


def test_subsets_are_equal_halves_without_a_panorama_twice() -> None:
    seen = []

    def distance(first: Tensor, second: Tensor) -> float:
        assert len(set(first.tolist())) == len(set(second.tolist())) == 5
        seen.append((first.tolist(), second.tolist()))
        return float(len(seen))

    low, high = subsample(distance, (10, 25), draws=40)
    assert (low, high) == pytest.approx((1 + 0.025 * 39, 1 + 0.975 * 39))
    assert {max(first) < 10 for first, _ in seen} == {True}
    assert max(max(second) for _, second in seen) > 20
    with pytest.raises(ValueError, match="too small for an interval: at least 4 each"):
        subsample(distance, (3, 25))
    with pytest.raises(ValueError, match="no panorama"):
        bootstrap(ROOT, torch.zeros(0, 1))
