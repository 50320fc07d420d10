"""What keeps a run from going wrong unheard: steps without a number, and ranks that have fallen silent."""

import logging
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from cubediff.training.metrics import log_to_loggers
from cubediff.training.module import CubeDiffModule

log = logging.getLogger(__name__)

_NAMED = 20  # samples, in a warning


class NonFiniteGuard(Callback):
    """Counts the optimizer steps that the module left out because a loss or a gradient was not finite, as
    optim/skipped_steps; names the samples, and stops the run after `limit` such steps. Looks every `every_n_steps`
    steps, since to look is to wait for the device."""

    def __init__(self, limit: int = 20, every_n_steps: int = 10) -> None:
        self.limit = limit
        self.every_n_steps = every_n_steps
        self.skipped = 0
        self._losses: list[tuple[list[str], torch.Tensor]] = []
        self._steps: list[torch.Tensor] = []
        self._seen_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: CubeDiffModule) -> None:
        self._seen_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: CubeDiffModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append((batch["key"], outputs["losses"].isfinite().all()))
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        self._steps.append(pl_module.found_inf)
        if trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps:
            self._look(trainer)

    def _look(self, trainer: L.Trainer) -> None:
        skipped = int(torch.stack(self._steps).sum())
        finite = torch.stack([flag for _, flag in self._losses]).tolist() if skipped else []
        keys = [key for (keys, _), good in zip(self._losses, finite, strict=bool(finite)) if not good for key in keys]
        self._steps, self._losses = [], []
        self.skipped += skipped
        if not skipped:
            return
        rank = f"rank {trainer.global_rank}: " if trainer.world_size > 1 else ""
        where = f"up to step {trainer.global_step} {skipped} steps had gradients that are not finite and were left out"
        told = (
            f"the loss is not finite in a batch of {', '.join(keys[:_NAMED])}" if keys else "all own losses are finite"
        )
        log.warning("%s%s; %s", rank, where, told)
        log_to_loggers(trainer, {"optim/skipped_steps": float(self.skipped)})
        if self.skipped >= self.limit:
            raise FloatingPointError(
                f"{self.skipped} steps were left out because losses or gradients are not finite (the last up to step "
                f"{trainer.global_step}; {told}): lower model.optimizer.lr, or look at these samples"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


class Watchdog(Callback):
    """Ends a run of several ranks where one gives no sign of life for `seconds`, and says which, on which machine, and
    what it was last doing; without it the others would wait for the collective call's timeout, which names nobody.

    Threads of each rank give the signs, so that a rank that is merely slow is alive; rank 0's looks at all others,
    theirs at rank 0's.
    """

    def __init__(self, seconds: float | int = 120.0) -> None:
        self.seconds = seconds
        self._doing = "starting"
        self._done = threading.Event()
        self._threads: list[threading.Thread] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size == 1:
            return
        host = os.environ["MASTER_ADDR"]
        store = _store(host, 0, master=True) if trainer.is_global_zero else None
        port = trainer.strategy.broadcast(store.port if store else 0)
        try:
            store = store or _store(host, port, master=False)
        except RuntimeError as error:
            raise ValueError(f"rank {trainer.global_rank} cannot reach the watchdog at {host}:{port} ({error}): open "
                             "the ports between the machines, or give callbacks.watchdog=null") from error  # fmt: skip
        rank = trainer.global_rank
        store.set(f"name{rank}", f"rank {rank} ({socket.gethostname()}, process {os.getpid()})")
        trainer.strategy.barrier()
        others = range(1, trainer.world_size) if rank == 0 else [0]
        heard = {other: (b"", time.monotonic()) for other in others}
        # Two, for a store whose process is stopped may keep who asks it waiting for ever.
        for target, given in ((self._exchange, (store, rank, heard)), (self._watch, (store, trainer, heard))):
            thread = threading.Thread(target=target, args=given, daemon=True, name="watchdog")
            self._threads.append(thread)
            thread.start()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._doing = f"in step {trainer.global_step + 1}"

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._doing = f"waiting for data after step {trainer.global_step}"

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._doing = f"validating after step {trainer.global_step}"

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(1.0)

    def _exchange(self, store: torch.distributed.Store, rank: int, heard: dict[int, tuple[bytes, float]]) -> None:
        beat = 0
        while not self._done.wait(self.seconds / 10):
            beat += 1
            with suppress(RuntimeError):  # the store is gone, or another rank has not begun
                store.set(f"sign{rank}", f"{beat} {self._doing}")
                for other, (before, _) in heard.items():
                    sign = store.get(f"sign{other}")
                    if sign != before:
                        heard[other] = (sign, time.monotonic())

    def _watch(self, store: Any, trainer: L.Trainer, heard: dict[int, tuple[bytes, float]]) -> None:
        while not self._done.wait(self.seconds / 10):
            for other, (sign, since) in heard.items():
                if time.monotonic() - since > self.seconds and not self._done.is_set():
                    self._give_up(store, trainer, other, sign)

    def _give_up(self, store: torch.distributed.Store, trainer: L.Trainer, silent: int, sign: bytes) -> None:
        name = store.get(f"name{silent}").decode() if trainer.is_global_zero else f"rank {silent}"
        doing = sign.decode().partition(" ")[2] or "starting"
        print(
            f"error: {name} has given no sign of life for {self.seconds:.0f} s; it was last {doing}. Its machine is "
            "stopped, cut off or overloaded; the same command goes on from the last checkpoint",
            flush=True,
        )
        launcher: Any = trainer.strategy.launcher
        for process in getattr(launcher, "procs", []):
            process.kill()
        os._exit(1)


def _store(host: str, port: int, master: bool) -> torch.distributed.TCPStore:
    return torch.distributed.TCPStore(
        host, port, is_master=master, wait_for_workers=False, timeout=timedelta(seconds=10)
    )
