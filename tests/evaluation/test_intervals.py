"""Intervals: they hold the true value as often as they say, and equal a restatement."""

import numpy as np
import pytest
import torch
from support.promises import promised
from torch import Tensor

from cubediff.evaluation.consistency import Metric, value_of
from cubediff.evaluation.distances import frechet_distance
from cubediff.evaluation.intervals import bootstrap, paired_difference, paired_halves, subsample

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


@pytest.mark.parametrize(("count", "percent"), [(4, 79), (10, 90), (25, 92)])
def test_intervals_of_few_panoramas_are_too_narrow(count: int, percent: int) -> None:
    promised("docs/evaluation.md", "true mean in 79 % of cases with 4 of them, in 90 % with 10, and in 92 % with 25")
    mean = Metric(lambda faces, fov: faces, lambda terms: terms[0])
    draw = torch.randn(600, count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    held = sum(low <= 0 <= high for low, high in (bootstrap(mean, terms, draws=200)[1:3] for terms in draw))
    assert held / len(draw) == pytest.approx(percent / 100, abs=0.03)


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


@pytest.mark.slow
def test_most_intervals_of_paired_differences_hold_the_true_one() -> None:
    """Scenes of any difficulty, whose squares the second method makes 1.21 times as large on average."""
    held, excluded = 0, 0
    for seed in range(200):
        first = squares(40, seed)
        noise = 0.2 * torch.randn(40, 1, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64)
        pair = paired_difference(ROOT, first, first * (1.21 + noise), draws=200, seed=seed)
        held += pair.low <= 0.1 * (1 / 3) ** 0.5 <= pair.high
        excluded += pair.low > 0
    assert 0.88 <= held / 200 <= 0.99
    assert excluded / 200 > 0.9


@pytest.mark.slow
def test_most_intervals_of_paired_halves_hold_the_true_difference() -> None:
    """Normal distributions in two dimensions with the reference's covariance, and means at 0.5 and at 1."""
    held = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        real, scenes, *noise = (torch.randn(40, 2, generator=generator) for _ in range(4))
        first, second = (
            0.8**0.5 * scenes + 0.2**0.5 * each + shift for each, shift in zip(noise, (0.5, 1.0), strict=True)
        )

        def difference(chosen: Tensor, both: Tensor) -> float:
            return frechet_distance(real[chosen], second[both]) - frechet_distance(real[chosen], first[both])  # noqa: B023

        pair = paired_halves(difference, (40, 40), draws=20, seed=seed)
        held += pair.low <= 2 * (1.0**2 - 0.5**2) <= pair.high
    assert 0.88 <= held / 200 <= 0.99


def test_paired_halves_are_those_of_subsets_and_centred_on_the_whole_sets() -> None:
    seen: list[list[list[int]]] = []

    def distance(first: Tensor, second: Tensor) -> float:
        seen.append([first.tolist(), second.tolist()])
        return float(sum(first) - sum(second))

    pair = paired_halves(distance, (10, 25), draws=30, seed=2)
    halves, whole = seen[:-1], seen[-1]
    assert whole == [[*range(10)], [*range(25)]]
    assert (pair.value, pair.n) == (45 - 300, 25)
    seen.clear()
    subsample(distance, (10, 25), draws=30, seed=2)
    assert seen == halves
    deviation = np.std([sum(first) - sum(second) for first, second in halves], ddof=1)
    width = 2.045 * deviation  # Student's t of 29 degrees of freedom, from a table
    assert (pair.low, pair.high) == pytest.approx((pair.value - width, pair.value + width), rel=2e-3)
    with pytest.raises(ValueError, match="too small for an interval: at least 4 each"):
        paired_halves(distance, (3, 25))
