"""Panorama datasets from folders of images to batches: sources → building → streaming → batches or latent_cache.

The public names are imported on first use, so that commands start without torch and Lightning.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cubediff.data.batches.conditioning_photos import RandomPhotos
    from cubediff.data.batches.panoramas import PanoramaDataModule
    from cubediff.data.batches.types import CubeBatch, LatentBatch, PanoramaBatch
    from cubediff.data.building.write import build_shards
    from cubediff.data.example import create_example_dataset
    from cubediff.data.latent_cache.reading import LatentDataModule
    from cubediff.utils.errors import DataError

    RandomViews = RandomPhotos

__all__ = [
    "CubeBatch",
    "DataError",
    "LatentBatch",
    "LatentDataModule",
    "PanoramaBatch",
    "PanoramaDataModule",
    "RandomPhotos",
    "RandomViews",
    "build_shards",
    "create_example_dataset",
]

_TYPES, _PHOTOS = "cubediff.data.batches.types", "cubediff.data.batches.conditioning_photos"
_LOCATIONS = {
    "CubeBatch": (_TYPES, "CubeBatch"),
    "DataError": ("cubediff.utils.errors", "DataError"),
    "LatentBatch": (_TYPES, "LatentBatch"),
    "LatentDataModule": ("cubediff.data.latent_cache.reading", "LatentDataModule"),
    "PanoramaBatch": (_TYPES, "PanoramaBatch"),
    "PanoramaDataModule": ("cubediff.data.batches.panoramas", "PanoramaDataModule"),
    "RandomPhotos": (_PHOTOS, "RandomPhotos"),
    "RandomViews": (_PHOTOS, "RandomPhotos"),  # old name
    "build_shards": ("cubediff.data.building.write", "build_shards"),
    "create_example_dataset": ("cubediff.data.example", "create_example_dataset"),
}


def __getattr__(name: str) -> object:
    if name not in _LOCATIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # here, so that it is no attribute of the package

    module, attribute = _LOCATIONS[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
