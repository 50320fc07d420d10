"""Whether the faces of a cubemap are the right ones and 90° wide, by where neighbouring faces agree."""

import cv2
import numpy as np
import torch
from jaxtyping import Shaped

from cubediff.cubemaps.layouts import Cube
from cubediff.data.sources.schemes import seam
from cubediff.geometry.conventions import FACES
from cubediff.geometry.cubes import edge_difference
from cubediff.utils.errors import DataError

_MAX_SEAM = 8.0  # grey levels; with a smaller difference at the edges, no other reading of the names is considered
_SIZE = 256  # pixels; larger faces are shrunk
_WIDEST = 120  # degrees
_MIN_DIFFERENCE = 0.5  # grey levels; with less, the faces show nothing that differs
# Of the difference at 90°: for the sample panoramas at least 0.85 with 90° faces of 32 pixels or more and at most 0.16
# with wider ones; 0.53 to 0.73 with the 95° faces of a small model that averages their overlap.
_CLEAR = 0.75
_MIN_SIZE = 32  # pixels; smaller faces are too coarse to tell


def check_reading(name: str, readings: dict[str, Cube], option: str = "--source") -> Cube:
    """The faces by the scheme `name`, unless another scheme clearly fits better.

    Args:
        name: The scheme that is assumed.
        readings: The faces by every scheme that fits the names, or by `name` alone.
        option: The option that names a scheme, for the message.

    Raises:
        DataError: If the edges of the faces meet much better by another scheme.
    """
    cube = readings[name]
    others = {scheme: reading for scheme, reading in readings.items() if scheme != name}
    if others and (found := _seam_in_levels(cube)) > _MAX_SEAM:
        rivals = {other: _seam_in_levels(reading) for other, reading in others.items()}
        best = min(rivals, key=rivals.__getitem__)
        if 2 * rivals[best] < found:
            raise DataError(
                f"its faces meet as {best!r} (edges differ by {rivals[best]:.0f} levels), not as {name!r} "
                f"({found:.0f} levels): pass {option} {best}"
            )
    return cube


def _seam_in_levels(cube: Cube) -> float:
    return seam(dict(zip(FACES, in_levels(np.stack([cube[face] for face in FACES])), strict=True)))


def in_levels(pixels: Shaped[np.ndarray, "*s c"]) -> Shaped[np.ndarray, "*s c"]:
    """Pixels between 0 and 255; radiance x with mean m becomes 255 x / (x + m)."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return np.asarray(pixels / np.float32(257))
    finite = np.maximum(np.nan_to_num(pixels), 0)
    return np.asarray(255 * finite / (finite + max(float(finite.mean()), 1e-12)))


def check_width(cube: Cube, option: str | None = None) -> None:
    """Checks that faces do not overlap.

    Args:
        cube: Faces of levels or radiance.
        option: The option that takes the field of view, for the message; None: there is none.

    Raises:
        DataError: If the faces agree much better as wider ones; the message has both differences, and what to do.
    """
    small = in_levels(np.stack([_shrunk(cube[face][..., :3]) for face in FACES]))
    faces = torch.from_numpy(np.ascontiguousarray(small, np.float32)).permute(0, 3, 1, 2)[None]
    at_90 = edge_difference(faces, 90.0)
    if at_90 < _MIN_DIFFERENCE or faces.shape[-1] < _MIN_SIZE:
        return
    wider = {fov: edge_difference(faces, float(fov)) for fov in range(91, _WIDEST + 1)}
    best = min(wider, key=wider.__getitem__)
    if wider[best] < _CLEAR * at_90:
        remedy = "" if option is None else f"pass {option} {best}, or "
        raise DataError(
            f"its faces overlap: neighbours agree as faces of {best}° (they differ by {wider[best]:.1f} levels), not "
            f"of 90° ({at_90:.1f} levels): {remedy}write the file faces.json with "
            f'{{"field_of_view": {best}}} beside the six files, or NAME.faces.json beside one image; faces that '
            "cubediff generates are 95° wide"
        )


def _shrunk(face: Shaped[np.ndarray, "s s 3"]) -> Shaped[np.ndarray, "t t 3"]:
    face = np.ascontiguousarray(face)
    return face if len(face) <= _SIZE else cv2.resize(face, (_SIZE, _SIZE), interpolation=cv2.INTER_AREA)
