"""A loss weighting of another package."""

from torch import Tensor

from cubediff.diffusion.processes import NoisingProcess


class Constant:
    """Multiplies every loss by the same factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, losses: Tensor, timesteps: Tensor, process: NoisingProcess) -> Tensor:
        return losses * self.factor
