"""What one rank has seen and all must act on."""

import lightning as L
import torch


class Agreement:
    """The greatest of all ranks' wishes, known to all; between processors, so that no device is waited for."""

    def __init__(self, trainer: L.Trainer) -> None:
        self._group = torch.distributed.new_group(backend="gloo") if trainer.world_size > 1 else None

    def __call__(self, wish: int) -> int:
        """A collective call: every rank must make it."""
        if self._group is None:
            return wish
        greatest = torch.tensor(wish)
        torch.distributed.all_reduce(greatest, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(greatest)
