"""The training objective: one timestep per panorama, clean condition pixels, dropping, loss on the rest
(CubeDiff, sections 4.2 and 4.3).

Legend: B panoramas, 6 faces, C latent channels, h w latent size, L text tokens, D text width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cubediff.diffusion.conditions import CONDITIONS as CONDITIONS
from cubediff.models.inputs import front_mask, seen_faces, unet_input


@dataclass(frozen=True)
class Drops:
    """Which panoramas of a batch lose their text and their image."""

    text: Bool[Tensor, " b"]
    image: Bool[Tensor, " b"]

    @property
    def conditions(self) -> Int[Tensor, " b"]:
        """Which of `CONDITIONS` each panorama keeps."""
        return self.image.long() + 2 * self.text.long()


@dataclass(frozen=True)
class Objective:
    """Denoising loss of CubeDiff for a UNet whose pipeline predicts noise or velocity (its scheduler says which).

    drop_text, drop_image and drop_both are the shares of panoramas that lose only their text, only their image, or
    both; drawn for each panorama. min_snr_gamma clamps the weight of a timestep's signal-to-noise ratio (Min-SNR,
    arXiv 2303.09556; 5 is usual). offset_noise is the strength of noise that a channel of a panorama has everywhere
    (0.05 is usual); it teaches very dark and very bright pictures.
    """

    drop_text: float = 0.1
    drop_image: float = 0.1
    drop_both: float = 0.1
    min_snr_gamma: float | None = None
    offset_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0:
            raise ValueError(
                f"min_snr_gamma={self.min_snr_gamma}: give a positive number (5 is usual), or null for none"
            )
        if self.offset_noise < 0:
            raise ValueError(f"offset_noise={self.offset_noise}: give 0 (none) or a positive strength")
        shares = (self.drop_text, self.drop_image, self.drop_both)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(
                f"drop_text, drop_image, drop_both = {shares} must each be at least 0 and add up to at most 1"
            )

    def draw_drops(self, count: int, generator: torch.Generator | list[torch.Generator]) -> Drops:
        draw = _drawn(torch.rand, (count,), generator)
        both = draw < self.drop_both
        text = (draw >= self.drop_both) & (draw < self.drop_both + self.drop_text)
        image = (draw >= self.drop_both + self.drop_text) & (draw < self.drop_both + self.drop_text + self.drop_image)
        return Drops(text=both | text, image=both | image)

    def loss(
        self,
        unet: nn.Module,
        scheduler: DDPMScheduler,
        latents: Float[Tensor, "b 6 c h w"],
        text: Float[Tensor, "b 6 l d"],
        empty_text: Float[Tensor, "1 l d"],
        *,
        positions: Float[Tensor, "6 p h w"],
        generator: torch.Generator | list[torch.Generator],
        known: Float[Tensor, "b 6 c h w"] | None = None,
        mask: Float[Tensor, "b 6 1 h w"] | None = None,
        image_drop: str = "noise",
    ) -> tuple[Float[Tensor, " b"], Int[Tensor, " b"], Drops]:
        """Mean squared error of each panorama over the latent pixels that are no condition, its timestep and drops.

        The condition is `known` where `mask` is 1: by default the clean latent of the front face. A dropped image is
        noised like the rest and its mask 0 (image_drop "noise"), or stays and no query sees its face ("attention").
        Each panorama counts the same whatever it was conditioned on, so the batch's loss is their mean. A generator is
        on the latents' device; with one for each panorama its draws do not depend on the others in the batch.
        """
        batch = latents.shape[0]
        drops = self.draw_drops(batch, generator)
        timesteps = _drawn(partial(torch.randint, scheduler.config.num_train_timesteps), (batch,), generator)
        noise = _drawn(torch.randn, latents.shape, generator)
        if self.offset_noise:
            shape = (batch, 1, latents.shape[2], 1, 1)
            noise = noise + self.offset_noise * _drawn(torch.randn, shape, generator)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        velocity = scheduler.config.prediction_type == "v_prediction"
        if not velocity and scheduler.config.prediction_type != "epsilon":
            raise ValueError(f"prediction_type={scheduler.config.prediction_type!r} in the model's scheduler: "
                             "train from a model that predicts 'epsilon' or 'v_prediction'")  # fmt: skip
        target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        if known is None or mask is None:
            known, mask = latents, front_mask(latents)
        seen = {}
        if image_drop == "attention":
            seen = {"attention_mask": seen_faces(mask, drops.image)}
        else:
            mask = mask * (~drops.image).view(-1, 1, 1, 1, 1)
        text = torch.where(drops.text.view(-1, 1, 1, 1), empty_text, text)
        prediction = unet(
            unet_input(torch.where(mask.bool(), known, noisy), mask, positions),
            timesteps.repeat_interleave(6),
            encoder_hidden_states=text.flatten(0, 1),
            return_dict=False,
            **seen,
        )[0].unflatten(0, (-1, 6))
        weight = (1 - mask).expand_as(latents)
        error = (prediction.float() - target).square() * weight
        losses = error.flatten(1).sum(1) / weight.flatten(1).sum(1)
        if self.min_snr_gamma is not None:
            snr = compute_snr(scheduler, timesteps)
            losses = losses * snr.clamp(max=self.min_snr_gamma) / (snr + 1 if velocity else snr)
        return losses, timesteps, drops


def _drawn(
    draw: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator | list[torch.Generator]
) -> Tensor:
    if isinstance(generator, list):
        return torch.cat([draw((1, *shape[1:]), generator=one, device=one.device) for one in generator])
    return draw(tuple(shape), generator=generator, device=generator.device)
