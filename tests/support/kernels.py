"""Records the dtypes of the kernels that run, so that a precision that is set and not used fails a test."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class KernelDtypes(TorchDispatchMode):
    """Records every operator inside the block.

    Attributes:
        inputs: By operator, such as "convolution", the dtypes of the tensors that it received.
        casts: Source, target and shape of every copy to another floating-point dtype.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, set[torch.dtype]] = defaultdict(set)
        self.casts: list[tuple[torch.dtype, torch.dtype, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        self.inputs[name] |= {tensor.dtype for tensor in tensors}
        if name == "_to_copy" and tensors[0].is_floating_point() and tensors[0].dtype != result.dtype:
            self.casts.append((tensors[0].dtype, result.dtype, tuple(result.shape)))
        return result
