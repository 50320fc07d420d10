"""Weights and images that depend on no random generator, so that values of other packages can be written down."""

import math

import torch
from torch import Tensor


def scattered_weights(shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that keep the size of activations and their differences, by the names and shapes of a network's state."""
    weights = {}
    for number, (name, like) in enumerate(sorted(shapes.items())):
        angles = torch.arange(like.numel(), dtype=torch.float64) * 12.9898 + number
        scattered = (2 * (angles.sin() * 43758.5453 % 1) - 1).view(like.shape)  # evenly in [−1, 1]
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.zeros_like(like)
        elif name.endswith("running_var") or (like.ndim == 1 and name.endswith("weight")):
            weights[name] = (1 + 0.3 * scattered).float()
        elif like.ndim > 1:
            weights[name] = (scattered * math.sqrt(6 / like[0].numel())).float()
        else:
            weights[name] = (0.1 * scattered).float()
    return weights


def wave_image(height: int, width: int) -> Tensor:
    """8-bit pixels (1, 3, height, width)."""
    waves = torch.sin(torch.arange(3 * height * width, dtype=torch.float64) * 0.37).view(1, 3, height, width)
    return ((waves + 1) * 127.5).round().byte()
