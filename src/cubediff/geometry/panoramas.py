"""Panoramas to edit as conditions: their kept pixels on the faces of a cube (an extension of CubeDiff, section 4.3,
which conditions on the front face).

Legend: 6 faces, S face size.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import PIL.Image
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cubediff.geometry.projections import equirect_to_cube
from cubediff.images.canvas import Canvas, open_canvas

PanoramaImage: TypeAlias = str | Path | PIL.Image.Image | np.ndarray | Tensor

_KEPT = 0.98  # of a face pixel's area must be kept; a face pixel is smaller than what the autoencoder resolves


@dataclass(frozen=True, eq=False)
class Panorama:
    """A panorama to edit: what its mask keeps stays, and the rest is repainted.

    Attributes:
        picture: The panorama: a file, a PIL image, an array (H, W, 3 or 4) of uint8, uint16 or float in [0, 1], or a
            float tensor (3, H, W) in [−1, 1]. It is twice as wide as high, or a part of such a panorama by its GPano
            tags, whose missing part is repainted. Transparent pixels are repainted. Or a `Canvas`, which has its mask.
        mask: White, at least half of the maximum, where to repaint: a file, a PIL image, an array (H, W) or a tensor
            (H, W) or (1, H, W) of bool, uint8, or float in [0, 1]; of the picture's size. None repaints transparent
            and missing pixels alone.

    Example:
        >>> picture, mask = np.zeros((64, 128, 3), np.uint8), np.zeros((64, 128), bool)
        >>> mask[32:] = True  # the lower half
        >>> faces, kept = project_panorama(Panorama(picture, mask), size=32, face_fov=95.0)
        >>> bool(kept[0].all()), bool(kept[5].any())
        (False, False)
    """

    picture: PanoramaImage | Canvas
    mask: PanoramaImage | None = None

    @cached_property
    def canvas(self) -> Canvas:
        """The pixels of the full sphere, and which are kept.

        Raises:
            ValueError: As `open_canvas`.
        """
        if isinstance(self.picture, Canvas):
            if self.mask is not None:
                raise ValueError("a Canvas has its own mask: pass it to open_canvas, and mask=None")
            return self.picture
        mask = self.mask
        if isinstance(mask, Tensor):
            mask = mask.detach().cpu().numpy()
            mask = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
        if not isinstance(self.picture, Tensor):
            return open_canvas(self.picture, mask)
        picture = self.picture
        if picture.ndim != 3 or picture.shape[0] != 3 or picture.numel() == 0:
            raise ValueError(f"the panorama is a tensor {tuple(picture.shape)}: expected (3, H, W) in [-1, 1]")
        array = picture.detach().float().cpu().permute(1, 2, 0).numpy()
        return open_canvas(array, mask, float_range=(-1.0, 1.0))


def project_panorama(
    panorama: Panorama, size: int, face_fov: float
) -> tuple[Float[Tensor, "6 3 s s"], Bool[Tensor, "6 1 s s"]]:
    """Projects a panorama to edit onto the faces.

    Args:
        panorama: The panorama.
        size: Face size S in pixels.
        face_fov: Field of view of the faces, degrees.

    Returns:
        Faces in [−1, 1], in which the pixels to repaint have the colours of the nearest kept ones; and the face pixels
        that show kept ones alone.
    """
    canvas = panorama.canvas
    pixels = torch.from_numpy(canvas.condition()).permute(2, 0, 1)
    faces = equirect_to_cube(pixels[None], size, face_fov, mode="bicubic")[0].clamp(-1, 1)
    kept = torch.from_numpy(canvas.kept).float()[None, None]
    return faces, equirect_to_cube(kept, size, face_fov)[0] > _KEPT
