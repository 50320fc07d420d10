"""Records the result of every run, and isolates the jobs of a sweep: a failed job does not stop the others."""

import gc
import hashlib
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cubediff.configs import to_plain
from cubediff.configs.targets import first_form
from cubediff.runs.lock import RunLockedError, lock_run
from cubediff.runs.sweeps.gpus import assign_gpu
from cubediff.runs.sweeps.results import RESULT, Result, read_result
from cubediff.training.logged_metrics import Curves
from cubediff.utils.exits import on_hard_exit
from cubediff.utils.files import set_aside
from cubediff.utils.ranks import is_first_rank

FAILED = float("inf")  # the loss that a search receives for a failed job

Task = Callable[[Path, Curves], object]


def run_recorded(config: DictConfig, task: Task) -> float | None:
    """Runs a task with the lock of its folder, and writes its result.json.

    In a sweep, failures are printed and recorded, and jobs that are already done with the same config, or that another
    process runs, are skipped. The failure of a single run is raised.

    Args:
        config: The config of this run.
        task: Receives the run's folder, and the curves that it fills.

    Returns:
        The last validation loss; infinity for a failed or skipped job of a sweep.

    Raises:
        RunLockedError: If another run uses the folder; nothing is written then.
    """
    hydra = HydraConfig.get()
    run_dir, is_sweep = Path(hydra.runtime.output_dir), hydra.mode == RunMode.MULTIRUN
    result = Result(
        "running",
        config.name,
        hydra.job.num if is_sweep else None,
        list(hydra.overrides.task),
        time.time(),
        config=config_fingerprint(config),
    )
    previous = _previous(run_dir)
    if is_sweep and previous and (previous.status, previous.config) == ("done", result.config):
        print(f"job {previous.job} is already done: {run_dir}")
        return previous.loss
    try:
        with lock_run(run_dir):
            return _run_locked(config, task, result, run_dir, is_sweep)
    except RunLockedError as error:
        if not is_sweep:
            raise
        print(f"job {result.job} is skipped: {error}", file=sys.stderr)
        return FAILED


def _run_locked(config: DictConfig, task: Task, result: Result, run_dir: Path, is_sweep: bool) -> float | None:
    hydra = HydraConfig.get()
    if previous := _previous(run_dir, rename_damaged=is_first_rank()):
        result.curves.update(previous.curves)  # the run may resume
        if previous.status == "running" and is_first_rank():
            began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(previous.started))
            print(f"the process that began at {began} in {run_dir} was killed: steps after its checkpoint are repeated")
    try:
        if is_first_rank():
            result.write(run_dir)
        if is_sweep and "joblib" in hydra.launcher._target_:
            assign_gpu(config, run_dir.parent)
        with on_hard_exit(partial(_record_hard_exit, result, run_dir)):
            task(run_dir, result.curves)
        _set_loss(result, is_sweep, is_search=is_sweep and "direction" in hydra.sweeper)
        return result.loss
    except BaseException as error:
        _set_error(result, error)
        if result.status == "cut" or not is_sweep:
            raise
        print(f"job {result.job} failed: {result.error}", file=sys.stderr)
        return FAILED
    finally:
        _write_end(result, run_dir)
        if is_sweep:
            gc.collect()  # Lightning's objects form cycles, which would keep this job's model in memory


def _record_hard_exit(result: Result, run_dir: Path, message: str) -> None:
    result.status, result.error = "failed", message
    _write_end(result, run_dir)


def _write_end(result: Result, run_dir: Path) -> None:
    result.seconds = round(time.time() - result.started, 1)
    if not is_first_rank():
        return
    try:
        result.write(run_dir)
    except OSError as error:
        if result.status == "done":
            raise
        print(f"WARNING: {RESULT} cannot be written ({error})", file=sys.stderr)  # the run's own error follows


def _previous(run_dir: Path, rename_damaged: bool = False) -> Result | None:
    """The result of an earlier process in the folder; None if there is none, or if its file is damaged."""
    file = run_dir / RESULT
    try:
        return read_result(file) if file.is_file() else None
    except ValueError as error:
        if rename_damaged:
            print(f"WARNING: {error}; it is renamed to {set_aside(file).name}", file=sys.stderr)
        return None


def config_fingerprint(config: DictConfig) -> str:
    """SHA-256 of a config without `run_dir`, with references unresolved, since some may not be resolvable."""
    content = to_plain(config)
    del content["run_dir"]
    return hashlib.sha256(json.dumps(first_form(content), sort_keys=True).encode()).hexdigest()


def _set_loss(result: Result, is_sweep: bool, is_search: bool) -> None:
    losses = result.curves.get("val/loss", [])
    if is_search and not losses:
        raise ValueError(
            "a search needs val/loss, but none was logged: use shards with validation panoramas, and a "
            "trainer.val_check_interval (in batches) that is no longer than the run"
        )
    last = losses[-1][1] if losses else None
    if last is not None and math.isfinite(last):
        result.loss = last
    elif losses and is_sweep:
        raise FloatingPointError("val/loss is not finite: lower model.optimizer.lr")
    result.status = "done"


def _set_error(result: Result, error: BaseException) -> None:
    """An exit without a message comes from a signal, which stops the sweep too."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        result.status, result.error = "cut", f"{type(error).__name__}, exit code {error.code}"
    elif isinstance(error, Exception | SystemExit):
        expected = isinstance(error, SystemExit | ValueError | FloatingPointError)
        result.status = "failed"
        result.error = str(error).removeprefix("error: ") if expected else traceback.format_exc()
    else:
        result.status, result.error = "cut", type(error).__name__
