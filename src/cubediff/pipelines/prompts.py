"""Prompts and photos of a pipeline call in one form: six prompts and a list of photos for each panorama."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor

from cubediff.geometry.panoramas import Panorama
from cubediff.geometry.photos import Photo, PhotoImage
from cubediff.images.reading import read_image
from cubediff.pipelines.face_prompts import Prompt
from cubediff.pipelines.face_prompts import six_prompts as six_prompts
from cubediff.utils.errors import DataError, reason

Prompts: TypeAlias = str | Mapping[str, str] | Sequence[Prompt]  # of one or of several
AnyImage: TypeAlias = str | Path | npt.NDArray[np.generic] | PhotoImage
OneImage: TypeAlias = AnyImage | Photo | Panorama
Image: TypeAlias = OneImage | Sequence[OneImage] | Sequence[Sequence[OneImage]]

_ONE = (str, Path, np.ndarray, PIL.Image.Image, Tensor, Photo, Panorama)
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
    if isinstance(image, Photo):
        photo = image
    elif isinstance(image, str | Path):
        photo = Photo(_read(Path(image)))
    elif isinstance(image, np.ndarray):
        photo = Photo(_tensor(image))
    elif isinstance(image, PIL.Image.Image | Tensor):
        photo = Photo(image)
    else:
        raise ValueError(f"image is a {type(image).__name__}: {_SPELLINGS}")
    if isinstance(photo.picture, Tensor):
        low, high = (float(v) for v in photo.picture.aminmax()) if photo.picture.numel() else (0.0, 0.0)
        if not (math.isfinite(low) and math.isfinite(high) and low >= -1.001 and high <= 1.001):
            raise ValueError(f"image has values from {low:.3g} to {high:.3g}: scale it to [-1, 1]")
    return photo


def _read(file: Path) -> PIL.Image.Image:
    try:
        return read_image(file)
    except (OSError, DataError) as error:
        raise DataError(f"image={str(file)!r}: not a readable image ({reason(error)})") from error


def _tensor(image: npt.NDArray[np.generic]) -> Tensor:
    """A tensor (3, H, W) in [−1, 1] of an array (H, W, 3): bytes, or floats in [0, 1] as diffusers has them."""
    if image.ndim != 3 or image.shape[2] != 3 or not (image.dtype == np.uint8 or image.dtype.kind == "f"):
        raise ValueError(
            f"image is an array {image.shape} of {image.dtype}: expected (H, W, 3) or (B, H, W, 3) of uint8, or of "
            "floats in [0, 1]"
        )
    values = torch.from_numpy(image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1)).permute(2, 0, 1)
    low, high = (float(v) for v in values.aminmax()) if values.numel() else (0.0, 0.0)
    if not (low >= -0.001 and high <= 1.001):
        raise ValueError(f"image is an array with values from {low:.3g} to {high:.3g}: scale it to [0, 1]")
    return values * 2 - 1
