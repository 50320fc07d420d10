"""Panorama datasets from folders of images to batches: sources → building → streaming → batches or latent_cache.

The public names are imported on first use, so that commands start without torch and Lightning.
"""

from typing import TYPE_CHECKING

from cubediff.utils.lazy import lazy_attributes

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

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "CubeBatch": "cubediff.data.batches.types",
            "DataError": "cubediff.utils.errors",
            "LatentBatch": "cubediff.data.batches.types",
            "LatentDataModule": "cubediff.data.latent_cache.reading",
            "PanoramaBatch": "cubediff.data.batches.types",
            "PanoramaDataModule": "cubediff.data.batches.panoramas",
            "RandomPhotos": "cubediff.data.batches.conditioning_photos",
            "RandomViews": "cubediff.data.batches.conditioning_photos:RandomPhotos",  # old name
            "build_shards": "cubediff.data.building.write",
            "create_example_dataset": "cubediff.data.example",
        },
    )
