"""When a rank fails, the others end with its message, and not before a checkpoint that is being written is complete."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import lightning as L
import pytest
from torch.distributed import HashStore

from cubediff.training import child_ranks
from cubediff.training.callbacks.signals import SharedRequest, StopOnSignal
from cubediff.utils import exits
from cubediff.utils.signals import StopSignals


def stopping(rank: int, store: HashStore) -> StopOnSignal:
    stop = StopOnSignal(StopSignals())
    stop._requests = SharedRequest(store, stop.signals)
    stop.on_exception(
        Mock(spec=L.Trainer, global_rank=rank, is_global_zero=rank == 0),
        L.LightningModule(),
        {0: RuntimeError("Connection closed by peer"), 1: ZeroDivisionError("broken\nat length")}[rank],
    )
    return stop


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_every_rank_knows_which_one_failed_first_and_why(order: tuple[int, int]) -> None:
    store = HashStore()
    first, second = (stopping(rank, store) for rank in order)
    assert first.other_failure is None
    assert second.other_failure is not None
    assert second.other_failure.startswith(f"rank {order[0]} (")
    reason = {0: "RuntimeError: Connection closed by peer", 1: "ZeroDivisionError: broken"}[order[0]]
    assert second.other_failure.endswith(f") has failed: {reason}")
    for stop in (first, second):  # a thread that used the store while Python exits would abort the process
        assert stop._requests is not None
        assert not stop._requests._thread.is_alive()


def test_a_hard_exit_waits_for_a_file_that_is_being_written(tmp_path: Path) -> None:
    code = f"""
import pathlib, threading, time
from cubediff.utils.exits import before_hard_exit, hard_exit
with before_hard_exit():
    threading.Thread(target=hard_exit, args=("rank 1 is gone",), daemon=True).start()
    time.sleep(0.5)
    pathlib.Path({str(tmp_path / "written")!r}).touch()
time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (1, "error: rank 1 is gone\n")
    assert (tmp_path / "written").exists()


def test_a_hard_exit_waits_only_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(exits, "_MAX_UNFINISHED", 0.2)
    monkeypatch.setattr(exits, "_unfinished", threading.Lock())
    monkeypatch.setattr(exits.os, "_exit", lambda code: ended.set())
    with exits.before_hard_exit():
        threading.Thread(target=exits.hard_exit, args=("stuck",), daemon=True).start()
        assert ended.wait(5.0)


def test_ranks_that_wait_for_a_failed_rank_0_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_ranks, "_ENDING", 0.5)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"

    def fail(stuck: "subprocess.Popen[bytes]") -> None:
        with child_ranks.child_ranks() as children:
            children.watch([stuck])
            raise ZeroDivisionError

    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as stuck:
        assert stuck.stdout is not None
        stuck.stdout.readline()
        began = time.monotonic()
        with pytest.raises(ZeroDivisionError):
            fail(stuck)
        assert stuck.wait(5.0) != 0
        assert time.monotonic() - began < 5.0
