"""RunCheckpoint: when a run saves checkpoints, and which of them it keeps."""

import time
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cubediff.training.callbacks.signals import Request, SignalHandler, requeue_slurm_job
from cubediff.training.checkpoint_io import IDENTITY, CheckpointError, file_name, link_last, list_checkpoints
from cubediff.training.protocols import TrainerAttributes
from cubediff.utils.ranks import all_reduce_max, new_cpu_group

_EPOCH = "epoch_of"  # key in the checkpoint


class RunCheckpoint(Checkpoint):
    """Saves checkpoints `folder`/stepNNNNNNNN.ckpt and keeps the newest; last.ckpt links to the last one.

    When any rank receives SIGTERM, all ranks finish their step, save a checkpoint and exit with code 143. Under SLURM,
    SIGUSR1 does the same and requeues the job (`sbatch --signal=USR1@120` sends it 120 s before the time limit).

    Args:
        folder: The folder of the checkpoints.
        every_n_steps: Optimizer steps between two checkpoints.
        every_minutes: Saves also when this time has passed since the last checkpoint; None for steps only.
        keep: Number of newest checkpoints to keep.
        keep_every_n_steps: Also keeps the checkpoints at multiples of this step.

    Raises:
        ValueError: If `every_n_steps` or `keep` is below 1.
    """

    def __init__(
        self,
        folder: str,
        every_n_steps: int = 1000,
        every_minutes: float | int | None = 30.0,
        keep: int = 2,
        keep_every_n_steps: int | None = None,
    ) -> None:
        if every_n_steps < 1 or keep < 1:
            raise ValueError(f"every_n_steps and keep must be at least 1, got {every_n_steps} and {keep}")
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.every_seconds = float("inf") if every_minutes is None else 60 * every_minutes
        self.keep = keep
        self.keep_every_n_steps = keep_every_n_steps
        self._identity: dict[str, object] = {}
        self._signals = SignalHandler()
        self._last_step = self._saved_step = 0
        self._saved_at = 0.0

    def set_run_identity(self, identity: dict[str, object]) -> None:
        """Sets the run's identity, which every checkpoint holds and a resuming run must match."""
        self._identity = identity

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()
        self._group = new_cpu_group(trainer.world_size)
        self._check_agreement(trainer.global_step)
        if any(step > trainer.global_step for step in list_checkpoints(self.folder)):
            raise CheckpointError(
                f"{self.folder} holds checkpoints of later steps than {trainer.global_step}, where this run starts: "
                "choose another run_dir, or remove them"
            )
        self._signals.install()

    def _check_agreement(self, step: int) -> None:
        highest, lowest = all_reduce_max(step, self._group), -all_reduce_max(-step, self._group)
        if highest != lowest:
            raise CheckpointError(
                f"the ranks resume at different steps, from {lowest} to {highest}: {self.folder} must be the same "
                "folder on all machines; put run_dir on a file system that they share"
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:
            return  # in the middle of gradient accumulation, where a checkpoint would lose gradients
        self._last_step = trainer.global_step
        due = time.monotonic() - self._saved_at >= self.every_seconds
        own = max(self._signals.request, Request.SAVE if due else Request.NONE)
        request = all_reduce_max(own, self._group)
        if request != Request.NONE or trainer.global_step % self.every_n_steps == 0:
            self.save(trainer)
        if request >= Request.STOP:
            rank_zero_info(f"stopped by a signal: saved {self.folder / file_name(trainer.global_step)}")
            if request == Request.REQUEUE and trainer.is_global_zero:
                requeue_slurm_job()
            raise SIGTERMException

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._saved_step < trainer.global_step:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Saves a checkpoint of the step that has just ended, then removes those that are not kept."""
        trainer.save_checkpoint(self.folder / file_name(trainer.global_step), weights_only=False)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            link_last(self.folder / file_name(trainer.global_step))
            self._remove_old()

    def _remove_old(self) -> None:
        for step, file in list(list_checkpoints(self.folder).items())[self.keep :]:
            if not self.keep_every_n_steps or step % self.keep_every_n_steps:
                file.unlink(missing_ok=True)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, object]
    ) -> None:
        checkpoint[IDENTITY] = self._identity
        checkpoint[_EPOCH] = _epoch_settings(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Starts a new epoch if the number of batches per epoch or of micro-batches per step has changed.

        Lightning would resume the old epoch's count. The stream of panoramas resumes at its position either way.
        """
        if checkpoint[_EPOCH] != _epoch_settings(trainer):
            loop = checkpoint["loops"]["fit_loop"]
            progress, total = loop["epoch_loop.batch_progress"], loop["epoch_loop.batch_progress"]["total"]
            # A checkpoint at a step's end counts neither its batch as completed nor itself as a step.
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] += total["processed"] - total["completed"]
            total["completed"] = total["processed"]
            progress["current"] = dict.fromkeys(progress["current"], 0)
            progress["is_last_batch"] = False


def _epoch_settings(trainer: L.Trainer) -> dict[str, int]:
    """The settings that determine the number of batches in an epoch and of micro-batches in a step."""
    return {
        "world_size": trainer.world_size,
        "batch_size": cast(TrainerAttributes, trainer).datamodule.batch_size,
        "accumulate": trainer.accumulate_grad_batches,
    }
