"""Distances between two sets of images, computed from their features.

Features come from a network (an extractor) and are compared here; a distance is named after both, for example
`fid` for the Fréchet distance of Inception's features and `fd_dinov2` for that of DINOv2's. Kernel distances are
torchmetrics'. All need a reference set but the Inception score.

Legend: N images of the reference, M images, D features.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

SPLITS = 10  # of the Inception score
_CMMD_SIGMA, _CMMD_SCALE = 10.0, 1000.0


def frechet_distance(real: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> float:
    """Fréchet distance between Gaussians with the means and covariances of two sets of features (Heusel et al., 2017).

    It is biased: the fewer images, the larger. Compare values of equally many images only.

    Args:
        real: Features of the reference.
        other: Features of the images.

    Raises:
        ValueError: If there are fewer than two images in a set, or a feature is not finite.
    """
    _check(real, other, least=2)
    (mean, root), (other_mean, other_root) = (_moments(each.double()) for each in (real, other))
    traces = root.square().sum() + other_root.square().sum()
    product = torch.linalg.svdvals(root @ other_root.T).sum()
    return float((mean - other_mean).square().sum() + traces - 2 * product)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and a matrix R of few rows with RᵀR = covariance.

    The trace of the root of a product of covariances is the sum of the singular values of R·Sᵀ: exact, also for
    covariances of low rank, and as small a matrix as there are samples.
    """
    count, width = features.shape
    mean = features.mean(0)
    centred = (features - mean) / (count - 1) ** 0.5
    if count <= width:
        return mean, centred
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    return mean, values.clamp_min(0).sqrt()[:, None] * vectors.T


def has_full_rank(count: int, features: int) -> bool:
    """Whether a covariance of `count` samples can have full rank, without which `frechet_distance` is unstable."""
    return count > features


def frechet_distance_infinite(
    real: Float[Tensor, "n d"], other: Float[Tensor, "m d"], *, points: int = 10, seed: int = 0
) -> float:
    """`frechet_distance` extrapolated to infinitely many images (Chong and Forsyth, 2020).

    Distances of equal subsets of both sets, from half to all of the smaller set, are fitted by a line over one divided
    by their size.

    Args:
        real: Features of the reference.
        other: Features of the images.
        points: Number of subsets.
        seed: Seed of the subsets.

    Raises:
        ValueError: If there are fewer than 20 images in a set, or a feature is not finite.
    """
    _check(real, other, least=20)
    generator = torch.Generator().manual_seed(seed)
    most = min(len(real), len(other))
    sizes = np.linspace(most // 2, most, points).astype(int)
    distances = []
    for size in sizes.tolist():
        one, two = (x[torch.randperm(len(x), generator=generator)[:size]] for x in (real, other))
        distances.append(frechet_distance(one, two))
    return float(np.polyfit(1 / sizes, distances, 1)[1])


def kernel_distance(
    real: Float[Tensor, "n d"],
    other: Float[Tensor, "m d"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> float:
    """Squared maximum mean discrepancy with the polynomial kernel (Bińkowski et al., 2018), times 100; it has no bias.

    Args:
        real: Features of the reference.
        other: Features of the images.
        subsets: Number of random subsets, whose distances are averaged.
        subset_size: Images in a subset; at most those of the smaller set.
        seed: Seed of the subsets.

    Raises:
        ValueError: If there are fewer than two images in a set, or a feature is not finite.
    """
    _check(real, other, least=2)
    size = min(subset_size, len(real), len(other))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance`")  # of its use of memory
        metric = KernelInceptionDistance(feature=_Given(real.shape[1]), subsets=subsets, subset_size=size)
    metric.update(real.double(), real=True)
    metric.update(other.double(), real=False)
    with _seeded(seed):
        return 100 * metric.compute()[0].item()


def inception_score(logits: Float[Tensor, "m d"], *, splits: int = SPLITS, seed: int = 0) -> float:
    """Inception score (Salimans et al., 2016): the mean over random splits of the images, of equal size to within one.

    Args:
        logits: Logits of a classifier; of Inception, if the score is to be comparable.
        splits: Number of splits.
        seed: Seed of the splits.

    Raises:
        ValueError: If there are fewer images than splits, or a logit is not finite.
    """
    _check(logits, logits, least=splits)
    count = len(logits)
    with _seeded(seed):
        logs = logits.double().log_softmax(1)[torch.randperm(count)]
    chunks = (logs[split * count // splits : (split + 1) * count // splits] for split in range(splits))
    return sum(_information(chunk).exp().item() for chunk in chunks) / splits


def _information(logs: Tensor) -> Tensor:
    """The mutual information of images and classes, of logarithms of the classes' probabilities for each image."""
    chances = logs.exp()
    return (chances * (logs - chances.mean(0).log())).sum(1).mean()


def cmmd(real: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> float:
    """Maximum mean discrepancy of CLIP's image embeddings with a Gaussian kernel (Jayasumana et al., 2024).

    Embeddings are normalised; the kernel's width is 10 and the result is multiplied by 1000, as in the paper's code.

    Args:
        real: Embeddings of the reference.
        other: Embeddings of the images.

    Raises:
        ValueError: If a set is empty or an embedding is not finite.
    """
    _check(real, other, least=1)
    x, y = (nn.functional.normalize(each.double(), dim=1) for each in (real, other))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-torch.cdist(a, b).square() / (2 * _CMMD_SIGMA**2)).exp().mean()

    return _CMMD_SCALE * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)).item()


def precision_recall(real: Float[Tensor, "n d"], other: Float[Tensor, "m d"], *, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., 2019).

    A set's manifold is the union of spheres around its features, as large as the distance of the k-th neighbour.

    Returns:
        The share of images inside the reference's manifold, and the share of the reference inside that of the images.

    Raises:
        ValueError: If a set has no more than `k` images, or a feature is not finite.
    """
    _check(real, other, least=k + 1)
    between = torch.cdist(real.double(), other.double())
    inside_real = between <= _radii(real, k)[:, None]
    inside_other = between <= _radii(other, k)[None]
    return inside_real.any(0).double().mean().item(), inside_other.any(1).double().mean().item()


def density_coverage(real: Float[Tensor, "n d"], other: Float[Tensor, "m d"], *, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al., 2020), which an outlier of the reference hardly changes.

    Returns:
        The mean number of the reference's spheres that an image lies in, divided by k; and the share of the reference's
        spheres that hold an image.

    Raises:
        ValueError: If the reference has no more than `k` images, or a feature is not finite.
    """
    _check(real, other, least=1)
    _check(real, real, least=k + 1)
    inside = torch.cdist(real.double(), other.double()) <= _radii(real, k)[:, None]
    return inside.double().sum(0).mean().item() / k, inside.any(1).double().mean().item()


def omnifid(real: Float[Tensor, "n 6 d"], other: Float[Tensor, "m 6 d"]) -> dict[str, float]:
    """Fréchet distances of cube faces, in three readings of OmniFID (Christensen et al., 2024).

    The paper averages the distances of three groups of views: the upper face, the lower face, and the four others,
    whose own distances it averages.

    Args:
        real: Features of the faces of the reference, in FACES order.
        other: Features of the faces of the images.

    Returns:
        "omnifid": the paper's; "omnifid_pooled_sides": with one distance of all side faces together; "omnifid_pooled":
        one distance of all six faces together.

    Raises:
        ValueError: As `frechet_distance`.
    """
    each = [frechet_distance(real[:, face], other[:, face]) for face in range(6)]
    sides = frechet_distance(real[:, :4].flatten(0, 1), other[:, :4].flatten(0, 1))
    return {
        "omnifid": (sum(each[:4]) / 4 + each[4] + each[5]) / 3,
        "omnifid_pooled_sides": (sides + each[4] + each[5]) / 3,
        "omnifid_pooled": frechet_distance(real.flatten(0, 1), other.flatten(0, 1)),
    }


class _Given(nn.Identity):
    """Stands for torchmetrics' network: what it is given are features."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torchmetrics draws subsets from torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _radii(features: Tensor, k: int) -> Tensor:
    """The distance of each feature to its k-th neighbour."""
    distances = torch.cdist(features.double(), features.double())
    return distances.kthvalue(k + 1, dim=1).values  # the first is the feature itself


def _check(real: Tensor, other: Tensor, least: int) -> None:
    for name, features in (("reference", real), ("images", other)):
        if len(features) < least:
            raise ValueError(f"{name}: {len(features)} images, at least {least} are needed")
        if not torch.isfinite(features).all():
            broken = (~torch.isfinite(features).flatten(1).all(1)).nonzero().flatten().tolist()
            raise ValueError(f"{name}: features of {len(broken)} images are not finite, first of number {broken[0]}")
