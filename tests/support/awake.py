"""Random weights strong enough that every input shows in the output, so that no claim holds only for want of effect."""

from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@torch.no_grad()
def awaken_(module: ModuleT, seed: int = 0) -> ModuleT:
    """Redraws all weights, those of new input channels included, at a size that keeps signals; norms and biases are
    shaken, so that leaving out their affine part shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        draw = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if parameter.ndim > 1:
            parameter.copy_(draw / parameter[0].numel() ** 0.5)
        else:
            parameter.add_(0.2 * draw)
    return module
