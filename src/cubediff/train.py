"""Trains CubeDiff: python -m cubediff.train [experiment=NAME] data.path=SHARDS [key=value …]."""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cubediff.configs.overrides import command
from cubediff.runs.fit import fit
from cubediff.runs.sweeps.results import recorded


@command("train")
def main(config: DictConfig) -> float | None:
    """Returns the last validation loss, which a sweep may search by."""
    if config.dry_run:
        from cubediff.runs.dry_run import describe

        with _told():
            print(describe(config, Path(HydraConfig.get().runtime.output_dir)))
        return None
    return recorded(config, lambda run_dir, curves: train(config, run_dir, curves))


def train(config: DictConfig, run_dir: Path, curves: dict[str, Any]) -> None:
    """`fit`; told to end by a signal it ends with the exit code that says so."""
    with _told():
        try:
            fit(config, run_dir, curves)
        except SystemExit as error:
            from lightning.pytorch.utilities.exceptions import SIGTERMException

            if not isinstance(error, SIGTERMException):
                raise
            # A rank that Lightning has started must not look failed, else Lightning kills the one that started it.
            sys.exit(0 if "_ddp_process_" in HydraConfig.get().job.name else 128 + signal.SIGTERM)


@contextmanager
def _told() -> Iterator[None]:
    """Where it fails inside in a way that a user can mend, the process ends with that message alone."""
    try:
        yield
    except Exception as error:
        wandb = type(error).__module__.startswith("wandb.")
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        told = wandb or full or isinstance(error, ValueError | FloatingPointError)
        if not told or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        remedy = "\ngive logger=csv, or set WANDB_MODE=offline, which needs no account" if wandb else ""
        remedy = "\nmake room, then the same command goes on from the last checkpoint" if full else remedy
        sys.exit(f"error: {error}{remedy}")


if __name__ == "__main__":
    main()
