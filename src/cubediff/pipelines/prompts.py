"""Prompts and photos of a pipeline call in one form: six prompts and a list of photos for each panorama."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import PIL.Image
from torch import Tensor

from cubediff.geometry.conventions import FACES
from cubediff.geometry.panoramas import Panorama
from cubediff.geometry.photos import Photo, PhotoImage
from cubediff.utils.text import is_unicode, printable

Prompt: TypeAlias = str | Sequence[str] | Mapping[str, str]  # of one panorama
Prompts: TypeAlias = Prompt | Sequence[Sequence[str] | Mapping[str, str]]  # of one or of several
OneImage: TypeAlias = PhotoImage | Photo | Panorama
Image: TypeAlias = OneImage | Sequence[OneImage] | Sequence[Sequence[OneImage]]


def prompts_by_panorama(prompt: Prompts | None, allow_empty: bool = False) -> list[list[str]]:
    """Six prompts for each panorama, in the order of `FACES`; empty ones for None.

    Args:
        prompt: See `CubePipeline.__call__`.
        allow_empty: Whether texts may be empty.

    Raises:
        ValueError: As `six_prompts`.
    """
    if prompt is None:
        return [[""] * 6]
    if isinstance(prompt, str | Mapping) or all(isinstance(p, str) for p in prompt):
        return [six_prompts(cast(Prompt, prompt), allow_empty)]
    return [six_prompts(one, allow_empty) for one in prompt]


def six_prompts(prompt: Prompt, allow_empty: bool = False) -> list[str]:
    """One prompt per face, in the order of `FACES`.

    Args:
        prompt: One text for all faces, six texts, or a dict from face name to text.
        allow_empty: Whether texts may be empty.

    Raises:
        ValueError: If there are not six texts, or one is empty or no Unicode text.

    Example:
        >>> six_prompts("a meadow")
        ['a meadow', 'a meadow', 'a meadow', 'a meadow', 'a meadow', 'a meadow']
    """
    if isinstance(prompt, str):
        texts = [prompt] * 6
    elif isinstance(prompt, Mapping):
        if set(prompt) != set(FACES):
            raise ValueError(f"prompts for the faces {sorted(prompt)}: pass one for each of {', '.join(FACES)}")
        texts = [prompt[face] for face in FACES]
    else:
        texts = list(prompt)
        if len(texts) != 6:
            raise ValueError(f"{len(texts)} prompts for one panorama: pass one, or six ({', '.join(FACES)})")
    if not allow_empty and any(not text.strip() for text in texts):
        raise ValueError("a prompt is empty: describe the panorama, or set prompt=None for no text")
    for text in texts:
        if not is_unicode(text):
            raise ValueError(f"the prompt {printable(text)!r} is no valid Unicode text: type it in UTF-8")
    return texts


def photos_by_panorama(image: Image) -> list[list[Photo | Panorama]]:
    """One or more photos for each panorama, or a panorama to edit, or both.

    Raises:
        ValueError: If there is no photo, or a tensor's values are not in [−1, 1].
    """
    if isinstance(image, Tensor) and image.ndim == 4:
        return [[_photo(one)] for one in image]
    if isinstance(image, PIL.Image.Image | Tensor | Photo | Panorama):
        return [[_photo(image)]]
    if not image:
        raise ValueError("image is an empty list: pass a photo, or image=None for none")
    if all(isinstance(one, PIL.Image.Image | Tensor | Photo | Panorama) for one in image):
        return [[_photo(cast(OneImage, one)) for one in image]]
    return [[_photo(one) for one in photos] for photos in cast(Sequence[Sequence[OneImage]], image)]


def _photo(image: OneImage) -> Photo | Panorama:
    if isinstance(image, Panorama):
        return image
    photo = image if isinstance(image, Photo) else Photo(image)
    if isinstance(photo.picture, Tensor):
        low, high = (float(v) for v in photo.picture.aminmax()) if photo.picture.numel() else (0.0, 0.0)
        if not (math.isfinite(low) and math.isfinite(high) and low >= -1.001 and high <= 1.001):
            raise ValueError(f"image has values from {low:.3g} to {high:.3g}: scale it to [-1, 1]")
    return photo
