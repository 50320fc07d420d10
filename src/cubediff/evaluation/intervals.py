"""95 % intervals: panoramas are drawn, and all views of one stay together, because they are not independent.

Legend: P panoramas, K terms.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cubediff.evaluation.consistency import Metric, value_of

_QUANTILES = torch.tensor([0.025, 0.975], dtype=torch.float64)


class Estimate(NamedTuple):
    """A value with its 95 % interval.

    Attributes:
        value: Of all panoramas.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of panoramas.
    """

    value: float
    low: float
    high: float
    n: int


def bootstrap(metric: Metric, terms: Float[Tensor, "p k"], *, draws: int = 1000, seed: int = 0) -> Estimate:
    """Estimates a metric of panoramas by its values for as many panoramas, drawn with replacement.

    Args:
        metric: The metric.
        terms: Its terms for each panorama.
        draws: Number of draws.
        seed: Seed of the draws.

    Raises:
        ValueError: If there is no panorama.
    """
    drawn = _drawn_values(metric, terms, draws, seed)
    return Estimate(value_of(metric, terms), *_interval(drawn), len(terms))


def paired_difference(
    metric: Metric, first: Float[Tensor, "p k"], second: Float[Tensor, "q k"], *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Estimates by how much a metric of a second set exceeds that of a first; both have the same scenes in order.

    The same scenes are drawn from both, so that their difficulty cancels.

    Raises:
        ValueError: If the sets differ in size or are empty.
    """
    if len(first) != len(second):
        raise ValueError(f"sets of {len(first)} and {len(second)} panoramas cannot be compared in pairs")
    drawn = _drawn_values(metric, second, draws, seed) - _drawn_values(metric, first, draws, seed)
    return Estimate(value_of(metric, second) - value_of(metric, first), *_interval(drawn), len(first))


def subsample(
    distance: Callable[[Int[Tensor, " m"], Int[Tensor, " m"]], float],
    sizes: tuple[int, int],
    *,
    draws: int = 50,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval of a distance between halves of two sets, drawn without replacement.

    A Fréchet distance depends on the number of images, and repeated images bias it; so the interval is that of smaller
    sets, and lies higher than the value of the whole ones.

    Args:
        distance: Maps indices of panoramas of the first and of the second set, equally many, to their distance.
        sizes: Number of panoramas of either set.
        draws: Number of draws.
        seed: Seed of the draws.

    Raises:
        ValueError: If a set has fewer than four panoramas.
    """
    return _interval(_of_halves(distance, sizes, draws, seed))


def paired_halves(
    difference: Callable[[Int[Tensor, " m"], Int[Tensor, " n"]], float],
    sizes: tuple[int, int],
    *,
    draws: int = 20,
    seed: int = 0,
) -> Estimate:
    """Estimates by how much a distance of a second set exceeds that of a first, to one reference.

    The same halves of the reference and of both sets are drawn without replacement, as for `subsample`. The mean of a
    half of n panoramas varies about that of the whole as the mean of n does about that of all panoramas there are, so
    the interval has the deviation of the halves; it is centred on the difference of the whole sets, because distances
    of halves are larger.

    Args:
        difference: Maps indices of panoramas of the reference, and of both sets, to the difference of the distances.
        sizes: Number of panoramas of the reference, and of either set.
        draws: Number of draws, at least two.
        seed: Seed of the draws.

    Raises:
        ValueError: If the reference or the sets have fewer than four panoramas.
    """
    student = 1.96 + (1.96**3 + 1.96) / (4 * (draws - 1))  # the 97.5 % quantile of Student's t, within 1 % for 10 draws
    deviation = student * _of_halves(difference, sizes, draws, seed).std().item()
    value = difference(torch.arange(sizes[0]), torch.arange(sizes[1]))
    return Estimate(value, value - deviation, value + deviation, sizes[1])


def _of_halves(
    distance: Callable[[Int[Tensor, " m"], Int[Tensor, " m"]], float], sizes: tuple[int, int], draws: int, seed: int
) -> Tensor:
    if min(sizes) < 4:
        raise ValueError(f"sets of {sizes[0]} and {sizes[1]} panoramas are too small for an interval: at least 4 each")
    generator, half = torch.Generator().manual_seed(seed), min(sizes) // 2
    values = []
    for _ in range(draws):
        first, second = (torch.randperm(size, generator=generator)[:half] for size in sizes)
        values.append(distance(first, second))
    return torch.tensor(values, dtype=torch.float64)


def _drawn_values(metric: Metric, terms: Tensor, draws: int, seed: int) -> Tensor:
    if not len(terms):
        raise ValueError("there is no panorama to measure")
    on_host = torch.tensor(terms.tolist(), dtype=torch.float64)
    drawn = torch.randint(len(terms), (draws, len(terms)), generator=torch.Generator().manual_seed(seed))
    return torch.stack([metric.finish(on_host[indices].mean(0)) for indices in drawn])


def _interval(values: Tensor) -> tuple[float, float]:
    low, high = values.quantile(_QUANTILES).tolist()
    return low, high
