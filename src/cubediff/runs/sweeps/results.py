"""What a run leaves in its folder's result.json (how it ended, its losses, its seconds), and what of it makes a sweep:
a job that fails is recorded and ends no other, and jobs side by side have a GPU each."""

import gc
import hashlib
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cubediff.configs.targets import first_form
from cubediff.utils.files import write_atomic

RESULT = "result.json"
FAILED = float("inf")  # what a search is told of a job that failed: as bad as can be
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # of the launchers that Lightning knows
_slot: list[FileLock] = []  # this process's GPU, kept until it ends: what CUDA holds on a device, it holds as long


@dataclass
class Result:
    """One run: `status` is running, done, failed or cut (by a signal); one that was killed stays running."""

    status: str
    name: str
    job: int | None  # its number in the sweep
    overrides: list[str]
    started: float  # seconds since 1970
    seconds: float = 0.0
    config: str = ""  # its sha256, without run_dir
    error: str | None = None
    loss: float | None = None  # the last val/loss
    curves: dict[str, list[tuple[int, float | None]]] = field(default_factory=dict)  # null: no number

    def write(self, run_dir: Path) -> None:
        curves = {k: [(step, v if v is not None and math.isfinite(v) else None) for step, v in points]
                  for k, points in self.curves.items()}  # fmt: skip
        text = json.dumps({**asdict(self), "curves": curves}, indent=1, allow_nan=False)
        write_atomic(run_dir / RESULT, (text + "\n").encode())


def read_results(folder: Path) -> dict[Path, Result]:
    """The runs in the folders of `folder`, in the order of their numbers. Raises ValueError for a damaged file."""
    found = {file.parent: read_result(file) for file in folder.glob(f"*/{RESULT}")}
    return dict(sorted(found.items(), key=lambda item: (item[1].job or 0, item[1].started, item[0].name)))


def read_result(file: Path) -> Result:
    """A run's. Raises ValueError where the file is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        curves = {k: [(step, value) for step, value in points] for k, points in content.pop("curves").items()}
        return Result(**content, curves=curves)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error}): run the job again without it") from error


def recorded(config: DictConfig, task: Callable[[Path, dict[str, Any]], Any]) -> float | None:
    """Runs `task(run_dir, curves)`, which fills `curves`, and writes result.json; returns the last validation loss.

    In a sweep a failure is told and recorded, and the loss is infinite; a job that was done before with the same config
    is not run again. A single run's failure is raised on.
    """
    hydra = HydraConfig.get()
    run_dir, sweeping = Path(hydra.runtime.output_dir), hydra.mode == RunMode.MULTIRUN
    searching = sweeping and "direction" in hydra.sweeper
    words = list(hydra.overrides.task)
    result = Result(
        "running", config.name, hydra.job.num if sweeping else None, words, time.time(), config=_sum(config)
    )
    if (run_dir / RESULT).is_file():
        before = read_result(run_dir / RESULT)
        if sweeping and (before.status, before.config) == ("done", result.config):
            print(f"job {before.job} is done already: {run_dir}")
            return before.loss
        result.curves.update(before.curves)  # the run may go on
    first = all(os.environ.get(rank, "0") == "0" for rank in _RANKS)
    try:
        if first:
            result.write(run_dir)
        if sweeping and "joblib" in hydra.launcher._target_:
            take_gpu(config, run_dir.parent)
        task(run_dir, result.curves)
        losses: list[tuple[int, Any]] = result.curves.get("val/loss", [])
        if searching and not losses:
            raise ValueError(
                "no val/loss for the search to go by: take shards with validation panoramas, and "
                "trainer.val_check_interval (in batches) at most as long as the run"
            )
        if losses and math.isfinite(losses[-1][1]):
            result.loss = losses[-1][1]
        elif losses and sweeping:
            raise FloatingPointError("val/loss is no number any more: lower model.optimizer.lr")
        result.status = "done"
        return result.loss
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.code, str):  # by a signal, which is for the sweep too
            result.status, result.error = "cut", f"{type(error).__name__}, exit code {error.code}"
            raise
        result.status = "failed"
        plain = isinstance(error, SystemExit | ValueError | FloatingPointError)
        result.error = str(error).removeprefix("error: ") if plain else traceback.format_exc()
        if not sweeping:
            raise
        print(f"job {result.job} failed: {result.error}", file=sys.stderr)
        return FAILED
    except BaseException as error:
        result.status, result.error = "cut", type(error).__name__
        raise
    finally:
        result.seconds = round(time.time() - result.started, 1)
        if first:
            result.write(run_dir)
        if sweeping:
            gc.collect()  # Lightning's objects hold each other, and this job's model would stay beside the next one's


def _sum(config: DictConfig) -> str:
    """Of the config as it is written, without where the run goes; a reference in it may lead nowhere."""
    content: Any = OmegaConf.to_container(config)
    del content["run_dir"]
    return hashlib.sha256(json.dumps(first_form(content), sort_keys=True).encode()).hexdigest()


def take_gpu(config: DictConfig, sweep_dir: Path) -> None:
    """Gives this process, one of several side by side on a machine, a GPU of its own: trainer.devices becomes [N]."""
    trainer = config.trainer
    if trainer.devices != 1 or trainer.accelerator not in ("gpu", "cuda", "auto"):
        return
    import torch

    present = torch.cuda.device_count()
    if not _slot:
        for number in range(present):
            lock = FileLock(sweep_dir / f".gpu{number}.lock")
            with suppress(Timeout):
                lock.acquire(timeout=0)
                _slot.append(lock)
                break
        else:
            if present:
                raise ValueError(
                    f"more jobs at a time than the {present} GPUs of this machine: give hydra.launcher.n_jobs={present}"
                )
            return
    trainer.devices = [int(Path(_slot[0].lock_file).stem[len(".gpu") :])]


class Summary(Callback):
    """At a sweep's end says how many jobs failed, and then ends with exit code 1."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        results = read_results(folder)
        if not results:
            return
        done = [job for job, result in results.items() if result.status == "done"]
        print(f"sweep: {len(done)} of {len(results)} jobs done; python -m cubediff.sweep_report {folder} compares them")
        bad = {job: result for job, result in results.items() if result.status != "done"}
        if bad:
            names = ", ".join(f"{job.name} ({result.status})" for job, result in bad.items())
            print(f"not done: {names}; each says why in its {RESULT}", file=sys.stderr)
            sys.exit(1)
