"""Parts of a config that do something at one moment of a run: send a signal, raise an exception, stall."""

import os
import signal
import threading
from collections.abc import Callable

import lightning as L
import webdataset
from lightning.pytorch.callbacks import Callback
from webdataset.utils import PipelineStage

ACTIONS: dict[str, Callable[[], object]] = {
    "SIGTERM": lambda: signal.raise_signal(signal.SIGTERM),
    "SIGHUP": lambda: signal.raise_signal(signal.SIGHUP),
    "SIGINT": lambda: signal.raise_signal(signal.SIGINT),
    "ZeroDivisionError": lambda: 1 // 0,
}


class At(Callback):
    """Does `action` at the `count`-th call of a hook."""

    def __init__(self, hook: str, count: int, action: str) -> None:
        self.calls = 0

        def at(trainer: L.Trainer, *arguments: object) -> None:
            self.calls += 1
            if self.calls == count:
                ACTIONS[action]()

        setattr(self, hook, at)


def stall_rank_1() -> PipelineStage:
    """A stage of `data.stages` that never returns on rank 1 from the sample index STALL_AT on."""
    first = float(os.environ.get("STALL_AT", "inf"))

    def stall(sample: dict[str, object]) -> dict[str, object]:
        index = sample["__index__"]
        assert isinstance(index, int)
        if os.environ.get("LOCAL_RANK") == "1" and index >= first:
            threading.Event().wait()
        return sample

    stage: PipelineStage = webdataset.map(stall)
    return stage
