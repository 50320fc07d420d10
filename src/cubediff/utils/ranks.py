"""Collective operations between the CPUs of all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import ProcessGroup


def new_cpu_group(world_size: int) -> ProcessGroup | None:
    """A gloo group of all ranks, so that its calls do not synchronise the GPU; None for one rank. Collective."""
    return torch.distributed.new_group(backend="gloo") if world_size > 1 else None


def all_reduce_max(value: int, group: ProcessGroup | None) -> int:
    """The maximum of an int over the ranks of a group from `new_cpu_group`; collective."""
    if group is None:
        return value
    maximum = torch.tensor(value)
    torch.distributed.all_reduce(maximum, torch.distributed.ReduceOp.MAX, group=group)
    return int(maximum)
