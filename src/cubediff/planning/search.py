"""Searches the fastest way to take the same optimizer step: micro-batch, accumulation, checkpointing, strategy."""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import cast

from omegaconf import DictConfig, OmegaConf

from cubediff.configs.trainer import canonical_precision
from cubediff.models.checkpointing import CHECKPOINTING, Checkpointing
from cubediff.planning.cost import Cost, Parallelism, devices, spread
from cubediff.planning.gpus import Gpu
from cubediff.planning.micro_batch import Counted, count
from cubediff.planning.roofline import all_reduce_seconds, copy_seconds, gather_seconds, seconds_by_kind, update_seconds


@dataclass(frozen=True)
class Way:
    """A way to take an optimizer step.

    Attributes:
        batch: Panoramas of a micro-batch on one device.
        accumulate: Micro-batches of a step.
        gradient_checkpointing: What is recomputed, see `checkpoint_blocks_`.
        strategy: "ddp", "fsdp", or "" for one device.
        seconds: Of a step.
        peak: Bytes of a device.
    """

    batch: int
    accumulate: int
    gradient_checkpointing: Checkpointing
    strategy: str
    seconds: float
    peak: int

    @property
    def overrides(self) -> str:
        """The overrides of `cubediff train` that choose it."""
        words = (
            f"data.batch_size={self.batch}",
            f"trainer.accumulate_grad_batches={self.accumulate}",
            f"model.gradient_checkpointing={str(self.gradient_checkpointing).lower()}",
            *([f"trainer={self.strategy}"] if self.strategy else []),
        )
        return " ".join(words)


def ways(config: DictConfig, gpu: Gpu, memory: float) -> list[Way]:
    """The ways to take a step with the config's number of panoramas that fit, the fastest first.

    For each strategy and setting of gradient checkpointing, the largest micro-batch that fits is taken: a larger
    one shares its kernels' launches and the casts of the weights among more panoramas. FSDP comes before DDP if it is
    faster by more than 5 %.

    Args:
        config: The config of `cubediff train`.
        gpu: The GPU.
        memory: Bytes that a device may use.

    Raises:
        ValueError: As `cubediff.planning.micro_batch.count`.
    """
    found = []
    for checkpointing in CHECKPOINTING:
        variant = cast(DictConfig, OmegaConf.merge(config, {"model": {"gradient_checkpointing": checkpointing}}))
        counted = lru_cache(partial(count, variant, keeps_gradients=True))  # for all strategies
        for strategy, parallelism in _strategies(config):
            way = _largest_way(variant, strategy, parallelism, counted, gpu, memory)
            found += [way] if way else []
    return sorted(found, key=lambda way: way.seconds * (1.05 if way.strategy == "fsdp" else 1.0))


def _largest_way(
    config: DictConfig,
    strategy: str,
    parallelism: Parallelism,
    counted: Callable[[int], Counted],
    gpu: Gpu,
    memory: float,
) -> Way | None:
    """The way with the largest micro-batch that fits and divides the panoramas of a step; None if none fits."""
    each = int(config.data.batch_size) * int(config.trainer.accumulate_grad_batches)

    def cost_of(batch: int) -> Cost:
        return spread(config, counted(batch), parallelism)

    divisors = [batch for batch in range(1, each + 1) if each % batch == 0]
    fitting = bisect_right(divisors, memory, key=lambda batch: cost_of(batch).peak)
    if not fitting:
        return None
    batch = divisors[fitting - 1]
    chosen, checkpointing = cost_of(batch), cast(Checkpointing, config.model.gradient_checkpointing)
    seconds = sum(step_seconds(chosen, parallelism, each // batch, gpu, config).values())
    return Way(batch, each // batch, checkpointing, strategy, seconds, chosen.peak)


def step_seconds(
    cost: Cost, parallelism: Parallelism, micro_batches: int, gpu: Gpu, config: DictConfig
) -> dict[str, float]:
    """Seconds of an optimizer step by kind of operation, of the largest first.

    DDP's all-reduce overlaps with the last backward pass; FSDP gathers the weights twice and scatters the gradients
    once in each micro-batch, through buffers from and to which they are copied. Assumed: communication overlaps with a
    third of a micro-batch (DDP) or half of it (FSDP), and what overlaps slows the kernels by a tenth of its time.

    Args:
        cost: Of a micro-batch.
        parallelism: The strategy.
        micro_batches: Micro-batches of a step.
        gpu: The GPU.
        config: The config, for its precision.
    """
    precision = canonical_precision(config.trainer)
    kinds = seconds_by_kind(cost.operations, gpu, precision)
    micro = sum(kinds.values())  # rendering overlaps with no communication
    if cost.rendering:
        kinds["rendering"] = sum(seconds_by_kind(cost.rendering, gpu, precision).values())
    if parallelism.shards > 1:
        weights = cost.exported / (1 if precision == "32-true" else 2)
        gradients = cost.gradients * parallelism.shards
        moved = 2 * gather_seconds(weights, parallelism.devices, gpu)
        moved += gather_seconds(gradients, parallelism.devices, gpu)
        kinds["copy"] = kinds.get("copy", 0.0) + copy_seconds(2 * weights + gradients, gpu)
        waiting = micro_batches * _exposed(moved, micro / 2)
    else:
        waiting = _exposed(all_reduce_seconds(cost.gradients, parallelism.devices, gpu), micro / 3)
    update = update_seconds(cost.gradients, cost.ema > 0, gpu)
    found = {kind: each * micro_batches for kind, each in kinds.items()}
    return found | {"optimizer, EMA": update} | ({"communication": waiting} if parallelism.devices > 1 else {})


def _exposed(communication: float, overlap: float) -> float:
    """Seconds that communication adds if it may overlap with `overlap` seconds of kernels."""
    return max(0.0, communication - overlap) + 0.1 * min(communication, overlap)


def _strategies(config: DictConfig) -> Iterable[tuple[str, Parallelism]]:
    number = devices(config)
    if number == 1:
        return [("", Parallelism(1, 1, keeps_gradients=True))]
    found = [("ddp", Parallelism(number, 1, keeps_gradients=True))]
    if config.model.trainable != "lora":  # too few trained parameters to shard, see CubeDiffModule.configure_model
        found.append(("fsdp", Parallelism(number, number, keeps_gradients=True)))
    return found


def largest_batch(peak_of: Callable[[int], float], memory: float, limit: int = 2**31) -> int:
    """Finds the largest batch whose step fits into a GPU's memory; 0 if not even one panorama fits.

    The answer is counted up to 16 panoramas; beyond, the peak is extrapolated from 8 and 16.

    Args:
        peak_of: Peak bytes of a batch.
        memory: Memory that a step may use, in bytes.
        limit: The largest batch that is asked for.
    """
    peaks = {0: 0.0}

    def fits(batch: int) -> bool:
        if batch not in peaks:
            peaks[batch] = peak_of(batch)
        return peaks[batch] <= memory

    def reach(batch: int, low: int, high: int) -> int:
        """The largest batch on the line through two counted ones, from `batch` on."""
        slope = (peaks[high] - peaks[low]) / (high - low)
        return limit if slope <= 0 else batch + int((memory - peaks[batch]) / slope + 1e-6)

    if limit < 1 or not fits(1):
        return 0
    if limit == 1 or not fits(2):
        return 1
    # The peak is the maximum over the step's moments, each affine in the batch, and therefore convex. A line through
    # two counted batches that fit is below the peaks of larger ones, and shows which cannot fit (`high` is the largest
    # that may); a line from a batch that fits to one that does not is above the peaks between them.
    low, over, high = 2, None, min(16, limit, reach(2, 1, 2))
    while low < high:
        guess = high
        if over is not None:  # not below the middle, so that no kink makes the search long
            guess = min(high, max(reach(low, low, over), (low + high + 1) // 2))
        before = low
        if fits(guess):
            low, high = guess, min(high, reach(guess, before, guess))
        else:
            over, high = guess, guess - 1
    if low < 16 or limit == 16:
        return low
    fits(8)
    return min(limit, reach(16, 8, 16))
