"""Random access to the samples of a split.

Each passes through a `webdataset.DataPipeline`: `Stream.source`, which yields samples in the stream's order, and the
stages of `data.stages`. Then it is decoded.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Generic, NotRequired, Protocol, TypeAlias, TypedDict, TypeVar, runtime_checkable

import webdataset as wds
from webdataset.utils import PipelineStage

from cubediff.data.streaming.order import Mixture
from cubediff.data.streaming.reader import ShardReader
from cubediff.data.streaming.skipping import SkipCounter, SkippedSample
from cubediff.utils.errors import DataError
from cubediff.utils.text import printable, redact

# WebDataset's sample: the content of its tar members by suffix, and the keys that `Stream.source` documents.
Sample: TypeAlias = dict[str, object]
# A stage of a webdataset.DataPipeline: takes an iterator of samples and returns another.
Stage: TypeAlias = Callable[[Iterator[Sample]], Iterable[Sample]] | PipelineStage


class StreamBatch(TypedDict):
    """The keys that all batches of a stream have."""

    key: list[str]
    position: NotRequired[list[int]]  # indices of the samples in the training or validation stream
    counted: NotRequired[bool]  # validation only; False if the batch pads this rank to the other ranks' number


SampleT = TypeVar("SampleT")
BatchT = TypeVar("BatchT", bound=StreamBatch)
BatchT_co = TypeVar("BatchT_co", bound=StreamBatch, covariant=True)


class StageError(DataError):
    """A stage of `data.stages` does not map or filter samples one by one."""


@runtime_checkable
class Decoder(Protocol[SampleT, BatchT_co]):
    """Decodes and collates samples; its methods are called from several threads."""

    def verify(self, sample: Sample) -> None:
        """Checks a sample as it was read, before `data.stages`; raises any exception if its bytes are damaged."""
        ...

    def decode(self, sample: Sample, rng: random.Random | None) -> SampleT:
        """Decodes a sample, augmented with `rng`, or as it is stored without one; raises any exception if it cannot."""
        ...

    def collate(self, samples: Sequence[SampleT]) -> BatchT_co:
        """Makes a batch."""
        ...


class Stream(Generic[SampleT, BatchT]):
    """Random access to the samples of a split; safe to use from several threads.

    Args:
        reader: Reads the samples of the shards.
        order: Maps a position to a sample.
        decoder: Verifies, decodes and collates samples.
        stages: Stages of a `webdataset.DataPipeline` between `source` and the decoder. They are applied to one sample
            at a time, so `webdataset.map` and `webdataset.select` work as usual, and stages that combine or reorder
            samples have no effect or are refused.
    """

    def __init__(
        self,
        reader: ShardReader,
        order: Mixture | range,
        decoder: Decoder[SampleT, BatchT],
        stages: Sequence[Stage] = (),
    ) -> None:
        self.reader, self.order, self.decoder = reader, order, decoder
        self.stages = list(stages)
        self.skips = SkipCounter()

    def source(self, positions: Iterable[int], index: int | None = None) -> Iterator[Sample]:
        """The source stage of a `webdataset.DataPipeline`: yields the samples at `positions`, unchanged.

        Besides the content of its tar members by suffix (`jpg`, `json`, …) a sample has `__key__`, `__url__` (its
        shard) and `__index__`: the position that it fills, or `index`. A random stage that seeds its generator with
        `__index__` is reproducible, and a resumed run repeats it exactly.

        Raises:
            DataError: If a shard cannot be opened.
            Exception: If a sample is damaged: any exception that the reader or the decoder raises on its bytes.
        """
        for position in positions:
            shard, number = self.reader.locate(self.order[position])
            sample: Sample = {
                "__key__": self.reader.key(shard, number),
                "__url__": self.reader.shards[shard].name,
                "__index__": position if index is None else index,
                **self.reader.read(shard, number),
            }
            self.decoder.verify(sample)
            yield sample

    def load(
        self, position: int, rng: random.Random | None, *, index: int | None = None, count: bool = True
    ) -> SampleT:
        """Reads and decodes the sample at a position.

        Args:
            position: In the stream.
            rng: Of the augmentation; None for none.
            index: The `__index__` of the sample, if it fills another position.
            count: Count the request, and the sample if it is skipped.

        Raises:
            SkippedSample: If the sample is damaged, if a stage raises, or if a stage filters it out.
            StageError: If a stage yields anything but one sample or none.
            DataError: If its shard cannot be opened.
        """
        shard, number = self.reader.locate(self.order[position])
        if count:
            self.skips.count_request()
        self.reader.open(shard)  # outside of the try block: a missing shard is an error, not a skipped sample
        try:
            sample = self._run_stages(position, index)
            return self.decoder.decode(sample, rng)
        except StageError:
            raise
        except Exception as error:  # damaged bytes make a decoder raise anything
            name, key = printable(redact(self.reader.shards[shard].name)), self.reader.key(shard, number)
            skipped = SkippedSample(f"{name}, sample {printable(f'{key}: {error or type(error).__name__}')}")
            if count:
                self.skips.count_skip(name, skipped)
            raise skipped from error

    def _run_stages(self, position: int, index: int | None) -> Sample:
        """The sample at a position as the last stage yields it."""
        pipeline = wds.DataPipeline(partial(self.source, [position], index), *self.stages)
        outputs = list(islice(pipeline, 2))
        if not outputs:
            raise ValueError("filtered out by data.stages")
        if len(outputs) > 1 or not isinstance(outputs[0], dict):
            output = "several samples" if len(outputs) > 1 else f"a {type(outputs[0]).__name__}"
            raise StageError(
                f"data.stages must yield one sample (a dict) or none for each sample, got {output}: use stages that "
                "map or filter samples, such as webdataset.map and webdataset.select"
            )
        sample: Sample = outputs[0]
        return sample
