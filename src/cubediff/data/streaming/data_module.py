"""The Lightning data module of shards: a training stream that depends on the seed only and resumes at any sample, and a
validation split that is divided over the ranks."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Generic, Protocol, cast

import lightning as L
import platformdirs
from typing_extensions import Unpack

from cubediff.data.format.manifest import LatentsRecord
from cubediff.data.streaming.batching import TrainBatches, ValBatches
from cubediff.data.streaming.catalog import Shard, open_dataset
from cubediff.data.streaming.loader import Loader
from cubediff.data.streaming.order import Mixture, Order
from cubediff.data.streaming.reader import ShardReader
from cubediff.data.streaming.remote import Cache
from cubediff.data.streaming.settings import StreamOptions, StreamSettings
from cubediff.data.streaming.stream import BatchT, Decoder, SampleT, Stream
from cubediff.utils.errors import DataError

log = logging.getLogger(__name__)

_SKIP_WINDOW = 1000  # samples, or an epoch if it is smaller; see SkipCounter.check


class _BatchCounts(Protocol):
    """Lightning's counts of an epoch's batches: loaded, and trained on."""

    ready: int
    processed: int


class _OverfitTrainer(Protocol):
    """The attribute of a trainer that its class does not declare."""

    overfit_batches: int | float


class ShardDataModule(L.LightningDataModule, ABC, Generic[SampleT, BatchT]):
    """Batches from local or remote shards. Subclasses define how a sample is decoded.

    The batches of all ranks are consecutive parts of one stream, which depends on the seed only: not on the number of
    ranks or workers. `position` is the number of samples that all ranks together have read from it; a checkpoint stores
    it. Validation shows every sample once, without augmentation. Samples that are damaged or that a stage
    filters out are skipped and counted.

    Args:
        path: A folder or URL (s3, gs, https, hf) that `cubediff prepare` or `cubediff cache` wrote, or tars as a brace
            range or `pipe:COMMAND`; or several of these. Remote shards are fetched as a whole.
        batch_size: Samples per device.
        **options: The fields of `StreamSettings`.

    Raises:
        ValueError: If an option is out of range.
    """

    content: ClassVar[str]  # of the shards: "panoramas" or "latents"

    def __init__(
        self, path: str | Path | Sequence[str | Path], batch_size: int, **options: Unpack[StreamOptions]
    ) -> None:
        super().__init__()
        settings = StreamSettings(**options)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        paths = list(path) if isinstance(path, Sequence) and not isinstance(path, str) else [path]
        self.paths = [str(p) for p in paths]
        if not all(self.paths) or not paths:
            raise ValueError(f"path must name a dataset or a list of datasets, got {path!r}")
        weights = settings.weights
        if weights is not None and (len(weights) != len(paths) or not all(0 < weight < math.inf for weight in weights)):
            raise ValueError(
                f"weights must be positive, one for each of the {len(paths)} datasets of path, got {list(weights)}"
            )
        self.batch_size = batch_size
        self.settings = settings
        self.seed = settings.seed  # a checkpoint's seed replaces it
        self.position = 0
        self.latents: list[LatentsRecord] = []  # one per dataset of latents
        self.shapes: list[dict[str, list[int]]] = []  # of a sample's tensors; of each dataset whose manifest has them
        cache_dir = settings.cache_dir or platformdirs.user_cache_path("cubediff") / "shards"
        self._cache = Cache(Path(cache_dir), settings.cache_gb * 1e9, float(settings.retry_minutes))
        self._datasets: list[dict[str, list[Shard]]] = []
        self._streams: dict[str, Stream[SampleT, BatchT]] = {}

    @abstractmethod
    def decoder(self, split: str) -> Decoder[SampleT, BatchT]:
        """The decoder of a split ("train" or "val")."""

    def setup(self, stage: str | None = None) -> None:
        """Finds the samples of all datasets.

        Raises:
            DataError: If a file is missing, or a dataset does not hold `content`.
        """
        if self._datasets:
            return
        catalogs = [open_dataset(path, self._cache) for path in self.paths]
        contents = ["panoramas" if catalog.latents is None else "latents" for catalog in catalogs]
        if len(set(contents)) > 1:
            listed = ", ".join(f"{path} ({content})" for path, content in zip(self.paths, contents, strict=True))
            raise DataError(
                f"data.path lists both panoramas and latents: {listed}; list only panoramas with data=panoramas, or "
                "only latents with data=latents"
            )
        for path, catalog, content in zip(self.paths, catalogs, contents, strict=True):
            if content != self.content:
                raise DataError(f"{path} holds {content}, not {self.content}: set data={content}")
            if not any(map(len, catalog.splits["train"])):
                raise DataError(f"{path} has no training samples: choose another data.path, or build it again")
        self.latents = [catalog.latents for catalog in catalogs if catalog.latents is not None]
        self.shapes = [catalog.shapes for catalog in catalogs if catalog.shapes]
        self._datasets = [catalog.splits for catalog in catalogs]

    @property
    def shards(self) -> list[dict[str, list[Shard]]]:
        """The shards of each dataset, by split."""
        return self._datasets

    @property
    def encoded_by(self) -> str | None:
        """The fingerprint of the encoders that the samples were encoded with; None for samples with pixels."""
        return None

    def samples(self, split: str) -> int:
        """The number of samples of a split ("train" or "val") that are used; needs `setup`."""
        count = sum(len(shard) for dataset in self._datasets for shard in dataset[split])
        limit = self.settings.limit_val
        return count if split == "train" or limit is None else min(count, limit)

    @property
    def sample_bytes(self) -> float:
        """The mean size of a training sample in its shard; needs `setup`."""
        shards = [shard for dataset in self._datasets for shard in dataset["train"]]
        return sum(int(shard.offsets[-1] - shard.offsets[0]) for shard in shards) / self.samples("train")

    @property
    def skipped(self) -> int:
        """How often this rank has skipped a sample."""
        return sum(stream.skips.total for stream in self._streams.values())

    def train_dataloader(self) -> Loader[int, BatchT]:
        """The batches of an epoch: as many as the samples fill on all ranks together, rounded up to whole optimizer
        steps, because Lightning steps at an epoch's end with any number of accumulated batches. The stream continues
        from epoch to epoch."""
        rank, world = self._rank_and_world_size()
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        samples_per_batch = self.batch_size * world
        batches = max(1, self.samples("train") // samples_per_batch)
        batches = math.ceil(batches / accumulate) * accumulate
        buffer = self.settings.shuffle_buffer
        orders = [
            Order([len(shard) for shard in dataset["train"]], buffer, [self.seed, number])
            for number, dataset in enumerate(self._datasets)
        ]
        mixture = Mixture(orders, self.settings.weights or [order.length for order in orders])
        stream = self._stream("train", mixture)
        lookahead = math.ceil(buffer / samples_per_batch) * samples_per_batch
        repeated = self._overfit_batches(batches) * samples_per_batch
        train = TrainBatches(stream, self.batch_size, rank, self.seed, lookahead, repeated)
        window = min(self.samples("train"), _SKIP_WINDOW)

        def on_batch() -> None:
            self.position += samples_per_batch
            stream.skips.check(self.settings.max_skipped_share, window)

        self._streams["train"] = stream
        positions = _EpochPositions(self, batches, samples_per_batch)
        return Loader(train.load, positions, self.settings.num_workers, on_batch)

    def val_dataloader(self) -> Loader[int, BatchT] | list[BatchT]:
        """Every validation sample once over all ranks, in the same number of batches on each; an empty list if there
        are no validation samples."""
        val = self._val_batches()
        if val is None:
            return []
        self._streams["val"] = val.stream
        return Loader(val.load, val.indices, self.settings.num_workers)

    def examples(self, count: int) -> BatchT | None:
        """A batch of the first validation samples, the same on every rank, on the host; None if there are none."""
        val = self._val_batches()
        return None if val is None else val.first(count)

    def state_dict(self) -> dict[str, int]:
        """The seed, the number of samples that the run was trained on, and the number of training samples."""
        position = self.position
        if self.trainer:  # a batch whose step failed was read from the stream but not trained on
            batches = cast(_BatchCounts, self.trainer.fit_loop.epoch_loop.batch_progress.current)
            position -= (batches.ready - batches.processed) * self.batch_size * self.trainer.world_size
        return {"seed": self.seed, "position": position, "samples": self.samples("train")}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resumes the stream of a checkpoint, with any number of ranks and workers and any batch size.

        Raises:
            DataError: If the checkpoint has no position.
        """
        if "position" not in state_dict:
            raise DataError(
                "the checkpoint was written by an older cubediff and its data stream cannot be resumed: train from its "
                "export with model.pipeline.path=RUN/export"
            )
        if state_dict["seed"] != self.seed:
            log.warning(
                "data.seed=%d is ignored: the stream resumes with the checkpoint's seed %d",
                self.seed,
                state_dict["seed"],
            )
        if (before := state_dict.get("samples")) not in (None, self.samples("train")):
            log.warning(
                "data.path has %d training samples and had %d: the stream resumes at the same position, in another "
                "order",
                self.samples("train"),
                before,
            )
        self.seed, self.position = state_dict["seed"], state_dict["position"]

    def _overfit_batches(self, batches: int) -> int:
        """How many batches an epoch of `batches` repeats under Lightning's `overfit_batches`; 0 for none."""
        limit = cast(_OverfitTrainer, self.trainer).overfit_batches if self.trainer else 0
        return min(limit, batches) if isinstance(limit, int) else int(limit * batches)

    def _val_batches(self) -> ValBatches[SampleT, BatchT] | None:
        rank, world = self._rank_and_world_size()
        samples = self.samples("val")
        if not samples:
            return None
        return ValBatches(self._stream("val"), samples, self.batch_size, rank, world)

    def _stream(self, split: str, order: Mixture | None = None) -> Stream[SampleT, BatchT]:
        """The samples of a split, by default in the order of the shards."""
        reader = ShardReader([shard for dataset in self._datasets for shard in dataset[split]], self._cache)
        in_order = range(len(reader)) if order is None else order
        return Stream(reader, in_order, self.decoder(split), self.settings.stages or ())

    def _rank_and_world_size(self) -> tuple[int, int]:
        self.setup()
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


class _EpochPositions:
    """The positions at which the batches of an epoch start; the epoch starts at the data module's position."""

    def __init__(self, data: ShardDataModule[SampleT, BatchT], batches: int, step: int) -> None:
        self.data, self.batches, self.step = data, batches, step

    def __iter__(self) -> Iterator[int]:
        first = self.data.position
        return iter(range(first, first + self.batches * self.step, self.step))

    def __len__(self) -> int:
        return self.batches
