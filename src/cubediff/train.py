"""Trains CubeDiff: python -m cubediff.train [experiment=NAME] data.path=SHARDS [key=value …]."""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cubediff.configs import CONFIG_DIR

if TYPE_CHECKING:
    from cubediff.module import CubeDiffModule


def check_devices(trainer: DictConfig) -> None:
    """Raises ValueError where the trainer asks for GPUs that are not there, before anything is loaded."""
    import torch

    if trainer.accelerator in ("gpu", "cuda") and isinstance(trainer.devices, int):
        present = torch.cuda.device_count()
        if trainer.devices > present:
            fewer = f"trainer.devices={present}, " if present else ""
            raise ValueError(
                f"trainer.devices={trainer.devices} GPUs, and this machine has {present}: "
                f"give {fewer}trainer=gpu (one GPU) or trainer=cpu"
            )


def load(config: DictConfig) -> "CubeDiffModule":
    """The module that `model` describes; raises ValueError with the override to give where its weights are missing."""
    try:
        return hydra.utils.instantiate(config)
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, OSError | ValueError):
            raise ValueError(
                f"model.pipeline.path={config.pipeline.path} cannot be loaded: {cause}\n"
                "give model.pipeline.path=FOLDER with a local Stable Diffusion 1.x / 2.x folder in diffusers layout, "
                "or model=tiny_random for random weights"
            ) from error
        raise


def fit(config: DictConfig, run_dir: Path) -> Path:
    """Trains, and writes the pipeline with the averaged weights; returns its folder, run_dir/export."""
    check_devices(config.trainer)
    import lightning as L

    from cubediff.callbacks import UNetEMA
    from cubediff.export import export_pipeline

    # Lightning 2.6 against torch 2.13: nothing a user could do about it.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
    # Logging goes by steps, not by epochs, so short epochs lose nothing.
    warnings.filterwarnings("ignore", message="The number of training batches")
    L.seed_everything(config.seed, workers=True, verbose=False)
    datamodule = hydra.utils.instantiate(config.data)
    datamodule.setup()
    module = load(config.model)
    callbacks = [hydra.utils.instantiate(c) for c in config.callbacks.values()]
    loggers = [hydra.utils.instantiate(c) for c in config.logger.values()]
    trainer: Any = hydra.utils.instantiate(
        config.trainer, callbacks=callbacks, logger=loggers, default_root_dir=str(run_dir)
    )
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    trainer.fit(module, datamodule=datamodule)
    average = next((c for c in callbacks if isinstance(c, UNetEMA)), None)
    if trainer.is_global_zero:
        export_pipeline(module, run_dir / "export", average, steps=trainer.global_step)
    trainer.strategy.barrier()
    return run_dir / "export"


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="train")
def main(config: DictConfig) -> None:
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        folder = fit(config, run_dir)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"trained: {folder}")


if __name__ == "__main__":
    main()
