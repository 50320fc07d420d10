"""Shards of what the frozen encoders make of panoramas and captions, so that training needs neither them nor pixels
(CubeDiff, section 4.1: both encoders stay frozen)."""

import json
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cubediff.data.streaming.shards import ShardDataModule
from cubediff.geometry.conventions import FACE_FOV
from cubediff.utils.errors import DataError


class LatentBatch(TypedDict):
    """A batch as the training step gets it, in the precision it was stored in."""

    latents: Tensor  # (B, 6, C, h, w), posterior means × scaling factor
    text: Tensor  # (B, 6, L, D), a caption's states for each face
    yaw: Tensor  # (B,) float32, degrees
    key: list[str]


class Views(NamedTuple):
    """A panorama as it is cached: K turns, and the states of the M captions that their faces have."""

    yaws: list[float]  # degrees
    latents: Float[Tensor, "k 6 c h w"]
    text: Float[Tensor, "m l d"]
    captions: Int[Tensor, "k 6"]  # which of the M
    texts: list[str]  # the M captions


def pack(key: str, views: Views) -> dict[str, bytes]:
    """The members of a sample by their suffixes."""
    tensors = {"latents": views.latents, "text": views.text, "captions": views.captions}
    packed = safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})
    record = {"key": key, "yaws": views.yaws, "captions": views.texts, "crc32": zlib.crc32(packed)}
    return {
        "safetensors": packed,
        "json": json.dumps(record, ensure_ascii=False).encode(),
    }


class _Latents(NamedTuple):
    key: str
    yaw: float
    latents: Float[Tensor, "6 c h w"]
    text: Float[Tensor, "6 l d"]


@dataclass(frozen=True)
class LatentDecoder:
    """Makes batches of one of each panorama's turns, which its rng says; without an rng of the first."""

    def sample(self, key: str, members: Mapping[str, bytes], rng: random.Random | None) -> _Latents:
        record = json.loads(members["json"])
        if zlib.crc32(members["safetensors"]) != record["crc32"]:
            raise ValueError("its latents are not those that were written (crc32 differs)")
        yaws = record["yaws"]
        stored = safetensors.torch.load(members["safetensors"])
        turn = rng.randrange(len(yaws)) if rng else 0
        latents, captions = stored["latents"][turn], stored["captions"][turn]
        return _Latents(key, yaws[turn], latents, stored["text"][captions])

    def batch(self, samples: list[_Latents]) -> LatentBatch:
        return LatentBatch(
            latents=torch.stack([s.latents for s in samples]),
            text=torch.stack([s.text for s in samples]),
            yaw=torch.tensor([s.yaw for s in samples], dtype=torch.float32),
            key=[s.key for s in samples],
        )


class LatentDataModule(ShardDataModule):
    """Batches of what `python -m cubediff.cache` wrote, for training without encoders; `path`, `batch_size` and
    `options` are those of `ShardDataModule`. `face_size` in pixels and `fov` in degrees are those of the run, which
    have to be the latents'."""

    content = "latents"

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        batch_size: int,
        face_size: int,
        fov: float = FACE_FOV,
        **options: Any,
    ) -> None:
        super().__init__(path, batch_size, **options)
        self.face_size, self.fov = face_size, fov

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        for path, made in zip(self.paths, self.latents, strict=True):
            for name, own in {"face_size": self.face_size, "fov": self.fov}.items():
                if made[name] != own:
                    raise DataError(f"the latents of {path} have {name}={made[name]}: give {name}={made[name]}, or "
                                    "cache them again")  # fmt: skip
        if len({made["encoders"] for made in self.latents}) > 1:
            raise DataError("the latents of data.path were made by different encoders: mix none such")

    @property
    def encoded_by(self) -> str:
        """The fingerprint of the encoders that made the latents."""
        self.setup()
        fingerprint: str = self.latents[0]["encoders"]
        return fingerprint

    def decoder(self, split: str) -> LatentDecoder:
        return LatentDecoder()
