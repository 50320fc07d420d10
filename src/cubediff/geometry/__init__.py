"""Cubemaps, equirectangular panoramas and perspective views: conventions, projections, photos. Tensors in and out."""

from cubediff.geometry.conventions import (
    FACE_FOV,
    FACE_ORDERS,
    FACES,
    face_directions,
    position_map,
    reorder_faces,
    rotation_matrix,
)
from cubediff.geometry.perspective import equirect_to_perspective, perspective_to_cube
from cubediff.geometry.projections import cube_to_equirect, equirect_to_cube

__all__ = [
    "FACES",
    "FACE_FOV",
    "FACE_ORDERS",
    "cube_to_equirect",
    "equirect_to_cube",
    "equirect_to_perspective",
    "face_directions",
    "perspective_to_cube",
    "position_map",
    "reorder_faces",
    "rotation_matrix",
]
