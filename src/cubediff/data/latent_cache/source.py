"""The data module for caching: panoramas at several yaw rotations each, shard by shard."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from typing_extensions import Unpack

from cubediff.data.batches.decoding import DecodedPanorama
from cubediff.data.batches.panoramas import PanoramaDataModule, PanoramaOptions
from cubediff.data.batches.types import CubeBatch, PanoramaBatch
from cubediff.data.streaming.loader import Loader
from cubediff.data.streaming.skipping import SkippedSample
from cubediff.data.streaming.stream import Stream
from cubediff.geometry.conventions import FACE_FOV
from cubediff.utils.errors import DataError


class _Location(NamedTuple):
    """Split, shard and number of a panorama in its shard."""

    split: str
    shard: int
    number: int


class CachedShard(NamedTuple):
    """A shard to cache: the keys of its panoramas, its side of the split, and its SHA-256 if a manifest has it."""

    keys: list[str]
    split: str
    sha256: str | None = None


class CachingDataModule(PanoramaDataModule):
    """Batches of all yaw rotations of one panorama, augmented as in training and drawn from the seed and its key.

    Validation panoramas have one view, which is not augmented.

    Args:
        path: Of the dataset.
        batch_size: Unused: a batch has the rotations of one panorama.
        face_size: Of the faces to encode, in pixels.
        fov: Field of view of the faces, in degrees.
        panorama_height: Rows that the workers resize panoramas to; None is 2 · `face_size`.
        jpeg_scaling: As in training, see `PanoramaDataModule`.
        turns: Yaw rotations of each training panorama.
        **options: The fields of `Augmentation` and `StreamSettings`.

    Raises:
        ValueError: If `turns` is below 1, `photos` is set or `path` names several datasets.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        batch_size: int,
        face_size: int,
        fov: float = FACE_FOV,
        panorama_height: int | None = None,
        jpeg_scaling: bool = True,
        *,
        turns: int,
        **options: Unpack[PanoramaOptions],
    ) -> None:
        super().__init__(path, batch_size, face_size, fov, panorama_height, jpeg_scaling, **options)
        if turns < 1:
            raise ValueError(f"turns must be at least 1, got {turns}")
        if self.augmentation.photos is not None:
            raise ValueError("data=photos draws new conditioning photos in every step: cache with data=panoramas")
        if len(self.paths) != 1:
            raise ValueError(f"data.path names {len(self.paths)} datasets: cache them one after the other")
        self.turns = turns
        self.done: frozenset[str] = frozenset()  # file names of shards that are cached already

    def shards_to_cache(self) -> dict[str, CachedShard]:
        """The shards by the file name that their latents get.

        Raises:
            DataError: If two shards have the same file name.
        """
        self.setup()
        found: dict[str, CachedShard] = {}
        for split, shards in self.shards[0].items():
            for shard in shards:
                name = file_name(shard.name)
                if name in found:
                    raise DataError(
                        f"data.path names several shards {name}, whose latents would overwrite each other: cache the "
                        "folders one after the other"
                    )
                found[name] = CachedShard(shard.keys.split("\0"), split, shard.sha256)
        return found

    def predict_dataloader(self) -> Loader[_Location, PanoramaBatch]:
        """The panoramas of this rank's shards, without the shards in `done`."""
        rank, world = self._rank_and_world_size()
        streams = {split: self._stream(split) for split in ("train", "val")}
        locations: list[_Location] = []
        for split, stream in streams.items():
            shards = stream.reader.shards
            left = [number for number, shard in enumerate(shards) if file_name(shard.name) not in self.done]
            for shard in left[rank::world]:
                locations += [_Location(split, shard, number) for number in range(len(shards[shard]))]
        window = max(1, self.samples("train") + self.samples("val"))

        def on_batch() -> None:
            for stream in streams.values():
                stream.skips.check(self.settings.max_skipped_share, window)

        def load(location: _Location) -> PanoramaBatch | None:
            return self._load(streams[location.split], location)

        return Loader(load, locations, self.settings.num_workers, on_batch)

    def on_after_batch_transfer(self, batch: PanoramaBatch, dataloader_idx: int) -> CubeBatch:
        """Renders the faces of all rotations."""
        cubes = super().on_after_batch_transfer(batch, dataloader_idx)
        cubes["shard"] = batch["shard"]
        return cubes

    def _load(self, stream: Stream[DecodedPanorama, PanoramaBatch], location: _Location) -> PanoramaBatch | None:
        """All rotations of one panorama; None if it is skipped."""
        split, shard, number = location
        reader = stream.reader
        key, position = reader.key(shard, number), int(reader.firsts[shard]) + number
        generators: list[random.Random | None] = [None]
        if split == "train":
            generators = [random.Random(f"{self.seed} {key} {rotation}") for rotation in range(self.turns)]
        try:
            views = [stream.load(position, rng, count=rng is generators[0]) for rng in generators]
        except SkippedSample:
            return None
        batch = stream.decoder.collate(views)
        batch["shard"] = reader.shards[shard].name
        return batch


def file_name(shard: str) -> str:
    """The file name of a shard's path or URL; its cached shard has the same."""
    return shard.partition("?")[0].rpartition("/")[2]
