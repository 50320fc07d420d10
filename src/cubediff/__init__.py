"""CubeDiff (arXiv 2501.17162): panoramas by diffusion on the six faces of a cube.

Importing this package imports no library: every name of `__all__` is imported on first use. diffusers then finds the
pipeline classes of this package and its backbones, so that `DiffusionPipeline.from_pretrained(folder)` loads their
folders.

>>> import cubediff
>>> cubediff.FACES
('front', 'right', 'back', 'left', 'up', 'down')
"""

from typing import TYPE_CHECKING

from cubediff.utils.lazy import extend_module, lazy_attributes
from cubediff.utils.logging import silence_image_processors

if TYPE_CHECKING:
    from cubediff.data.batches.panoramas import PanoramaDataModule
    from cubediff.data.building.write import build_shards
    from cubediff.data.example import create_example_dataset
    from cubediff.data.latent_cache.reading import LatentDataModule
    from cubediff.data.sources.base import Source
    from cubediff.diffusion.objective import Objective
    from cubediff.geometry.conventions import (
        FACE_FOV,
        FACE_ORDERS,
        FACES,
        face_directions,
        position_map,
        reorder_faces,
        rotation_matrix,
    )
    from cubediff.geometry.gains import correct_gains
    from cubediff.geometry.panoramas import Panorama
    from cubediff.geometry.perspective import equirect_to_perspective, perspective_to_cube
    from cubediff.geometry.photos import Photo
    from cubediff.geometry.projections import cube_to_equirect, equirect_to_cube
    from cubediff.models.inflation import inflate_, sync_group_norm_, widen_conv_in_
    from cubediff.pipelines.cubediff import CubeDiffPipeline
    from cubediff.training.module import CubeDiffModule

__version__ = "0.1.0"
__all__ = [
    "FACES",
    "FACE_FOV",
    "FACE_ORDERS",
    "CubeDiffModule",
    "CubeDiffPipeline",
    "LatentDataModule",
    "Objective",
    "Panorama",
    "PanoramaDataModule",
    "Photo",
    "Source",
    "__version__",
    "build_shards",
    "correct_gains",
    "create_example_dataset",
    "cube_to_equirect",
    "equirect_to_cube",
    "equirect_to_perspective",
    "face_directions",
    "inflate_",
    "perspective_to_cube",
    "position_map",
    "reorder_faces",
    "rotation_matrix",
    "sync_group_norm_",
    "widen_conv_in_",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "CubeDiffModule": "cubediff.training.module",
            "CubeDiffPipeline": "cubediff.pipelines.cubediff",
            "FACES": "cubediff.geometry.conventions",
            "FACE_FOV": "cubediff.geometry.conventions",
            "FACE_ORDERS": "cubediff.geometry.conventions",
            "LatentDataModule": "cubediff.data.latent_cache.reading",
            "Objective": "cubediff.diffusion.objective",
            "Panorama": "cubediff.geometry.panoramas",
            "PanoramaDataModule": "cubediff.data.batches.panoramas",
            "Photo": "cubediff.geometry.photos",
            "Source": "cubediff.data.sources.base",
            "build_shards": "cubediff.data.building.write",
            "correct_gains": "cubediff.geometry.gains",
            "create_example_dataset": "cubediff.data.example",
            "cube_to_equirect": "cubediff.geometry.projections",
            "equirect_to_cube": "cubediff.geometry.projections",
            "equirect_to_perspective": "cubediff.geometry.perspective",
            "face_directions": "cubediff.geometry.conventions",
            "inflate_": "cubediff.models.inflation",
            "perspective_to_cube": "cubediff.geometry.perspective",
            "position_map": "cubediff.geometry.conventions",
            "reorder_faces": "cubediff.geometry.conventions",
            "rotation_matrix": "cubediff.geometry.conventions",
            "sync_group_norm_": "cubediff.models.inflation",
            "widen_conv_in_": "cubediff.models.inflation",
        },
    )


def _pipeline_class(name: str) -> object:
    """The class that a model folder names, where diffusers looks for it: among its own attributes."""
    if name.endswith("Pipeline"):
        from cubediff.pipelines.loading import pipeline_classes  # here for start-up time

        if (found := pipeline_classes().get(name)) is not None:
            return found
    raise AttributeError(f"module 'diffusers' has no attribute {name!r}")


extend_module("diffusers", _pipeline_class)
silence_image_processors()  # before diffusers is imported
