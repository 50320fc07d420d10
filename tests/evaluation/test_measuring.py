"""Distances with their intervals, and the terms of sets of panoramas."""

import math

import pytest
import torch
from torch import Tensor

from cubediff.evaluation import measures
from cubediff.evaluation.intervals import subsample
from cubediff.evaluation.measuring import measure_distance


def features(count: int, seed: int, views: int = 3) -> Tensor:
    return torch.randn(count, views, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_interval_of_a_distance_is_that_of_halves() -> None:
    real, other = features(8, 0), features(6, 1) + 1
    distance = measures.distances("clip")["clip_fid"]
    found = measure_distance(distance, real, other, draws=5, seed=3)
    assert found.value == distance.compute(real, other)
    assert found[1:3] == subsample(lambda i, j: distance.compute(real[i], other[j]), (8, 6), draws=5, seed=3)
    assert found.n == 6


def test_too_few_views_are_refused_and_few_panoramas_have_no_interval() -> None:
    distance = measures.distances("clip")["fd_infinite_clip"]
    with pytest.raises(ValueError, match="18 views of the samples, at least 20 are needed"):
        measure_distance(distance, features(8, 0), features(6, 1), draws=5, seed=0)
    few = measure_distance(measures.distances("clip")["clip_fid"], features(3, 0), features(3, 1), draws=5, seed=0)
    assert math.isfinite(few.value)
    assert math.isnan(few.low)
    assert math.isnan(few.high)
