"""A callback of another package."""

from pathlib import Path
from typing import Any

import lightning as L


class LossFile(L.Callback):
    """Writes the loss of every step of a rank to a file."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with (self.folder / f"rank{trainer.global_rank}.txt").open("a") as file:
            file.write(f"{float(outputs['loss'])}\n")
