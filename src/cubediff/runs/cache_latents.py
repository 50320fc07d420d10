"""Caches the latents of a dataset as the `cache` config describes it."""

from contextlib import nullcontext
from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf

from cubediff.configs import build, check, check_devices
from cubediff.data.format.folders import folder_lock
from cubediff.data.format.manifest import LatentManifest, LatentsRecord
from cubediff.data.latent_cache.source import CachingDataModule
from cubediff.data.latent_cache.writing import (
    LatentEncoder,
    ShardWriter,
    begin_or_resume,
    check_output,
    find_finished,
    write_manifest,
)
from cubediff.runs.trainer import build_trainer, is_trial
from cubediff.training.callbacks.signals import StopOnSignal
from cubediff.utils.logging import silence
from cubediff.utils.ranks import is_first_rank
from cubediff.utils.signals import stop_signals
from cubediff.utils.text import redact

# Not bfloat16, whose rounding is eight times coarser than that of float16 in as many bytes.
DTYPES = {"float16": torch.float16, "float32": torch.float32}
PRECISION = "32-true"  # of encoding, also where training has another; CUDA may use TF32


def cache(config: DictConfig) -> LatentManifest | None:
    """Encodes the panoramas of `data.path` in float32 into `cache.output`; resumes an interrupted run, and leaves a
    finished one as it is.

    Returns:
        The manifest of the latent dataset; None on ranks other than 0.

    Raises:
        Stopped: If a signal stops it.
        ValueError: If the config is incomplete or wrong.
        DataError: If panoramas cannot be read, or the output cannot be resumed.
        FloatingPointError: If a latent is not finite.
    """
    check(config)
    check_devices(config)
    if type(config.cache.turns) is not int or config.cache.turns < 1:
        raise ValueError(f"cache.turns must be at least 1, an integer, got {config.cache.turns}")
    if config.cache.dtype not in DTYPES:
        raise ValueError(f"cache.dtype must be {' or '.join(DTYPES)}, got {config.cache.dtype}")
    if is_trial(config.trainer):
        raise ValueError("trainer.fast_dev_run would leave the latents incomplete: remove it")
    silence()
    target = f"{CachingDataModule.__module__}.{CachingDataModule.__qualname__}"
    data = build(config.data, _target_=target, turns=config.cache.turns)
    data.setup()  # validates the dataset before anything is written
    backbone = build(config.model.pipeline).backbone
    record = _record(config, backbone.fingerprint())
    output, shards = Path(config.cache.output), data.shards_to_cache()
    if (finished := find_finished(output, record, shards)) is not None:
        if not is_first_rank():
            return None
        print(f"nothing to do: {output} holds the latents of these panoramas already")
        return finished
    check_output(output, record, shards)
    with stop_signals() as signals:
        callbacks = [StopOnSignal(signals), ShardWriter(output)]
        settings = cast(DictConfig, OmegaConf.merge(config.trainer, {"precision": PRECISION}))
        trainer = build_trainer(settings, callbacks, loggers=False)
        encoder = LatentEncoder(backbone, DTYPES[config.cache.dtype])
        with folder_lock(output) if trainer.is_global_zero else nullcontext():
            data.done = begin_or_resume(output, record, shards, verify=trainer.is_global_zero)
            trainer.predict(encoder, datamodule=data, return_predictions=False)
            signals.raise_at_once()
            trainer.strategy.barrier()
            manifest = write_manifest(output, record, shards) if trainer.is_global_zero else None
            trainer.strategy.barrier()
    return manifest


def _record(config: DictConfig, encoders: str) -> LatentsRecord:
    """The settings of the latents for the manifest; `encoders` is the encoders' fingerprint."""
    data = config.data
    record = LatentsRecord(
        turns=config.cache.turns,
        dtype=config.cache.dtype,
        face_size=config.face_size,
        fov=config.fov,
        encoders=encoders,
        source=redact(str(data.path)),
        seed=config.seed,
        yaw=data.yaw,
        flip=data.flip,
        face_caption_probability=data.face_caption_probability,
        face_caption_jitter=data.face_caption_jitter,
    )
    if data.jpeg_scaling:
        record["jpeg_scaling"] = True
    if data.stages is not None:
        record["stages"] = OmegaConf.to_container(data.stages, resolve=True)
    return record
