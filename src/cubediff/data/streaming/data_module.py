"""From shards to batches for Lightning, whatever their samples hold: a stream that depends on the seed alone, and
resumes where it was (the paper's training data)."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import platformdirs
from typing_extensions import Unpack

from cubediff.data.streaming.catalog import Reader, Shard, open_dataset
from cubediff.data.streaming.loader import Loader
from cubediff.data.streaming.order import Mixture, Order
from cubediff.data.streaming.remote import Cache
from cubediff.data.streaming.settings import StreamOptions, StreamSettings
from cubediff.data.streaming.stream import Decoder, Stream, TrainStream, ValStream
from cubediff.utils.errors import DataError

log = logging.getLogger(__name__)

_TELLING = 1000  # samples, or a whole epoch, before the share of damaged ones is known well enough


class ShardDataModule(L.LightningDataModule, ABC):
    """Batches from shards, read where they lie or fetched; subclasses say what a sample is decoded to.

    `path` is a folder, here or at a URL (s3, gs, https, hf), or tars by a brace range or `pipe:COMMAND`; or several of
    these, mixed by `weights`, or by their sizes where none are given. Remote shards are fetched whole into `cache_dir`
    (default: in the user's cache folder), which may take `cache_gb` (10⁹ bytes). The order is mixed within
    `shuffle_buffer` samples, so that their shards are needed at a time. `num_workers` threads make batches ahead.
    Validation shows every held-out sample (the first `limit_val`) once. Samples that cannot be read are skipped and
    counted; a training with more than `max_skipped_share` of them stops with DataError.

    The batches of all ranks are consecutive parts of one stream, a function of the seed alone; `position` is how many
    of its samples the job has been given, and a run that resumes from a checkpoint goes on there.
    """

    content: ClassVar[str]  # what the shards hold: "panoramas" or "latents"

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        batch_size: int,
        **options: Unpack[StreamOptions],
    ) -> None:
        super().__init__()
        settings = StreamSettings(**options)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        paths = [path] if isinstance(path, str | Path) else list(path)
        weights = settings.weights
        if weights is not None and (len(weights) != len(paths) or min(weights) <= 0):
            raise ValueError(
                f"weights must be positive, one for each of the {len(paths)} datasets of path, got {list(weights)}"
            )
        self.paths = [str(p) for p in paths]
        self.weights = weights
        cache_dir = settings.cache_dir or platformdirs.user_cache_path("cubediff") / "shards"
        self.cache = Cache(Path(cache_dir), settings.cache_gb * 1e9)
        self.max_skipped_share = settings.max_skipped_share
        self.batch_size = batch_size
        self.num_workers = settings.num_workers
        self.shuffle_buffer = settings.shuffle_buffer
        self.limit_val = settings.limit_val
        self.seed = settings.seed
        self.position = 0
        self.latents: list[dict[str, Any]] = []  # how those of each dataset were made
        self._datasets: list[dict[str, list[Shard]]] = []
        self._streams: dict[str, Stream] = {}

    @abstractmethod
    def decoder(self, split: str) -> Decoder:
        """What makes batches of the samples of "train" or "val"."""

    def setup(self, stage: str | None = None) -> None:
        """Finds where all samples lie; raises DataError where something is missing or does not fit together."""
        if self._datasets:
            return
        catalogs = [open_dataset(path, self.cache) for path in self.paths]
        for path, catalog in zip(self.paths, catalogs, strict=True):
            content = "panoramas" if catalog.latents is None else "latents"
            if content != self.content:
                raise DataError(f"{path} holds {content} and not {self.content}: give data={content}")
            if not any(map(len, catalog.splits["train"])):
                raise DataError(f"{path} has no panoramas to train on: give data.path another, or build it again")
        self.latents = [catalog.latents for catalog in catalogs if catalog.latents is not None]
        self._datasets = [catalog.splits for catalog in catalogs]

    @property
    def shards(self) -> list[dict[str, list[Shard]]]:
        """Of each dataset the shards of its splits."""
        return self._datasets

    def samples(self, split: str) -> int:
        """How many panoramas a split ("train" or "val") shows."""
        number = sum(len(shard) for dataset in self._datasets for shard in dataset[split])
        return number if split == "train" or self.limit_val is None else min(number, self.limit_val)

    @property
    def sample_bytes(self) -> float:
        """What a training panorama takes in its shard, on average."""
        shards = [shard for dataset in self._datasets for shard in dataset["train"]]
        return sum(int(shard.offsets[-1] - shard.offsets[0]) for shard in shards) / self.samples("train")

    @property
    def skipped(self) -> int:
        """Samples that could not be read so far, each time that this rank was to show one."""
        return sum(stream.skips.total for stream in self._streams.values())

    def train_dataloader(self) -> Any:
        """An epoch of as many batches as the training panoramas fill on all devices together, made up to whole
        optimizer steps: Lightning steps at an epoch's end whatever has accumulated. The stream goes on across epochs.
        """
        rank, world = self._place()
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        batches = max(1, self.samples("train") // (self.batch_size * world))
        batches = math.ceil(batches / accumulate) * accumulate
        orders = [
            Order(list(map(len, dataset["train"])), self.shuffle_buffer, [self.seed, number])
            for number, dataset in enumerate(self._datasets)
        ]
        stream = TrainStream(
            self._reader("train"),
            Mixture(orders, self.weights or [order.length for order in orders]),
            self.decoder("train"),
            self.batch_size,
            rank=rank,
            seed=self.seed,
            lookahead=math.ceil(self.shuffle_buffer / (self.batch_size * world)) * self.batch_size * world,
        )
        enough = min(self.samples("train"), _TELLING)

        def taken() -> None:
            self.position += self.batch_size * world
            stream.skips.check(self.max_skipped_share, enough)

        self._streams["train"] = stream
        return Loader(stream.__getitem__, _From(self, batches, self.batch_size * world), self.num_workers, taken)

    def val_dataloader(self) -> Any:
        """Every validation panorama once over all devices, and on each as many batches; an empty list where none were
        held out."""
        stream = self._val_stream()
        if stream is None:
            return []
        self._streams["val"] = stream
        return Loader(stream.__getitem__, stream.batches, self.num_workers)

    def examples(self, number: int) -> Any:
        """A batch of the first validation panoramas, the same on every device; None where there are none."""
        stream = self._val_stream()
        return stream and stream.first(number)

    def _val_stream(self) -> ValStream | None:
        rank, world = self._place()
        samples = self.samples("val")
        if not samples:
            return None
        return ValStream(self._reader("val"), samples, self.decoder("val"), self.batch_size, rank, world)

    def state_dict(self) -> dict[str, int]:
        """The seed, how many samples of the stream the whole job has been trained on, and how many there are."""
        position = self.position
        if self.trainer:  # a batch that failed in its step was taken from the stream and not trained on
            batches = self.trainer.fit_loop.epoch_loop.batch_progress.current
            position -= (batches.ready - batches.processed) * self.batch_size * self.trainer.world_size  # type: ignore[attr-defined]
        return {"seed": self.seed, "position": position, "samples": self.samples("train")}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The run goes on where the checkpoint's was, with any number of ranks and workers and any batch size."""
        if "position" not in state_dict:
            raise DataError("the checkpoint is of an older cubediff, whose stream none can go on with: give its export "
                            "as model.pipeline.path=RUN/export and train from there")  # fmt: skip
        if state_dict["seed"] != self.seed:
            log.warning("data.seed=%d, but the stream goes on with the checkpoint's %d", self.seed, state_dict["seed"])
        if (before := state_dict.get("samples")) not in (None, self.samples("train")):
            log.warning("data.path has %d training panoramas and had %d: the stream goes on at the same position, in "
                        "another order", self.samples("train"), before)  # fmt: skip
        self.seed, self.position = state_dict["seed"], state_dict["position"]

    def _place(self) -> tuple[int, int]:
        self.setup()
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _reader(self, split: str) -> Reader:
        return Reader([shard for dataset in self._datasets for shard in dataset[split]], self.cache)


class _From:
    """The positions at which an epoch's batches begin, from where the stream is when the epoch begins."""

    def __init__(self, data: ShardDataModule, batches: int, step: int) -> None:
        self.data, self.batches, self.step = data, batches, step

    def __iter__(self) -> Iterator[int]:
        first = self.data.position
        return iter(range(first, first + self.batches * self.step, self.step))

    def __len__(self) -> int:
        return self.batches
