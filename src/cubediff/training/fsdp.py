"""A network's weights in parts, one on each device, for those that do not fit whole (fully sharded data parallel,
arXiv 2304.11277, as PyTorch's `fully_shard`)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard_(unet: UNet2DConditionModel, mesh: DeviceMesh, gathered: torch.dtype | None = None) -> None:
    """Leaves each device of a one-dimensional mesh its part of every weight. A block's are put together, as `gathered`
    or as they are, when it is its turn, and let go after it. Gradients are added up as float32. A second call does
    nothing."""
    if isinstance(unet, FSDPModule):
        return
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32)
    for block in blocks(unet):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # By default the outermost stays whole until its backward pass.
    fully_shard(unet, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def blocks(unet: UNet2DConditionModel) -> list[nn.Module]:
    """What is put together at a time."""
    return [module for module in unet.modules() if isinstance(module, BasicTransformerBlock | ResnetBlock2D)]


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or where it is in parts all of it; then every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def parted_as(tensors: Iterable[Tensor], others: Iterable[Tensor]) -> list[Tensor]:
    """Whole tensors, which every rank has, in parts where the others are."""
    return [
        distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
        if isinstance(other, DTensor)
        else tensor
        for tensor, other in zip(tensors, others, strict=True)
    ]


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy over all devices of all machines, with the checkpoints of a run on whole networks: they
    number what the optimizer has, where Lightning's would count frozen weights too."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Whole on rank 0, and nothing on the others."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(self._module, getattr(optimizer, "optimizer", optimizer), options=options)
        numbers = {name: number for number, name in enumerate(self._module.checkpointed)}
        return _renamed(state, numbers) if self.global_rank == 0 else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint: dict[str, Any] = torch.load(Path(checkpoint_path), map_location="cpu", weights_only=True, mmap=True)
        options = StateDictOptions(full_state_dict=True, strict=False)  # it has only what is trained
        set_model_state_dict(self._module, checkpoint["state_dict"], options=options)
        names = dict(enumerate(self._module.checkpointed))
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            set_optimizer_state_dict(self._module, optimizer, _renamed(state, names), options=options)
        return checkpoint

    @property
    def _module(self) -> Any:
        return self.lightning_module


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimizer's state with other names of its parameters."""
    groups = [{**group, "params": [names[p] for p in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[p]: value for p, value in state["state"].items()}, "param_groups": groups}
