"""Reads shards sample by sample into batches of turned panoramas with true captions (the paper's training
data, rotated at random), in an order that the seed alone decides; what cannot be read is counted and said."""

import itertools
import json
import logging
import math
import random
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import cv2
import numpy as np
import torch
import webdataset as wds
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from typing_extensions import NotRequired

from cubediff.data.photos import Camera, RandomViews
from cubediff.data.sources import DataError
from cubediff.geometry import FACES

log = logging.getLogger(__name__)

_WALLS = 4  # the first four of FACES, each 90 degrees of yaw after the one before


class PanoramaBatch(TypedDict):
    """A batch as the workers give it. `prompts` holds six captions per panorama, in FACES order as seen
    after `yaw`."""

    panorama: Tensor  # (B, 3, H, 2H) uint8
    yaw: Tensor  # (B,) float32, degrees
    prompts: list[list[str]]
    cameras: list[Camera | None]  # where to the photo looks that is the condition; None: the front face is it
    key: list[str]


class CubeBatch(TypedDict):
    """A batch as the training step gets it; `known` and `covered` (see `known_faces`) where the condition is not simply
    the front face."""

    faces: Tensor  # (B, 6, 3, S, S) float in [-1, 1]
    yaw: Tensor  # (B,) float32, degrees
    prompts: list[list[str]]
    key: list[str]
    known: NotRequired[Tensor]  # (B, 6, 3, S, S) float in [-1, 1]
    covered: NotRequired[Tensor]  # (B, 6, 1, S, S) bool


class View(NamedTuple):
    """What one panorama is seen as: turned by `yaw` degrees, with a caption for each of FACES, and the photo that it is
    conditioned on where that is not its front face."""

    yaw: float
    prompts: list[str]
    camera: Camera | None = None


# ---- one sample --------------------------------------------------------------------------------------------


def draw_view(
    caption: str,
    faces: dict[str, str] | None,
    rng: random.Random,
    face_caption_probability: float = 0.5,
    jitter: float = 15.0,
    turn: bool = True,
) -> View:
    """A yaw and captions that are true of it: captions of the faces only within `jitter` degrees of the
    quarter turn that they then are rolled by, else the panorama's own caption on every face at any yaw."""
    if faces is None or rng.random() >= face_caption_probability:
        return View(rng.uniform(0.0, 360.0) if turn else 0.0, [caption] * len(FACES))
    captions = [faces[f] for f in FACES]
    if not turn:
        return View(0.0, captions)
    quarter = rng.randrange(_WALLS)
    walls = captions[quarter:_WALLS] + captions[:quarter]
    return View(90.0 * quarter + rng.uniform(-jitter, jitter), walls + captions[_WALLS:])


def resize_panorama(image: UInt8[np.ndarray, "h w c"], height: int) -> UInt8[np.ndarray, "oh ow c"]:
    """An equirectangular image (h, 2h, 3) at `height`: areas averaged to shrink (none crosses the seam),
    bicubic to enlarge, with the neighbours across the seam and beyond the poles."""
    rows = image.shape[0]
    if rows >= height:
        return image if rows == height else cv2.resize(image, (2 * height, height), interpolation=cv2.INTER_AREA)
    step = rows // math.gcd(rows, height)  # that many rows become a whole number of rows
    pad = step * math.ceil(2 / step)
    poles = np.roll(image, rows, axis=1)[::-1]
    image = np.concatenate([poles[-pad:], image, poles[:pad]])
    image = np.concatenate([image[:, -pad:], image, image[:, :pad]], axis=1)
    margin = pad * height // rows
    size = (2 * height + 2 * margin, height + 2 * margin)
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)[margin:-margin, margin:-margin]


def decode_sample(sample: dict[str, Any], height: int) -> tuple[UInt8[np.ndarray, "3 h w"], dict[str, Any]]:
    record = json.loads(sample["json"])
    if zlib.crc32(sample["jpg"]) != record["crc32"]:
        raise ValueError("its JPEG is not the one that was written (crc32 differs)")
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(sample["jpg"], np.uint8), flags)
    if image is None or image.shape[1] != 2 * image.shape[0]:
        raise ValueError("its JPEG cannot be decoded to a 2:1 panorama")
    return np.ascontiguousarray(resize_panorama(image, height).transpose(2, 0, 1)), record


# ---- streams -----------------------------------------------------------------------------------------------


class Skips:
    """Counts what cannot be read, a slot per worker in shared memory; warns at 1, 10, 100 … of them; raises
    when nothing else arrives any more."""

    def __init__(self, workers: int, patience: int) -> None:
        self.counts = torch.zeros(workers, dtype=torch.int64).share_memory_()
        self.patience = patience
        self.in_a_row = 0

    def __call__(self, worker: int, where: str, error: Exception, number: int = 1) -> None:
        before = int(self.counts[worker])
        after = before + number
        self.counts[worker] = after
        self.in_a_row += number
        text = f"{where}: {error or type(error).__name__}; build the shards again"
        if self.in_a_row >= self.patience:
            raise DataError(f"{self.in_a_row} samples in a row cannot be read, the last {text}")
        if before == 0 or len(str(after)) > len(str(before)):
            log.warning("%d samples skipped so far that cannot be read, the last %s", after, text)


class _Stream(IterableDataset[PanoramaBatch]):
    """What both splits share: the shards, and the way from a sample's bytes to a batch."""

    def __init__(self, folder: Path, shards: list[tuple[str, int]], batch_size: int, height: int, workers: int) -> None:
        super().__init__()
        self.folder, self.shards = folder, shards
        self.batch_size, self.height = batch_size, height
        self.skips = Skips(max(1, workers), patience=max(100, 2 * sum(n for _, n in shards)))

    def read(self, file: str, positions: range, worker: int) -> Iterator[dict[str, Any]]:
        """The samples of a shard at the given positions; those that it turns out not to hold are counted."""
        left = len(positions)
        error: Exception = EOFError("the shard ends early")
        try:
            with tarfile.open(self.folder / file, "r:") as tar:
                grouped = itertools.groupby(tar, key=lambda member: member.name.partition(".")[0])
                for key, members in itertools.islice(grouped, positions.start, positions.stop):
                    sample: dict[str, Any] = {"__key__": key, "__url__": file}
                    for member in members:
                        content = tar.extractfile(member)
                        sample[member.name.partition(".")[2]] = content.read() if content else b""
                    left -= 1
                    yield sample
        except (OSError, tarfile.TarError) as broken:
            error = broken
        if left:
            self.skips(worker, str(self.folder / file), error, left)

    def batches(
        self, samples: Iterator[dict[str, Any]], worker: int, view: Callable[[dict[str, Any]], View]
    ) -> Iterator[PanoramaBatch]:
        decoded = self._decoded(samples, worker)
        while chunk := list(itertools.islice(decoded, self.batch_size)):
            views = [view(record) for _, _, record in chunk]
            yield PanoramaBatch(
                panorama=torch.from_numpy(np.stack([image for _, image, _ in chunk])),
                yaw=torch.tensor([v.yaw for v in views], dtype=torch.float32),
                prompts=[v.prompts for v in views],
                cameras=[v.camera for v in views],
                key=[key for key, _, _ in chunk],
            )

    def _decoded(
        self, samples: Iterator[dict[str, Any]], worker: int
    ) -> Iterator[tuple[str, UInt8[np.ndarray, "3 h w"], dict[str, Any]]]:
        for sample in samples:
            try:
                image, record = decode_sample(sample, self.height)
            except (ValueError, KeyError, TypeError, cv2.error) as error:
                self.skips(worker, f"{self.folder / sample['__url__']}, sample {sample['__key__']}", error)
                continue
            self.skips.in_a_row = 0
            yield sample["__key__"], image, record


class TrainStream(_Stream):
    """`batches_per_epoch` batches of one rank, without end: every worker goes through all shards in an
    order of its own, new each time, and goes on in the next epoch where it was, so that no sample is
    preferred."""

    def __init__(
        self,
        folder: Path,
        shards: list[tuple[str, int]],
        batch_size: int,
        height: int,
        workers: int,
        *,
        batches_per_epoch: int,
        shuffle_buffer: int,
        stream: str,
        photos: RandomViews | None = None,
        **views: Any,
    ) -> None:
        super().__init__(folder, shards, batch_size, height, workers)
        self.batches_per_epoch = batches_per_epoch
        self.buffer = min(shuffle_buffer, sum(n for _, n in shards))
        self.stream, self.photos, self.views = stream, photos, views
        self._endless: Iterator[PanoramaBatch] | None = None

    def __iter__(self) -> Iterator[PanoramaBatch]:
        worker, workers = _worker()
        if self._endless is None:
            rng = random.Random(f"{self.stream} worker {worker}")
            shuffle = wds.shuffle(self.buffer, initial=self.buffer, rng=rng)
            self._endless = self.batches(
                shuffle(self._forever(worker, rng)),
                worker,
                lambda record: self._view(record, rng),
            )
        share = self.batches_per_epoch // workers + (worker < self.batches_per_epoch % workers)
        return itertools.islice(self._endless, share)

    def _view(self, record: dict[str, Any], rng: random.Random) -> View:
        view = draw_view(record["caption"], record.get("faces"), rng, **self.views)
        return view._replace(camera=self.photos.draw(rng)) if self.photos else view

    def _forever(self, worker: int, rng: random.Random) -> Iterator[dict[str, Any]]:
        while True:
            for file, samples in rng.sample(self.shards, len(self.shards)):
                yield from self.read(file, range(samples), worker)


class ValStream(_Stream):
    """The first `samples` samples once over all ranks and workers, unturned: each reads a part of its own,
    so that fewer shards than readers do no harm."""

    def __init__(
        self,
        folder: Path,
        shards: list[tuple[str, int]],
        batch_size: int,
        height: int,
        workers: int,
        *,
        samples: int,
        rank: int,
        world: int,
    ) -> None:
        super().__init__(folder, shards, batch_size, height, workers)
        readers = world * max(1, workers)
        edges = [r * samples // readers for r in range(readers + 1)]
        parts = [range(a, b) for a, b in itertools.pairwise(edges)]
        self.parts = parts[rank * max(1, workers) :][: max(1, workers)]
        self.total_batches = sum(math.ceil(len(part) / batch_size) for part in self.parts)

    def __iter__(self) -> Iterator[PanoramaBatch]:
        worker, _ = _worker()
        return self.batches(
            self._once(self.parts[worker], worker),
            worker,
            lambda record: View(0.0, [record["caption"]] * len(FACES)),
        )

    def _once(self, part: range, worker: int) -> Iterator[dict[str, Any]]:
        first = 0
        for file, samples in self.shards:
            inside = range(max(part.start - first, 0), min(part.stop - first, samples))
            if inside:
                yield from self.read(file, inside, worker)
            first += samples


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)
