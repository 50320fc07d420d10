"""Random draws that do not depend on the other panoramas of a batch."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

# One generator for a batch, or one for each panorama, whose draws then do not depend on the others.
Generators: TypeAlias = torch.Generator | list[torch.Generator]


def draw(function: Callable[..., Tensor], shape: Sequence[int], generator: Generators) -> Tensor:
    """Calls `torch.randn` or the like for a shape (B, …), on the generator's device."""
    if isinstance(generator, list):
        return torch.cat([function((1, *shape[1:]), generator=one, device=one.device) for one in generator])
    return function(tuple(shape), generator=generator, device=generator.device)
