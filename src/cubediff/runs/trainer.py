"""Builds Lightning's Trainer from the config, with the callbacks and loggers that its arguments leave."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from omegaconf import DictConfig, OmegaConf

from cubediff.configs import build
from cubediff.configs.trainer import canonical_precision
from cubediff.training.checkpoint_io import AtomicCheckpointIO
from cubediff.training.fit_loop import ResumingFitLoop
from cubediff.training.fsdp import ShardedStrategy
from cubediff.training.protocols import IdentityWriter

STRATEGIES = (SingleDeviceStrategy, DDPStrategy, ShardedStrategy)


def build_trainer(
    settings: DictConfig, callbacks: Sequence[L.Callback], loggers: Sequence[Logger] | bool, folder: Path | None = None
) -> L.Trainer:
    """Builds the Trainer of a run, whose checkpoints are written atomically.

    Args:
        settings: The node `trainer` of the config.
        callbacks: The run's callbacks; Lightning adds no checkpoint callback of its own next to them unless
            `trainer.enable_checkpointing` asks for it.
        loggers: The run's loggers, or False for none.
        folder: The run's folder.

    Raises:
        ValueError: If Lightning refuses an argument, or the strategy is not supported; names the key.
    """
    checkpointing = settings.get("enable_checkpointing")
    if checkpointing is None:
        checkpointing = any(isinstance(callback, Checkpoint) for callback in callbacks)
    benchmark = settings.get("benchmark")
    trainer: L.Trainer = build(
        settings,
        benchmark=not settings.get("deterministic") if benchmark is None else benchmark,
        enable_checkpointing=checkpointing,
        precision=None if settings.get("precision") is None else canonical_precision(settings),
        _convert_="all",  # Lightning takes durations as plain dicts
        callbacks=list(callbacks),
        logger=loggers,
        default_root_dir=None if folder is None else str(folder),
    )
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # trainer.plugins has none
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    loop = trainer.fit_loop
    trainer.fit_loop = ResumingFitLoop(trainer, loop.min_epochs, loop.max_epochs)
    trainer.fit_loop.epoch_loop = loop.epoch_loop
    spawns = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)  # the trained EMA would not return
    if spawns or not isinstance(trainer.strategy, STRATEGIES):
        raise ValueError(
            f"trainer.strategy: {type(trainer.strategy).__name__}{' with start_method' * spawns} is not supported: set "
            "trainer=ddp or trainer=fsdp"
        )
    return trainer


def enabled_callbacks(settings: DictConfig, callbacks: Sequence[L.Callback]) -> list[L.Callback]:
    """The callbacks without those that an argument of the Trainer turns off.

    Args:
        settings: The node `trainer` of the config: `fast_dev_run` and `enable_checkpointing=false` turn off
            checkpoints, `enable_progress_bar=false` the progress bar.
        callbacks: The callbacks of the config.
    """
    kinds: list[type] = []
    if is_trial(settings):
        kinds.append(IdentityWriter)
    if settings.get("enable_checkpointing") is False:
        kinds += [IdentityWriter, Checkpoint]
    if settings.get("enable_progress_bar") is False:
        kinds.append(ProgressBar)
    return [callback for callback in callbacks if not isinstance(callback, tuple(kinds))]


def has_loggers(settings: DictConfig) -> bool:
    """Whether the loggers of the config receive metrics."""
    return settings.get("logger") is not False and not is_trial(settings)


def is_trial(settings: DictConfig) -> bool:
    """Whether `fast_dev_run` limits the run to a few batches, of which nothing is written or resumed."""
    return bool(settings.get("fast_dev_run"))


def is_sharded(settings: DictConfig) -> bool:
    """Whether the config shards the network, of which each rank then reads its part of a checkpoint."""
    target = str(OmegaConf.select(settings, "strategy._target_"))
    return target.rpartition(".")[2] == ShardedStrategy.__name__
