"""Trains the model of a config and exports it (CubeDiff, section 4.3)."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig, OmegaConf

from cubediff.configs import build, check, check_devices, to_plain
from cubediff.planning.cost import cost
from cubediff.planning.gpus import GIB
from cubediff.planning.report import USABLE
from cubediff.planning.search import largest_batch
from cubediff.runs.export import export_pipeline
from cubediff.runs.export_card import TrainingFacts, write_card
from cubediff.runs.identity import announced_changes, run_identity, with_model_settings
from cubediff.runs.record import RunRecord, data_records, run_record
from cubediff.runs.resume import check_resumable, find_checkpoint, read_saved_run
from cubediff.runs.trainer import build_trainer, enabled_callbacks, has_loggers, is_sharded, is_trial
from cubediff.training.callbacks.signals import StopOnSignal, find_stop, requeue_slurm_job
from cubediff.training.checkpoint_io import AtomicCheckpointIO
from cubediff.training.child_ranks import child_ranks
from cubediff.training.loaded_checkpoint import LoadedCheckpoint
from cubediff.training.logged_metrics import Curves
from cubediff.training.loggers import CurveLogger, log_config
from cubediff.training.module import CubeDiffModule
from cubediff.training.protocols import (
    CALLBACK_PROTOCOLS,
    LOGGER_PROTOCOLS,
    EncoderUser,
    ExportLogger,
    ExportWeights,
    FlopsConsumer,
    IdentityWriter,
    RankWatcher,
    ResumableLogger,
    TrainingData,
    is_encoded,
    require_members,
    require_type,
    require_whole_protocols,
)
from cubediff.utils.files import write_json
from cubediff.utils.json_text import parse_json
from cubediff.utils.logging import silence
from cubediff.utils.ranks import is_first_rank
from cubediff.utils.signals import Request, Stopped, stop_signals


def fit(config: DictConfig, run_dir: Path, curves: Curves | None = None) -> Path:
    """Trains the model of a config and exports its pipeline.

    Args:
        config: The composed config of `cubediff train`.
        run_dir: The folder for checkpoints, logs, samples and the export.
        curves: Receives the losses while they are logged, see `CurveLogger`.

    Returns:
        The exported pipeline's folder, run_dir/export, with the EMA weights if the config has an EMA. With
        `trainer.fast_dev_run` nothing is written.

    Raises:
        ValueError: If the config, the data, a checkpoint or the GPU's memory does not allow the run.
    """
    check(config)
    check_devices(config)
    silence()
    with _finish_wandb(), stop_signals() as signals:
        checkpoint, loaded = None, None if is_sharded(config.trainer) else LoadedCheckpoint()
        if not is_trial(config.trainer):
            checkpoint = find_checkpoint(str(config.resume), run_dir, rename_damaged=is_first_rank(), loaded=loaded)
        run = _build_run(config, run_dir, curves, StopOnSignal(signals))
        _prepare_resuming(run, checkpoint, loaded)
        if run.trainer.is_global_zero:
            _announce(run, checkpoint)
        try:
            with _watched_ranks(run):
                _train(run, checkpoint)
                signals.raise_at_once()
                return _export(run)
        except Stopped as stop:
            _announce_stop(run)
            if stop.request == Request.REQUEUE and run.trainer.is_global_zero:
                requeue_slurm_job()
            raise


@contextmanager
def _watched_ranks(run: "_Run") -> Iterator[None]:
    """Names the rank that has failed or is gone when an error follows from it."""
    watchers = [callback for callback in run.callbacks if isinstance(callback, RankWatcher)]
    failed = True
    with child_ranks() as children:
        try:
            yield
            failed = False
        except (RuntimeError, Stopped) as error:
            stop = find_stop(run.trainer)
            lost = stop.other_failure if stop is not None else None
            if lost is None and isinstance(error, RuntimeError):
                failures = (each.lost_rank() for each in watchers)
                lost = children.wait_for_failure(2.0) or next(filter(None, failures), None)
            if lost is None or (isinstance(error, Stopped) and error.request != Request.FAILED):
                raise
            raise RankLostError(lost) from error
        finally:
            for watcher in watchers:
                watcher.on_run_end(failed)


class RankLostError(ValueError):
    """Another rank has failed, or its process is gone; the message names it and the reason."""


@contextmanager
def _finish_wandb() -> Iterator[None]:
    """Finishes a W&B run that starts inside the block; the next job of a sweep would resume it otherwise."""
    try:
        yield
    finally:
        if (wandb := sys.modules.get("wandb")) and wandb.run:
            wandb.finish(exit_code=int(sys.exc_info()[0] is not None))


@dataclass(frozen=True)
class _Run:
    config: DictConfig
    folder: Path
    data: TrainingData
    module: CubeDiffModule
    callbacks: list[L.Callback]
    loggers: list[Logger]
    trainer: L.Trainer
    left_open: dict[str, object]  # settings of the model that the config leaves to its folder, with their values

    @property
    def encoded(self) -> bool:
        return is_encoded(self.data)


def _build_run(config: DictConfig, run_dir: Path, curves: Curves | None, stop: StopOnSignal) -> _Run:
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = _build_data(config)
    module: CubeDiffModule = build(config.model)
    require_type(module, CubeDiffModule, "model")
    config, left_open = with_model_settings(config, module.pipeline)
    module.backbone.set_face_size_(config.data.get("face_size", config.face_size))
    callbacks = [stop, *_build_callbacks(config, encoded=is_encoded(data))]
    loggers = _build_loggers(config, curves)
    trainer = build_trainer(config.trainer, callbacks, loggers, run_dir)
    return _Run(config, run_dir, data, module, callbacks, loggers, trainer, left_open)


def _build_data(config: DictConfig) -> TrainingData:
    data: L.LightningDataModule = build(config.data)
    require_type(data, L.LightningDataModule, "data")
    require_members(data, TrainingData, "data")
    data.setup("fit")
    assert isinstance(data, TrainingData)
    return data


def _build_callbacks(config: DictConfig, encoded: bool) -> list[L.Callback]:
    callbacks: list[L.Callback] = []
    for name, node in (config.get("callbacks") or {}).items():
        if not node or "_target_" not in node:
            continue  # an experiment may set options of a callback that callbacks=none or …=null has removed
        callback: L.Callback = build(node)
        require_type(callback, L.Callback, f"callbacks.{name}")
        require_whole_protocols(callback, CALLBACK_PROTOCOLS, f"callbacks.{name}")
        if encoded and isinstance(callback, EncoderUser):
            print(f"training on latents, with no encoders in memory: {callback.left_out_without_encoders()}")
        else:
            callbacks.append(callback)
    return enabled_callbacks(config.trainer, callbacks)


def _build_loggers(config: DictConfig, curves: Curves | None) -> list[Logger]:
    loggers: list[Logger] = []
    nodes = config.get("logger") if has_loggers(config.trainer) else None
    for name, node in (nodes or {}).items():
        logger: Logger = build(node)
        require_type(logger, Logger, f"logger.{name}")
        require_whole_protocols(logger, LOGGER_PROTOCOLS, f"logger.{name}")
        loggers.append(logger)
    return [*loggers, CurveLogger({} if curves is None else curves)]  # some callbacks refuse a run without loggers


def _prepare_resuming(run: _Run, checkpoint: Path | None, loaded: LoadedCheckpoint | None) -> None:
    """Compares the run with its checkpoint, and gives its identity to the callbacks that write checkpoints."""
    if isinstance(run.trainer.strategy.checkpoint_io, AtomicCheckpointIO):
        run.trainer.strategy.checkpoint_io.loaded = loaded
    writers = [callback for callback in run.callbacks if isinstance(callback, IdentityWriter)]
    if checkpoint is None and not writers:
        return  # the fingerprints of the weights take seconds
    identity = run_identity(run.config, run.module, data_records(run.data))
    if checkpoint:
        saved = read_saved_run(checkpoint, loaded)
        check_resumable(checkpoint, saved, identity, run.module, is_own=run.folder in checkpoint.parents)
        if (changes := announced_changes(saved.identity, identity)) and run.trainer.is_global_zero:
            print(f"WARNING: resuming with other settings than those of {checkpoint.name}: {'; '.join(changes)}")
        for logger in run.loggers:
            if isinstance(logger, ResumableLogger):
                logger.begin_at(saved.step)
    for writer in writers:
        writer.set_run_identity(identity)


def _announce(run: _Run, checkpoint: Path | None) -> None:
    """Prints the run's size, writes run.json and gives the loggers the config; on rank 0."""
    trainer, parameters = run.trainer, run.module.trained_parameters.values()
    panoramas_per_step = run.data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    print(
        f"{run.config.name}: {sum(p.numel() for p in parameters):,} of "
        f"{sum(p.numel() for p in run.module.network.parameters()):,} parameters are trainable, "
        f"{run.data.samples('train')} training and {run.data.samples('val')} validation panoramas, "
        f"{panoramas_per_step} per step; output folder: {run.folder}"
        + (f"; resuming from {checkpoint}" if checkpoint else "")
    )
    if run.left_open:
        settings = ", ".join(f"{name}={value}" for name, value in run.left_open.items())
        print(
            f"model settings that the config leaves to {run.config.model.pipeline.get('path', 'the model')}: {settings}"
        )
    if is_trial(run.config.trainer):
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    record = run_record(run.config, trainer, run.module, run.data)
    write_json(run.folder / "run.json", record, sync=True)
    if run.config.trainer.get("enable_autolog_hparams") is not False:
        log_config(run.loggers, to_plain(run.config, resolve=True), record)
    _set_flops(run, record)


def _announce_stop(run: _Run) -> None:
    """Prints how to resume; on rank 0."""
    if is_trial(run.config.trainer) or not run.trainer.is_global_zero:
        return
    print(f"stopped at step {run.trainer.global_step}: run_dir={run.folder} resumes the run", flush=True)


def _set_flops(run: _Run, record: RunRecord) -> None:
    plan = record["plan"]
    if "flops_per_panorama" not in plan or "device_flops_per_s" not in plan:
        return
    for callback in run.callbacks:
        if isinstance(callback, FlopsConsumer):
            callback.set_flops(plan["flops_per_panorama"], plan["device_flops_per_s"])


def _train(run: _Run, checkpoint: Path | None) -> None:
    data = cast(L.LightningDataModule, run.data)  # see `_build_data`
    try:
        run.trainer.fit(run.module, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error
    except torch.OutOfMemoryError as error:
        raise ValueError(_out_of_memory_hint(run.config, run.encoded)) from error


def _out_of_memory_hint(config: DictConfig, encoded: bool) -> str:
    """What to set after a training step ran out of memory; nothing that is set already."""
    memory, batch = float(torch.cuda.mem_get_info()[1]), int(config.data.batch_size)
    message = f"training ran out of memory: data.batch_size={batch} does not fit into the GPU's {memory / GIB:.1f} GiB"
    remedies = [
        *([] if config.model.gradient_checkpointing is True else ["model.gradient_checkpointing=true"]),
        *([f"data.batch_size={batch // 2}"] if batch > 1 else []),
        *([] if encoded else ["data=latents (cached before)"]),
        "a smaller face_size",
    ]
    try:
        fits = largest_batch(lambda each: float(cost(config, each).peak), USABLE * memory, limit=batch - 1)
    except Exception as error:  # the plan's failure must not hide the run's
        rank_zero_warn(f"the plan failed, so the batch that fits is not known: {error}")
        fits = 0
    if fits:
        remedies = [f"data.batch_size={fits}, which the plan predicts to fit"]
    return f"{message}: set {', or '.join(remedies)} (`cubediff plan` with the same overrides itemises the memory)"


def _training_facts(run: _Run, weights: ExportWeights | None) -> TrainingFacts:
    samples = OmegaConf.select(run.config, "callbacks.samples.folder") or run.folder / "samples"
    record = cast(RunRecord, parse_json((run.folder / "run.json").read_bytes()))  # remote data is not read again
    return TrainingFacts(
        config=run.config,
        data=record["data"],
        panoramas=run.data.samples("train"),
        steps=run.trainer.global_step,
        weights=weights.weights_name if weights else "raw",
        samples=list(Path(samples).glob("step*.jpg")),
    )


def _export(run: _Run) -> Path:
    """Writes run_dir/export on rank 0; every rank must call it."""
    folder = run.folder / "export"
    if is_trial(run.config.trainer):
        if run.trainer.is_global_zero:
            print("fast_dev_run: the batches ran without an error; nothing is written")
        return folder
    weights = next((callback for callback in run.callbacks if isinstance(callback, ExportWeights)), None)
    if run.trainer.is_global_zero and run.encoded:
        loaded = build(run.config.model.pipeline)
        run.module.pipeline.register_modules(**loaded.backbone.frozen_components())
    export_pipeline(
        run.module,
        folder,
        weights,
        run.trainer.global_step,
        lambda part: write_card(part, folder, _training_facts(run, weights)),
    )
    if run.trainer.is_global_zero:
        for logger in run.loggers:
            if isinstance(logger, ExportLogger):
                logger.log_pipeline(folder)
        print(f"trained: {folder}")
        print(f"to train further: trainer.max_steps above {run.trainer.global_step}, run_dir={run.folder}")
    run.trainer.strategy.barrier()
    return folder
