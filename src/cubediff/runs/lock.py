"""The lock of a run's folder: one run at a time writes to it, also from machines that share its file system.

The lock is a file that names its holder. A heartbeat sets its modification time, which is compared with that of another
file in the folder, so that the clocks of the machines do not matter.
"""

import os
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from cubediff.utils.files import write_json
from cubediff.utils.json_text import parse_json
from cubediff.utils.ranks import is_first_rank

LOCK = "run.lock"
HEARTBEAT = 30.0  # seconds between two heartbeats
STALE = 300.0  # seconds without a heartbeat, after which a holder on another machine counts as dead
_GUARD = ".run.lock"  # held while the lock is read and written
_GUARD_SECONDS = 60.0
_RUN_ID = "CUBEDIFF_RUN_ID"  # inherited by the ranks that Lightning's launcher starts


class RunLockedError(ValueError):
    """Another run uses the folder; the message says which one."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        host: Host name.
        machine: Boot and process namespace, in which `pid` is valid.
        pid: Process id of rank 0.
        process_start: When the process started, as the operating system counts it; a later process with the same id
            differs. Empty if it is unknown.
        since: When the lock was taken, in ISO 8601.
        run: Run id, the same for all ranks of the run.
        restarts: How often SLURM has requeued the job.
    """

    host: str
    machine: str
    pid: int
    process_start: str
    since: str
    run: str
    restarts: int = 0

    @property
    def is_on_this_machine(self) -> bool:
        """Whether its process id is valid here."""
        return (self.host, self.machine) == (socket.gethostname(), _machine())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@contextmanager
def lock_run(folder: Path, key: str = "run_dir") -> Iterator[None]:
    """Holds the lock of a run's folder; creates the folder.

    Rank 0 takes the lock. The other ranks only check that no other run holds it.

    Args:
        folder: The run's folder.
        key: The config's key of the folder, for messages.

    Raises:
        RunLockedError: If another run holds the lock.
        ValueError: If the folder cannot be written.
    """
    if not is_first_rank():
        _refuse_other_run(folder, key)
        yield
        return
    run, inherited = _launcher_id() or uuid.uuid4().hex, os.environ.get(_RUN_ID)
    own = Holder(
        socket.gethostname(), _machine(), os.getpid(), _process_start(os.getpid()) or "",
        datetime.now().astimezone().isoformat(timespec="seconds"), run, _restarts(),
    )  # fmt: skip
    _take(folder, own, key)
    ended = threading.Event()
    threading.Thread(target=_beat, args=(folder, own, ended), daemon=True, name="run lock").start()
    os.environ[_RUN_ID] = run
    try:
        yield
    finally:
        os.environ.pop(_RUN_ID)
        if inherited is not None:
            os.environ[_RUN_ID] = inherited
        ended.set()
        with suppress(OSError, ValueError):
            if _read(folder) == own:
                (folder / LOCK).unlink()


def _take(folder: Path, own: Holder, key: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / _GUARD, timeout=_GUARD_SECONDS):
            _refuse_living_holder(folder, own, key)
            write_json(folder / LOCK, asdict(own), sync=True)
    except Timeout as error:
        raise RunLockedError(
            f"{folder / _GUARD} is locked for more than {_GUARD_SECONDS:.0f} s by a process that is starting: try again"
        ) from error
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error}): choose another {key}, or free disk space") from error


def _refuse_other_run(folder: Path, key: str) -> None:
    holder = None
    with suppress(OSError, ValueError):  # rank 0 reports it
        holder = _read(folder)
    if holder and holder.run != (os.environ.get(_RUN_ID) or _launcher_id()):
        _refuse_living_holder(folder, None, key)


def _refuse_living_holder(folder: Path, own: Holder | None, key: str) -> None:
    try:
        holder, name = _read(folder), ""
    except ValueError:
        holder, name = None, "a run whose name cannot be read, since the file is damaged"
    age = _age(folder)
    if age is None or (holder and _is_gone(holder, own, age)) or (not holder and age > STALE):
        return
    remedy = f"wait until it ends, or choose another {key}"
    if not holder or not holder.is_on_this_machine:
        remedy += (
            f"; if it is no longer running, the same command works {max(STALE - age, 0):.0f} s from now, {STALE:.0f} s "
            f"after its last heartbeat, or at once if you remove {folder / LOCK}"
        )
    raise RunLockedError(f"{folder} is in use by {holder or name}: {remedy}")


def _is_gone(holder: Holder, own: Holder | None, age: float) -> bool:
    if holder.is_on_this_machine and holder.process_start:
        return _process_start(holder.pid) != holder.process_start
    is_requeued = own is not None and own.run == holder.run and own.restarts > holder.restarts
    return age > STALE or is_requeued  # SLURM requeues a job after its end only


def _beat(folder: Path, own: Holder, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT):
        with suppress(OSError, ValueError):  # the storage is out of reach: the next heartbeat tries again
            if _read(folder) == own:
                os.utime(folder / LOCK)
            elif (holder := _read(folder)) is not None and not ended.is_set():
                _stop(folder, holder)


def _stop(folder: Path, holder: Holder) -> None:
    """Ends the process at once: everything that it would write belongs to the other run now."""
    print(
        f"error: {folder} was taken over by {holder}, because this run sent no heartbeat for {STALE:.0f} s or its "
        f"{LOCK} was removed: this run ends without another checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _read(folder: Path) -> Holder | None:
    """The holder of the lock; None if there is no lock, ValueError if the file is damaged."""
    try:
        content = parse_json((folder / LOCK).read_text(encoding="utf-8"))
        holder = Holder(**content)
    except FileNotFoundError:
        return None
    except TypeError as error:
        raise ValueError(str(error)) from error
    if any(
        not isinstance(value, int if name in ("pid", "restarts") else str) for name, value in asdict(holder).items()
    ):
        raise ValueError("values of other types")
    return holder


def _age(folder: Path) -> float | None:
    """Seconds since the last heartbeat by the clock of the file system; None if there is no lock."""
    try:
        beat = (folder / LOCK).stat().st_mtime
        (folder / _GUARD).touch()
        return (folder / _GUARD).stat().st_mtime - beat
    except FileNotFoundError:
        return None


def _machine() -> str:
    """Identifies the boot and, for containers, the process namespace; empty where the system has neither."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_start(pid: int) -> str | None:
    """When a process started; None if there is none or it has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if status[0] in "ZX" else status[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return None


def _launcher_id() -> str | None:
    """An id that all ranks of a launcher's run have; None if no launcher has started this process."""
    get = os.environ.get
    if "SLURM_STEP_ID" in os.environ:
        return f"slurm {get('SLURM_JOB_ID')}.{get('SLURM_STEP_ID')}"
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return f"{get('TORCHELASTIC_RUN_ID', 'none')} {get('MASTER_ADDR')}:{get('MASTER_PORT')}"
    return f"slurm {get('SLURM_JOB_ID')}" if "SLURM_PROCID" in os.environ else None


def _restarts() -> int:
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(count) if count.isdigit() else 0
