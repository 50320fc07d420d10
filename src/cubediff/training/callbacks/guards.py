"""Guards against non-finite steps and hung ranks."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from contextlib import suppress
from typing import cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch._C._distributed_c10d import Store  # torch.distributed's stubs do not export it

from cubediff.training.callbacks.hooks import KeyedBatch, cube_module
from cubediff.training.metric_reduction import log_to_loggers
from cubediff.training.module import StepOutput
from cubediff.training.rank_store import connect_store

log = logging.getLogger(__name__)

_MAX_LISTED = 20  # samples in a warning

# Of the other ranks: the last heartbeat, and when it was received.
Heartbeats = dict[int, tuple[bytes, float]]


class NonFiniteGuard(Callback):
    """Counts the optimizer steps that the module skipped because a gradient was not finite, as optim/skipped_steps.

    Logs a warning with the keys of the samples, and stops the run after `limit` skipped steps.

    Args:
        limit: Number of skipped steps that stops the run.
        every_n_steps: Steps between two checks; a check synchronises the device.
    """

    def __init__(self, limit: int = 20, every_n_steps: int = 10) -> None:
        self.limit = limit
        self.every_n_steps = every_n_steps
        self.skipped = 0
        self._losses: list[tuple[list[str], torch.Tensor]] = []
        self._steps: list[torch.Tensor] = []
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
        if trainer.global_step % self.every_n_steps == 0:
            self._check(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        if not self._steps:
            return
        skipped = int(torch.stack(self._steps).sum())
        finite = torch.stack([flag for _, flag in self._losses]).tolist() if skipped else []
        keys = [key for (keys, _), good in zip(self._losses, finite, strict=bool(finite)) if not good for key in keys]
        self._steps, self._losses = [], []
        self.skipped += skipped
        if not skipped:
            return
        rank = f"rank {trainer.global_rank}: " if trainer.world_size > 1 else ""
        cause = (
            f"the loss is not finite in a batch of {', '.join(keys[:_MAX_LISTED])}"
            if keys
            else "all losses of this rank are finite"
        )
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

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped = state_dict["skipped"]


class Watchdog(Callback):
    """Ends a distributed run when a rank sends no heartbeat, and prints the rank, its machine and its last activity.

    Without it the other ranks wait for the timeout of a collective call, which names no rank. Heartbeats are sent by
    threads, so that a slow rank stays alive; rank 0 watches all other ranks, which watch rank 0.

    Args:
        seconds: Time without a heartbeat after which the run ends.
    """

    def __init__(self, seconds: float | int = 120.0) -> None:
        self.seconds = seconds
        self._activity = "starting"
        self._done = threading.Event()
        self._threads: list[threading.Thread] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size == 1:
            return
        rank = trainer.global_rank
        store = connect_store(trainer, "the watchdog", ", or set callbacks.watchdog=null")
        store.set(f"name{rank}", f"rank {rank} ({socket.gethostname()}, process {os.getpid()})")
        trainer.strategy.barrier()
        others = range(1, trainer.world_size) if rank == 0 else [0]
        received: Heartbeats = {other: (b"", time.monotonic()) for other in others}
        # Two threads, since the store of a stopped process may block its clients forever.
        exchange = threading.Thread(target=self._exchange, args=(store, rank, received), daemon=True, name="watchdog")
        watch = threading.Thread(target=self._watch, args=(store, trainer, received), daemon=True, name="watchdog")
        for thread in (exchange, watch):
            self._threads.append(thread)
            thread.start()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        self._activity = f"in step {trainer.global_step + 1}"

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self._activity = f"waiting for data after step {trainer.global_step}"

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._activity = f"validating after step {trainer.global_step}"

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(1.0)

    def _exchange(self, store: Store, rank: int, received: Heartbeats) -> None:
        count = 0
        while not self._done.wait(self.seconds / 10):
            count += 1
            with suppress(RuntimeError):  # the store is gone, or another rank has sent nothing yet
                store.set(f"sign{rank}", f"{count} {self._activity}")
                for other, (before, _) in received.items():
                    heartbeat = store.get(f"sign{other}")
                    if heartbeat != before:
                        received[other] = (heartbeat, time.monotonic())

    def _watch(self, store: Store, trainer: L.Trainer, received: Heartbeats) -> None:
        while not self._done.wait(self.seconds / 10):
            for other, (heartbeat, since) in received.items():
                if time.monotonic() - since > self.seconds and not self._done.is_set():
                    self._end_process(store, trainer, other, heartbeat)

    def _end_process(self, store: Store, trainer: L.Trainer, silent: int, heartbeat: bytes) -> None:
        name = store.get(f"name{silent}").decode() if trainer.is_global_zero else f"rank {silent}"
        activity = heartbeat.decode().partition(" ")[2] or "starting"
        print(
            f"error: {name} has sent no heartbeat for {self.seconds:.0f} s; its last activity: {activity}. Its machine "
            "is stopped, disconnected or overloaded; the same command resumes from the last checkpoint",
            flush=True,
        )
        for process in getattr(trainer.strategy.launcher, "procs", []):
            process.kill()
        os._exit(1)
