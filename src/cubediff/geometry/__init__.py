"""Cubemaps, equirectangular panoramas and perspective views: conventions, projections, photos. Tensors in and out.

Names are imported on first use, so that `cubediff.geometry.faces` loads no library.
"""

from typing import TYPE_CHECKING

from cubediff.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from cubediff.geometry.conventions import FACE_ORDERS, face_directions, position_map, reorder_faces, rotation_matrix
    from cubediff.geometry.faces import FACE_FOV, FACES
    from cubediff.geometry.gains import correct_gains
    from cubediff.geometry.perspective import equirect_to_perspective, perspective_to_cube
    from cubediff.geometry.projections import cube_to_equirect, equirect_to_cube

__all__ = [
    "FACES",
    "FACE_FOV",
    "FACE_ORDERS",
    "correct_gains",
    "cube_to_equirect",
    "equirect_to_cube",
    "equirect_to_perspective",
    "face_directions",
    "perspective_to_cube",
    "position_map",
    "reorder_faces",
    "rotation_matrix",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "FACES": "cubediff.geometry.faces",
            "FACE_FOV": "cubediff.geometry.faces",
            "FACE_ORDERS": "cubediff.geometry.conventions",
            "correct_gains": "cubediff.geometry.gains",
            "cube_to_equirect": "cubediff.geometry.projections",
            "equirect_to_cube": "cubediff.geometry.projections",
            "equirect_to_perspective": "cubediff.geometry.perspective",
            "face_directions": "cubediff.geometry.conventions",
            "perspective_to_cube": "cubediff.geometry.perspective",
            "position_map": "cubediff.geometry.conventions",
            "reorder_faces": "cubediff.geometry.conventions",
            "rotation_matrix": "cubediff.geometry.conventions",
        },
    )
