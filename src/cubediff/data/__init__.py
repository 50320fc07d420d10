"""Panoramas from folders to batches: sources → building → streaming, and procedural ones where there
are none (the paper's training data: panoramas with one caption each, or one per face)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cubediff.data.batches.cameras import RandomViews
    from cubediff.data.batches.latents import LatentDataModule
    from cubediff.data.batches.panoramas import PanoramaDataModule
    from cubediff.data.batches.views import CubeBatch, PanoramaBatch
    from cubediff.data.building.write import build_shards
    from cubediff.data.example import create_example_dataset
    from cubediff.utils.errors import DataError

__all__ = [
    "CubeBatch",
    "DataError",
    "LatentDataModule",
    "PanoramaBatch",
    "PanoramaDataModule",
    "RandomViews",
    "build_shards",
    "create_example_dataset",
]

_MODULES = {
    "CubeBatch": "cubediff.data.batches.views",
    "DataError": "cubediff.utils.errors",
    "LatentDataModule": "cubediff.data.batches.latents",
    "PanoramaBatch": "cubediff.data.batches.views",
    "PanoramaDataModule": "cubediff.data.batches.panoramas",
    "RandomViews": "cubediff.data.batches.cameras",
    "build_shards": "cubediff.data.building.write",
    "create_example_dataset": "cubediff.data.example",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
