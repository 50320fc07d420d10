"""Samples that are skipped: counted per shard, logged, and limited to a fraction of the samples."""

import logging
import math
from collections import Counter
from threading import Lock

from cubediff.utils.errors import DataError

log = logging.getLogger(__name__)


class SkippedSample(Exception):
    """A sample that is damaged, or that a stage of `data.stages` filtered out. The message names it and the reason."""


class SkipCounter:
    """Counts requested and skipped samples; logs a warning at 1, 10, 100 … skipped ones. Safe to use from several
    threads."""

    def __init__(self) -> None:
        self.requested = self.total = 0
        self.by_shard: Counter[str] = Counter()
        self._lock = Lock()

    def count_request(self) -> None:
        """Counts a sample that is about to be read."""
        with self._lock:
            self.requested += 1

    def count_skip(self, shard: str, reason: SkippedSample) -> None:
        """Counts a sample of `shard` that was skipped."""
        with self._lock:
            self.total += 1
            self.by_shard[shard] += 1
            if self.total == 10 ** (len(str(self.total)) - 1):
                log.warning("%d samples skipped so far, the last one: %s", self.total, reason)

    def check(self, max_share: float, window: int) -> None:
        """Checks that the fraction of skipped samples is within its limit.

        The fraction is relative to complete windows: the remaining samples of the current window count as readable, so
        that a few damaged samples at the beginning of a dataset do not stop a run.

        Args:
            max_share: Largest fraction of requested samples that may be skipped.
            window: Number of samples after which the fraction is reliable; an epoch if the dataset is small.

        Raises:
            DataError: If more samples were skipped.
        """
        if self.total <= max_share * math.ceil(self.requested / window) * window:
            return
        shards = ", ".join(f"{shard}: {count}" for shard, count in self.by_shard.most_common(20))
        raise DataError(
            f"{self.total} of {self.requested} samples were skipped, more than data.max_skipped_share={max_share}: "
            f"build or copy their shards again ({shards}), check data.stages, or raise data.max_skipped_share"
        )
