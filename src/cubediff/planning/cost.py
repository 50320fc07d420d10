"""Memory and operations of a training step, counted without weights or GPU.

The step of the config runs on fake tensors, which hold no data, and every allocation and floating-point operation is
added up. The numbers come from the training code, not from a formula. They exclude the allocator's rounding; CUDA's own
memory is estimated by `CUDA_RESERVE`.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch
from hydra.utils import get_class
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from cubediff.configs import build, to_plain
from cubediff.configs.targets import rename_targets_
from cubediff.configs.trainer import canonical_precision
from cubediff.data.batches.types import CubeBatch, LatentBatch
from cubediff.models.inputs import positions
from cubediff.pipelines.loading import meta_pipeline
from cubediff.planning.counting import AllocationCounter, attention_flops, cuda_autocast, to_fake_parameters_
from cubediff.training.fsdp import ShardedStrategy
from cubediff.training.module import TRAINING, Batch, CubeDiffModule, Options

GIB = 2**30
CUDA_RESERVE = 0.6 * GIB  # context, cuDNN and cuBLAS workspaces
# Bytes of optimizer state per byte of trained parameters.
_STATE_RATIO = {"torch.optim.AdamW": 2.0, "torch.optim.Adam": 2.0, "bitsandbytes.optim.AdamW8bit": 0.5}


@dataclass(frozen=True)
class Cost:
    """Bytes and floating-point operations of one micro-batch on one device.

    Under trainer=fsdp weights, gradients, optimizer and EMA are the device's shards.
    """

    batch: int
    parameters: int
    trained: int
    weights: int  # of the network
    unsharded: int  # peak bytes of all-gathered parameters and gradients under trainer=fsdp
    encoders: int  # weights of the frozen components
    gradients: int
    optimizer: int
    ema: int
    encode_peak: int  # of encoding the faces, on top of the weights
    step_peak: int  # of loss and backward, gradients included, on top of the weights
    flops: float  # of the micro-batch, recomputation included
    encode_flops: float
    checkpoint: int  # bytes of a checkpoint, of all devices' parameters
    exported: int  # bytes of the exported network

    @property
    def resident(self) -> int:
        """Bytes that are allocated between steps."""
        return self.weights + self.unsharded + self.encoders + self.optimizer + self.ema

    @property
    def peak(self) -> float:
        """Peak bytes of a device."""
        return CUDA_RESERVE + self.resident + max(self.encode_peak, self.step_peak)


@dataclass(frozen=True)
class _Parallelism:
    """How a strategy spreads parameters over the devices."""

    shards: int
    keeps_gradients: bool  # between micro-batches

    @classmethod
    def of(cls, config: DictConfig) -> "_Parallelism":
        strategy = config.trainer.get("strategy")
        by_name = DDPStrategy if str(strategy).startswith("ddp") else type(None)
        kind = get_class(strategy._target_) if isinstance(strategy, DictConfig) else by_name
        sharded = issubclass(kind, ShardedStrategy)
        keeps = sharded or issubclass(kind, DDPStrategy)  # DDP's buckets hold the gradients
        return cls(devices(config) if sharded else 1, keeps or config.trainer.accumulate_grad_batches > 1)


def devices(config: DictConfig) -> int:
    """The number of devices of all machines; 1 per machine if the config does not state it."""
    each = config.trainer.devices
    per_node = each if isinstance(each, int) else len(each) if OmegaConf.is_list(each) else 1
    return per_node * int(config.trainer.get("num_nodes") or 1)


def cost(config: DictConfig, batch: int, operations: bool = True) -> Cost:
    """Counts one training step of `batch` panoramas on one device.

    Args:
        config: The config of `cubediff train`.
        batch: Panoramas.
        operations: Count floating-point operations too, which takes as long as everything else.

    Raises:
        ValueError: If the model is unknown, or precision or optimizer cannot be counted.
    """
    rename_targets_(config)
    module = _meta_module(config)
    backbone, parallelism = module.backbone, _Parallelism.of(config)
    precision = canonical_precision(config.trainer)
    with ExitStack() as stack:
        stack.callback(positions.cache_clear)  # it caches fake tensors
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for component in backbone.components().values():
            to_fake_parameters_(component)
        module.encode_null_text()
        stack.enter_context(cuda_autocast(precision))
        trained = list(module.trained_parameters.values())
        weights, encoders = _bytes([module.network]), _bytes(backbone.frozen_components().values())
        step_batch, faces = _batch(config, module, batch)
        encoders = 0 if faces is None else encoders
        if parallelism.keeps_gradients:  # each micro-batch begins with the gradients of the one before
            for parameter in trained:
                parameter.register_post_accumulate_grad_hook(_free_gradient)

        def encode() -> None:
            if faces is not None:
                backbone.encode(faces)

        def step() -> None:
            module.zero_grad(set_to_none=True)
            seeds = [(0, TRAINING, index) for index in range(batch)]
            module.compute_losses(step_batch, seeds)["losses"].mean().backward()

        (encode_peak, encode_flops), (step_peak, flops) = (_count(run, operations) for run in (encode, step))
        full = sum(p.nbytes for p in trained)
        shards, optimizer = parallelism.shards, _optimizer_bytes(config, full)
        gradients, ema = full // shards, full if OmegaConf.select(config, "callbacks.ema._target_") else 0
        blocks = backbone.blocks()
        return Cost(
            batch=batch,
            parameters=sum(p.numel() for p in module.network.parameters()),
            trained=sum(p.numel() for p in trained),
            weights=weights // shards,
            unsharded=_unsharded_bytes(module.network, blocks, precision) if shards > 1 else 0,
            encoders=encoders,
            gradients=gradients,
            optimizer=optimizer // shards,
            ema=ema // shards,
            encode_peak=encode_peak,
            step_peak=step_peak + gradients * parallelism.keeps_gradients,
            flops=flops,
            encode_flops=encode_flops,
            checkpoint=full + optimizer + ema,
            exported=weights,
        )


def largest_batch(config: DictConfig, memory: float) -> tuple[int, float]:
    """Finds the largest batch whose step fits into a GPU's memory.

    The answer is counted up to 16 panoramas; beyond, the peak is extrapolated from 8 and 16.

    Args:
        config: The config of `cubediff train`.
        memory: Memory of the GPU, in bytes.

    Returns:
        The number of panoramas and the peak memory in bytes; 0 and 0.0 if not even one panorama fits.
    """
    peaks = {0: 0.0}

    def fits(batch: int) -> bool:
        if batch not in peaks:
            peaks[batch] = cost(config, batch, operations=False).peak
        return peaks[batch] <= memory

    def each(low: int, high: int) -> float:
        return (peaks[high] - peaks[low]) / (high - low)

    if not fits(1):
        return 0, 0.0
    if not fits(2):
        return 1, peaks[1]
    # The peak is the maximum over the step's moments, each affine in the batch, and therefore convex. A line through
    # two counted batches that fit is below the peaks of larger ones, and shows which cannot fit (`high` is the largest
    # that may); a line from a batch that fits to one that does not is above the peaks between them.
    low, over, high = 2, None, min(16, 2 + int((memory - peaks[2]) / each(1, 2) + 1e-6))
    while low < high:
        guess = high
        if over is not None:
            certain = low + int((memory - peaks[low]) / each(low, over))
            guess = max(certain, (low + high + 1) // 2)  # the middle, so that no kink makes the search long
        if fits(guess):
            low, slope = guess, each(low, guess)
            high = min(high, low + int((memory - peaks[low]) / slope + 1e-6))
        else:
            over, high = guess, guess - 1
    if low < 16:
        return low, peaks[low]
    fits(8)
    more = int((memory - peaks[16]) / each(8, 16))
    return 16 + more, peaks[16] + more * each(8, 16)


def _meta_module(config: DictConfig) -> CubeDiffModule:
    """The config's LightningModule on the meta device."""
    settings = to_plain(config.model, resolve=True)
    pipeline_settings = cast(dict[str, object], settings.pop("pipeline"))
    options = cast(Options, {k: v for k, v in settings.items() if k not in ("_target_", "objective", "optimizer")})
    options["compile"] = None  # its small effect on saved activations is not worth compiling
    pipeline = meta_pipeline(str(pipeline_settings.pop("_target_")), pipeline_settings)
    return CubeDiffModule(pipeline, build(config.model.objective), torch.optim.AdamW, **options)


def _batch(config: DictConfig, module: CubeDiffModule, batch: int) -> tuple[Batch, Tensor | None]:
    """A batch of the config's data module, and its faces; none if its batches are encoded already."""
    faces, prompts = module.backbone.example(batch, config.face_size)
    keys = [str(index) for index in range(batch)]
    cubes = CubeBatch(faces=faces, yaw=torch.zeros(batch), prompts=prompts, key=keys)
    if getattr(get_class(config.data._target_), "content", "panoramas") != "latents":
        return cubes, faces
    first = CubeBatch(faces=faces[:1], yaw=torch.zeros(1), prompts=prompts[:1], key=keys[:1])
    example = module.example(first)

    def cached(tensor: Tensor) -> Tensor:
        return tensor.half().expand(batch, *tensor.shape[1:]).contiguous()

    text = {name: cached(tensor) for name, tensor in example.conditioning.state().items()}
    return LatentBatch(latents=cached(example.latents), text=text, yaw=torch.zeros(batch), key=keys), None


def _count(run: Callable[[], None], operations: bool) -> tuple[int, float]:
    """Peak bytes and floating-point operations of a call."""
    allocations = AllocationCounter()
    with allocations:
        run()
    counter = FlopCounterMode(display=False, custom_mapping=attention_flops())
    if operations:
        with counter:  # in a run of its own, because it keeps tensors alive
            run()
    return allocations.peak, float(counter.get_total_flops())


def _bytes(modules: Iterable[nn.Module]) -> int:
    return sum(tensor.nbytes for module in modules for tensor in [*module.parameters(), *module.buffers()])


def _free_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _unsharded_bytes(network: nn.Module, blocks: list[nn.Module], precision: str) -> int:
    """Peak bytes that FSDP gathers: weights outside the blocks, and weights and gradients of two blocks (the next one
    is prefetched while one runs)."""
    weight_bytes = 2 if precision == "bf16-mixed" else 4

    def size(parameters: Iterable[nn.Parameter]) -> int:
        return sum(p.numel() * (weight_bytes + 4 * p.requires_grad) for p in parameters)

    each = [size(block.parameters()) for block in blocks]
    return size(network.parameters()) - sum(each) + sum(sorted(each)[-2:])


def _optimizer_bytes(config: DictConfig, trained: int) -> int:
    """Bytes of the optimizer's state for `trained` bytes of parameters."""
    target = config.model.optimizer["_target_"]
    if target not in _STATE_RATIO:
        raise ValueError(f"model.optimizer._target_={target}: the plan supports AdamW, Adam and AdamW8bit")
    return int(_STATE_RATIO[target] * trained)
