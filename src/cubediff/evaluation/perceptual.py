"""A perceptual distance without a download: the form of LPIPS with the features of EfficientNet-Lite0.

LPIPS (Zhang et al., 2018, section 3) compares the features of a network, of unit length at every place, and weights
their channels as human judgements suggest. Here all weights are one, so values are not comparable with those of LPIPS;
results name the distance `perceptual_efficientnet_lite0`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cubediff.evaluation.extractors import EfficientNetLite0

_STABILITY = 1e-10  # of the length of features, as in LPIPS


def perceptual_distance(
    network: EfficientNetLite0,
    images: Float[Tensor, "b 3 h w"],
    originals: Float[Tensor, "b 3 h w"],
    where: Float[Tensor, "#b 1 h w"] | None = None,
) -> Float[Tensor, " b"]:
    """The mean over five stages of the mean over places of the squared differences of unit-length features.

    Images are not resized: distances of images of another size do not compare. Faces go in as separate images.

    Args:
        network: The extractor.
        images: Images in [0, 1].
        originals: What they should be.
        where: Weights of pixels, 1 where they count; averaged over the pixels of a place in each stage. None: all
            count. Features see beyond their place, so pixels near those that count have an influence.

    Returns:
        Distances from 0, for equal images, to 4; NaN for an image without weights.
    """
    distances = []
    for stage, expected in zip(network.stages(images), network.stages(originals), strict=True):
        error = (_unit_length(stage) - _unit_length(expected)).square().sum(1)
        weights = torch.ones_like(error) if where is None else F.interpolate(where, error.shape[1:], mode="area")[:, 0]
        distances.append((error * weights).sum((1, 2)) / weights.expand_as(error).sum((1, 2)))
    return torch.stack(distances).mean(0)


def _unit_length(features: Tensor) -> Tensor:
    return F.normalize(features, dim=1, eps=_STABILITY)
