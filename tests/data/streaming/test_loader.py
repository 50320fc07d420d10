import gc
import logging
import threading
import time
from collections.abc import Iterator

import pytest

from cubediff.data.streaming import loader
from cubediff.data.streaming.loader import Loader


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_come_in_order_even_if_a_later_one_is_ready_first(threads: int) -> None:
    counted = []

    def make(position: int) -> dict[str, int] | None:
        time.sleep(0.01 * (position % 3 == 0))
        return None if position == 4 else {"position": position}

    loaded = Loader(make, range(10), threads, on_batch=lambda: counted.append(1))
    assert len(loaded) == 10
    for _ in range(2):
        assert [batch["position"] for batch in loaded] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert len(counted) == 20  # a position without a batch counts too


def test_threads_are_two_batches_ahead_each_and_no_more() -> None:
    loaded: list[int] = []
    batches = iter(Loader(lambda position: loaded.append(position) or {}, range(100), 3))
    next(batches)
    time.sleep(0.1)
    assert sorted(loaded) == list(range(6))
    batches.close()


def test_an_exception_of_a_thread_is_raised_in_place_of_its_batch() -> None:
    def make(position: int) -> dict[str, int]:
        if position >= 2:
            raise TimeoutError(f"no {position}")
        return {"position": position}

    batches = iter(Loader(make, range(5), 2))
    assert [next(batches)["position"], next(batches)["position"]] == [0, 1]
    with pytest.raises(TimeoutError, match="no 2"):
        next(batches)


def test_the_threads_end_with_the_loader() -> None:
    before = set(threading.enumerate())

    def added() -> set[threading.Thread]:
        return set(threading.enumerate()) - before

    batches: Iterator[object] = iter(Loader(lambda position: {}, range(100), 2))
    next(batches)
    assert len(added()) == 2
    del batches
    gc.collect()
    deadline = time.monotonic() + 10
    while added() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not added()


@pytest.mark.parametrize("threads", [0, 1])
def test_a_stalled_batch_logs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, threads: int
) -> None:
    monkeypatch.setattr(loader, "_STALL_WARNING", 0.05)
    come = threading.Event()

    def make(position: int) -> dict[str, int]:
        come.wait()
        return {}

    threading.Timer(0.2, come.set).start()
    with caplog.at_level(logging.WARNING):
        assert len(list(Loader(make, [7], threads))) == 1
    assert "waiting for the batch at position 7 for 0 s" in caplog.records[0].getMessage()
