"""Trains by a config."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cubediff.configs import build, check, check_devices
from cubediff.utils.logging import silence


@contextmanager
def _wandb_ended() -> Iterator[None]:
    """Ends a W&B run that was begun inside, else a sweep's next run would go on in it."""
    try:
        yield
    finally:
        if (wandb := sys.modules.get("wandb")) and wandb.run:
            wandb.finish(exit_code=int(sys.exc_info()[0] is not None))


def fit(config: DictConfig, run_dir: Path, curves: dict[str, Any] | None = None) -> Path:
    """Trains, and writes the pipeline with the averaged weights; returns its folder, run_dir/export.

    The losses come to `curves` as they are logged (see `CurveLogger`).
    """
    with _wandb_ended():  # as a decorator it could not be sent to other processes, as joblib does
        return _fit(config, run_dir, curves)


def _fit(config: DictConfig, run_dir: Path, curves: dict[str, Any] | None) -> Path:
    check(config)
    check_devices(config)
    import lightning as L
    import torch

    from cubediff.data import LatentDataModule
    from cubediff.runs.export import export_pipeline
    from cubediff.runs.record import run_record
    from cubediff.runs.resume import check_same, choose, identity
    from cubediff.training.callbacks import RunCheckpoint, SampleLogger, StepMetrics, UNetEMA
    from cubediff.training.loggers import CSVRun, CurveLogger, WandbRun, log_config

    silence()
    begin = choose(str(config.resume), run_dir)
    L.seed_everything(config.seed, workers=True, verbose=False)
    datamodule = build(config.data)
    datamodule.setup()
    module = build(config.model)
    # An experiment may set options of a callback that callbacks=none or …=null has taken away.
    callbacks = [build(c) for c in config.callbacks.values() if c and "_target_" in c]
    encoded = isinstance(datamodule, LatentDataModule)
    if encoded and any(isinstance(c, SampleLogger) for c in callbacks):
        print("training on latents, with no encoders in memory: no samples are drawn")
        callbacks = [c for c in callbacks if not isinstance(c, SampleLogger)]
    loggers = [build(c) for c in config.logger.values()]
    if curves is not None:
        loggers.append(CurveLogger(curves))
    options = {"callbacks": callbacks, "logger": loggers, "default_root_dir": str(run_dir)}
    trainer: Any = build(config.trainer, **options)
    saver = next((c for c in callbacks if isinstance(c, RunCheckpoint)), None)
    if begin or saver:
        run = identity(config, module)
        if begin:
            step = check_same(begin, run, module, own=run_dir in begin.parents)
            for logger in loggers:
                if isinstance(logger, CSVRun):
                    logger.begin_at(step)
        if saver:
            saver.identity = run
    if trainer.is_global_zero:
        batch = config.data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
        print(
            f"{config.name}: {sum(p.numel() for p in module.trained_parameters.values()):,} of "
            f"{sum(p.numel() for p in module.network.parameters()):,} UNet parameters, "
            f"{datamodule.samples('train')} panoramas and {datamodule.samples('val')} to validate with, "
            f"{batch} a step; everything goes to {run_dir}" + (f"; it goes on from {begin}" if begin else "")
        )
        run_dir.mkdir(parents=True, exist_ok=True)
        record = run_record(config, trainer, module, datamodule)
        (run_dir / "run.json").write_text(json.dumps(record, indent=2) + "\n")
        told: Any = OmegaConf.to_container(config, resolve=True)
        log_config(loggers, told, record)
        for callback in callbacks:
            if isinstance(callback, StepMetrics) and "flops_per_panorama" in record["plan"]:
                callback.set_flops(record["plan"]["flops_per_panorama"], record["plan"]["device_flops_per_s"])
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=begin, weights_only=True if begin else None)
    except torch.OutOfMemoryError as error:
        raise ValueError(_smaller(config)) from error
    average = next((c for c in callbacks if isinstance(c, UNetEMA)), None)
    if trainer.is_global_zero and encoded:
        fresh = build(config.model.pipeline)
        module.pipeline.register_modules(**fresh.backbone.frozen_components())
    export_pipeline(module, run_dir / "export", average, steps=trainer.global_step)
    if trainer.is_global_zero:
        for logger in loggers:
            if isinstance(logger, WandbRun):
                logger.log_pipeline(run_dir / "export")
        print(f"trained: {run_dir / 'export'}")
    trainer.strategy.barrier()
    return run_dir / "export"


def _smaller(config: DictConfig) -> str:
    """What to give instead of a batch that does not fit the GPU."""
    import torch

    from cubediff.planning.cost import GIB, largest_batch

    memory = float(torch.cuda.mem_get_info()[1])
    fits, _ = largest_batch(config, memory)
    remedy = f"data.batch_size={fits}" if fits else "model.gradient_checkpointing=true, or a smaller face_size"
    return (
        f"data.batch_size={config.data.batch_size} does not fit the GPU's {memory / GIB:.1f} GiB, by the plan {fits} "
        f"does: give {remedy} (python -m cubediff.plan with the same words says what takes it)"
    )
