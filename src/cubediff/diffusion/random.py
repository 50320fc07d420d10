"""Random draws that do not depend on the other panoramas of a batch."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

# One generator for a batch, or one for each panorama, whose draws then do not depend on the others.
Generators: TypeAlias = torch.Generator | list[torch.Generator]


def host_generators(generator: Generators) -> Generators:
    """CPU generators with the seeds of generators that have drawn nothing, so that reading draws waits for no device.

    Generators that are on the CPU are returned themselves.
    """
    if isinstance(generator, list):
        return [_host_generator(one) for one in generator]
    return _host_generator(generator)


def _host_generator(generator: torch.Generator) -> torch.Generator:
    if generator.device.type == "cpu":
        return generator
    return torch.Generator("cpu").manual_seed(generator.initial_seed())


def draw(function: Callable[..., Tensor], shape: Sequence[int], generator: Generators) -> Tensor:
    """Calls `torch.randn` or the like for a shape (B, …), on the generator's device."""
    if isinstance(generator, list):
        return torch.cat([function((1, *shape[1:]), generator=one, device=one.device) for one in generator])
    return function(tuple(shape), generator=generator, device=generator.device)
