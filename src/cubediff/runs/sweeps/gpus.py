"""Assigns one GPU to each job of a sweep that runs in parallel with others on a machine."""

from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig

_held: list[FileLock] = []  # of this process's GPU; held until it exits, since CUDA's memory is held as long


def assign_gpu(config: DictConfig, sweep_dir: Path) -> None:
    """Assigns a GPU that no other process of the sweep has; sets trainer.devices to [number].

    Configs for the CPU, for several devices or with an explicit device are unchanged.

    Args:
        config: The job's config.
        sweep_dir: The sweep's folder, where the locks are.

    Raises:
        ValueError: If more jobs run in parallel than there are GPUs.
    """
    trainer = config.trainer
    if trainer.devices != 1 or trainer.accelerator not in ("gpu", "cuda", "auto"):
        return
    import torch  # start-up time

    present = torch.cuda.device_count()
    if not present and not _held:
        return
    if not _held:
        _held.append(_lock_one(sweep_dir, present))
    trainer.devices = [int(Path(_held[0].lock_file).stem.removeprefix(".gpu"))]


def _lock_one(sweep_dir: Path, present: int) -> FileLock:
    for number in range(present):
        lock = FileLock(sweep_dir / f".gpu{number}.lock")
        with suppress(Timeout):
            lock.acquire(timeout=0)
            return lock
    raise ValueError(
        f"more jobs run in parallel than the {present} GPUs of this machine: set hydra.launcher.n_jobs={present}"
    )
