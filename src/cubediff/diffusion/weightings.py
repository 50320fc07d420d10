"""Loss weightings over timesteps."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Shaped
from torch import Tensor

from cubediff.diffusion.processes import NoisingProcess


@runtime_checkable
class LossWeighting(Protocol):
    """Weights the loss of each panorama by its timestep."""

    def __call__(
        self, losses: Float[Tensor, " b"], timesteps: Shaped[Tensor, " b"], process: NoisingProcess
    ) -> Float[Tensor, " b"]:
        """The weighted losses."""
        ...


@dataclass(frozen=True)
class MinSNR:
    """Min-SNR weighting (arXiv 2303.09556): the SNR, clamped to `gamma`, relative to the target's own weight.

    Raises:
        ValueError: If `gamma` is not positive.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise ValueError(f"min_snr_gamma={self.gamma}: expected a positive number (typically 5), or null for none")

    def __call__(
        self, losses: Float[Tensor, " b"], timesteps: Shaped[Tensor, " b"], process: NoisingProcess
    ) -> Float[Tensor, " b"]:
        snr = process.snr(timesteps)
        return losses * snr.clamp(max=self.gamma) / (snr + 1 if process.predicts_velocity else snr)
