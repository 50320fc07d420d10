"""Checks the arguments of Lightning's Trainer: those that a run does not support are refused by their key.

Loads no torch, so that a wrong config is refused early.
"""

import re

from omegaconf import DictConfig

_NOT_SUPPORTED = {
    "barebones": "set callbacks=none logger=none trainer.log_every_n_steps=0 to measure the training loop alone",
    "callbacks": "add a callback to the group callbacks, +callbacks.NAME._target_=CLASS",
    "default_root_dir": "set run_dir=DIR",
    "limit_predict_batches": "training predicts nothing and caching encodes every panorama; remove it",
    "limit_test_batches": "there is no test split; remove it",
    "model_registry": "upload the export with logger.wandb.log_export=true, or remove it",
    "reload_dataloaders_every_n_epochs": "the data stream continues from epoch to epoch; remove it",
}
_STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")
_MINIMA = {"accumulate_grad_batches": 1, "gradient_clip_val": 0, "log_every_n_steps": 0, "num_nodes": 1}
_SHORT_PRECISIONS = {"None": "32-true", "32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed", "64": "64-true"}


def check_trainer(trainer: DictConfig) -> None:
    """Checks that a run supports the arguments of its Trainer.

    Args:
        trainer: The node `trainer` of a composed config.

    Raises:
        ValueError: If an argument is not supported, alone or with another one; names the key and the remedy.
    """
    for name, remedy in _NOT_SUPPORTED.items():
        if trainer.get(name) not in (None, False, 0):
            raise ValueError(f"trainer.{name}={trainer[name]} is not supported: {remedy}")
    logger = trainer.get("logger")
    if logger not in (None, False):
        raise ValueError(f"trainer.logger={logger} is not supported: choose loggers with logger=csv, tensorboard or "
                         "wandb, or none with trainer.logger=false")  # fmt: skip
    for name, minimum in _MINIMA.items():
        value = trainer.get(name)
        if isinstance(value, int | float) and not value >= minimum:  # also true for NaN
            raise ValueError(f"trainer.{name}={value}: expected at least {minimum}")
    if (algorithm := trainer.get("gradient_clip_algorithm")) not in (None, "norm"):
        raise ValueError(f"trainer.gradient_clip_algorithm={algorithm} is not supported: set norm")
    if isinstance(devices := trainer.get("devices"), str) and not re.fullmatch(r"auto|-1|\d+(, *\d+)*,?", devices):
        raise ValueError(f"trainer.devices={devices}: expected a number, a list of indices such as [0,1], or auto")
    strategy = trainer.get("strategy")
    if isinstance(strategy, str) and strategy not in _STRATEGIES:
        raise ValueError(f"trainer.strategy={strategy} is not supported: set trainer=ddp or trainer=fsdp")
    _check_precision(trainer)


def canonical_precision(trainer: DictConfig) -> str:
    """Lightning's full name of `trainer.precision`, such as "16-mixed" for 16; null is "32-true"."""
    name = str(trainer.get("precision"))
    return _SHORT_PRECISIONS.get(name, name)


def _check_precision(trainer: DictConfig) -> None:
    precision = canonical_precision(trainer)
    if precision not in _PRECISIONS:
        raise ValueError(
            f"trainer.precision={trainer.precision} is not supported: set 32-true, bf16-mixed, or 16-mixed on a GPU "
            "without bf16"
        )
    if precision != "16-mixed":
        return
    strategy = trainer.get("strategy")
    if isinstance(strategy, DictConfig) and str(strategy.get("_target_")).endswith(".ShardedStrategy"):
        raise ValueError(
            f"trainer.precision={trainer.precision} is not supported with trainer=fsdp: set "
            "trainer.precision=bf16-mixed, or trainer=ddp"
        )
    if trainer.get("accelerator") == "cpu":
        raise ValueError(
            f"trainer.precision={trainer.precision} needs a GPU, but trainer.accelerator=cpu: set "
            "trainer.precision=bf16-mixed or 32-true, or trainer=gpu"
        )
