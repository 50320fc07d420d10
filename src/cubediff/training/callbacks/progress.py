"""StepProgress: one progress bar for the whole run."""

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class StepProgress(ProgressBar):
    """Progress bar over the run's optimizer steps.

    Lightning's own bar counts the batches of an epoch, and a small dataset has one batch per epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar = tqdm(disable=True)

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps, done = trainer.estimated_stepping_batches, trainer.global_step
        self._bar = tqdm(desc="training", total=steps, initial=done, unit="step", disable=not self._enabled)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self._bar.update(
            trainer.global_step - self._bar.n
        ):  # True if the bar was redrawn; reading metrics synchronises
            self._bar.set_postfix(trainer.progress_bar_metrics, refresh=False)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar.set_description("validating")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar.set_description("training")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar.set_postfix(trainer.progress_bar_metrics)
        self._bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._bar.close()
