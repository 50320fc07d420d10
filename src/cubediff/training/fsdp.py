"""Fully sharded data parallel (PyTorch's FSDP2; arXiv 2304.11277), for networks that do not fit on one device."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypedDict, cast

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    OptimizerStateType,
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

Parameter = str | int  # the name or the number of a parameter


def apply_fsdp(
    network: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh, param_dtype: torch.dtype | None = None
) -> None:
    """Shards a network's parameters over a one-dimensional mesh, in place. A second call changes nothing.

    All-gather per block, in `param_dtype` if given, and reshard after the block's forward pass; norms, which autocast
    computes in float32, are gathered in their own dtype. Gradients are reduced in float32.

    Args:
        network: The network.
        blocks: The submodules that are gathered one at a time; everything else is gathered together.
        mesh: The devices.
        param_dtype: The dtype of gathered parameters; None for their own.
    """
    if isinstance(network, FSDPModule):
        return
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
    for block in blocks:
        _shard_norms(block, mesh)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    _shard_norms(network, mesh)
    # By default the root module stays unsharded until its backward pass.
    fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def _shard_norms(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shards the norms inside a module that are not sharded yet, as one group."""
    kinds = nn.GroupNorm | nn.LayerNorm
    norms: list[nn.Module] = [m for m in module.modules() if isinstance(m, kinds) and not isinstance(m, FSDPModule)]
    if norms:
        fully_shard(norms, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))


def full_tensor(tensor: Tensor) -> Tensor:
    """Gathers a DTensor, a collective call; returns other tensors unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_to_rank_zero(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Gathers DTensors one after the other, a collective call, on the CPU of rank 0; other ranks get empty tensors.

    Other tensors are returned unchanged.
    """
    gathered = []
    for tensor in tensors:
        if isinstance(tensor, DTensor):
            whole = tensor.full_tensor()
            tensor = whole.cpu() if tensor.device_mesh.get_rank() == 0 else whole.new_empty(0, device="cpu")
        gathered.append(tensor)
    return gathered


def shard_like(tensors: Iterable[Tensor], others: Iterable[Tensor]) -> list[Tensor]:
    """Shards full tensors, which every rank has, as the `others` are sharded."""
    return [
        distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
        if isinstance(other, DTensor)
        else tensor
        for tensor, other in zip(tensors, others, strict=True)
    ]


class _OptimizerState(TypedDict):
    state: dict[Parameter, object]
    param_groups: list[dict[str, object]]


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices, with the same checkpoints as other strategies: full tensors, in one file.

    An optimizer state numbers the trained parameters; Lightning's own strategy numbers frozen ones too.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The full state on rank 0, an empty one on the others."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(self._module, getattr(optimizer, "optimizer", optimizer), options=options)
        numbers: dict[Parameter, Parameter] = {name: number for number, name in enumerate(self._parameter_names)}
        return {**_rename_parameters(cast(_OptimizerState, state), numbers)} if self.global_rank == 0 else {}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads the full tensors and shards them."""
        checkpoint: dict[str, Any] = torch.load(Path(checkpoint_path), map_location="cpu", weights_only=True, mmap=True)
        options = StateDictOptions(full_state_dict=True, strict=False)  # it holds trained weights only
        set_model_state_dict(self._module, checkpoint["state_dict"], options=options)
        names: dict[Parameter, Parameter] = dict(enumerate(self._parameter_names))
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            renamed = cast(OptimizerStateType, _rename_parameters(state, names))
            set_optimizer_state_dict(self._module, optimizer, renamed, options=options)
        return checkpoint

    @property
    def _module(self) -> nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module

    @property
    def _parameter_names(self) -> Iterable[str]:
        return cast(_Checkpointed, self._module).checkpointed


class _Checkpointed(Protocol):
    """A `CubeDiffModule`."""

    @property
    def checkpointed(self) -> dict[str, Tensor]: ...


def _rename_parameters(state: _OptimizerState, names: Mapping[Parameter, Parameter]) -> _OptimizerState:
    """An optimizer's state with other names of its parameters."""
    groups: list[dict[str, object]] = [
        {**group, "params": [names[p] for p in cast(list[Parameter], group["params"])]}
        for group in state["param_groups"]
    ]
    return {"state": {names[p]: value for p, value in state["state"].items()}, "param_groups": groups}
