"""Loss weightings over timesteps."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Shaped
from torch import Tensor

from cubediff.diffusion.processes import NoisingProcess


@runtime_checkable
class LossWeighting(Protocol):
    """Weights the loss of each panorama by its timestep.

    Legend: B panoramas.
    """

    def __call__(
        self, losses: Float[Tensor, " b"], timesteps: Shaped[Tensor, " b"], process: NoisingProcess
    ) -> Float[Tensor, " b"]:
        """Weights losses.

        Args:
            losses: The loss of each panorama, of shape (B,).
            timesteps: The timestep of each panorama, of shape (B,).
            process: The noising process; `snr` has the signal-to-noise ratio at each timestep.

        Returns:
            The weighted losses, of shape (B,) and with their graph. The loss of a batch is their mean.
        """
        ...


@dataclass(frozen=True)
class MinSNR:
    """Min-SNR weighting (arXiv 2303.09556): the SNR, clamped to `gamma`, relative to the target's own weight.

    Args:
        gamma: The largest SNR that counts.

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
        """The weighted losses, of shape (B,), see `LossWeighting`."""
        snr = process.snr(timesteps)
        return losses * snr.clamp(max=self.gamma) / (snr + 1 if process.predicts_velocity else snr)
