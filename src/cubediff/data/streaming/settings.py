"""The options that all data modules of shards share, and their defaults in Python (those of training are in
conf/data)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast, get_type_hints

from webdataset.utils import PipelineStage

from cubediff.data.streaming.retrying import RETRY_MINUTES
from cubediff.data.streaming.stream import Stage


class StreamOptions(TypedDict, total=False):
    """The fields of `StreamSettings` as keyword arguments of a data module."""

    num_workers: int
    shuffle_buffer: int
    limit_val: int | None
    weights: Sequence[float | int] | None
    cache_dir: str | Path | None
    cache_gb: float
    max_skipped_share: float
    seed: int
    stages: Sequence[Stage] | None
    retry_minutes: float | int


@dataclass(frozen=True)
class StreamSettings:
    """How shards are read and in which order.

    Args:
        num_workers: Threads that prepare batches ahead; 0 prepares them in the calling thread.
        shuffle_buffer: Samples within which the order is shuffled; the shards of that many are needed at a time.
        limit_val: Validate on the first `limit_val` samples only; None validates on all of them.
        weights: How often each of several datasets is shown, relative to the others; None weights them by size.
        cache_dir: Where fetched shards are kept; None is a folder in the user's cache.
        cache_gb: Size limit of `cache_dir`, in 10⁹ bytes.
        max_skipped_share: Largest fraction of skipped samples; more of them stop the training with DataError.
        seed: Of the order and of the augmentations.
        stages: Stages of a `webdataset.DataPipeline`, such as `webdataset.map(function)` or
            `webdataset.select(predicate)`, applied in this order to every sample before it is decoded; see
            `Stream.source` for a sample's keys. A filtered sample is skipped like a damaged one.
        retry_minutes: How long a read is repeated that fails for a reason that may pass, such as a connection; a
            missing file or a refused permission is an error at once.

    Raises:
        ValueError: If a value is out of range.
    """

    num_workers: int = 0
    shuffle_buffer: int = 1024
    limit_val: int | None = None
    weights: Sequence[float | int] | None = None
    cache_dir: str | Path | None = None
    cache_gb: float = 100.0
    max_skipped_share: float = 0.01
    seed: int = 0
    stages: Sequence[Stage] | None = None
    retry_minutes: float | int = RETRY_MINUTES

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {self.num_workers}")
        if self.shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer must be at least 1, got {self.shuffle_buffer}")
        if self.limit_val is not None and self.limit_val < 1:
            raise ValueError(f"limit_val must be at least 1, or null for all samples, got {self.limit_val}")
        if self.cache_gb <= 0:
            raise ValueError(f"cache_gb must be above 0, got {self.cache_gb}")
        if self.retry_minutes < 0:
            raise ValueError(f"retry_minutes must be at least 0, got {self.retry_minutes}")
        if not 0 <= self.max_skipped_share <= 1:
            raise ValueError(f"max_skipped_share must be in [0, 1], got {self.max_skipped_share}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        for stage in self.stages or ():
            if not callable(stage) and not isinstance(stage, PipelineStage):
                raise ValueError(
                    "stages must be stages of a webdataset.DataPipeline, such as webdataset.map(function), got "
                    f"{stage!r} in {self.stages}"
                )


def stream_options(options: Mapping[str, object], accepted: type) -> StreamOptions:
    """The options of a data module's subclass that `ShardDataModule` takes.

    Args:
        options: The keyword arguments of the subclass.
        accepted: Their TypedDict, which extends `StreamOptions`.

    Raises:
        ValueError: If an option is not in `accepted`; names it.
    """
    if unknown := options.keys() - get_type_hints(accepted).keys():
        raise ValueError(f"unknown options {', '.join(sorted(unknown))}: remove them, or choose another data module")
    names = StreamOptions.__annotations__
    return cast(StreamOptions, {name: value for name, value in options.items() if name in names})
