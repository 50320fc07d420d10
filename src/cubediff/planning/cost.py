"""Memory and operations of one micro-batch on one device, under a strategy.

Memory of CUDA and NCCL is estimated by constants.
"""

from dataclasses import dataclass

from hydra.utils import get_class
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf

from cubediff.planning.gpus import GIB
from cubediff.planning.micro_batch import Counted, count, is_for_gpu
from cubediff.planning.operations import RECOMPUTATION
from cubediff.training.fsdp import ShardedStrategy

CUDA_RESERVE = 0.6 * GIB  # context, cuDNN and cuBLAS workspaces
NCCL_RESERVE = 0.3 * GIB  # buffers of its channels
# Bytes of optimizer state per byte of trained parameters.
_STATE_RATIO = {"torch.optim.AdamW": 2.0, "torch.optim.Adam": 2.0, "bitsandbytes.optim.AdamW8bit": 0.5}


@dataclass(frozen=True)
class Cost(Counted):
    """A micro-batch on one device; under trainer=fsdp weights, gradients, optimizer and EMA are the device's shards.

    Attributes:
        optimizer: Bytes of the optimizer's state.
        ema: Bytes of the EMA.
        reserve: Bytes of CUDA and NCCL.
        checkpoint: Bytes of a checkpoint, of all devices' parameters.
        exported: Bytes of the exported network.
    """

    optimizer: int
    ema: int
    reserve: int
    checkpoint: int
    exported: int

    @property
    def flops(self) -> float:
        """Floating-point operations of the micro-batch, recomputation included."""
        return sum(one.flops for one in self.operations)

    @property
    def model_flops(self) -> float:
        """Floating-point operations of the micro-batch without recomputation, which MFU counts."""
        return sum(one.flops for one in self.operations if one.phase != RECOMPUTATION)

    @property
    def resident(self) -> int:
        """Bytes that are allocated between steps."""
        return self.weights + self.unsharded + self.encoders + self.optimizer + self.ema

    @property
    def peak(self) -> int:
        """Peak bytes of a device."""
        return self.reserve + self.resident + max(self.encode_peak, self.decode_peak, self.step_peak)


@dataclass(frozen=True)
class Parallelism:
    """How a strategy spreads parameters over the devices.

    Attributes:
        devices: Number of devices.
        shards: Number of devices that share one copy of weights and optimizer; 1 if each has its own.
        keeps_gradients: Whether gradients are kept between micro-batches.
    """

    devices: int
    shards: int
    keeps_gradients: bool

    @classmethod
    def of(cls, config: DictConfig) -> "Parallelism":
        """The parallelism of a config's Trainer."""
        strategy = config.trainer.get("strategy")
        by_name = DDPStrategy if str(strategy).startswith("ddp") else type(None)
        kind = get_class(strategy._target_) if isinstance(strategy, DictConfig) else by_name
        sharded = issubclass(kind, ShardedStrategy)
        keeps = sharded or issubclass(kind, DDPStrategy)  # DDP's buckets hold the gradients
        number = devices(config)
        return cls(number, number if sharded else 1, keeps or config.trainer.accumulate_grad_batches > 1)


def devices(config: DictConfig) -> int:
    """The number of devices of all machines; 1 per machine if the config does not state it."""
    each = config.trainer.devices
    per_node = each if isinstance(each, int) else len(each) if OmegaConf.is_list(each) else 1
    return per_node * int(config.trainer.get("num_nodes") or 1)


def cost(config: DictConfig, batch: int) -> Cost:
    """Counts one training step of `batch` panoramas on one device.

    Args:
        config: The config of `cubediff train`.
        batch: Panoramas.

    Raises:
        ValueError: If the model is unknown, or precision or optimizer cannot be counted.
    """
    parallelism = Parallelism.of(config)
    return spread(config, count(config, batch, parallelism.keeps_gradients), parallelism)


def spread(config: DictConfig, counted: Counted, parallelism: Parallelism) -> Cost:
    """The cost of a counted micro-batch under a strategy.

    Raises:
        ValueError: If the optimizer's state cannot be counted.
    """
    shards, full = parallelism.shards, counted.gradients
    optimizer, gradients = _optimizer_bytes(config, full), full // shards
    ema = full if OmegaConf.select(config, "callbacks.ema._target_") else 0
    reserve = (CUDA_RESERVE + NCCL_RESERVE * (parallelism.devices > 1)) * is_for_gpu(config)
    device = {
        "weights": counted.weights if shards == 1 else 4 * counted.parameters // shards,
        "unsharded": counted.unsharded if shards > 1 else 0,
        "gradients": gradients,
        "step_peak": counted.step_peak + gradients * parallelism.keeps_gradients,
        "optimizer": optimizer // shards,
        "ema": ema // shards,
        "reserve": int(reserve),
        "checkpoint": full + optimizer + ema,
        "exported": 4 * counted.parameters,
    }
    return Cost(**(vars(counted) | device))


def _optimizer_bytes(config: DictConfig, trained: int) -> int:
    """Bytes of the optimizer's state for `trained` bytes of parameters."""
    target = config.model.optimizer["_target_"]
    if target not in _STATE_RATIO:
        raise ValueError(f"model.optimizer._target_={target}: the plan supports AdamW, Adam and AdamW8bit")
    return int(_STATE_RATIO[target] * trained)
