"""The same work in this process, in a pool and on Ray: equal results in the same order, and errors with a remedy."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from operator import floordiv
from pathlib import Path

import pytest
from support.builds import contents, panoramas

from cubediff.data import DataError, build_shards
from cubediff.data.building.engines import ENGINES, open_engine


@pytest.mark.slow
def test_results_keep_the_order_of_the_items_and_run_at_most_a_window_ahead() -> None:
    consumed = []

    def items():
        for i in range(100):
            consumed.append(i)
            yield i

    with open_engine(workers=2) as mapped:
        results = mapped(partial(pow, 2), items())
        assert [next(results) for _ in range(3)] == [1, 2, 4]
        assert len(consumed) < 15
        assert list(results) == [2**i for i in range(3, 100)]
        assert list(mapped(str, [])) == []
        ends = list(mapped(_process_and_threads, range(8)))
    assert {threads for _, threads in ends} == {(1, 1)}
    assert os.getpid() not in {process for process, _ in ends}
    with open_engine() as mapped:
        assert next(mapped(_process_and_threads, [0]))[0] == os.getpid()


def _process_and_threads(_: int) -> tuple[int, tuple[int, int]]:
    import cv2
    import torch

    return os.getpid(), (cv2.getNumThreads(), torch.get_num_threads())


@dataclass
class Counting:
    """Counts the calls of its own copy."""

    calls: int = 0

    def __call__(self, item: int) -> tuple[int, int, int]:
        self.calls += 1
        time.sleep(0.01)
        return item, os.getpid(), self.calls


@pytest.mark.slow
def test_a_worker_keeps_its_function_until_it_receives_another() -> None:
    """A source lists its files once per worker, not once per panorama."""
    with open_engine(workers=2) as mapped:
        called = list(mapped(Counting(), range(40)))
        assert [item for item, _, _ in called] == list(range(40))
        for process in {process for _, process, _ in called}:
            counts = sorted(calls for _, by, calls in called if by == process)
            assert counts == list(range(1, len(counts) + 1))
        assert min(calls for _, _, calls in mapped(Counting(100), range(4))) == 101


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_of_the_function_is_raised_and_stops_the_work(workers: int) -> None:
    with pytest.raises(ZeroDivisionError), open_engine(workers=workers) as mapped:
        list(mapped(partial(floordiv, 1), [1, 0, 1]))


def test_a_dead_worker_raises_an_error_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"a worker process died.*fewer --workers"), open_engine(workers=2) as mapped:
        list(mapped(os._exit, [3]))


def test_workers_exit_when_the_parent_process_is_killed(tmp_path: Path) -> None:
    code = """if __name__ == "__main__":
        import os, signal, sys, time
        from cubediff.data.building.engines import open_engine
        with open_engine(workers=2) as mapped:
            results = mapped(os.getpgid, [0] * 8)
            next(results)
            print(*(child.pid for child in __import__("multiprocessing").active_children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)"""
    (tmp_path / "killed.py").write_text(code)
    run = subprocess.run([sys.executable, tmp_path / "killed.py"], capture_output=True, text=True)
    workers = [int(pid) for pid in run.stdout.split()]
    assert len(workers) == 2
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.slow
def test_one_two_and_three_workers_build_the_same_bytes(tmp_path: Path) -> None:
    source = panoramas(tmp_path / "in", 9)
    (source / "pano 4.png").write_bytes(b"not an image")
    for workers in (1, 2, 3):
        build_shards(source, tmp_path / str(workers), val_fraction=0.3, shard_size=2, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


def test_an_unknown_engine_and_a_missing_ray_are_errors_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"pip install 'cubediff\[ray\]'"), open_engine("ray"):
        pass
    assert ENGINES == ("local", "ray")


RAY = """
from functools import partial
from operator import floordiv
from cubediff.data.building.engines import open_engine
import ray
with open_engine("ray", 2) as mapped:
    assert list(mapped(partial(pow, 2), range(50))) == [2**i for i in range(50)]
    assert ray.cluster_resources()["CPU"] == 2
    from test_engines import Counting
    called = list(mapped(Counting(), range(40)))
    assert len({process for _, process, _ in called}) == 2
    assert max(calls for _, _, calls in called) >= 20
    try:
        list(mapped(partial(floordiv, 1), [1, 0]))
    except ZeroDivisionError as error:
        raised = error
assert isinstance(raised, ZeroDivisionError)
try:
    with open_engine("ray", 2) as mapped:
        list(mapped(partial(floordiv, 1), [1, 0]))
except ZeroDivisionError as error:
    assert type(error) is ZeroDivisionError
assert not ray.is_initialized()
"""


@pytest.mark.slow
def test_ray_gives_the_local_results_errors_and_bytes(tmp_path: Path) -> None:
    """In separate processes: Ray keeps files and threads until the process exits."""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": str(here.parents[1])}  # for `support`, in Ray's workers too
    subprocess.run([sys.executable, "-c", RAY], check=True, cwd=here, env=environment)
    source = panoramas(tmp_path / "in", 9)
    build_shards(source, tmp_path / "local", val_fraction=0.3, shard_size=2)
    command = [sys.executable, "-m", "cubediff.prepare", "in", "ray", "--engine", "ray", "--workers", "2"]
    subprocess.run([*command, "--val-fraction", "0.3", "--shard-size", "2"], check=True, cwd=tmp_path)
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")
