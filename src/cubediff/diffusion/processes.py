"""Noising processes: how noise is added to latents, and the network's training target.

Legend: B panoramas, 6 faces, C latent channels, h w latent size.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import torch
from diffusers import DDPMScheduler
from diffusers.schedulers import SchedulerMixin
from diffusers.training_utils import compute_snr
from jaxtyping import Float, Shaped
from torch import Tensor

from cubediff.diffusion.random import Generators, draw


class NoisingProcess(ABC):
    """A noising process on the noise schedule of a pipeline's scheduler.

    Attributes:
        num_timesteps: Timesteps lie in [0, num_timesteps), the largest with the most noise.
        predicts_velocity: Whether the training target is a velocity rather than the noise.
    """

    num_timesteps: int
    predicts_velocity: bool

    @abstractmethod
    def sample_noise(self, latents: Float[Tensor, "b 6 c h w"], generator: Generators) -> Float[Tensor, "b 6 c h w"]:
        """Draws the noise for clean latents."""

    @abstractmethod
    def add_noise(
        self, latents: Float[Tensor, "b 6 c h w"], noise: Float[Tensor, "b 6 c h w"], timesteps: Shaped[Tensor, " b"]
    ) -> Float[Tensor, "b 6 c h w"]:
        """Adds noise to clean latents.

        Args:
            latents: Clean latents.
            noise: Noise from `sample_noise`.
            timesteps: One timestep for each panorama.

        Returns:
            Noisy latents, in the shape of `latents`.
        """

    @abstractmethod
    def target(
        self, latents: Float[Tensor, "b 6 c h w"], noise: Float[Tensor, "b 6 c h w"], timesteps: Shaped[Tensor, " b"]
    ) -> Float[Tensor, "b 6 c h w"]:
        """The training target of the network, such as noise or velocity; arguments as in `add_noise`."""

    @abstractmethod
    def snr(self, timesteps: Shaped[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Signal-to-noise ratios."""


@dataclass(frozen=True)
class GaussianDiffusion:
    """Variance-preserving diffusion (DDPM, arXiv 2006.11239) with noise or velocity (arXiv 2202.00512) as the target.

    Attributes:
        offset_noise: Strength of the noise that is constant over a channel of a panorama (typically 0.05; 0 for none).
            It helps the model to generate very dark and very bright images.

    Raises:
        ValueError: If `offset_noise` is negative.
    """

    offset_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.offset_noise < 0:
            raise ValueError(f"offset_noise={self.offset_noise}: expected 0 (none) or a positive strength")

    def __call__(self, scheduler: SchedulerMixin) -> NoisingProcess:
        """The process on the noise schedule of `scheduler`, which also defines the prediction type.

        Raises:
            ValueError: If the scheduler's prediction_type is neither "epsilon" nor "v_prediction".
        """
        return _DDPM(DDPMScheduler.from_config(scheduler.config), self.offset_noise)


class _DDPM(NoisingProcess):
    def __init__(self, scheduler: DDPMScheduler, offset_noise: float) -> None:
        prediction = scheduler.config.prediction_type
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type={prediction!r} in the model's scheduler: "
                             "train from a model that predicts 'epsilon' or 'v_prediction'")  # fmt: skip
        self.scheduler = scheduler
        self.offset_noise = offset_noise
        self.num_timesteps = scheduler.config.num_train_timesteps
        self.predicts_velocity = prediction == "v_prediction"

    def sample_noise(self, latents: Float[Tensor, "b 6 c h w"], generator: Generators) -> Float[Tensor, "b 6 c h w"]:
        noise = draw(torch.randn, latents.shape, generator)
        if self.offset_noise:
            shape = (latents.shape[0], 1, latents.shape[2], 1, 1)
            noise = noise + self.offset_noise * draw(torch.randn, shape, generator)
        return noise

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return cast(Tensor, self.scheduler.add_noise(latents, noise, timesteps))

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return cast(Tensor, self.scheduler.get_velocity(latents, noise, timesteps)) if self.predicts_velocity else noise

    def snr(self, timesteps: Tensor) -> Tensor:
        return cast(Tensor, compute_snr(self.scheduler, timesteps))
