"""The plan of a run as text: memory, largest batch, time and cost, the fastest settings, data rate, disk."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from omegaconf import DictConfig

from cubediff.configs import build
from cubediff.configs.trainer import canonical_precision, check_trainer
from cubediff.data.streaming.catalog import needs_fetching
from cubediff.planning.cost import Cost, Parallelism, cost, devices
from cubediff.planning.gpus import GIB, GPUS, Gpu
from cubediff.planning.micro_batch import is_for_gpu
from cubediff.planning.search import Way, step_seconds, ways
from cubediff.utils.text import significant

USABLE = 0.9  # of the memory that torch can allocate; the allocator's fragments take the rest
DEFAULT_EPOCHS = 1000  # Lightning's limit for a run without any other


class Plan(NamedTuple):
    """A plan: its text, and whether the run fits into the memory of its devices in any way."""

    text: str
    fits: bool


def plan(config: DictConfig, search: bool = True) -> Plan:
    """The plan of a run.

    Args:
        config: The config of `cubediff plan`.
        search: Search the largest batch and the fastest settings too, which takes up to a minute.

    Raises:
        ValueError: If the config cannot be counted, see `cost`, its Trainer is not supported, see `check_trainer`, or
            `plan.gpu` is unknown or does not support the precision.
    """
    check_trainer(config.trainer)
    gpu = planned_gpu(config) if is_for_gpu(config) else None
    if gpu is not None:
        gpu.rate(canonical_precision(config.trainer))
    counted = cost(config, config.data.batch_size)
    disk = f"disk: {counted.checkpoint / 1e9:.2f} GB a checkpoint, {counted.exported / 1e9:.2f} GB the exported network"
    lines = [_recipe(config), "", *_memory(counted)]
    if gpu is None:
        return Plan("\n".join([*lines, "", *_operations(config, counted), "", disk]), fits=True)
    memory = usable_memory(config, gpu)
    lines += [_verdict(config, counted, gpu, memory), "", *_time(config, counted, gpu), ""]
    fits = counted.peak <= memory
    if search:
        found = ways(config, gpu, memory)
        lines += [*_best(config, found), ""]
        fits = fits or bool(found)
    return Plan("\n".join([*lines, disk]), fits)


def planned_gpu(config: DictConfig) -> Gpu:
    """The GPU of `plan.gpu`, with `plan.memory_gb`, `plan.tflops` and `plan.bandwidth_gb` where they are given.

    Raises:
        ValueError: If the GPU is unknown, or a number is not positive.
    """
    settings = config.plan
    for name in ("memory_gb", "tflops", "bandwidth_gb", "price"):
        value = settings[name]
        if value is not None and not (type(value) in (int, float) and 0 < value < math.inf):
            raise ValueError(f"plan.{name}={value}: expected a number above 0, or null")
    if settings.gpu not in GPUS:
        raise ValueError(
            f"plan.gpu={settings.gpu}: use one of {', '.join(GPUS)}; for another, state plan.memory_gb, plan.tflops "
            "and plan.bandwidth_gb, which replace those of plan.gpu"
        )
    gpu = GPUS[settings.gpu]
    if settings.tflops is not None:
        gpu = replace(gpu, name="GPU", bf16=settings.tflops * 1e12, fp16=settings.tflops * 1e12)
    if settings.bandwidth_gb is not None:
        gpu = replace(gpu, name="GPU", bandwidth=settings.bandwidth_gb * 1e9)
    return gpu


def usable_memory(config: DictConfig, gpu: Gpu) -> float:
    """Bytes that the plan gives a device: `plan.memory_gb`, or 90 % of the GPU's."""
    given = config.plan.memory_gb
    return USABLE * gpu.memory if given is None else float(given) * GIB


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
    checkpointing = config.model.gradient_checkpointing
    return (
        f"{config.name}: {number} × {batch} panoramas of 6 × {config.face_size}² pixels × "
        f"{trainer.accumulate_grad_batches} micro-batches = {_panoramas_per_step(config)} a step, "
        f"{_length(config)}, {trainer.precision}, gradient checkpointing "
        f"{ {True: 'on', False: 'off'}.get(checkpointing, checkpointing) }"
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


def _memory(counted: Cost) -> list[str]:
    rows = [
        ("network weights", counted.weights + counted.unsharded),
        *([("  of which all-gathered", counted.unsharded)] if counted.unsharded else []),
        ("VAE and text encoder", counted.encoders),
        ("optimizer", counted.optimizer),
        ("EMA", counted.ema),
        ("loss, backward, gradients", counted.step_peak),
        ("  of which gradients", counted.gradients),
        ("encoding the faces", counted.encode_peak),
        ("decoding a sample", counted.decode_peak),
        ("CUDA and NCCL", counted.reserve),
        ("peak", counted.peak),
    ]
    return [
        f"network: {counted.parameters / 1e6:.1f} M parameters, {counted.trained / 1e6:.1f} M of them trained",
        "",
        "memory of a device, GiB (loss, encoding and decoding take turns)",
        *(f"  {name:28s}{value / GIB:8.2f}" for name, value in rows),
    ]


def _verdict(config: DictConfig, counted: Cost, gpu: Gpu, memory: float) -> str:
    verdict = "fits" if counted.peak <= memory else "does NOT fit"
    share = f" ({USABLE:.0%} of the {gpu.memory / GIB:.1f} that torch sees of its GPU)"
    share = "" if config.plan.memory_gb is not None else share
    return f"  a batch of {config.data.batch_size} per device {verdict} {memory / GIB:.1f} GiB{share}"


def _operations(config: DictConfig, counted: Cost) -> list[str]:
    flops = counted.flops * config.trainer.accumulate_grad_batches * devices(config)
    encoding, again = counted.encode_flops / counted.flops, 1 - counted.model_flops / counted.flops
    return [
        f"compute: {significant(flops / 1e12)} TFLOP a step, {encoding:.0%} of it encoding, {again:.0%} recomputation"
    ]


def _time(config: DictConfig, counted: Cost, gpu: Gpu) -> list[str]:
    number, parallelism = devices(config), Parallelism.of(config)
    micro_batches = int(config.trainer.accumulate_grad_batches)
    seconds = step_seconds(counted, parallelism, micro_batches, gpu, config)
    rows = sorted(seconds.items(), key=lambda item: -item[1])
    total = sum(seconds.values())
    size = _panorama_bytes(config)
    mfu = counted.model_flops * micro_batches / (total * gpu.rate(canonical_precision(config.trainer)))
    others = (
        f"  {_on(config, number, other.name, step_seconds(counted, parallelism, micro_batches, other, config), size)}"
        for other in GPUS.values()
        if other.name != gpu.name and other.rate_or_zero(canonical_precision(config.trainer))
    )
    return [
        *_operations(config, counted),
        f"time of a step on {number} × {gpu.name}, seconds",
        *(f"  {name:28s}{value:8.2f}" for name, value in rows if value >= 0.005),
        f"  total, at an MFU of {mfu:3.0%}     {total:8.2f}",
        f"  {_on(config, number, gpu.name, seconds, size)}{_price(config, number, total)}",
        "on other GPUs, whether or not it fits",
        *others,
    ]


def _on(config: DictConfig, number: int, name: str, seconds: Mapping[str, float], panorama: float) -> str:
    total, steps = sum(seconds.values()), limit_steps(config)
    per_second = _panoramas_per_step(config) / total
    return (
        f"{number} × {name:9s} {total:7.2f} s a step, {per_second:7.2f} panoramas/s, {_hours(config, total):8.1f} h"
        f"{'' if steps else ' for 1000 steps'}, reading {per_second * panorama / 1e6:6.2f} MB/s"
    )


def _price(config: DictConfig, number: int, seconds: float) -> str:
    price = config.plan.price
    return "" if price is None else f", {_hours(config, seconds) * number * price:.0f} in all at plan.price={price:g}"


def _hours(config: DictConfig, seconds: float) -> float:
    return seconds * (limit_steps(config) or 1000) / 3600


def _best(config: DictConfig, found: list[Way]) -> list[str]:
    title = f"the fastest ways to {_panoramas_per_step(config)} panoramas a step that fit"
    if not found:
        return [f"{title}: none; train from cached latents (data=latents), choose a smaller face_size or another GPU"]
    names = ("best", "runner-up")
    return [
        title,
        *(
            f"  {name:10s}{way.seconds:8.2f} s, {way.peak / GIB:5.1f} GiB: {way.overrides}"
            for name, way in zip(names, found, strict=False)  # there may be one
        ),
    ]


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
