"""Watchdog: ends a distributed run whose ranks hang or are gone."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from contextlib import suppress

import lightning as L
import psutil
from lightning.pytorch.callbacks import Callback
from torch._C._distributed_c10d import Store  # torch.distributed's stubs do not export it

from cubediff.training.rank_store import connect_store
from cubediff.utils.exits import hard_exit

log = logging.getLogger(__name__)

_DONE = b"done"
_GRACE = 5.0  # seconds in which a process ends by itself after another rank is gone

# Of the other ranks: the last heartbeat, and when it was received.
Heartbeats = dict[int, tuple[bytes, float]]


class Watchdog(Callback):
    """Ends a distributed run when a rank sends no heartbeat, and prints the rank, its machine and its last activity.

    Without it the other ranks wait for the timeout of a collective call, which names no rank. Heartbeats are sent by
    threads, so that a slow rank stays alive; rank 0 watches all other ranks, which watch rank 0, from the setup of the
    run to the end of its export. Time in which this process itself is paused, as with all others when a container or a
    machine is suspended, does not count.

    Args:
        seconds: Time without a heartbeat after which the run ends.

    Raises:
        ValueError: If `seconds` is not positive.
    """

    def __init__(self, seconds: float | int = 120.0) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds={seconds}: expected a positive number; set callbacks.watchdog=null for none")
        self.seconds = seconds
        self._activity = "starting"
        self._done = threading.Event()
        self._threads: list[threading.Thread] = []
        self._names: dict[int, tuple[str, str, int]] = {}  # of the watched ranks: name, host, process
        self._received: Heartbeats = {}
        self._store: Store | None = None
        self._own_rank = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        rank, host, process = trainer.global_rank, socket.gethostname(), os.getpid()
        self._own_rank = rank
        store = self._store = connect_store(trainer, "the watchdog", ", or set callbacks.watchdog=null")
        store.set(f"name{rank}", f"{host} {process}")
        trainer.strategy.barrier()
        for other in range(1, trainer.world_size) if rank == 0 else [0]:
            host, number = store.get(f"name{other}").decode().split()
            self._names[other] = (f"rank {other} ({host}, process {number})", host, int(number))
            self._received[other] = (b"", time.monotonic())
        # Two threads, since the store of a stopped process may block its clients forever.
        for target, arguments in ((self._exchange, (store, rank)), (self._watch, (trainer,))):
            thread = threading.Thread(target=target, args=arguments, daemon=True, name="watchdog")
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

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._activity = f"exporting after step {trainer.global_step}"

    def on_run_end(self, failed: bool) -> None:
        """Stops watching; without a failure the other ranks stop waiting for this one's heartbeats."""
        self._done.set()
        if self._store is not None and not failed:
            with suppress(RuntimeError):  # rank 0 has ended
                self._store.set(f"sign{self._own_rank}", _DONE.decode())
        for thread in self._threads:
            thread.join(1.0)

    def lost_rank(self) -> str | None:
        """Names a watched rank of this machine whose process is gone; None if all are there."""
        for rank, (name, host, process) in self._names.items():
            if host == socket.gethostname() and self._received[rank][0] != _DONE and not psutil.pid_exists(process):
                return f"{name} was killed or has crashed, {self._last_activity(rank)}"
        return None

    def _exchange(self, store: Store, rank: int) -> None:
        count = 0
        while not self._done.wait(self.seconds / 10):
            count += 1
            with suppress(RuntimeError):  # the store is gone, or another rank has sent nothing yet
                store.set(f"sign{rank}", f"{count} {self._activity}")
                for other, (before, _) in self._received.items():
                    heartbeat = store.get(f"sign{other}")
                    if heartbeat != before:
                        self._received[other] = (heartbeat, time.monotonic())

    def _watch(self, trainer: L.Trainer) -> None:
        interval = min(1.0, self.seconds / 10)
        before = time.monotonic()
        while not self._done.wait(interval):
            now = time.monotonic()
            if now - before > interval + self.seconds / 2:
                log.warning("this process was paused for %.0f s: the watchdog waits for all ranks again", now - before)
                self._received |= {rank: (heartbeat, now) for rank, (heartbeat, _) in self._received.items()}
            before = now
            if (lost := self.lost_rank()) and not self._done.wait(_GRACE):
                self._end_process(trainer, lost)
            for rank, (heartbeat, since) in self._received.items():
                if heartbeat != _DONE and now - since > self.seconds and not self._done.is_set():
                    name = self._names[rank][0]
                    self._end_process(
                        trainer,
                        f"{name} has sent no heartbeat for {self.seconds:.0f} s; {self._last_activity(rank)}. Its "
                        "machine is stopped, disconnected or overloaded",
                    )

    def _last_activity(self, rank: int) -> str:
        return f"its last activity: {self._received[rank][0].decode().partition(' ')[2] or 'starting'}"

    def _end_process(self, trainer: L.Trainer, message: str) -> None:
        for process in getattr(trainer.strategy.launcher, "procs", []):
            process.kill()
        hard_exit(f"{message}; the same command resumes from the last checkpoint")
