"""The plan of a run as text: memory, largest batch, operations, hours, data rate, disk."""

import math

from omegaconf import DictConfig

from cubediff.configs import build
from cubediff.configs.trainer import check_trainer
from cubediff.data.streaming.catalog import needs_fetching
from cubediff.planning.cost import CUDA_RESERVE, GIB, Cost, cost, devices, largest_batch
from cubediff.planning.gpus import GPUS

DEFAULT_EPOCHS = 1000  # Lightning's limit for a run without any other


def report(config: DictConfig) -> str:
    """The plan of a run.

    Args:
        config: The config of `cubediff plan`.

    Raises:
        ValueError: If the config cannot be counted, see `cost`, or its Trainer is not supported, see `check_trainer`.
    """
    check_trainer(config.trainer)
    counted = cost(config, config.data.batch_size)
    lines = [_recipe(config), "", *_memory(config, counted), "", *_compute(config, counted)]
    disk = f"disk: {counted.checkpoint / 1e9:.2f} GB a checkpoint, {counted.exported / 1e9:.2f} GB the exported network"
    return "\n".join([*lines, "", disk])


def limit_steps(config: DictConfig, samples: int | None = None) -> int | None:
    """The number of optimizer steps that limits a run; None if only time does, or if it depends on unknown data.

    Args:
        config: The config of `cubediff train`.
        samples: Number of training panoramas; None if unknown.
    """
    trainer = config.trainer
    if trainer.get("fast_dev_run"):
        return int(trainer.fast_dev_run)
    limits = [int(trainer.max_steps)] if trainer.max_steps != -1 else []
    has_no_limit = trainer.max_steps == -1 and not trainer.get("max_time")
    epochs: int | None = trainer.get("max_epochs")
    if epochs is None:
        epochs = DEFAULT_EPOCHS if has_no_limit else -1
    if epochs != -1 and samples is not None:
        limits.append(epochs * _steps_per_epoch(config, samples))
    return min(limits) if limits else None


def _steps_per_epoch(config: DictConfig, samples: int) -> int:
    batches: int = max(1, samples // (config.data.batch_size * devices(config)))
    limit = config.trainer.get("overfit_batches") or config.trainer.get("limit_train_batches")
    if limit is not None:
        batches = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    return math.ceil(batches / int(config.trainer.accumulate_grad_batches))


def _recipe(config: DictConfig) -> str:
    trainer, batch, number = config.trainer, config.data.batch_size, devices(config)
    return (
        f"{config.name}: {number} × {batch} panoramas of 6 × {config.face_size}² pixels × "
        f"{trainer.accumulate_grad_batches} micro-batches = {_panoramas_per_step(config)} a step, "
        f"{_length(config)}, {trainer.precision}, gradient checkpointing "
        f"{'on' if config.model.gradient_checkpointing else 'off'}"
    )


def _length(config: DictConfig) -> str:
    """The limits of the run's length."""
    limits = {"steps": "max_steps", "epochs": "max_epochs"}
    given = {unit: config.trainer.get(key) for unit, key in limits.items()}
    parts = [f"{number} {unit}" for unit, number in given.items() if number not in (None, -1)]
    if (duration := config.trainer.get("max_time")) is not None:
        parts.append(f"{duration} of time")
    return " or ".join(parts) or "no limit of steps"


def _panoramas_per_step(config: DictConfig) -> int:
    return int(config.data.batch_size * devices(config) * config.trainer.accumulate_grad_batches)


def _memory(config: DictConfig, counted: Cost) -> list[str]:
    memory = float(config.plan.memory_gb) * GIB
    rows = [
        ("network weights", counted.weights + counted.unsharded),
        *([("  of which all-gathered", counted.unsharded)] if counted.unsharded else []),
        ("VAE and text encoder", counted.encoders),
        ("optimizer", counted.optimizer),
        ("EMA", counted.ema),
        ("loss, backward, gradients", counted.step_peak),
        ("  of which gradients", counted.gradients),
        ("encoding the faces", counted.encode_peak),
        ("CUDA context", int(CUDA_RESERVE)),
        ("peak", counted.peak),
    ]
    fits, largest = largest_batch(config, memory)
    verdict = "fits" if counted.peak <= memory else "does NOT fit"
    best = f"the largest that fits is {fits} ({largest / GIB:.1f} GiB)" if fits else "not even one panorama fits"
    return [
        f"network: {counted.parameters / 1e6:.1f} M parameters, {counted.trained / 1e6:.1f} M of them trained",
        "",
        "memory of a device, GiB",
        *(f"  {name:28s}{value / GIB:8.2f}" for name, value in rows),
        f"  a batch of {config.data.batch_size} per device {verdict} {memory / GIB:g} GiB; {best}",
    ]


def _compute(config: DictConfig, counted: Cost) -> list[str]:
    number, utilisation = devices(config), config.plan.utilisation
    flops = counted.flops * config.trainer.accumulate_grad_batches
    panoramas, size = _panoramas_per_step(config), _panorama_bytes(config)
    steps = limit_steps(config)
    lines = [
        f"compute: {flops * number / 1e12:.1f} TFLOP a step, {counted.encode_flops / counted.flops:.0%} of it "
        f"encoding; at an MFU of {utilisation:.0%} of the dense bf16 rate",
    ]
    for name, rate in GPUS.items():
        seconds = flops / (rate * utilisation)
        per_second = panoramas / seconds
        lines.append(
            f"  {number} × {name:5s} {seconds:8.2f} s a step, {per_second:7.2f} panoramas/s, "
            f"{seconds * (steps or 1000) / 3600:8.1f} h{'' if steps else ' for 1000 steps'}, "
            f"reading {per_second * size / 1e6:6.2f} MB/s"
        )
    return lines


def _panorama_bytes(config: DictConfig) -> float:
    """The mean size of a panorama in the shards, or the config's estimate without shards or before they are fetched."""
    estimate = float(config.plan.panorama_kb) * 1000
    if not config.data.path:
        return estimate
    data = build(config.data)
    if any(map(needs_fetching, data.paths)):
        return estimate
    data.setup()
    return float(data.sample_bytes)
