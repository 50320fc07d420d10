"""StopOnSignal: stops all ranks of a run together when any of them receives a signal or fails."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch._C._distributed_c10d import Store  # torch.distributed's stubs do not export it

from cubediff.training.callbacks.fetch_hooks import add_fetch_hooks
from cubediff.training.rank_store import connect_store
from cubediff.utils.ranks import all_reduce_max, new_cpu_group
from cubediff.utils.signals import Request, Stopped, StopSignals

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_KEY, _FAILURE = "request", "failure"


class _NoHandlers(_SignalConnector):
    """Lightning's handler of SIGTERM makes a collective call at any point of a step; `StopSignals` replaces it."""

    def register_signal_handlers(self) -> None:
        self.received_sigterm = False


class StopOnSignal(Callback):
    """Stops a run before the next micro-batch, validation batch, denoising step or read of data.

    There the ranks vote: all take the maximum of their requests, and raise `Stopped` together. A rank that is still
    waiting for data when any rank receives a signal stops waiting and votes at once, and so does one that fails there.
    Between two votes no rank stops, so that none waits for a collective call that another one never makes.

    Args:
        signals: The signals of this process.
    """

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals
        self.agreed = False  # whether all ranks have stopped, and can write a checkpoint together
        self.other_failure: str | None = None  # the rank that failed before this one, and why
        self._vote_is_next = False  # among this rank's collective calls
        self._validation_votes = 0
        self._requests: SharedRequest | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer._signal_connector = _NoHandlers(trainer)
        self._group = new_cpu_group(trainer.world_size)
        if trainer.world_size > 1:
            self.signals.defer()  # from here on the ranks wait for each other
            self._requests = SharedRequest(connect_store(trainer, "rank 0", ""), self.signals)
        add_fetch_hooks(trainer, self._before_fetch, self._after_fetch)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.defer()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.defer()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        self.vote()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ranks vote on as many batches as all of them have."""
        batches = min(sum(trainer.num_val_batches), 2**62)
        self._validation_votes = -all_reduce_max(-int(batches), self._group)

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._vote_is_next = False
        if self._validation_votes > 0:
            self._validation_votes -= 1
            self.vote()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._vote_is_next = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._vote_is_next = False

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.defer()
        self._vote_is_next = True  # the ranks have different numbers of batches, and vote once

    def on_predict_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.signals.check()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.vote()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.signals.defer()
        if self._requests is not None:
            self._share_failure(trainer, self._requests, exception)
        own = self.signals.request if isinstance(exception, Stopped) else Request.FAILED
        if self._requests is not None and self._vote_is_next:
            self._requests.share(own)
            with suppress(RuntimeError):  # another rank is gone
                all_reduce_max(own, self._group)
                self.agreed = True
        self._close()

    def _share_failure(self, trainer: L.Trainer, requests: SharedRequest, exception: BaseException) -> None:
        reason = f"{type(exception).__name__}: {(str(exception).splitlines() or [''])[0]}"
        own = f"rank {trainer.global_rank} ({socket.gethostname()}, process {os.getpid()}) has failed: {reason}"
        first = requests.first_failure(own if isinstance(exception, Exception) else "")
        if first != own:
            self.other_failure = first
        elif trainer.is_global_zero:
            log.error("%s", own)  # rank 0 names each other rank at the end

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        """Ends the thread, which would abort the process if it used the store while Python exits."""
        if self._requests is not None:
            self._requests.close()

    def vote(self) -> None:
        """Stops if any rank has a request; collective.

        Raises:
            Stopped: If a rank has received a signal, or has failed.
        """
        self._vote_is_next = False
        request = Request(all_reduce_max(self.signals.request, self._group))
        if request != Request.NONE:
            self.agreed = True
            self.signals.request = request
            self.signals.check()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside the block, where this rank makes no collective call, a signal stops the run at once."""
        self._before_fetch("")
        try:
            yield
        finally:
            self._after_fetch("")

    def _before_fetch(self, action: str) -> None:
        self._vote_is_next = not action.endswith(".val_next") or self._validation_votes > 0
        self.signals.raise_at_once()

    def _after_fetch(self, action: str) -> None:
        self.signals.defer()


class SharedRequest:
    """Spreads the request of any rank to all others, also while their main threads wait.

    Args:
        store: The store of all ranks.
        signals: The signals of this process.
    """

    def __init__(self, store: Store, signals: StopSignals) -> None:
        self._store, self._signals = store, signals
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._exchange, daemon=True, name="signals")
        self._thread.start()

    def share(self, request: Request) -> None:
        """Gives the other ranks a request."""
        with suppress(RuntimeError):  # rank 0 is gone
            self._store.set(_KEY, str(int(request)))

    def first_failure(self, own: str) -> str | None:
        """The message of the rank that has failed first, which is `own` unless that is empty or another was earlier."""
        with suppress(RuntimeError):  # rank 0 is gone
            if own:
                return self._store.compare_set(_FAILURE, "", own).decode()
            if self._store.check([_FAILURE]):
                return self._store.get(_FAILURE).decode()
        return own or None

    def close(self) -> None:
        """Ends the exchange."""
        self._done.set()
        self._thread.join(1.0)

    def _exchange(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            if self._signals.request:
                self.share(self._signals.request)
                return
            with suppress(RuntimeError):  # rank 0 is gone
                if self._store.check([_KEY]):
                    self._signals.receive(Request(int(self._store.get(_KEY))))
                    return


def find_stop(trainer: L.Trainer) -> StopOnSignal | None:
    """The callback of a run that handles signals; None if there is none, for example in a plain `Trainer`."""
    return next(
        (callback for callback in getattr(trainer, "callbacks", ()) if isinstance(callback, StopOnSignal)), None
    )


def requeue_slurm_job() -> None:
    """Puts this SLURM job back into the queue; a failure is printed, since the checkpoint is written already."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"WARNING: job {job} could not be requeued ({error}): submit it again, and it resumes")
