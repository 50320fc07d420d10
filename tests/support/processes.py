"""Starts `cubediff train` in a separate process, which a test may kill, stop and start again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

TINY = (
    "model=tiny_random",
    "face_size=64",
    "data.num_workers=1",
    "data.shuffle_buffer=5",
    "trainer.limit_val_batches=0",
    "trainer.log_every_n_steps=1",
    "callbacks.samples=null",
    "callbacks.checkpoint.every_n_steps=1",
)
ONE = ("trainer=cpu", "data.batch_size=2")
PARTS = (
    "trainer=fsdp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2", "data.batch_size=1",
)  # fmt: skip
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2", "data.batch_size=1")


class Run:
    """A training process with `settings` and further overrides; its output goes to `log`, by default `run_dir`.txt."""

    def __init__(
        self,
        shards: Path,
        run_dir: Path,
        *words: str,
        settings: Sequence[str] = TINY,
        log: Path | None = None,
        **environment: str,
    ) -> None:
        paths = (f"data.path={shards}", f"run_dir={run_dir}")
        command = [sys.executable, "-m", "cubediff.train", *settings, *paths, *words]
        self.checkpoints = run_dir / "checkpoints"
        self.log = log or run_dir.with_suffix(".txt")
        with self.log.open("a") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )

    def after(self, step: int, seconds: float = 300.0) -> "Run":
        """Waits until the checkpoint of a step is written, and returns this run."""
        deadline = time.monotonic() + seconds
        while not (self.checkpoints / f"step{step:08d}.ckpt").exists():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.01)
        return self

    def says(self, words: str, seconds: float = 300.0) -> float:
        """Waits until the output contains `words`; returns the time, of `time.monotonic`."""
        deadline = time.monotonic() + seconds
        while words not in self.output:
            assert self.process.poll() is None or words in self.output, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)
        return time.monotonic()

    @property
    def children(self) -> list[int]:
        """The process ids of the ranks that the process has started."""
        return children(self.process.pid)

    @property
    def output(self) -> str:
        """What the process and its ranks have printed so far."""
        return self.log.read_text()

    def ended(self, seconds: float = 300.0) -> int:
        """Waits for the end of the process and returns its exit code; kills it if that takes too long."""
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()


def python(*words: object, cwd: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with arguments and further environment variables; fails if it ends with another exit code."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == code, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in listed.stdout.split()]


def alive(pid: int) -> bool:
    """Whether the process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(*pids: int, seconds: float = 20.0) -> bool:
    """Waits for the processes to end; kills those that do not, and returns whether all ended without it."""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return not left


def saved(run_dir: Path) -> dict[str, Any]:
    """Loads the last checkpoint of a run."""
    content: dict[str, Any] = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def difference(a: Any, b: Any, where: str = "") -> list[str]:
    """The paths at which two checkpoints differ by at least a bit."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        found = [] if isinstance(b, dict) and a.keys() == b.keys() else [f"{where}: keys"]
        return found + [d for key in a.keys() & b.keys() for d in difference(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list | tuple):
        found = [] if len(a) == len(b) else [f"{where}: length"]
        both = enumerate(zip(a, b, strict=False))  # another length is found already
        return found + [d for i, (x, y) in both for d in difference(x, y, f"{where}.{i}")]
    return [] if a == b else [f"{where}: {a} and {b}"]
