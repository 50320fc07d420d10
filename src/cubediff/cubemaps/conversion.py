"""Converts between panoramas, six faces and pinhole views, in the bit depth of the input, with one interpolation.

Levels are interpolated bicubically, radiance bilinearly, because bicubic weights make negative radiance beside lamps.
Colours of transparent pixels do not bleed: colours are weighted by alpha.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from cubediff.cubemaps.layouts import Cube
from cubediff.geometry.conventions import FACES, tan_half
from cubediff.geometry.cubes import cube_to_cube, cube_to_perspective
from cubediff.geometry.perspective import equirect_to_perspective, perspective_to_cube, perspective_to_equirect
from cubediff.geometry.projections import cube_to_equirect, equirect_to_cube
from cubediff.images.pictures import Pixels, full_value, to_pixels
from cubediff.utils.errors import DataError

MAX_SIDE = 32768  # pixels of a result


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: horizontal field of view, and direction as in `rotation_matrix`, in degrees.

    Raises:
        DataError: If a value is not finite, or the field of view is not between 0° and 180°.
    """

    fov: float = 90.0
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.fov < 180:
            raise DataError(f"a camera with a field of view of {self.fov:g}°: expected more than 0° and less than 180°")
        for name in ("yaw", "pitch", "roll"):
            if not math.isfinite(getattr(self, name)):
                raise DataError(f"a camera with a {name} of {getattr(self, name)}: expected degrees")


@dataclass(frozen=True)
class PanoramaImage:
    """An equirectangular image of the full sphere."""

    pixels: Pixels


@dataclass(frozen=True)
class CubeImages:
    """Six upright faces and their field of view, in degrees."""

    cube: Cube
    fov: float


@dataclass(frozen=True)
class ViewImage:
    """A pinhole image and its camera."""

    pixels: Pixels
    camera: Camera


Sphere: TypeAlias = PanoramaImage | CubeImages | ViewImage


def to_panorama(sphere: Sphere, height: int | None = None) -> PanoramaImage:
    """Projects to a panorama.

    Args:
        sphere: Where the pixels come from. What a view does not show becomes transparent.
        height: Height of the panorama, in pixels; None: as fine as the centre of a face or view.

    Raises:
        DataError: If the result would be too large, or a panorama is to be scaled.
    """
    if isinstance(sphere, PanoramaImage):
        if height not in (None, len(sphere.pixels)):
            raise DataError(f"a panorama of {len(sphere.pixels)} rows is not scaled to {height}: omit the height")
        return sphere
    if isinstance(sphere, CubeImages):
        size = len(sphere.cube[FACES[0]])
        height = _checked(height or round(2 * size / tan_half(sphere.fov)), "height", 2)
        faces = _stack(sphere.cube)
        return PanoramaImage(_array(cube_to_equirect(faces, height, sphere.fov, mode=_mode(sphere)), sphere))
    camera = sphere.camera
    finest = math.pi * sphere.pixels.shape[1] / (2 * tan_half(camera.fov))
    height = _checked(height or round(finest), "height", 2)
    angles = camera.yaw, camera.pitch, camera.roll
    return PanoramaImage(
        _masked(perspective_to_equirect(_opaque(sphere), height, camera.fov, *angles, mode=_mode(sphere)), sphere)
    )


def to_cube(sphere: Sphere, fov: float = 90.0, size: int | None = None) -> CubeImages:
    """Projects to six faces.

    Args:
        sphere: As in `to_panorama`. Faces of this size and field of view keep their pixels.
        fov: Field of view of a face, in degrees.
        size: Side of a face, in pixels; None: a quarter of a panorama's width at 90°, that of given faces, or as fine
            as the centre of a view.

    Raises:
        DataError: If the result would be too large.
    """
    size = _checked(size or face_size(sphere, fov), "face size")
    mode = _mode(sphere)
    if isinstance(sphere, CubeImages):
        if (size, fov) == (len(sphere.cube[FACES[0]]), sphere.fov):
            return sphere
        return CubeImages(_unstack(cube_to_cube(_stack(sphere.cube), size, fov, sphere.fov, mode=mode), sphere), fov)
    if isinstance(sphere, PanoramaImage):
        return CubeImages(_unstack(equirect_to_cube(_tensor(sphere.pixels), size, fov, mode=mode), sphere), fov)
    camera = sphere.camera
    angles = camera.yaw, camera.pitch, camera.roll
    faces, mask = perspective_to_cube(_opaque(sphere), size, fov, camera.fov, *angles, mode=mode)
    return CubeImages({face: _masked((faces[:, k], mask[:, k]), sphere) for k, face in enumerate(FACES)}, fov)


def face_size(sphere: Sphere, fov: float) -> int:
    """Side of faces that are as fine as a sphere, in pixels; that of given faces."""
    if isinstance(sphere, CubeImages):
        return len(sphere.cube[FACES[0]])
    width: int = sphere.pixels.shape[1]
    return round(width * tan_half(fov) / (4 if isinstance(sphere, PanoramaImage) else tan_half(sphere.camera.fov)))


def to_view(sphere: Sphere, camera: Camera, width: int | None = None, height: int | None = None) -> ViewImage:
    """Renders a pinhole view.

    Args:
        sphere: A panorama or faces.
        camera: The camera.
        width: Width of the view, in pixels; None: as fine as the panorama or face at its centre.
        height: Height of the view, in pixels; None: its width.

    Raises:
        DataError: If `sphere` is a view, or the result would be too large.
    """
    if isinstance(sphere, ViewImage):
        raise DataError("a view of a view: convert it to a panorama first")
    tan = tan_half(camera.fov)
    if isinstance(sphere, CubeImages):
        finest = len(sphere.cube[FACES[0]]) * tan / tan_half(sphere.fov)
    else:
        finest = sphere.pixels.shape[1] * tan / math.pi
    width = _checked(width or round(finest), "width")
    size = _checked(height or width, "height"), width
    angles = camera.yaw, camera.pitch, camera.roll
    mode = _mode(sphere)
    if isinstance(sphere, CubeImages):
        view = cube_to_perspective(_stack(sphere.cube), size, camera.fov, *angles, face_fov=sphere.fov, mode=mode)
    else:
        view = equirect_to_perspective(_tensor(sphere.pixels), size, camera.fov, *angles, mode=mode)
    return ViewImage(_array(view, sphere), camera)


def example_pixels(sphere: Sphere) -> Pixels:
    """The pixels of the image, or of a face."""
    return sphere.cube[FACES[0]] if isinstance(sphere, CubeImages) else sphere.pixels


def _checked(side: int, name: str, factor: int = 1) -> int:
    if not 1 <= side <= MAX_SIDE // factor:
        raise DataError(f"a {name} of {side} pixels: expected 1 to {MAX_SIDE // factor}; pass a smaller one")
    return side


def _mode(sphere: Sphere) -> str:
    return "bilinear" if example_pixels(sphere).dtype == np.float32 else "bicubic"


def _tensor(pixels: Shaped[np.ndarray, "*b h w c"]) -> Tensor:
    """Pixels (…, H, W, C) as a tensor (B, C, H, W) or (B, 6, C, S, S); colours are multiplied by alpha."""
    if pixels.shape[-1] == 4:
        values = pixels.astype(np.float32)
        values[..., :3] *= values[..., 3:] / np.float32(full_value(pixels.dtype))
    else:
        values = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, -3)))[None]


def _array(image: Tensor, sphere: Sphere) -> Pixels:
    """The only image of a tensor (1, C, H, W) in the dtype of the source; the inverse of `_tensor`."""
    dtype = example_pixels(sphere).dtype
    values = np.ascontiguousarray(np.moveaxis(image[0].numpy(), -3, -1))
    if values.dtype == dtype and values.shape[-1] == 3:
        return values
    values = values.astype(np.float32)
    if values.shape[-1] == 4:
        full = np.float32(full_value(dtype))
        alpha = values[..., 3:].clip(0, full)
        values = np.concatenate([values[..., :3] * full / np.maximum(alpha, 1e-6 * full), alpha], -1)
        values[..., :3][alpha[..., 0] == 0] = 0
    return to_pixels(values, dtype)


def _stack(cube: Cube) -> Tensor:
    return _tensor(np.stack([cube[face] for face in FACES]))


def _unstack(faces: Tensor, sphere: Sphere) -> Cube:
    return {face: _array(faces[:, number], sphere) for number, face in enumerate(FACES)}


def _opaque(view: ViewImage) -> Tensor:
    """The view as a float tensor with alpha."""
    pixels = view.pixels
    if pixels.shape[2] == 3:
        pixels = np.dstack([pixels, np.full(pixels.shape[:2], full_value(pixels.dtype), pixels.dtype)])
    return _tensor(pixels)


def _masked(projected: tuple[Tensor, Tensor], view: ViewImage) -> Pixels:
    """A projection of a view, transparent where it does not show the view."""
    image, mask = projected
    return _array(image * mask, view)
