"""Records the copies from the host to the meta device, which stands for a GPU."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Copies(TorchDispatchMode):
    """Records the shapes of tensors, other than scalars, that are copied from the host to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        copies = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if func in copies and result.is_meta and not all(a.is_meta for a in args if isinstance(a, torch.Tensor)):
            self.shapes.append(tuple(result.shape))
        return result
