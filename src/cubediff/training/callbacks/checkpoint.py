"""When a run is saved: at steps, by the clock, and when it is told to end."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cubediff.training.checkpoint_io import IDENTITY, CheckpointError, file_name, steps
from cubediff.utils.ranks import Agreement

_EPOCH = "epoch_of"  # the checkpoint's entry
_NOTHING, _SAVE, _END, _REQUEUE = range(4)  # what a rank wishes after a step, the more pressing the greater


class RunCheckpoint(Checkpoint):
    """Writes `folder`/step….ckpt every `every_n_steps` optimizer steps, after `every_minutes` without one, and at the
    end; last.ckpt is the last one. Keeps the last `keep` of them, and each at a multiple of `keep_every_n_steps`.

    On SIGTERM at any rank all of them end after the step that they are in, with a checkpoint and the exit code 143. On
    SIGUSR1 under SLURM, which sends it before a job's time is up where its batch file asks for it
    (`--signal=USR1@120`), the job is also put into the queue again.
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
            raise ValueError(f"every_n_steps {every_n_steps} and keep {keep} must be at least 1")
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.every_seconds = float("inf") if every_minutes is None else 60 * every_minutes
        self.keep = keep
        self.keep_every_n_steps = keep_every_n_steps
        self.identity: dict[str, Any] = {}
        self._signal = _NOTHING
        self._seen_step = self._saved_step = 0
        self._saved_at = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen_step = self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()
        self._agree = Agreement(trainer)
        if any(step > trainer.global_step for step in steps(self.folder)):
            raise CheckpointError(
                f"{self.folder} holds checkpoints of later steps than {trainer.global_step}, where this run begins: "
                "give another run_dir, or remove them"
            )
        if threading.current_thread() is not threading.main_thread():
            return  # as in a notebook's; no other may set handlers
        # In place of Lightning's, which talk to the other ranks from inside the handler, wherever those are just then,
        # and put the handlers back that were there before.
        signal.signal(signal.SIGTERM, self._told)
        if "SLURM_JOB_ID" in os.environ:
            signal.signal(signal.SIGUSR1, self._told)

    def _told(self, number: int, frame: FrameType | None) -> None:
        self._signal = max(self._signal, _REQUEUE if number == signal.SIGUSR1 else _END)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen_step:
            return  # in the middle of accumulating, where a checkpoint would lose gradients
        self._seen_step = trainer.global_step
        due = time.monotonic() - self._saved_at >= self.every_seconds
        wish = self._agree(max(self._signal, _SAVE if due else _NOTHING))
        if wish or trainer.global_step % self.every_n_steps == 0:
            self.save(trainer)
        if wish in (_END, _REQUEUE):
            rank_zero_info(f"told to end: {self.folder / file_name(trainer.global_step)} is written")
            if wish == _REQUEUE and trainer.is_global_zero:
                _requeue()
            raise SIGTERMException

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._saved_step < trainer.global_step:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Writes the checkpoint of the step just done, then removes those that are too many."""
        trainer.save_checkpoint(self.folder / file_name(trainer.global_step), weights_only=False)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            link = self.folder / ".last.ckpt"
            link.unlink(missing_ok=True)
            link.symlink_to(file_name(trainer.global_step))
            link.replace(self.folder / "last.ckpt")
            for step, file in list(steps(self.folder).items())[self.keep :]:
                if not self.keep_every_n_steps or step % self.keep_every_n_steps:
                    file.unlink(missing_ok=True)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[IDENTITY] = self.identity
        checkpoint[_EPOCH] = _epoch(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Where an epoch has now another number of batches, or a step of micro-batches, a new one begins: Lightning
        would count on from where the old one was. The stream of panoramas goes on either way."""
        if checkpoint[_EPOCH] != _epoch(trainer):
            loop = checkpoint["loops"]["fit_loop"]
            progress, total = loop["epoch_loop.batch_progress"], loop["epoch_loop.batch_progress"]["total"]
            # A checkpoint of a step's end counts neither its batch as completed nor itself as a step.
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] += total["processed"] - total["completed"]
            total["completed"] = total["processed"]
            progress["current"] = dict.fromkeys(progress["current"], 0)
            progress["is_last_batch"] = False


def _epoch(trainer: L.Trainer) -> dict[str, int]:
    """What an epoch's batches and the accumulation of gradients depend on."""
    return {
        "world_size": trainer.world_size,
        "batch_size": trainer.datamodule.batch_size,  # type: ignore[attr-defined]
        "accumulate": trainer.accumulate_grad_batches,
    }


def _requeue() -> None:
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"WARNING: the job {job} was not put into the queue again ({error}): submit it anew, it goes on")
