"""Counts on fake tensors as if they were on CUDA: allocated bytes, operations of attention."""

import weakref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from cubediff.planning.cuda_rules import Operator


class AllocationCounter(TorchDispatchMode):
    """Counts the bytes of the storages that are allocated inside the block.

    Attributes:
        live: Bytes that are currently allocated.
        peak: The maximum of `live`.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)  # super().__init__ has no annotations
        self.live = self.peak = 0
        self._seen: dict[int, weakref.finalize[..., torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Operator, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._seen:
            size = storage.nbytes()
            self._seen[key] = weakref.finalize(storage, self._free, key, size)
            self.live += size
            self.peak = max(self.peak, self.live)

    def _free(self, key: int, size: int) -> None:
        self.live -= size
        del self._seen[key]


def to_fake_parameters_(network: nn.Module) -> None:
    """Replaces parameters and buffers by fake tensors on the CPU, in place; call it in a FakeTensorMode."""
    for module in network.modules():
        for name, p in module._parameters.items():
            if p is not None:
                fake = torch.empty_strided(p.size(), p.stride(), dtype=p.dtype)
                module._parameters[name] = nn.Parameter(fake, requires_grad=p.requires_grad)
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = torch.empty_strided(b.size(), b.stride(), dtype=b.dtype)


def attention_flops() -> dict[Operator, Operator]:
    """The flop counter's formulas for flash attention, for the operators that compute it on the CPU."""
    aten = torch.ops.aten

    def forward(query: object, key: object, value: object, *args: object, **kwargs: object) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(grad: object, query: object, key: object, value: object, *args: object, **kwargs: object) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
