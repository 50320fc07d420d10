"""Signals that stop a run with a checkpoint: SIGTERM, and SIGUSR1 before the time limit of a SLURM job."""

import os
import signal
import subprocess
import threading
from enum import IntEnum
from types import FrameType


class Request(IntEnum):
    """A rank's request after a step; all ranks act on the maximum of their requests."""

    NONE = 0
    SAVE = 1
    STOP = 2
    REQUEUE = 3


class SignalHandler:
    """Turns signals into a request: SIGTERM into STOP, under SLURM also SIGUSR1 into REQUEUE."""

    def __init__(self) -> None:
        self.request = Request.NONE

    def install(self) -> None:
        """Replaces Lightning's handlers, which call other ranks from inside the handler, at any point of their step.

        Does nothing outside the main thread, where Python allows no handlers. Lightning restores the handlers that were
        set before training.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGTERM, self._on_signal)
        if "SLURM_JOB_ID" in os.environ:
            signal.signal(signal.SIGUSR1, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.request = max(self.request, Request.REQUEUE if number == signal.SIGUSR1 else Request.STOP)


def requeue_slurm_job() -> None:
    """Puts this SLURM job back into the queue; a failure is printed, since the checkpoint is written already."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"WARNING: job {job} could not be requeued ({error}): submit it again, and it resumes")
