"""Trains CubeDiff: cubediff train [experiment=NAME] data.path=SHARDS [key=value …]."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cubediff.configs import check, check_devices
from cubediff.configs.overrides import command
from cubediff.runs.sweeps.isolation import run_recorded
from cubediff.training.logged_metrics import Curves
from cubediff.utils.text import error_line


@command("train")
def main(config: DictConfig) -> float | None:
    """Trains, or with dry_run=true prints the plan; returns the last validation loss, which a sweep may minimize."""
    with exit_on_user_error():
        if config.dry_run:
            from cubediff.runs.dry_run import describe  # start-up time

            print(describe(config, Path(HydraConfig.get().runtime.output_dir)))
            return None
        return run_recorded(config, lambda run_dir, curves: train(config, run_dir, curves))


def train(config: DictConfig, run_dir: Path, curves: Curves) -> None:
    """Calls `fit`; exits with a message alone after an error that the user can fix."""
    with exit_on_user_error():
        check(config)
        check_devices(config)
        from cubediff.runs.fit import fit  # start-up time: wrong configs are refused before torch is imported

        fit(config, run_dir, curves)


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Prints only the message of errors that the user can fix, then exits; HYDRA_FULL_ERROR=1 shows the traceback."""
    try:
        yield
    except Exception as error:
        is_wandb = type(error).__module__.startswith("wandb.")
        is_fixable = is_wandb or isinstance(error, OSError | ValueError | FloatingPointError)
        if not is_fixable or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        remedy = "\nset logger=csv, or set WANDB_MODE=offline, which needs no account" if is_wandb else ""
        sys.exit(f"{error_line(error)}{remedy}")


if __name__ == "__main__":
    main()
