"""Guard against non-finite steps."""

from __future__ import annotations

import logging
from typing import cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from cubediff.training.callbacks.hooks import KeyedBatch, cube_module
from cubediff.training.metric_reduction import gather_ranks, log_to_loggers
from cubediff.training.module import StepOutput, gradient_scaler

log = logging.getLogger(__name__)

_MAX_LISTED = 20  # samples in a warning


class NonFiniteGuard(Callback):
    """Counts the optimizer steps that the module skipped because a gradient was not finite, as optim/skipped_steps.

    Logs a warning with the keys of the samples, and stops the run after `limit` skipped steps. A step that a gradient
    scaler skips to lower its scale (trainer.precision=16-mixed) counts only if a loss is not finite, or if the scale
    has fallen below 1.

    Args:
        limit: Number of skipped steps that stops the run.
        every_n_steps: Steps between two checks; a check synchronises the device.

    Raises:
        ValueError: If one of them is below 1.
    """

    def __init__(self, limit: int = 20, every_n_steps: int = 10) -> None:
        if limit < 1 or every_n_steps < 1:
            raise ValueError(f"limit and every_n_steps must be at least 1, got {limit} and {every_n_steps}")
        self.limit = limit
        self.every_n_steps = every_n_steps
        self.skipped = 0
        self._losses: list[tuple[list[str], torch.Tensor]] = []
        self._steps: list[torch.Tensor] = []  # whether each one was skipped
        self._lost: list[torch.Tensor] = []  # whether it had a loss that is not finite
        self._first = 0  # number in `_losses` of the step's first micro-batch
        self._last_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: KeyedBatch, batch_idx: int
    ) -> None:
        losses = cast(StepOutput, outputs)["losses"]
        self._losses.append((batch["key"], losses.isfinite().all()))
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        self._steps.append(cube_module(pl_module).found_inf)
        self._lost.append(~torch.stack([finite for _, finite in self._losses[self._first :]]).all())
        self._first = len(self._losses)
        if trainer.global_step % self.every_n_steps == 0:
            self._check(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        if not self._steps:
            return
        skipped, cause = self._count(trainer)
        finite = torch.stack([flag for _, flag in self._losses]).tolist() if skipped else []
        keys = [key for (keys, _), good in zip(self._losses, finite, strict=bool(finite)) if not good for key in keys]
        self._steps, self._lost, self._losses, self._first = [], [], [], 0
        self.skipped += skipped
        if not skipped:
            return
        rank = f"rank {trainer.global_rank}: " if trainer.world_size > 1 else ""
        if keys:
            cause = f"the loss is not finite in a batch of {', '.join(keys[:_MAX_LISTED])}"
        log.warning(
            "%sskipped %d steps up to step %d, whose gradients are not finite; %s",
            rank, skipped, trainer.global_step, cause,
        )  # fmt: skip
        log_to_loggers(trainer, {"optim/skipped_steps": float(self.skipped)})
        if self.skipped >= self.limit:
            raise FloatingPointError(
                f"{self.skipped} steps were skipped because losses or gradients are not finite (the last up to step "
                f"{trainer.global_step}; {cause}): lower model.optimizer.lr, or inspect these samples"
            )

    def _count(self, trainer: L.Trainer) -> tuple[int, str]:
        """The number of steps that failed since the last check, and the cause if all losses of this rank are finite."""
        steps, cause = torch.stack(self._steps), "all losses of this rank are finite"
        if (scaler := gradient_scaler(trainer)) is None:
            return int(steps.sum()), cause
        if scaler.get_scale() < 1:
            return int(steps.sum()), "the loss scale has fallen below 1"
        lost = torch.stack(self._lost).float()
        return int((steps * gather_ranks(trainer, lost).amax(0)).sum()), cause

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped = state_dict["skipped"]
