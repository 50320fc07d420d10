"""Counting what runs on tensors without storage (torch's fake tensors) as if it ran on CUDA: bytes alive at once, the
precision that autocast gives, the operations of attention."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Memory:
    """Bytes of the storages made inside the block that are alive at once, at most."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._seen: dict[int, Any] = {}

    def __enter__(self) -> "Memory":
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        memory = self

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                for tensor in tree_leaves(result):
                    if isinstance(tensor, torch.Tensor):
                        memory._count(tensor)
                return result

        self._mode = Mode()
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)

    def _count(self, tensor: Any) -> None:
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


def take_fake_weights_(network: Any) -> None:
    """Gives every parameter and buffer the CPU as its device, still without storage; call it where tensors are fake."""
    import torch

    for module in network.modules():
        for name, p in module._parameters.items():
            if p is not None:
                fake = torch.empty_strided(p.size(), p.stride(), dtype=p.dtype)
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=p.requires_grad)
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = torch.empty_strided(b.size(), b.stride(), dtype=b.dtype)


@contextmanager
def precision_as_on_cuda(precision: str) -> Iterator[None]:
    """Autocast as on CUDA: torch's CPU autocast, under which the counted step runs, leaves norms in bfloat16."""
    import torch
    import torch.nn.functional as F

    if precision == "32-true":
        yield
        return
    if precision != "bf16-mixed":
        raise ValueError(f"trainer.precision={precision}: the plan knows 32-true and bf16-mixed")
    originals = {name: getattr(F, name) for name in ("group_norm", "layer_norm", "mse_loss", "softmax")}

    def in_float32(function: Any) -> Any:
        def call(input: Any, *args: Any, **kwargs: Any) -> Any:
            return function(input.float(), *args, **kwargs)

        return call

    for name, function in originals.items():
        setattr(F, name, in_float32(function))
    try:
        with torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        for name, function in originals.items():
            setattr(F, name, function)


def attention_flops() -> dict[Any, Any]:
    """The counter's formulas for flash attention, for the operator that it is on the CPU."""
    import torch
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    aten: Any = torch.ops.aten

    def forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
