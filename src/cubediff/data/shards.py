"""From a folder of shards to batches of cubes for Lightning (the paper's training data): panoramas leave the
workers as equirectangular uint8 and become faces on the batch's own device."""

import itertools
import json
import math
from pathlib import Path
from typing import Any, Literal

import cv2
import lightning as L
import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import Dataset

from cubediff.conditions import Photo, known_faces
from cubediff.data.photos import Camera, RandomViews
from cubediff.data.sources import DataError
from cubediff.data.stream import CubeBatch, PanoramaBatch, Skips, TrainStream, ValStream
from cubediff.data.write import FORMAT, MANIFEST, VERSION
from cubediff.geometry import equirect_to_cube, equirect_to_perspective, rotation_matrix


class PanoramaDataModule(L.LightningDataModule):
    """Batches of cubes from a folder that `python -m cubediff.prepare` wrote.

    `face_size` in pixels and `fov` in degrees are the faces'; `panorama_height` (default 2·`face_size`) is
    what the workers resize to; `shuffle_buffer` counts samples per worker, held as JPEG. With "uniform" `yaw`
    a panorama is turned by any angle; where it has captions of its faces these are used with
    `face_caption_probability`, and it is then turned by a multiple of 90 degrees within
    `face_caption_jitter`, so that they stay true. `photos` conditions a share of the panoramas on a photo that looks
    anywhere, and not on their front face. Validation shows every held-out panorama (the first
    `limit_val`) once, unturned. The training stream is a function of the seed, the rank, the worker and the
    step that training started or resumed at.
    """

    def __init__(
        self,
        path: str | Path,
        batch_size: int,
        face_size: int,
        fov: float = 95.0,
        panorama_height: int | None = None,
        num_workers: int = 0,
        shuffle_buffer: int = 128,
        yaw: Literal["uniform", "none"] = "uniform",
        face_caption_probability: float = 0.5,
        face_caption_jitter: float = 15.0,
        photos: RandomViews | None = None,
        limit_val: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or face_size < 1 or num_workers < 0 or shuffle_buffer < 1:
            raise ValueError(
                f"batch_size {batch_size}, face_size {face_size} and shuffle_buffer {shuffle_buffer} must be "
                f"at least 1, num_workers {num_workers} at least 0"
            )
        if yaw not in ("uniform", "none"):
            raise ValueError(f"yaw {yaw!r} is not one of 'uniform', 'none'")
        if not 0 <= face_caption_probability <= 1 or not 0 <= face_caption_jitter <= 45:
            raise ValueError(
                f"face_caption_probability {face_caption_probability} must be in [0, 1], face_caption_jitter "
                f"{face_caption_jitter} in [0, 45] degrees"
            )
        if limit_val is not None and limit_val < 1:
            raise ValueError(f"limit_val {limit_val}: give at least 1, or null for all of them")
        self.path = Path(path)
        self.batch_size = batch_size
        self.face_size = face_size
        self.fov = fov
        self.panorama_height = panorama_height or 2 * face_size
        self.num_workers = num_workers
        self.shuffle_buffer = shuffle_buffer
        self.yaw = yaw
        self.face_caption_probability = face_caption_probability
        self.face_caption_jitter = face_caption_jitter
        self.photos = photos
        self.limit_val = limit_val
        self.seed = seed
        self.start_step = 0
        self.manifest: dict[str, Any] = {}
        self._skips: dict[str, Skips] = {}

    def setup(self, stage: str | None = None) -> None:
        """Reads the manifest; raises DataError where it is missing or does not fit the shards beside it."""
        file = self.path / MANIFEST
        if not file.is_file():
            raise DataError(
                f"{self.path} holds no {MANIFEST}: build them with python -m cubediff.prepare SOURCE OUTPUT "
                "and give their folder as data.path=OUTPUT"
            )
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{file} is not JSON ({error}): build the shards again") from None
        if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
            raise DataError(
                f"{file} is {manifest.get('format')} version {manifest.get('version')}, this cubediff reads "
                f"{FORMAT} version {VERSION}: build the shards again"
            )
        for shard in itertools.chain(*(split["shards"] for split in manifest["splits"].values())):
            path = self.path / shard["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes instead of {shard['bytes']}"
                raise DataError(f"{path} {found}: copy the folder again, or build the shards again")
        self.manifest = manifest

    def samples(self, split: str) -> int:
        """How many panoramas a split ("train" or "val") shows."""
        number: int = self.manifest["splits"][split]["samples"]
        return number if split == "train" or self.limit_val is None else min(number, self.limit_val)

    @property
    def skipped(self) -> int:
        """Samples of this rank's shards that could not be read so far, in all workers."""
        return sum(int(skips.counts.sum()) for skips in self._skips.values())

    def train_dataloader(self) -> Any:
        """An epoch of as many batches as the training panoramas fill on all devices together, made up to whole
        optimizer steps: Lightning steps at an epoch's end whatever has accumulated."""
        rank, world = self._place()
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        batches = max(1, self.samples("train") // (self.batch_size * world))
        batches = math.ceil(batches / accumulate) * accumulate
        stream = TrainStream(
            *self._reading("train"),
            batches_per_epoch=batches,
            shuffle_buffer=self.shuffle_buffer,
            stream=f"seed {self.seed} step {self.start_step} rank {rank}",
            face_caption_probability=self.face_caption_probability,
            jitter=self.face_caption_jitter,
            turn=self.yaw == "uniform",
            photos=self.photos,
        )
        self._skips["train"] = stream.skips
        return self._loader(stream, batches)

    def val_dataloader(self) -> Any:
        """Every validation panorama once over all devices; an empty list where none were held out."""
        rank, world = self._place()
        samples = self.samples("val")
        if not samples:
            return []
        if samples < world:  # a device without a batch would miss the epoch's collective calls, and hang them
            raise DataError(
                f"{samples} validation panoramas for {world} devices: build the shards with a larger "
                "--val-fraction, or train with trainer.limit_val_batches=0"
            )
        stream = ValStream(*self._reading("val"), samples=samples, rank=rank, world=world)
        self._skips["val"] = stream.skips
        return self._loader(stream, stream.total_batches)

    def on_after_batch_transfer(self, batch: PanoramaBatch, dataloader_idx: int) -> CubeBatch:
        """Renders the faces of every panorama, turned by its yaw, where the batch now is."""
        panorama = batch["panorama"].float().div_(127.5).sub_(1.0)
        rotation = rotation_matrix(batch["yaw"])
        faces = equirect_to_cube(panorama, self.face_size, self.fov, rotation=rotation, mode="bicubic")
        cubes = CubeBatch(faces=faces.clamp_(-1, 1), yaw=batch["yaw"], prompts=batch["prompts"], key=batch["key"])
        if any(batch["cameras"]):
            taken = zip(batch["cameras"], cubes["faces"], panorama, batch["yaw"], strict=True)
            photos = [[self._photo(camera, six[0], image, yaw)] for camera, six, image, yaw in taken]
            cubes["known"], cubes["covered"] = known_faces(photos, self.face_size, self.fov)
        return cubes

    def _photo(self, camera: Camera | None, front: Tensor, panorama: Tensor, yaw: Tensor) -> Photo:
        """The photo that a panorama is conditioned on; it has as many pixels as a face."""
        if camera is None:
            return Photo(front)
        rows, columns = (round(self.face_size * camera.aspect**power) for power in (-0.5, 0.5))
        turn = (yaw + camera.yaw, camera.pitch, camera.roll)
        picture = equirect_to_perspective(panorama[None], (rows, columns), camera.fov, *turn, mode="bicubic")[0]
        return Photo(picture.clamp_(-1, 1), camera.fov, camera.yaw, camera.pitch, camera.roll)

    def state_dict(self) -> dict[str, int]:
        trainer = self.trainer
        step, epoch = (trainer.global_step, trainer.current_epoch) if trainer else (self.start_step, 0)
        return {"seed": self.seed, "epoch": epoch, "step": step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """A resumed run draws a new stream, from the step it resumes at, instead of replaying the first
        one."""
        self.start_step = state_dict["step"]

    def _place(self) -> tuple[int, int]:
        if not self.manifest:
            self.setup()
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _reading(self, split: str) -> tuple[Path, list[tuple[str, int]], int, int, int]:
        shards = [(s["file"], s["samples"]) for s in self.manifest["splits"][split]["shards"]]
        return self.path, shards, self.batch_size, self.panorama_height, self.num_workers

    def _loader(self, stream: Dataset[PanoramaBatch], batches: int) -> Any:
        return _Loader(
            stream,
            batches,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread if self.num_workers else None,
        )


class _Loader(wds.WebLoader):
    """A loader of known length, which Lightning may resume in the middle of an epoch: the stream then
    starts anew from the data module's state, so that the loader's own is empty."""

    def __init__(self, stream: Dataset[PanoramaBatch], batches: int, **options: Any) -> None:
        super().__init__(stream, batch_size=None, **options)
        self.batches = batches

    def __len__(self) -> int:
        return self.batches

    @property
    def _iterator(self) -> Any:
        """Where Lightning looks for workers to end; left to the garbage collector, each takes five
        seconds."""
        return self.pipeline[0]._iterator

    @_iterator.setter
    def _iterator(self, value: None) -> None:
        self.pipeline[0]._iterator = value

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
