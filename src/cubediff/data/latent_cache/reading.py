"""Training on cached latents: the data module of the shards that `cubediff cache` wrote, which needs no encoders."""

import json
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from cubediff.data.batches.types import LatentBatch
from cubediff.data.streaming.data_module import ShardDataModule
from cubediff.data.streaming.settings import StreamOptions
from cubediff.geometry.conventions import FACE_FOV
from cubediff.utils.errors import DataError


class DecodedLatents(NamedTuple):
    """A sample of a `LatentBatch`."""

    key: str
    yaw: float  # degrees
    latents: Float[Tensor, "6 c h w"]
    text: Float[Tensor, "6 l d"]


@dataclass(frozen=True)
class LatentDecoder:
    """Picks one of each panorama's cached yaw rotations at random; the first without an rng."""

    def sample(self, key: str, members: Mapping[str, bytes], rng: random.Random | None) -> DecodedLatents:
        record = json.loads(members["json"])
        if zlib.crc32(members["safetensors"]) != record["crc32"]:
            raise ValueError("its latents are not those that were written (crc32 differs)")
        yaws = record["yaws"]
        tensors = safetensors.torch.load(members["safetensors"])
        rotation = rng.randrange(len(yaws)) if rng else 0
        latents, captions = tensors["latents"][rotation], tensors["captions"][rotation]
        return DecodedLatents(key, yaws[rotation], latents, tensors["text"][captions])

    def batch(self, samples: list[DecodedLatents]) -> LatentBatch:
        return LatentBatch(
            latents=torch.stack([s.latents for s in samples]),
            text=torch.stack([s.text for s in samples]),
            yaw=torch.tensor([s.yaw for s in samples], dtype=torch.float32),
            key=[s.key for s in samples],
        )


class LatentDataModule(ShardDataModule):
    """Batches of cached latents and text states.

    Args:
        path: Of the dataset; see `ShardDataModule`.
        batch_size: Panoramas per device.
        face_size: Of the run, in pixels; must equal that of the cached faces.
        fov: Field of view of the run's faces, in degrees; must equal that of the cached faces.
        **options: The fields of `StreamSettings`.

    Raises:
        ValueError: If an option is out of range.
    """

    content = "latents"

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        batch_size: int,
        face_size: int,
        fov: float = FACE_FOV,
        **options: Unpack[StreamOptions],
    ) -> None:
        super().__init__(path, batch_size, **options)
        self.face_size, self.fov = face_size, fov

    def setup(self, stage: str | None = None) -> None:
        """Finds the samples; raises DataError if the latents do not fit the run, or datasets do not fit each other."""
        super().setup(stage)
        for path, cached in zip(self.paths, self.latents, strict=True):
            for name, expected in {"face_size": self.face_size, "fov": self.fov}.items():
                if cached[name] != expected:
                    raise DataError(
                        f"the latents of {path} have {name}={cached[name]}, the run has {name}={expected}: give "
                        f"{name}={cached[name]}, or cache the panoramas again"
                    )
        if len({cached["encoders"] for cached in self.latents}) > 1:
            raise DataError(
                "the datasets of data.path were encoded by different encoders: give datasets of one model, or cache "
                "them again with one"
            )

    @property
    def encoded_by(self) -> str:
        """The fingerprint of the encoders that the latents come from."""
        self.setup()
        fingerprint: str = self.latents[0]["encoders"]
        return fingerprint

    def decoder(self, split: str) -> LatentDecoder:
        return LatentDecoder()
