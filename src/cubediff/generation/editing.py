"""The images of an edited panorama: its levels in their bit depth, and faces as fine as the panorama."""

import math

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from cubediff.generation.outputs import EditedPanorama
from cubediff.geometry.conventions import tan_half
from cubediff.geometry.projections import equirect_to_cube
from cubediff.images.canvas import Canvas
from cubediff.images.writing import to_pil

_MAX_FACE = 2048  # pixels; larger faces would make a viewer page of hundreds of megabytes


def edited_images(
    panorama: Float[Tensor, "3 h w"], canvas: Canvas, fov: float
) -> tuple[EditedPanorama, list[PIL.Image.Image]]:
    """The panorama in the bit depth of its input, and its six faces in sRGB.

    Args:
        panorama: In [−1, 1], in the colour space of its input.
        canvas: The input.
        fov: Field of view of the faces, degrees.
    """
    colours = np.ascontiguousarray(panorama.permute(1, 2, 0).float().cpu().numpy())
    white = np.iinfo(canvas.pixels.dtype).max
    levels = np.round((colours + 1) * np.float32(white / 2)).clip(0, white).astype(canvas.pixels.dtype)
    size = min(_MAX_FACE, round(canvas.height * 2 * tan_half(fov) / math.pi))  # as fine as the panorama at the centre
    srgb = torch.from_numpy(canvas.to_srgb(colours)).permute(2, 0, 1)[None]
    faces = equirect_to_cube(srgb, size, fov, mode="bicubic")[0]
    return EditedPanorama(levels, canvas.profile, canvas.pose), to_pil(faces)
