"""What a panorama is made from, as people give it: prompts become six texts each, photos become what is known of the
faces (CubeDiff, section 4.3: text and image conditioning; photos that look elsewhere than straight ahead are ours)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from cubediff.geometry.conventions import face_rays, rotation_matrix
from cubediff.geometry.perspective import perspective_to_cube

Picture = PIL.Image.Image | Tensor

EXIF_IFD, FOCAL_LENGTH_35MM = 0x8769, 0xA405
DIAGONAL_35MM = math.hypot(36, 24)  # mm; what a focal length "in 35 mm film" refers to


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture and where it was taken to: horizontal field of view, yaw, pitch and roll of the camera, in degrees.

    picture: PIL image, or float tensor (3, H, W) in [−1, 1]. Without `fov` it is what the picture's EXIF data say;
    where they say nothing, its central square is taken and has the field of view of a face.
    """

    picture: Picture
    fov: float | None = None
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0

    def __post_init__(self) -> None:
        if self.fov is not None and not 0 < self.fov < 180:
            raise ValueError(f"a photo's fov is {self.fov}°: it lies between 0° and 180°, both excluded")
        if not all(math.isfinite(angle) for angle in (self.yaw, self.pitch, self.roll)):
            raise ValueError(f"a photo's yaw, pitch and roll are {self.yaw}, {self.pitch}, {self.roll}: give degrees")


def known_faces(
    photos: Sequence[Sequence[Photo]], size: int, face_fov: float
) -> tuple[Float[Tensor, "b 6 3 s s"], Bool[Tensor, "b 6 1 s s"]]:
    """What the photos of each panorama show on its faces, in [−1, 1], and which pixels that is.

    The other pixels continue the photos. Where several photos see a pixel, the one whose centre is nearest has it. A
    square photo of the faces' field of view that looks straight ahead is the front face and nothing else, unchanged if
    it has the faces' size.
    """
    faces, covered = zip(*(_known(own, size, face_fov) for own in photos), strict=True)
    return torch.stack(faces), torch.stack(covered)


def _known(photos: Sequence[Photo], size: int, face_fov: float) -> tuple[Tensor, Tensor]:
    placed = [_placed(photo, size, face_fov) for photo in photos]
    faces = torch.stack([six for six, _, _ in placed])  # (N, 6, 3, S, S)
    covered = torch.stack([where for _, where, _ in placed])
    near = torch.stack([axis for _, _, axis in placed])  # (N, 6, 1, S, S), cosines
    chosen = (near + 2 * covered).argmax(0, keepdim=True)
    return faces.gather(0, chosen.expand(1, -1, 3, -1, -1))[0], covered.any(0)


def _placed(photo: Photo, size: int, face_fov: float) -> tuple[Tensor, Tensor, Tensor]:
    """Faces (6, 3, S, S), covered (6, 1, S, S) and how near each pixel is to the photo's centre (6, 1, S, S)."""
    fov = photo.fov if photo.fov is not None else exif_fov(photo.picture)
    pixels = _pixels(photo.picture)
    if fov is None:
        side = min(pixels.shape[1:])
        top, left = ((n - side) // 2 for n in pixels.shape[1:])
        pixels, fov = pixels[:, top : top + side, left : left + side], face_fov
    turn = (photo.yaw, photo.pitch, photo.roll)
    faces, covered = perspective_to_cube(pixels[None], size, face_fov, fov, *turn, mode="bicubic")
    faces, covered = faces[0].clamp(-1, 1), covered[0]
    if not any(turn) and fov == face_fov and pixels.shape[1] == pixels.shape[2]:
        if pixels.shape[1] != size:
            pixels = F.interpolate(pixels[None], (size, size), mode="bicubic", antialias=True)[0].clamp(-1, 1)
        faces[0] = pixels
        covered = torch.zeros_like(covered)
        covered[0] = True
    axis = rotation_matrix(*turn)[:, 2].tolist()
    rays = face_rays(size, face_fov, faces.dtype, faces.device).unbind(-1)
    near = sum((a * along for a, along in zip(axis, rays, strict=True)), torch.zeros_like(rays[0]))
    return faces, covered, near[:, None]


def faded(covered: Tensor, reach: int) -> Tensor:
    """1 on `covered` pixels (B, 6, 1, S, S), falling to 0 over 2·`reach` pixels around them."""
    wide = F.max_pool2d(covered.flatten(0, 1).float(), 2 * reach + 1, 1, reach)
    padded = F.pad(wide, (reach,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * reach + 1, 1).unflatten(0, (-1, 6))


def exif_fov(picture: Picture) -> float | None:
    """The horizontal field of view in degrees that a camera wrote into the picture, if any: its focal length in 35 mm
    film (EXIF 2.3, tag 0xA405), which refers to the diagonal (CIPA DCG-001)."""
    if not isinstance(picture, PIL.Image.Image):
        return None
    focal = picture.getexif().get_ifd(EXIF_IFD).get(FOCAL_LENGTH_35MM)
    if not focal:
        return None
    wide = picture.width / math.hypot(picture.width, picture.height)
    return math.degrees(2 * math.atan(DIAGONAL_35MM / 2 * wide / float(focal)))


def _pixels(picture: Picture) -> Float[Tensor, "3 h w"]:
    if isinstance(picture, PIL.Image.Image):
        if picture.mode[0] in "IF":  # convert() would cut everything above 255 off
            raise ValueError(f"image has mode {picture.mode!r}, more than 8 bits a channel: save it as 8-bit RGB")
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1
    if picture.ndim != 3 or picture.shape[0] != 3 or picture.numel() == 0:
        raise ValueError(f"image is {tuple(picture.shape)}: give (3, H, W) or (B, 3, H, W) in [-1, 1]")
    return picture.float()
