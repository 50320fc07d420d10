"""Prompts and photos of a pipeline call in one form: six prompts and a list of photos for each panorama."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import PIL.Image
from torch import Tensor

from cubediff.geometry.panoramas import Panorama
from cubediff.geometry.photos import AnyImage, Photo
from cubediff.pipelines.face_prompts import Prompt
from cubediff.pipelines.face_prompts import six_prompts as six_prompts

Prompts: TypeAlias = str | Mapping[str, str] | Sequence[Prompt]  # of one or of several
OneImage: TypeAlias = AnyImage | Photo | Panorama
Image: TypeAlias = OneImage | Sequence[OneImage] | Sequence[Sequence[OneImage]]

_PICTURES = (str, Path, np.ndarray, PIL.Image.Image, Tensor)
_ONE = (*_PICTURES, Photo, Panorama)
_SPELLINGS = (
    "pass image=[a, b] for two panoramas with a photo each, or image=[[a, b]] or image=[Photo(a), Photo(b)] for one "
    "panorama with both"
)


def prompts_by_panorama(prompt: object, allow_empty: bool = False) -> list[list[str]]:
    """Six prompts for each panorama, in the order of `FACES`; empty ones for None.

    Args:
        prompt: See `CubePipeline.__call__`.
        allow_empty: Whether texts may be empty.

    Raises:
        ValueError: As `six_prompts`.
    """
    if prompt is None:
        return [[""] * 6]
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return [six_prompts(prompt, allow_empty)]
    if not prompt:
        raise ValueError("prompt is an empty list: pass one text for each panorama, or prompt=None for no text")
    return [six_prompts(one, allow_empty) for one in prompt]


def photos_by_panorama(image: object) -> list[list[Photo | Panorama]]:
    """One or more photos for each panorama, or a panorama to edit, or both.

    Args:
        image: See `CubePipeline.__call__`.

    Raises:
        ValueError: If there is no photo, a value is out of range, or a list holds photos in a form that is neither one
            for each panorama nor several of one.
        DataError: If a file cannot be read.
    """
    if isinstance(image, Tensor | np.ndarray) and image.ndim == 4:
        return [[_photo(one)] for one in image]
    if isinstance(image, _ONE):
        return [[_photo(image)]]
    if not isinstance(image, Sequence):
        raise ValueError(f"image is a {type(image).__name__}: {_SPELLINGS}")
    if not image:
        raise ValueError("image is an empty list: pass a photo, or image=None for none")
    if all(isinstance(one, Photo | Panorama) for one in image) and any(isinstance(one, Photo) for one in image):
        return [[_photo(one) for one in image]]
    if all(isinstance(one, list | tuple) for one in image):
        if not all(image):
            raise ValueError("image has an empty list for a panorama: pass a photo for each of them, or image=None")
        return [[_photo(one) for one in photos] for photos in image]
    if all(isinstance(one, _ONE) and not isinstance(one, Photo) for one in image):
        return [[_photo(one)] for one in image]
    kinds = ", ".join(dict.fromkeys(type(one).__name__ for one in image))
    raise ValueError(f"image is a list of {kinds}: {_SPELLINGS}")


def _photo(image: object) -> Photo | Panorama:
    if isinstance(image, Panorama):
        return image
    if not isinstance(image, (*_PICTURES, Photo)):
        raise ValueError(f"image is a {type(image).__name__}: {_SPELLINGS}")
    photo = image if isinstance(image, Photo) else Photo(image)
    picture = photo.image  # raises errors before anything is computed
    if isinstance(picture, Tensor):
        low, high = (float(v) for v in picture.detach().aminmax()) if picture.numel() else (0.0, 0.0)
        if not (math.isfinite(low) and math.isfinite(high) and low >= -1.001 and high <= 1.001):
            raise ValueError(f"image has values from {low:.3g} to {high:.3g}: scale it to [-1, 1]")
    return photo
