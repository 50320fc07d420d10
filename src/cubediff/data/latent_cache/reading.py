"""Training on cached latents: the data module of the shards that `cubediff cache` wrote, which needs no encoders."""

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from cubediff.data.batches.augmentation import Yaw
from cubediff.data.batches.decoding import read_record, verify_member
from cubediff.data.batches.types import LatentBatch
from cubediff.data.latent_cache.format import sample_shapes, unpack_sample
from cubediff.data.streaming.data_module import ShardDataModule
from cubediff.data.streaming.settings import StreamOptions, stream_options
from cubediff.data.streaming.stream import Sample
from cubediff.geometry.conventions import FACE_FOV
from cubediff.models.encoders import same_fingerprint
from cubediff.utils.errors import DataError

log = logging.getLogger(__name__)


class DecodedLatents(NamedTuple):
    """A sample of a `LatentBatch`."""

    key: str
    yaw: float  # degrees
    latents: Float[Tensor, "6 c h w"]
    text: dict[str, Tensor]  # encodings (6, …) of the faces' captions, by name


class LatentDecoder:
    """Decodes samples to latents and collates them.

    With an rng, a sample's yaw rotation is drawn from the cached ones; without, it is the first.

    Args:
        shapes: The shapes of every sample, see `sample_shapes`; None takes those of the first sample.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
        self._shapes = None if shapes is None else {name: list(shape) for name, shape in shapes.items()}

    def verify(self, sample: Sample) -> None:
        """Checks the checksum of the tensors."""
        verify_member(sample, "safetensors")

    def decode(self, sample: Sample, rng: random.Random | None) -> DecodedLatents:
        """Loads the tensors of one rotation."""
        yaws, tensors = unpack_sample(read_record(sample), sample["safetensors"])
        shapes = sample_shapes(tensors)
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            raise ValueError(f"its tensors have the shapes {shapes}, those of the dataset {self._shapes}")
        rotation = rng.randrange(len(yaws)) if rng else 0
        latents, captions = tensors["latents"][rotation], tensors["captions"][rotation]
        text = {name: tensors[name][captions] for name in shapes if name != "latents"}
        return DecodedLatents(str(sample["__key__"]), yaws[rotation], latents, text)

    def collate(self, samples: Sequence[DecodedLatents]) -> LatentBatch:
        """Stacks latents and text states to a batch."""
        return LatentBatch(
            latents=torch.stack([s.latents for s in samples]),
            text={name: torch.stack([s.text[name] for s in samples]) for name in samples[0].text},
            yaw=torch.tensor([s.yaw for s in samples], dtype=torch.float32),
            key=[s.key for s in samples],
        )


class LatentOptions(StreamOptions, total=False):
    """The keyword arguments of `LatentDataModule`: those of panoramas, so that an experiment may set them for both."""

    yaw: Yaw
    face_caption_probability: float
    face_caption_jitter: float
    flip: float


class LatentDataModule(ShardDataModule[DecodedLatents, LatentBatch]):
    """Batches of cached latents and text states.

    Args:
        path: Of the dataset; see `ShardDataModule`.
        batch_size: Panoramas per device.
        face_size: Of the run, in pixels; must equal that of the cached faces.
        fov: Field of view of the run's faces, in degrees; must equal that of the cached faces.
        **options: The fields of `StreamSettings`; and the augmentation of panoramas, which was drawn when the latents
            were cached: another value has no effect and logs a warning.

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
        **options: Unpack[LatentOptions],
    ) -> None:
        known = stream_options(options, LatentOptions)
        super().__init__(path, batch_size, **known)
        self.face_size, self.fov = face_size, fov
        self._augmentation = {name: value for name, value in options.items() if name not in known}

    def setup(self, stage: str | None = None) -> None:
        """Finds the samples.

        Raises:
            DataError: If the latents do not match the run's faces, or were encoded by different encoders.
        """
        super().setup(stage)
        for path, cached in zip(self.paths, self.latents, strict=True):
            run = {"face_size": (cached["face_size"], self.face_size), "fov": (cached["fov"], self.fov)}
            for name, (stored, expected) in run.items():
                if stored != expected:
                    raise DataError(
                        f"the latents of {path} have {name}={stored}, the run has {name}={expected}: set "
                        f"{name}={stored}, or cache the panoramas again"
                    )
            for name, value in self._augmentation.items():
                if cached.get(name) != value:
                    log.warning(
                        "data.%s=%s has no effect: the latents of %s were cached with %s", name, value, path,
                        cached.get(name),
                    )  # fmt: skip
        self._augmentation = {}  # warned of once
        if not all(same_fingerprint(cached["encoders"], self.encoded_by) for cached in self.latents):
            raise DataError(
                "the datasets of data.path were encoded by different encoders: use datasets of one model, or cache "
                "them again with one"
            )
        if any(shapes != self.shapes[0] for shapes in self.shapes):
            raise DataError(
                f"the datasets of data.path hold tensors of different shapes ({self.shapes}): cache them again with "
                "the same settings"
            )

    @property
    def encoded_by(self) -> str:
        """The fingerprint of the encoders that the latents come from."""
        super().setup()
        return max((cached["encoders"] for cached in self.latents), key=len)  # the first ones covered the weights only

    def decoder(self, split: str) -> LatentDecoder:
        """The decoder of latents, the same for both splits."""
        return LatentDecoder(self.shapes[0] if self.shapes else None)
