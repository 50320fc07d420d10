"""Parallel map over many items: in this process, in a pool of processes on this machine, or as tasks of a Ray cluster.

Results come in the order of the items."""

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
from typing import Literal, Protocol, TypeVar, cast, get_args, runtime_checkable
from uuid import uuid4

from cubediff.utils.errors import DataError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
TaskT = TypeVar("TaskT")

Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

_AHEAD = 4  # tasks submitted per worker: no worker idles, and a million tasks are not in memory at once
_DIED = "a worker process died, perhaps out of memory: run the same command with fewer --workers, finished work is kept"


@runtime_checkable
class Map(Protocol):
    """A lazy, ordered, parallel `map`."""

    def __call__(self, function: Callable[[ItemT], ResultT], items: Iterable[ItemT], /) -> Iterator[ResultT]: ...


@runtime_checkable
class Progress(Protocol):
    """Wraps the items of a step (reading, captioning, writing or checking) in a progress bar."""

    def __call__(self, items: Iterable[ItemT], total: int, step: str, /) -> Iterable[ItemT]: ...


def usable_cores() -> int:
    """The number of cores that this process may use; where the system does not tell, as on macOS, all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def open_engine(engine: Engine = "local", workers: int = 1) -> Iterator[Map]:
    """Opens an ordered parallel map; results are computed as they are consumed, a few tasks ahead.

    Function and items are pickled, the function once per worker; each worker computes in one thread. With one local
    worker, everything runs in this process. Leaving the context cancels unfinished tasks.

    Args:
        engine: "local" for processes of this machine, "ray" for tasks of a Ray cluster: the one that is initialized or
            that the environment variable RAY_ADDRESS names (all its CPUs are used), else a local Ray.
        workers: Number of processes on this machine.

    Raises:
        DataError: If a worker dies, `engine` is unknown or Ray is not installed.
    """
    if engine not in ENGINES:
        raise DataError(f"--engine {engine}: expected one of {', '.join(ENGINES)}")
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
    # A fork of this process could inherit a lock that is held. Windows has no forkserver.
    has_forkserver = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if has_forkserver else "spawn")
    if has_forkserver:
        context.set_forkserver_preload([__name__])
    with ExitStack() as pools:

        def mapped(function: Callable[[ItemT], ResultT], items: Iterable[ItemT], /) -> Iterator[ResultT]:
            pool = ProcessPoolExecutor(workers, context, _begin_worker, (function,))
            pools.callback(pool.shutdown, cancel_futures=True)
            return _windowed(
                items,
                _AHEAD * workers,
                lambda item: pool.submit(_pool_task, item),
                lambda task: cast(ResultT, task.result()),
            )

        try:
            yield mapped
        except BrokenProcessPool:
            raise DataError(_DIED) from None


@contextmanager
def _ray(workers: int) -> Iterator[Map]:
    try:
        import ray  # an optional extra
    except ImportError:
        raise DataError("--engine ray needs Ray: pip install 'cubediff[ray]'") from None
    running = ray.is_initialized()
    if not running and os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    elif not running:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send usage statistics
        store = 100 << 20  # bytes of shared memory, instead of 30 % of the machine's: results are small
        ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False, object_store_memory=store)
    ray_task = ray.remote(_ray_task)
    cluster_resources: Callable[[], dict[str, float]] = ray.cluster_resources
    ahead = _AHEAD * int(cluster_resources()["CPU"])

    def mapped(function: Callable[[ItemT], ResultT], items: Iterable[ItemT], /) -> Iterator[ResultT]:
        name, shared = uuid4().hex, ray.put(pickle.dumps(function))
        return _windowed(
            items,
            ahead,
            lambda item: ray_task.remote(name, shared, item),
            lambda task: cast(ResultT, ray.get(task)),
        )

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
    items: Iterable[ItemT], ahead: int, start: Callable[[ItemT], TaskT], finish: Callable[[TaskT], ResultT]
) -> Iterator[ResultT]:
    remaining = iter(items)
    tasks = deque(start(item) for item in itertools.islice(remaining, ahead))
    while tasks:
        yield finish(tasks.popleft())
        tasks.extend(start(item) for item in itertools.islice(remaining, 1))


# In a worker: the function of its tasks, kept because a source caches its listing.
_functions: dict[str, Callable[..., object]] = {}


def _begin_worker(function: Callable[..., object]) -> None:
    """Uses one thread, leaves keyboard interrupts to the parent, and exits when the parent ends, even by a signal."""
    _use_one_thread()
    _functions["pool"] = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _pool_task(item: object) -> object:
    return _functions["pool"](item)


def _ray_task(name: str, pickled: bytes, item: object) -> object:
    if name not in _functions:
        _use_one_thread()
        _functions.clear()
        _functions[name] = pickle.loads(pickled)
    return _functions[name](item)


def _use_one_thread() -> None:
    import cv2  # in workers only, because both are slow to import
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
