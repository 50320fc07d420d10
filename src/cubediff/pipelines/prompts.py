"""Prompts and photos as users pass them to the pipeline, in one form: six prompts and a list of photos per panorama."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image
from torch import Tensor

from cubediff.geometry.conventions import FACES
from cubediff.geometry.photos import Photo, Picture

Prompt = str | Sequence[str] | Mapping[str, str]


Image = Picture | Photo | Sequence[Picture | Photo] | Sequence[Sequence[Picture | Photo]]


def prompts_by_panorama(prompt: Any) -> list[list[str]]:
    """Six texts for each panorama."""
    if prompt is None:
        return [[""] * 6]
    if isinstance(prompt, str):
        return [six_prompts(prompt)]
    if isinstance(prompt, Mapping) or all(isinstance(p, str) for p in prompt):
        return [six_prompts(prompt)]
    return [six_prompts(one) for one in prompt]


def six_prompts(prompt: Prompt) -> list[str]:
    """A text for each face, in FACES order."""
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


def photos_by_panorama(image: Any) -> list[list[Photo]]:
    """One or more photos for each panorama, of an image as CubeDiffPipeline takes it."""
    if isinstance(image, Tensor) and image.ndim == 4:
        return [[_photo(one)] for one in image]
    if isinstance(image, PIL.Image.Image | Tensor | Photo):
        return [[_photo(image)]]
    if not image:
        raise ValueError("image is an empty list: give a photo, or image=None for none")
    if all(isinstance(one, PIL.Image.Image | Tensor | Photo) for one in image):
        return [[_photo(one) for one in image]]
    return [[_photo(one) for one in photos] for photos in image]


def _photo(image: Picture | Photo) -> Photo:
    photo = image if isinstance(image, Photo) else Photo(image)
    if isinstance(photo.picture, Tensor):
        low, high = photo.picture.aminmax() if photo.picture.numel() else (0, 0)
        if not (math.isfinite(low) and math.isfinite(high) and low >= -1.001 and high <= 1.001):
            raise ValueError(f"image has values from {low:.3g} to {high:.3g}: scale it to [-1, 1]")
    return photo
