"""Photos as conditions: projects perspective images onto the faces of a cube (CubeDiff, section 4.3, conditions on the
front face alone; photos in other directions are an extension).

Legend: B panoramas, N photos of one panorama, 6 faces, S face size.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from cubediff.geometry.conventions import face_rays, rotation_matrix
from cubediff.geometry.panoramas import Panorama, project_panorama
from cubediff.geometry.perspective import perspective_to_cube
from cubediff.images.exif import camera_fov
from cubediff.images.levels import fill_transparent, to_srgb
from cubediff.images.reading import read_image
from cubediff.utils.errors import DataError, reason

PhotoImage: TypeAlias = PIL.Image.Image | Tensor
AnyImage: TypeAlias = str | Path | npt.NDArray[np.generic] | PhotoImage

_MANY_PIXELS = 100_000_000  # an image with more is halved: in float32 it would take gigabytes
_OPAQUE = 0.98  # on [−1, 1]; a projected pixel between an opaque and a transparent one is not covered

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Photo:
    """An image and its camera: field of view, yaw, pitch, roll.

    Attributes:
        picture: The path of a file, a PIL image, an array (H, W, 3) of uint8 or of floats in [0, 1], or a float tensor
            (3, H, W) in [−1, 1]. A file or PIL image is converted to sRGB by its ICC profile, and its transparent
            pixels cover nothing.
        fov: Horizontal field of view, degrees. None takes it from the image's EXIF data; without EXIF data the central
            square of the image gets the field of view of a face.
        yaw: Rotation of the camera to the right, degrees.
        pitch: Rotation upwards, degrees.
        roll: Rotation clockwise as the viewer sees it, degrees.

    Raises:
        ValueError: If the field of view is not between 0° and 180°, or an angle is not finite.

    Example:
        >>> photo = Photo(PIL.Image.new("RGB", (640, 480)), fov=70.0, yaw=30.0)
        >>> faces, covered = project_photos([[photo]], size=64, face_fov=95.0)
        >>> faces.shape
        torch.Size([1, 6, 3, 64, 64])
    """

    picture: AnyImage
    fov: float | None = None
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0

    def __post_init__(self) -> None:
        if self.fov is not None and not 0 < self.fov < 180:
            raise ValueError(f"a photo's fov is {self.fov}°: it lies between 0° and 180°, both excluded")
        if not all(math.isfinite(angle) for angle in (self.yaw, self.pitch, self.roll)):
            raise ValueError(
                f"a photo's yaw, pitch and roll are {self.yaw}, {self.pitch}, {self.roll}: expected finite degrees"
            )

    @cached_property
    def image(self) -> PhotoImage:
        """The picture as a PIL image, or as a float tensor (3, H, W) in [−1, 1].

        Raises:
            ValueError: If the picture is of another type or shape, or an array's values are out of range.
            DataError: If its file cannot be read.
        """
        if isinstance(self.picture, PIL.Image.Image):
            return self.picture
        if isinstance(self.picture, str | Path):
            return _read(Path(self.picture))
        if isinstance(self.picture, np.ndarray):
            return _tensor(self.picture)
        if not isinstance(self.picture, Tensor):
            raise ValueError(f"a photo's picture is a {type(self.picture).__name__}: pass a file, an image or a tensor")
        return self.picture


def project_photos(
    photos: Sequence[Sequence[Photo | Panorama]], size: int, face_fov: float
) -> tuple[Float[Tensor, "b 6 3 s s"], Bool[Tensor, "b 6 1 s s"]]:
    """Projects the photos of B panoramas, and panoramas to edit, onto their faces.

    A square photo with the faces' field of view that looks straight ahead becomes the front face and covers nothing
    else; at the faces' size its pixels do not change.

    Args:
        photos: One or more photos for each panorama. If several cover a pixel, the one whose centre is nearest wins;
            the kept pixels of a panorama to edit win over photos.
        size: Face size S in pixels.
        face_fov: Field of view of the faces, degrees.

    Returns:
        Faces in [−1, 1], in which the pixels that no photo covers continue the nearest photo; and the pixels that are
        covered.
    """
    faces, covered = zip(*(_merge_photos(own, size, face_fov) for own in photos), strict=True)
    return torch.stack(faces), torch.stack(covered)


def _merge_photos(photos: Sequence[Photo | Panorama], size: int, face_fov: float) -> tuple[Tensor, Tensor]:
    projected = [_project(photo, size, face_fov) for photo in photos]
    faces, covered, cosines = (torch.stack(parts) for parts in zip(*projected, strict=True))  # (N, 6, C, S, S)
    nearest = (cosines + 2 * covered).argmax(0, keepdim=True)
    return faces.gather(0, nearest.expand(1, -1, 3, -1, -1))[0], covered.any(0)


def _project(image: Photo | Panorama, size: int, face_fov: float) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(image, Photo):
        return _project_photo(image, size, face_fov)
    faces, kept = project_panorama(image, size, face_fov)
    return faces, kept, 2.0 * kept  # above every cosine where it is kept


def _project_photo(photo: Photo, size: int, face_fov: float) -> tuple[Tensor, Tensor, Tensor]:
    """Faces (6, 3, S, S), covered pixels (6, 1, S, S), and cosines of the angles to the camera's axis (6, 1, S, S)."""
    fov = photo.fov if photo.fov is not None else exif_fov(photo.image)
    pixels = _pixels(photo.image)  # (3 or 4, H, W)
    if fov is None:
        side = min(pixels.shape[1:])
        top, left = ((n - side) // 2 for n in pixels.shape[1:])
        pixels, fov = pixels[:, top : top + side, left : left + side], face_fov
    angles = (photo.yaw, photo.pitch, photo.roll)
    faces, covered = perspective_to_cube(pixels[None], size, face_fov, fov, *angles, mode="bicubic")
    faces, covered = faces[0].clamp(-1, 1), covered[0]
    if not any(angles) and fov == face_fov and pixels.shape[1] == pixels.shape[2]:
        if pixels.shape[1] != size:
            pixels = F.interpolate(pixels[None], (size, size), mode="bicubic", antialias=True)[0].clamp(-1, 1)
        faces[0] = pixels
        covered = torch.zeros_like(covered)
        covered[0] = True
    faces, opaque = faces[:, :3], faces[:, 3:]
    if opaque.shape[1]:
        covered &= opaque > _OPAQUE
    axis = rotation_matrix(*angles)[:, 2].tolist()
    rays = face_rays(size, face_fov, faces.dtype, faces.device).unbind(-1)
    cosines = sum((a * along for a, along in zip(axis, rays, strict=True)), torch.zeros_like(rays[0]))
    return faces, covered, cosines[:, None]


def paste_photos(
    faces: Float[Tensor, "b 6 3 s s"],
    pictures: Float[Tensor, "b 6 3 s s"],
    covered: Bool[Tensor, "b 6 1 s s"],
    radius: int,
) -> Float[Tensor, "b 6 3 s s"]:
    """Replaces the pixels of faces that photos cover, and adapts the colours around them.

    Around the photos, the mean difference between photos and faces nearby is added, with a weight that falls from 1 to
    0 over 2·`radius` pixels: the photo's colours fade out, its details end at its border.

    Args:
        faces: Faces in FACES order.
        pictures: Projected photos in the same value range.
        covered: The pixels that photos cover.
        radius: In pixels.
    """
    inside = covered.flatten(0, 1).to(faces)
    reached = F.max_pool2d(inside, 2 * radius + 1, 1, radius)
    weights = F.avg_pool2d(F.pad(reached, (radius,) * 4, mode="replicate"), 2 * radius + 1, 1)
    difference = (pictures - faces).flatten(0, 1) * inside
    sums = torch.cat([difference, inside], 1)
    for _ in range(2):  # twice a square, so that the weights of the mean fall with the distance
        sums = F.avg_pool2d(sums, 4 * radius + 1, 1, 2 * radius)
    near = sums[:, :3] / sums[:, 3:].clamp(min=1e-6)
    return torch.where(covered, pictures, faces + (weights * near).unflatten(0, (-1, 6)))


def exif_fov(picture: PhotoImage) -> float | None:
    """The horizontal field of view of an image by its EXIF data, degrees; see `camera_fov`.

    None without valid data; invalid data is logged as a warning.
    """
    if not isinstance(picture, PIL.Image.Image):
        return None
    fov, note = camera_fov(picture)
    if note is not None:
        log.warning("image: %s", note)
    return fov


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


def _pixels(picture: PhotoImage) -> Float[Tensor, "c h w"]:
    """Colours in [−1, 1], and a fourth channel if pixels are transparent: 1 where opaque, else −1."""
    if isinstance(picture, PIL.Image.Image):
        if picture.width * picture.height > _MANY_PIXELS and picture.mode in ("L", "RGB", "RGBA"):
            picture = picture.reduce(2)
        try:
            levels, opaque, note = to_srgb(picture)
            opaque = None if opaque is None or opaque.all() else opaque
            if opaque is not None:
                levels = fill_transparent(levels, opaque)
        except DataError as error:
            raise DataError(f"image has {error}") from None
        if note is not None:
            log.warning("image: %s", note)
        pixels = torch.from_numpy(np.array(levels)).permute(2, 0, 1).float().div_(127.5).sub_(1)
        if opaque is None:
            return pixels
        return torch.cat([pixels, torch.from_numpy(opaque)[None] * 2.0 - 1])
    if picture.ndim != 3 or picture.shape[0] != 3 or picture.numel() == 0:
        raise ValueError(f"image is {tuple(picture.shape)}: expected (3, H, W) or (B, 3, H, W) in [-1, 1]")
    return picture.float()
