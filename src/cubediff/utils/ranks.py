"""Which rank this process is, and collective operations between the CPUs of all ranks."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import ProcessGroup

# Variables of the launchers that Lightning supports.
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "OMPI_COMM_WORLD_RANK")


def is_first_rank() -> bool:
    """Whether this process is rank 0 or the only one, by its environment: also before a Trainer exists."""
    return all(os.environ.get(rank, "0") == "0" for rank in _RANKS)


def torchrun_rank() -> tuple[int, int]:
    """The rank of this process and the number of processes, as torchrun sets them; (0, 1) without it."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def is_started_by_first_rank() -> bool:
    """Whether Lightning's launcher on rank 0 has started this process; it kills rank 0 if one exits with an error."""
    return any(argument.startswith("hydra.job.name=") and "_ddp_process_" in argument for argument in sys.argv)


def new_cpu_group(world_size: int) -> ProcessGroup | None:
    """A gloo group of all ranks, so that its calls do not synchronise the GPU; None for one rank. Collective."""
    import torch  # start-up time

    return torch.distributed.new_group(backend="gloo") if world_size > 1 else None


def all_reduce_max(value: int, group: ProcessGroup | None) -> int:
    """The maximum of an int over the ranks of a group from `new_cpu_group`; collective."""
    if group is None:
        return value
    import torch  # start-up time

    maximum = torch.tensor(value)
    work = torch.distributed.all_reduce(maximum, torch.distributed.ReduceOp.MAX, group=group, async_op=True)
    while not work.is_completed():  # unlike `wait`, it lets Python handle signals while another rank is late
        time.sleep(0.0002)
    work.wait()  # raises the error of a rank that is gone
    return int(maximum)
