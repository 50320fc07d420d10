"""Whether the faces of a cubemap are wider than 90°, by where neighbouring faces agree."""

import cv2
import numpy as np
import torch

from cubediff.cubemaps.layouts import Cube
from cubediff.geometry.conventions import FACES
from cubediff.geometry.cubes import edge_difference
from cubediff.utils.errors import DataError

_SIZE = 256  # pixels; larger faces are shrunk
_WIDEST = 120  # degrees
_MIN_DIFFERENCE = 0.5  # grey levels; with less, the faces show nothing that differs
# Of the difference at 90°: 0.92 at least for 90° faces of 64 pixels of the sample panoramas, 0.16 at most for 95°.
_CLEAR = 0.5


def check_width(cube: Cube) -> None:
    """Checks that faces do not overlap.

    Args:
        cube: Faces of levels from 0 to 255.

    Raises:
        DataError: If the faces agree much better as wider ones; the message has both differences, and what to do.
    """
    small = [_shrunk(cube[face]) for face in FACES]
    faces = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)[None]
    at_90 = edge_difference(faces, 90.0)
    if at_90 < _MIN_DIFFERENCE:
        return
    wider = {fov: edge_difference(faces, float(fov)) for fov in range(91, _WIDEST + 1)}
    best = min(wider, key=wider.__getitem__)
    if wider[best] < _CLEAR * at_90:
        raise DataError(
            f"its faces overlap: neighbours agree as faces of {best}° (they differ by {wider[best]:.1f} levels), not "
            f"of 90° ({at_90:.1f} levels): write the file faces.json with "
            f'{{"field_of_view": {best}}} beside the six files, or NAME.faces.json beside one image'
        )


def _shrunk(face: np.ndarray) -> np.ndarray:
    if len(face) <= _SIZE:
        return np.ascontiguousarray(face, np.float32)
    return cv2.resize(np.ascontiguousarray(face, np.float32), (_SIZE, _SIZE), interpolation=cv2.INTER_AREA)
