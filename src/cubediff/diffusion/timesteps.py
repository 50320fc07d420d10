"""Timestep samplers, which choose the noise levels that a network is trained at."""

from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from cubediff.diffusion.random import Generators, draw


@runtime_checkable
class TimestepSampler(Protocol):
    """Draws one timestep for each panorama."""

    def __call__(self, count: int, num_timesteps: int, generator: Generators) -> Shaped[Tensor, " b"]:
        """Draws `count` timesteps in [0, num_timesteps)."""
        ...


@dataclass(frozen=True)
class UniformTimesteps:
    """Every integer timestep with the same probability."""

    def __call__(self, count: int, num_timesteps: int, generator: Generators) -> Shaped[Tensor, " b"]:
        return draw(partial(torch.randint, num_timesteps), (count,), generator)
