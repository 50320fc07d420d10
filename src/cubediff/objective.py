"""The training objective: one timestep per panorama, clean condition pixels, dropping, loss on the rest
(CubeDiff, sections 4.2 and 4.3).

Legend: B panoramas, 6 faces, C latent channels, h w latent size, L text tokens, D text width.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from diffusers import DDPMScheduler
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cubediff.geometry import position_map

POSITION_CHANNELS = {"uv": 2, "uv_pi": 2, "xyz": 3}


@lru_cache(maxsize=8)
def _positions(size: int, fov: float, encoding: str, device: torch.device) -> Float[Tensor, "6 p s s"]:
    return position_map(size, fov, encoding).to(device)


def input_channels(latent_channels: int, encoding: str) -> int:
    """Channels of the CubeDiff UNet's input: latents, position map, mask."""
    if encoding not in POSITION_CHANNELS:
        raise ValueError(f"position_encoding={encoding!r}: use one of {', '.join(POSITION_CHANNELS)}")
    return latent_channels + POSITION_CHANNELS[encoding] + 1


def unet_input(
    latents: Float[Tensor, "b 6 c h w"], mask: Float[Tensor, "b 6 1 h w"], fov: float, encoding: str
) -> Float[Tensor, "b6 p h w"]:
    """Latents, position map and mask (1 = clean condition) as the UNet takes them, (B·6, C + positions + 1, h, w)."""
    positions = _positions(latents.shape[-1], fov, encoding, latents.device)
    positions = positions.to(latents.dtype).expand(latents.shape[0], -1, -1, -1, -1)
    return torch.cat([latents, positions, mask.to(latents.dtype)], dim=2).flatten(0, 1)


def front_mask(latents: Float[Tensor, "b 6 c h w"]) -> Float[Tensor, "b 6 1 h w"]:
    """1 on the front face, whose clean latent is the condition, and 0 elsewhere."""
    mask = torch.zeros_like(latents[:, :, :1])
    mask[:, 0] = 1
    return mask


@dataclass(frozen=True)
class Drops:
    """Which panoramas of a batch lose their text and their image."""

    text: Bool[Tensor, " b"]
    image: Bool[Tensor, " b"]


@dataclass(frozen=True)
class Objective:
    """Denoising loss of CubeDiff for a UNet whose pipeline predicts noise or velocity (its scheduler says which).

    drop_text, drop_image and drop_both are the shares of panoramas that lose only their text, only their image
    (the front face is then noised like the others and its mask is 0), or both; drawn for each panorama.
    """

    drop_text: float = 0.1
    drop_image: float = 0.1
    drop_both: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.drop_text, self.drop_image, self.drop_both)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(
                f"drop_text, drop_image, drop_both = {shares} must each be at least 0 and add up to at most 1"
            )

    def draw_drops(self, count: int, generator: torch.Generator) -> Drops:
        draw = torch.rand(count, generator=generator, device=generator.device)
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
        fov: float,
        encoding: str,
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, " b"], Int[Tensor, " b"], Drops]:
        """Mean squared error of each panorama over the latent pixels that are no condition, its timestep and drops.

        Each panorama counts the same whatever it was conditioned on, so the batch's loss is their mean.
        """
        batch, device = latents.shape[0], latents.device
        drops = self.draw_drops(batch, generator)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (batch,), generator=generator, device=device)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        if scheduler.config.prediction_type == "v_prediction":
            target = scheduler.get_velocity(latents, noise, timesteps)
        elif scheduler.config.prediction_type == "epsilon":
            target = noise
        else:
            raise ValueError(f"prediction_type={scheduler.config.prediction_type!r} in the model's scheduler: "
                             "train from a model that predicts 'epsilon' or 'v_prediction'")  # fmt: skip
        mask = front_mask(latents) * (~drops.image).view(-1, 1, 1, 1, 1)
        text = torch.where(drops.text.view(-1, 1, 1, 1), empty_text, text)
        prediction = unet(
            unet_input(torch.where(mask.bool(), latents, noisy), mask, fov, encoding),
            timesteps.repeat_interleave(6),
            encoder_hidden_states=text.flatten(0, 1),
            return_dict=False,
        )[0].unflatten(0, (-1, 6))
        weight = (1 - mask).expand_as(latents)
        error = (prediction.float() - target).square() * weight
        return error.flatten(1).sum(1) / weight.flatten(1).sum(1), timesteps, drops
