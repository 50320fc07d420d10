"""Averages the predicted clean latents where faces overlap, at every denoising step.

A scheduler's step is a function of the network's prediction, so the average is converted back to a prediction. In every
supported scheduler the network's input is alpha·x0 + sigma·noise with alpha² + sigma² = 1, and the prediction is the
noise (epsilon), alpha·noise − sigma·x0 (v_prediction, arXiv 2202.00512, appendix D) or x0 (sample).

Legend: B panoramas, 6 faces, C latent channels, h w latent size.
"""

from dataclasses import dataclass

import torch
from diffusers.schedulers import SchedulerMixin
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from cubediff.diffusion.schedulers import noise_level
from cubediff.geometry.overlap import blend_overlaps


@dataclass(frozen=True)
class OverlapAverage:
    """Averages clean latents where faces see the same directions.

    Each face's latents near its border are averaged with the bilinear samples of the other faces that see their
    directions, see `blend_overlaps`. Known latents keep their values, and the other faces are averaged with them.

    Attributes:
        scheduler: The scheduler of the sampling.
        fov: Field of view of the faces, degrees.
        clean: Known clean latents.
        known: Where latents are known.

    Raises:
        ValueError: If the faces do not overlap, because `fov` is not more than 90°.
    """

    scheduler: SchedulerMixin
    fov: float
    clean: Float[Tensor, "b 6 c h w"]
    known: Bool[Tensor, "b 6 1 h w"]

    def __post_init__(self) -> None:
        if self.fov <= 90:
            raise ValueError(
                f"average_overlap=True with faces of {self.fov:g}°, which do not overlap: use average_overlap=False, "
                "or a model whose fov is above 90°"
            )

    def __call__(
        self,
        prediction: Float[Tensor, "b 6 c h w"],
        noisy: Float[Tensor, "b 6 c h w"],
        t: Shaped[Tensor, ""],
        step: int,
    ) -> Float[Tensor, "b 6 c h w"]:
        """The prediction whose clean latents are the averaged ones of `prediction`.

        The change of the clean latents is linear in them, so that no formula divides by alpha, which is 0 at zero
        terminal SNR. At sigma = 0 the input is clean, its prediction means nothing, and it stays as it is.

        Args:
            prediction: The (guided) prediction of the network.
            noisy: The network's input, scaled as the scheduler scales it.
            t: The timestep.
            step: Its index in `scheduler.timesteps`.

        Raises:
            ValueError: If the scheduler or its prediction_type is not supported.
        """
        kind = self.scheduler.config.prediction_type
        if kind == "sample":
            return prediction + self._change(prediction, self.clean)
        alpha, sigma = noise_level(self.scheduler, t, step)
        if kind == "epsilon":
            change = self._change(noisy - sigma * prediction, alpha * self.clean)  # of alpha·x0
        elif kind == "v_prediction":
            change = self._change(alpha * noisy - sigma * prediction, self.clean)
        else:
            raise ValueError(
                f"average_overlap=True with prediction_type={kind!r}: expected 'epsilon', 'v_prediction' or 'sample'; "
                "use average_overlap=False"
            )
        return prediction - change * torch.where(sigma > 0, 1 / sigma, 0.0)

    def _change(self, latents: Tensor, known: Tensor) -> Tensor:
        """The averages less the latents; 0 where they are known."""
        latents = torch.where(self.known, known, latents)
        return torch.where(self.known, 0.0, blend_overlaps(latents, self.fov) - latents)
