"""Parts of a config that raise on one rank of a run."""

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger


class Fails(Callback):
    """Raises on one rank at `place` of the step after `step`: forward, the start of `training_step`, or step_end."""

    def __init__(self, rank: int, place: str, step: int) -> None:
        self.rank, self.place, self.step = rank, place, step

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        real = pl_module.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            self._raise_at("forward", trainer)
            return real(*args, **kwargs)

        pl_module.training_step = training_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self._raise_at("step_end", trainer)

    def _raise_at(self, place: str, trainer: L.Trainer) -> None:
        if (place, trainer.global_rank, trainer.global_step) == (self.place, self.rank, self.step):
            raise ZeroDivisionError(f"broken in {place}")


class FailingLogger(CSVLogger):
    """Raises on one rank when it logs metrics after `step` steps."""

    def __init__(self, save_dir: str | Path, rank: int, step: int) -> None:
        super().__init__(save_dir)
        self.fails, self.step = int(os.environ.get("LOCAL_RANK", "0")) == rank, step

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.fails and step is not None and step >= self.step:
            raise ZeroDivisionError("broken in logger")
