"""Panoramas from folders to batches: sources → building → streaming, and procedural ones where there
are none (the paper's training data: panoramas with one caption each, or one per face)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cubediff.data.building.write import build_shards
    from cubediff.data.example import create_example_dataset
    from cubediff.data.latents import LatentDataModule
    from cubediff.data.panoramas import PanoramaDataModule
    from cubediff.data.photos import RandomViews
    from cubediff.data.sources import DataError
    from cubediff.data.views import CubeBatch, PanoramaBatch

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

_ROOMS = {
    "CubeBatch": "views",
    "DataError": "sources",
    "LatentDataModule": "latents",
    "PanoramaBatch": "views",
    "PanoramaDataModule": "panoramas",
    "RandomViews": "photos",
    "build_shards": "building.write",
    "create_example_dataset": "example",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
