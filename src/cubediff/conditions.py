"""What a panorama is made from, as people give it: prompts become six texts each, photos become front faces
(CubeDiff, section 4.3: text and image conditioning)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from cubediff.geometry import FACES

Prompt = str | Sequence[str] | Mapping[str, str]
Photo = PIL.Image.Image | Tensor


def prompts_by_panorama(prompt: Any) -> list[list[str]]:
    """Six texts for each panorama."""
    if prompt is None:
        return [[""] * 6]
    if isinstance(prompt, str):
        return [_six(prompt)]
    if isinstance(prompt, Mapping) or all(isinstance(p, str) for p in prompt):
        return [_six(prompt)]
    return [_six(one) for one in prompt]


def _six(prompt: Prompt) -> list[str]:
    if isinstance(prompt, str):
        texts = [prompt] * 6
    elif isinstance(prompt, Mapping):
        if set(prompt) != set(FACES):
            raise ValueError(f"prompts for the faces {sorted(prompt)}: give one for each of {', '.join(FACES)}")
        texts = [prompt[face] for face in FACES]
    else:
        texts = list(prompt)
        if len(texts) != 6:
            raise ValueError(f"{len(texts)} prompts for one panorama: give one, or six ({', '.join(FACES)})")
    if any(not text.strip() for text in texts):
        raise ValueError("a prompt is empty: write what the panorama shows, or give prompt=None for none")
    return texts


def front_photos(image: Photo, size: int) -> Tensor:
    """(B, 3, S, S) in [−1, 1] of a photo; one that has the size already passes through unchanged."""
    if isinstance(image, PIL.Image.Image):
        if image.mode[0] in "IF":  # convert() would cut everything above 255 off
            raise ValueError(f"image has mode {image.mode!r}, more than 8 bits a channel: save it as 8-bit RGB")
        image = image.convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        if side != size:
            image = image.resize((size, size), PIL.Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    photos = image[None] if image.ndim == 3 else image
    if photos.ndim != 4 or photos.shape[1:] != (3, size, size):
        raise ValueError(
            f"image is {tuple(image.shape)}: give (3, {size}, {size}) or (B, 3, {size}, {size}) in [-1, 1]"
        )
    low, high = photos.aminmax()
    if not (math.isfinite(low) and math.isfinite(high) and low >= -1.001 and high <= 1.001):
        raise ValueError(f"image has values from {low:.3g} to {high:.3g}: scale it to [-1, 1]")
    return photos.float()
