"""The watchdog's clock: time in which the own process is paused does not count as silence of another rank."""

import threading
import time
from types import SimpleNamespace
from unittest.mock import Mock

import lightning as L
import pytest

from cubediff.training.callbacks import Watchdog, watchdog


class Clock:
    """The real clock, which the test may set forward."""

    ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


def test_a_paused_process_gives_the_other_ranks_their_time_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ended = Clock(), threading.Event()
    monkeypatch.setattr(watchdog, "time", clock)
    monkeypatch.setattr(watchdog, "hard_exit", lambda message: ended.set())
    watched = Watchdog(seconds=2.0)
    watched._names = {1: ("rank 1 (elsewhere, process 7)", "elsewhere", 7)}
    watched._received = {1: (b"3 in step 4", clock.monotonic())}
    trainer = Mock(spec=L.Trainer, strategy=SimpleNamespace(launcher=None))
    thread = threading.Thread(target=watched._watch, args=(trainer,), daemon=True)
    thread.start()
    clock.ahead += 1000.0
    assert not ended.wait(1.0)
    assert ended.wait(10.0)  # rank 1 stays silent afterwards
    watched.on_run_end(failed=False)
    thread.join(5.0)


def test_a_rank_of_this_machine_whose_process_is_gone_is_named() -> None:
    watched = Watchdog()
    gone = 2**22 + 1  # above Linux' largest process number
    watched._names = {
        0: (f"rank 0 ({watchdog.socket.gethostname()}, process {gone})", watchdog.socket.gethostname(), gone)
    }
    watched._received = {0: (b"3 in step 4", 0.0)}
    assert str(watched.lost_rank()).endswith(f"process {gone}) was killed or has crashed, its last activity: in step 4")
    watched._received = {0: (b"done", 0.0)}
    assert watched.lost_rank() is None
