"""RunCheckpoint: when a run saves checkpoints, and which of them it keeps."""

import copy
import logging
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from cubediff.training.callbacks.signals import find_stop
from cubediff.training.checkpoint_errors import CheckpointError
from cubediff.training.checkpoint_io import (
    FORMAT,
    FORMAT_VERSION,
    IDENTITY,
    file_name,
    link_last,
    list_checkpoints,
)
from cubediff.training.fit_loop import ResumingFitLoop
from cubediff.training.protocols import TrainerAttributes
from cubediff.utils.exits import before_hard_exit
from cubediff.utils.files import write_json
from cubediff.utils.json_text import parse_json
from cubediff.utils.ranks import all_reduce_max, new_cpu_group
from cubediff.utils.signals import Stopped

log = logging.getLogger(__name__)

# Keys in the checkpoint.
_EPOCH = "epoch_of"
_VALIDATION = "validation_follows"  # whether Lightning validates after the checkpoint's step
_VALIDATED = "validated.json"  # the step of the last validation that was not interrupted


@dataclass(frozen=True)
class _FinishedStep:
    """The parts of a checkpoint that change between two optimizer steps: Lightning's counts, the stream's position."""

    step: int
    loops: dict[str, Any]
    data: dict[str, Any]
    validation_follows: bool

    @classmethod
    def of(cls, trainer: L.Trainer) -> "_FinishedStep":
        data = cast(_Stateful, cast(TrainerAttributes, trainer).datamodule)
        loop, fetcher = trainer.fit_loop, trainer.fit_loop._data_fetcher
        follows = trainer.enable_validation and fetcher is not None and loop.epoch_loop._should_check_val_fx(fetcher)
        return cls(trainer.global_step, copy.deepcopy(loop.state_dict()), data.state_dict(), follows)


class _Stateful(Protocol):
    """A data module."""

    def state_dict(self) -> dict[str, Any]: ...


class RunCheckpoint(Checkpoint):
    """Saves checkpoints `folder`/stepNNNNNNNN.ckpt and keeps the newest; last.ckpt links to the last one.

    A run that a signal or an exception ends saves one of its last finished step: micro-batches of a step that is not
    finished are read again when the run resumes, and a validation that was interrupted is repeated.

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
        self._finished: _FinishedStep | None = None  # None before training
        self._is_stepping = False  # the optimizer changes the weights
        self._substitute: _FinishedStep | None = None
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
        self._finished = _FinishedStep.of(trainer)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._is_stepping = True

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
        self._finished, self._is_stepping = _FinishedStep.of(trainer), False
        due = time.monotonic() - self._saved_at >= self.every_seconds
        if all_reduce_max(due, self._group) or trainer.global_step % self.every_n_steps == 0:
            self.save(trainer)

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / _VALIDATED, trainer.global_step, sync=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._saved_step < trainer.global_step:
            self.save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Saves a checkpoint of the last finished step, if the exception has left its weights as they were."""
        if self._finished is None or isinstance(exception, CheckpointError):
            return
        why = "stopped by a signal" if isinstance(exception, Stopped) else "the run has failed"
        if trainer.global_step > self._finished.step:  # a callback has failed after the optimizer's step
            self._finished, self._is_stepping = _FinishedStep.of(trainer), False
        if self._is_stepping:
            log.error("%s within an optimizer step: %s", why, self._resumes())
        elif self._saved_step < self._finished.step or self._is_lost(trainer):
            self._save_finished(trainer, self._finished, why)
        elif self._saved_step:
            rank_zero_info(f"{why}: saved {self.folder / file_name(self._saved_step)}")
        else:
            rank_zero_info(f"{why} before the first step: there is no checkpoint")

    def _is_lost(self, trainer: L.Trainer) -> bool:
        """Whether the last checkpoint is no longer in its folder, for example because that was removed."""
        lost = self._saved_step > 0 and not (self.folder / file_name(self._saved_step)).exists()
        return bool(all_reduce_max(lost, self._group)) if self._is_together(trainer) else lost

    @staticmethod
    def _is_together(trainer: L.Trainer) -> bool:
        """Whether all ranks are here, and can write a checkpoint together."""
        stop = find_stop(trainer)
        return trainer.world_size == 1 or (stop is not None and stop.agreed)

    def _save_finished(self, trainer: L.Trainer, finished: _FinishedStep, why: str) -> None:
        together = self._is_together(trainer)
        if not together and not isinstance(trainer.strategy, DDPStrategy):
            rank_zero_info(f"{why}: a sharded network needs all ranks to save a checkpoint, {self._resumes()}")
            return
        if not together and not trainer.is_global_zero:
            return  # of replicas rank 0 writes
        self._substitute = finished
        try:
            with nullcontext() if together else before_hard_exit():
                self.save(trainer, together=together)
        except CheckpointError as error:
            log.error("%s", error)
        else:
            rank_zero_info(f"{why}: saved {self.folder / file_name(finished.step)}")
        finally:
            self._substitute = None

    def _resumes(self) -> str:
        return f"it resumes from step {self._saved_step}" if self._saved_step else "there is no checkpoint"

    def _validated_step(self) -> object:
        with suppress(OSError, ValueError):  # no validation yet, or a damaged file
            return parse_json((self.folder / _VALIDATED).read_bytes())
        return None

    def save(self, trainer: L.Trainer, *, together: bool = True) -> None:
        """Saves a checkpoint of the step that has just ended, then removes those that are not kept.

        Args:
            trainer: The run's trainer.
            together: Whether all ranks call it; otherwise rank 0 alone, whose network is not sharded.
        """
        began, file = time.monotonic(), self.folder / file_name(trainer.global_step)
        if together:
            trainer.save_checkpoint(file, weights_only=False)
        else:  # without Lightning's barrier
            trainer.strategy.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(weights_only=False), file)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            link_last(file)
            self._remove_old()
        rank_zero_info(f"saved {file} in {self._saved_at - began:.1f} s")

    def _remove_old(self) -> None:
        for step, file in list(list_checkpoints(self.folder).items())[self.keep :]:
            if not self.keep_every_n_steps or step % self.keep_every_n_steps:
                file.unlink(missing_ok=True)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[IDENTITY] = self._identity
        checkpoint[FORMAT] = FORMAT_VERSION
        checkpoint[_EPOCH] = _epoch_settings(trainer)
        checkpoint[_VALIDATION] = self._finished is not None and self._finished.validation_follows
        if self._substitute is not None:
            checkpoint["loops"]["fit_loop"] = self._substitute.loops
            data = type(cast(TrainerAttributes, trainer).datamodule).__qualname__
            if self._substitute.data:
                checkpoint[data] = self._substitute.data

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Has the validation of the checkpoint's step repeated, if it was interrupted.

        Starts a new epoch if the number of batches per epoch or of micro-batches per step has changed: Lightning would
        resume the old epoch's count. The stream of panoramas resumes at its position either way.
        """
        fit_loop = trainer.fit_loop
        if isinstance(fit_loop, ResumingFitLoop):  # not that of a plain Trainer, which does as Lightning does
            is_interrupted = self._validated_step() != checkpoint["global_step"]
            fit_loop.repeats_validation = bool(checkpoint.get(_VALIDATION)) and is_interrupted
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
