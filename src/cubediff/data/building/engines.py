"""Where the work on many panoramas is done: in this process, in a pool of processes on this machine, or as tasks of a
Ray cluster. Results come in the order of the items, whoever made them."""

import itertools
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args
from uuid import uuid4

from cubediff.utils.errors import DataError

Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

_AHEAD = 4  # tasks given out per worker, so that none waits and a million of them do not all lie in memory
_DIED = "a worker process died, perhaps for want of memory: start again with fewer --workers, finished work is kept"

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]  # (items, total, step) → the items, shown as a bar
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def open_engine(engine: Engine = "local", workers: int = 1) -> Iterator[Map]:
    """Gives `map`, whose results come in order and are computed as they are asked for, a few ahead.

    With one local worker in this process, else function and items are pickled, the function once for every worker,
    which computes in one thread.
    "ray" starts a Ray of `workers` processes on this machine; where the environment's RAY_ADDRESS names a cluster, or
    Ray runs already, it takes that one with every CPU that it has. Leaving the context ends the work. Raises what the
    function raises, and DataError where a worker dies, `engine` is unknown or Ray is not installed.
    """
    if engine not in ENGINES:
        raise DataError(f"--engine {engine} is none of {', '.join(ENGINES)}")
    if engine == "ray":
        with _ray(workers) as mapped:
            yield mapped
    elif workers > 1:
        with _processes(workers) as mapped:
            yield mapped
    else:
        yield map


@contextmanager
def _processes(workers: int) -> Iterator[Map]:
    context = multiprocessing.get_context("forkserver")  # a fork of this process could inherit a lock that is held
    context.set_forkserver_preload([__name__])
    with ExitStack() as pools:

        def mapped(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
            pool = ProcessPoolExecutor(workers, context, _begin_worker, (function,))
            pools.callback(pool.shutdown, cancel_futures=True)
            return _windowed(
                items, _AHEAD * workers, lambda item: pool.submit(_pool_task, item), lambda task: task.result()
            )

        try:
            yield mapped
        except BrokenProcessPool:
            raise DataError(_DIED) from None


@contextmanager
def _ray(workers: int) -> Iterator[Map]:
    try:
        import ray
    except ImportError:
        raise DataError("--engine ray needs Ray: pip install 'cubediff[ray]'") from None
    running = ray.is_initialized()
    if not running and os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    elif not running:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
        store = 100 << 20  # bytes of shared memory, not 30 % of the machine's: results are small
        ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False, object_store_memory=store)
    task: Any = ray.remote(_ray_task)
    ahead = _AHEAD * int(ray.cluster_resources()["CPU"])

    def mapped(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        name, shared = uuid4().hex, ray.put(pickle.dumps(function))
        return _windowed(items, ahead, lambda item: task.remote(name, shared, item), lambda task: ray.get(task))

    try:
        yield mapped
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise DataError(f"{_DIED} ({type(error).__name__})") from error
    finally:
        if not running:
            ray.shutdown()


def _windowed(
    items: Iterable[Any], ahead: int, start: Callable[[Any], Any], finish: Callable[[Any], Any]
) -> Iterator[Any]:
    left = iter(items)
    tasks = deque(start(item) for item in itertools.islice(left, ahead))
    while tasks:
        yield finish(tasks.popleft())
        tasks.extend(start(item) for item in itertools.islice(left, 1))


_functions: dict[str, Callable[[Any], Any]] = {}  # of a worker: what a function remembers serves all of its tasks


def _begin_worker(function: Callable[[Any], Any]) -> None:
    """One thread a worker, and no worker outlives the process that it works for, however that ended; an interrupt from
    the keyboard is that one's to handle."""
    _one_thread()
    _functions["pool"] = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _pool_task(item: Any) -> Any:
    return _functions["pool"](item)


def _ray_task(name: str, pickled: bytes, item: Any) -> Any:
    if name not in _functions:
        _one_thread()
        _functions.clear()
        _functions[name] = pickle.loads(pickled)
    return _functions[name](item)


def _one_thread() -> None:
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
