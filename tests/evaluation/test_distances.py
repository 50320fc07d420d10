"""Distances of features against scipy and restatements in float64."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from support.clip import small_clip
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from cubediff.evaluation.distances import (
    cmmd,
    density_coverage,
    frechet_distance,
    frechet_distance_infinite,
    has_full_rank,
    inception_score,
    kernel_distance,
    omnifid,
    precision_recall,
)
from cubediff.evaluation.extractors import ClipImages


def features(count: int, size: int = 16, seed: int = 0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(1))
    return torch.randn(count, size, generator=generator) @ mixing + shift


class Features(nn.Identity):
    """Gives torchmetrics the features that it is given."""

    num_features = 16


def by_scipy(real: Tensor, other: Tensor) -> float:
    """The distance by scipy's square root of a matrix."""
    one, two = (x.double().numpy() for x in (real, other))
    covariances = [np.cov(x, rowvar=False) for x in (one, two)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    squares = ((one.mean(0) - two.mean(0)) ** 2).sum()
    return float(squares + np.trace(covariances[0] + covariances[1] - 2 * root))


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_frechet_distance_is_scipys(shift: float) -> None:
    real, other = features(300), features(200, seed=2, shift=shift)
    assert frechet_distance(real, other) == pytest.approx(by_scipy(real, other), rel=1e-6)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_fewer_samples_than_features() -> None:
    """Against the symmetric form of the root, tr √(√A·B·√A); torchmetrics takes eigenvalues of A·B."""
    real, other = features(9).double(), features(12, seed=2).double() * 2 + 1
    covariances = [torch.cov(each.T, correction=1) for each in (real, other)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    product = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    means = (real.mean(0) - other.mean(0)).square().sum()
    expected = (means + sum(each.trace() for each in covariances) - 2 * product).item()
    assert frechet_distance(real, other) == pytest.approx(expected, rel=1e-7)
    by_torchmetrics = FrechetInceptionDistance(feature=Features())
    by_torchmetrics.update(real, real=True)
    by_torchmetrics.update(other, real=False)
    assert frechet_distance(real, other) == pytest.approx(by_torchmetrics.compute().item(), rel=1e-6)


def test_frechet_distance_of_given_gaussians() -> None:
    """(μ₁ − μ₂)² + (σ₁ − σ₂)² of one dimension, from samples that have these moments exactly."""
    line = torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None]
    line /= line.std()
    assert frechet_distance(1 + 2 * line, 4 + 5 * line) == pytest.approx(3**2 + 3**2)


def test_the_infinite_estimate_is_closer_to_the_limit() -> None:
    """Two samples of one distribution, whose distance is 0."""
    real, other = features(400), features(400, seed=2)
    assert abs(frechet_distance_infinite(real, other)) < 0.5 * frechet_distance(real, other)
    assert frechet_distance_infinite(real, other) == frechet_distance_infinite(real, other)
    assert has_full_rank(17, 16)
    assert not has_full_rank(16, 16)


def test_kernel_distance_of_all_images_is_the_unbiased_estimate() -> None:
    real, other = features(60), features(60, seed=2, shift=0.5)
    x, y = real.double().numpy(), other.double().numpy()

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / 16 + 1) ** 3

    own = [(k.sum() - np.trace(k)) / (60 * 59) for k in (kernel(x, x), kernel(y, y))]
    expected = sum(own) - 2 * kernel(x, y).mean()
    assert kernel_distance(real, other, subsets=1) == pytest.approx(100 * expected, rel=1e-9)


def test_kernel_distance_averages_subsets_of_a_seed_and_leaves_torchs_generator() -> None:
    real, other = features(200) / 8, features(200, seed=2, shift=4) / 8
    state = torch.get_rng_state()
    first, again, another = (kernel_distance(real, other, subsets=20, subset_size=50, seed=s) for s in (0, 0, 1))
    assert first == again != another
    assert torch.equal(state, torch.get_rng_state())
    assert first == pytest.approx(kernel_distance(real, other, subsets=1), rel=0.3)


def test_a_kernel_distance_of_subsets_equals_a_restatement_with_the_same_subsets() -> None:
    real, other = (features(60) / 8).double(), (features(50, seed=2, shift=4) / 8).double()
    torch.manual_seed(3)
    estimates = []
    for _ in range(5):
        x, y = (each[torch.randperm(len(each))[:20]].numpy() for each in (real, other))
        own = [((k**3).sum() - (k.diagonal() ** 3).sum()) / (20 * 19) for k in (x @ x.T / 16 + 1, y @ y.T / 16 + 1)]
        estimates.append(sum(own) - 2 * ((x @ y.T / 16 + 1) ** 3).mean())
    measured = kernel_distance(real, other, subsets=5, subset_size=20, seed=3)
    assert measured == pytest.approx(100 * np.mean(estimates), rel=1e-9)


def test_clip_fid_is_scipys_distance_of_the_embeddings(tmp_path: Path) -> None:
    clip = ClipImages(small_clip(tmp_path))
    generator = torch.Generator().manual_seed(0)
    real, other = (
        clip(torch.rand(count, 3, 32, 32, generator=generator) ** power) for count, power in ((60, 1), (50, 2))
    )
    assert frechet_distance(real, other) == pytest.approx(by_scipy(real, other), rel=1e-6)


@pytest.mark.parametrize("count", [50, 32])
def test_inception_score_of_splits_is_the_mean_of_their_scores(count: int) -> None:
    """As torch-fidelity splits: there are as many splits as asked for, also where images do not divide evenly."""
    logits = 3 * features(count, 10)
    torch.manual_seed(3)
    chances = torch.softmax(logits.double(), 1)[torch.randperm(count)].numpy()
    parts = [chances[i * count // 5 : (i + 1) * count // 5] for i in range(5)]
    scores = [np.exp((p * np.log(p / p.mean(0))).sum(1).mean()) for p in parts]
    assert inception_score(logits, splits=5, seed=3) == pytest.approx(np.mean(scores), rel=1e-9)


def test_inception_score_of_one_split_is_the_exponential_of_the_mutual_information() -> None:
    logits = 3 * features(50, 10)
    chances = torch.softmax(logits.double(), 1)
    information = (chances * (chances.log() - chances.mean(0).log())).sum(1).mean()
    assert inception_score(logits, splits=1) == pytest.approx(information.exp().item())
    certain = 100 * torch.eye(10).repeat(5, 1)
    assert inception_score(certain, splits=1) == pytest.approx(10, rel=1e-6)


def test_cmmd_equals_a_restatement() -> None:
    real, other = (x.double().numpy() for x in (features(30), features(40, seed=2, shift=0.5)))
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (real, other))

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([[math.exp(-((u - v) ** 2).sum() / 200) for v in b] for u in a]))

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert cmmd(torch.from_numpy(real), torch.from_numpy(other)) == pytest.approx(expected, rel=1e-6)


def test_precision_recall_density_and_coverage_count_neighbours() -> None:
    """Against loops, for a set that covers a half of the reference and has an outlier."""
    real, half = features(60, 4), features(60, 4)[:30] + 1e-3
    other = torch.cat([half, half[:1] + 100])

    def radius(points: Tensor, i: int, k: int) -> float:
        return sorted((points - points[i]).norm(dim=1).tolist())[k]

    def within(points: Tensor, x: Tensor, k: int) -> int:
        return sum((points[i] - x).norm().item() <= radius(points, i, k) for i in range(len(points)))

    precision, recall = precision_recall(real, other)
    assert precision == pytest.approx(sum(within(real, x, 3) > 0 for x in other) / 31)
    assert precision == pytest.approx(30 / 31)
    assert recall == pytest.approx(sum(within(other, x, 3) > 0 for x in real) / 60)
    density, coverage = density_coverage(real, other)
    assert density == pytest.approx(sum(within(real, x, 5) for x in other) / 31 / 5)
    hit = [any((real[i] - x).norm().item() <= radius(real, i, 5) for x in other) for i in range(60)]
    assert coverage == pytest.approx(sum(hit) / 60)


def test_the_readings_of_omnifid() -> None:
    real, other = (torch.stack([features(50, 8, seed + f, f / 3) for f in range(6)], 1) for seed in (0, 10))
    each = [by_scipy(real[:, f], other[:, f]) for f in range(6)]
    sides = by_scipy(real[:, :4].reshape(-1, 8), other[:, :4].reshape(-1, 8))
    values = omnifid(real, other)
    assert values["omnifid"] == pytest.approx((np.mean(each[:4]) + each[4] + each[5]) / 3, rel=1e-6)
    assert values["omnifid_pooled_sides"] == pytest.approx((sides + each[4] + each[5]) / 3, rel=1e-6)
    assert values["omnifid_pooled"] == pytest.approx(by_scipy(real.reshape(-1, 8), other.reshape(-1, 8)), rel=1e-6)


def test_too_few_images_and_broken_features_are_refused() -> None:
    broken = features(10)
    broken[3, 2] = math.nan
    with pytest.raises(ValueError, match=r"images: features of 1 images are not finite, first of number 3"):
        frechet_distance(features(10), broken)
    with pytest.raises(ValueError, match=r"reference: 1 images, at least 2 are needed"):
        frechet_distance(features(1), features(10))
    with pytest.raises(ValueError, match=r"images: 3 images, at least 4 are needed"):
        precision_recall(features(10), features(3))
    with pytest.raises(ValueError, match=r"reference: 5 images, at least 6 are needed"):
        density_coverage(features(5), features(3))
    with pytest.raises(ValueError, match=r"at least 20 are needed"):
        frechet_distance_infinite(features(10), features(30))
