"""Corruptions of real panoramas: of their six faces, of the panorama that the faces are cut from, or of the set.

Legend: N panoramas, 6 faces, S face size, H and W height and width of a panorama. Pixels are in [0, 1].
"""

import io
import math

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from cubediff.geometry import cube_to_equirect, equirect_to_cube
from cubediff.images.writing import encode_jpeg

SIZE, FOV = 128, 95.0
# Strengths of each corruption.
FACES_FIRST: dict[str, tuple[float, ...]] = {  # panoramas are blended from the corrupted faces
    "brightness": (0.02, 0.05, 0.1, 0.2, 0.4),  # added to the front face, of [0, 1]
    "blur_face": (1, 2, 3, 5, 8),  # standard deviation of a Gaussian on the front face, pixels
    "shift": (1, 2, 4, 8, 16),  # columns by which the front face is rolled
    "flip": (0.2, 0.4, 0.6, 0.8, 1),  # share of the panoramas whose front face is flipped left to right
    "noise": (0.01, 0.02, 0.05, 0.1, 0.2),  # standard deviation, independent for each pixel of all faces
    "grey": (0.2, 0.4, 0.6, 0.8, 0.95),  # blend of all faces with 0.5
}
PANORAMA_FIRST: dict[str, tuple[float, ...]] = {  # faces are cut from the corrupted panorama
    "jpeg": (80, 50, 30, 15, 5),  # quality of the panorama
    "blur": (0.25, 0.5, 1, 2, 4),  # standard deviation of a Gaussian on the panorama, degrees of longitude
    "ramp": (0.02, 0.05, 0.1, 0.15, 0.2),  # brightness that rises from the left to the right border
    "cut": (0.5, 1, 2, 4, 8),  # degrees cut off at the right border; the rest is resized to the width
}
OF_THE_SET: dict[str, tuple[float, ...]] = {
    "scenes": (0.8, 0.6, 0.4, 0.2, 0.1),  # share of the scenes, which are repeated to as many panoramas
}
STRENGTHS = {**FACES_FIRST, **PANORAMA_FIRST, **OF_THE_SET}


class Corruptor:
    """Makes corrupted sets of faces and panoramas.

    Args:
        panoramas: Clean panoramas (1, 3, H, W).
    """

    def __init__(self, panoramas: list[Tensor]) -> None:
        self.panoramas, self.faces = panoramas, faces_of(panoramas)

    def __call__(self, kind: str, strength: float | None) -> tuple[Tensor, list[Tensor]]:
        """The faces (N, 6, 3, S, S) and panoramas of a corruption; without a strength, those of its clean set."""
        if kind in FACES_FIRST:
            faces = self.faces if strength is None else corrupted_faces(kind, strength, self.faces)
            return faces, list(cube_to_equirect(faces, 2 * SIZE, FOV).split(1))
        if kind in OF_THE_SET or strength is None:
            return self.faces, self.panoramas
        panoramas = [corrupted_panorama(kind, strength, panorama) for panorama in self.panoramas]
        return faces_of(panoramas), panoramas


def faces_of(panoramas: list[Tensor]) -> Tensor:
    return torch.cat([equirect_to_cube(panorama, SIZE, FOV, mode="bilinear") for panorama in panoramas])


def corrupted_faces(kind: str, strength: float, faces: Tensor) -> Tensor:
    """Corrupts faces (N, 6, 3, S, S)."""
    out = faces.clone()
    front = out[:, 0]  # changed in place
    if kind == "brightness":
        front += strength
    elif kind == "blur_face":
        front.copy_(_blurred(front, strength, "reflect"))
    elif kind == "shift":
        front.copy_(front.roll(int(strength), -1))
    elif kind == "flip":
        some = front[: round(strength * len(faces))]
        some.copy_(some.flip(-1))
    elif kind == "noise":
        out += strength * torch.randn(faces.shape, generator=torch.Generator().manual_seed(0))
    else:
        out.lerp_(torch.full_like(out, 0.5), strength)
    return out.clamp_(0, 1)


def corrupted_panorama(kind: str, strength: float, panorama: Tensor) -> Tensor:
    """Corrupts a panorama (1, 3, H, W)."""
    height, width = panorama.shape[-2:]
    if kind == "jpeg":
        pixels = (panorama[0] * 255).round().byte().permute(1, 2, 0).numpy()
        with PIL.Image.open(io.BytesIO(encode_jpeg(pixels, int(strength)))) as image:
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    if kind == "blur":
        return _blurred(panorama, strength * width / 360, "circular")
    if kind == "ramp":
        return (panorama + strength * (torch.arange(width) / (width - 1) - 0.5)).clamp(0, 1)
    kept = panorama[..., : width - round(strength * width / 360)]
    return F.interpolate(kept, (height, width), mode="bilinear", antialias=True)


def _blurred(images: Tensor, sigma: float, columns: str) -> Tensor:
    """Filters images (N, 3, H, W) by a Gaussian; `columns` pads the left and right border."""
    reach = math.ceil(4 * sigma)
    kernel = torch.exp(-((torch.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    rows = F.conv2d(F.pad(images, (reach, reach, 0, 0), mode=columns), kernel, groups=3)
    return F.conv2d(F.pad(rows, (0, 0, reach, reach), mode="replicate"), kernel.mT, groups=3)
