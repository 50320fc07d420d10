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
        """Draws timesteps.

        Args:
            count: Number of panoramas, B.
            num_timesteps: Number of timesteps of the noising process.
            generator: Determines the draws. With a list of B generators, the i-th one alone determines the i-th draw;
                `cubediff.diffusion.random.draw` draws in that way.

        Returns:
            Timesteps in [0, num_timesteps), of shape (B,), on the device of the generator.
        """
        ...


@dataclass(frozen=True)
class UniformTimesteps:
    """Every integer timestep with the same probability."""

    def __call__(self, count: int, num_timesteps: int, generator: Generators) -> Shaped[Tensor, " b"]:
        """The timesteps, of shape (count,), see `TimestepSampler`."""
        return draw(partial(torch.randint, num_timesteps), (count,), generator)
