"""The network's input channels in addition to the noisy latents: position map and mask (CubeDiff, sections 4.2, 4.3).

Legend: B panoramas, 6 faces, C latent channels, P position channels, h w latent size, S face size.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from cubediff.geometry.conventions import FACES, position_map

POSITION_CHANNELS = {"uv": 2, "uv_pi": 2, "xyz": 3}


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # a map that is first requested while sampling must serve training too
def positions(
    size: int, fov: float, encoding: str, samples: str = "centers", device: torch.device | None = None
) -> Float[Tensor, "6 p s s"]:
    """`position_map`, cached on the device."""
    return position_map(size, fov, encoding, samples).to(device)


def input_channels(latent_channels: int, encoding: str) -> int:
    """Number of input channels of a CubeDiff network: latents, position map, mask.

    Args:
        latent_channels: Channels of the latents.
        encoding: Position encoding, see `position_map`.

    Raises:
        ValueError: If `encoding` is unknown.
    """
    if encoding not in POSITION_CHANNELS:
        raise ValueError(f"position_encoding={encoding!r}: use one of {', '.join(POSITION_CHANNELS)}")
    return latent_channels + POSITION_CHANNELS[encoding] + 1


def unet_input(
    latents: Float[Tensor, "b 6 c h w"], mask: Float[Tensor, "b 6 1 h w"], positions: Float[Tensor, "6 p h w"]
) -> Float[Tensor, "b6 i h w"]:
    """Concatenates latents, position map and mask (1 = clean condition) and folds the faces into the batch."""
    expanded = positions.to(latents.dtype).expand(latents.shape[0], -1, -1, -1, -1)
    return torch.cat([latents, expanded, mask.to(latents.dtype)], dim=2).flatten(0, 1)


def front_mask(latents: Float[Tensor, "b 6 c h w"]) -> Float[Tensor, "b 6 1 h w"]:
    """1 on the front face, whose clean latent is the condition, and 0 elsewhere."""
    mask = torch.zeros_like(latents[:, :, :1])
    mask[:, 0] = 1
    return mask


def hidden_faces(mask: Float[Tensor, "b 6 1 h w"] | None, dropped: Bool[Tensor, " b"]) -> Bool[Tensor, "b 6"]:
    """The faces with a condition of the `dropped` panoramas: with image_drop="attention" no query attends to them.

    Args:
        mask: 1 on latent pixels of the condition; reading it synchronizes with its device. None for the front face.
        dropped: Panoramas without their image, on the CPU.

    Returns:
        The hidden faces, on the CPU.
    """
    conditioned = torch.arange(len(FACES)) == 0 if mask is None else mask.flatten(2).any(-1).cpu()
    return conditioned & dropped[:, None]


def latent_mask(covered: Bool[Tensor, "b 6 1 s s"], scale: int) -> Float[Tensor, "b 6 1 h w"]:
    """1 on latent pixels whose `scale` × `scale` face pixels are all covered, 0 elsewhere."""
    uncovered: Tensor = F.max_pool2d((~covered).flatten(0, 1).float(), scale).unflatten(0, (-1, 6))
    return 1 - uncovered
