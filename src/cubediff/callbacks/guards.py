"""What ends a run that has gone wrong, and says why."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback


class NonFiniteGuard(Callback):
    """Stops a run whose loss is no number any more, naming the samples; looks every `every_n_steps` batches, since
    a loss once spoiled stays so."""

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % self.every_n_steps == 0 and not torch.isfinite(outputs["loss"]):
            raise FloatingPointError(
                f"the loss is {outputs['loss'].item()} at step {trainer.global_step}, in or up to {self.every_n_steps} "
                f"batches before the one with {', '.join(batch['key'])}: lower model.optimizer.lr, or look at them"
            )
