"""The kernels of a step: floating-point operations and bytes that each moves, by kind of operation.

Legend: N batch, C channels, H W space.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cubediff.planning.counting import attention_flops
from cubediff.planning.cuda_rules import Operator, is_channels_last

# Kinds of operations, by the names of torch's operators.
_KINDS: Mapping[str, Callable[[str], bool]] = {
    "attention": lambda name: "scaled_dot_product" in name,
    "convolution": lambda name: "convolution" in name,
    "matrix product": lambda name: name in ("mm", "bmm", "addmm", "baddbmm"),
    "group norm": lambda name: "group_norm" in name,
    "layer norm": lambda name: "layer_norm" in name,
    "activation": lambda name: any(word in name for word in ("silu", "gelu", "sigmoid")),
    "resizing": lambda name: "upsample" in name,
    "copy": lambda name: name in ("clone", "copy_", "_to_copy", "cat", "stack", "constant_pad_nd"),
    "elementwise": lambda name: True,
}
CAST = "cast"  # a copy to another dtype
FORWARD, BACKWARD, RECOMPUTATION = "forward", "backward", "recomputation"
KINDS = (*list(_KINDS)[:-1], CAST, "elementwise")
# They allocate memory and do not touch it.
_ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


@dataclass(frozen=True)
class Operation:
    """A kernel.

    Attributes:
        phase: FORWARD, BACKWARD or RECOMPUTATION.
        kind: One of `KINDS`.
        name: The operator's name.
        flops: Floating-point operations of convolutions, matrix products and attention, as `FlopCounterMode` counts.
        bytes: Bytes of the distinct tensors that it reads and writes.
        shapes: Shapes of the tensors that it reads.
        is_float32: Whether it computes on float32 tensors alone.
        channels_last: Whether its first result is stored in channels_last.
    """

    phase: str
    kind: str
    name: str
    flops: float
    bytes: float
    shapes: tuple[tuple[int, ...], ...]
    is_float32: bool
    channels_last: bool


class Traffic(NamedTuple):
    """Totals over operations: how many, their floating-point operations, the bytes that they move."""

    calls: int = 0
    flops: float = 0.0
    bytes: float = 0.0


class OperationCounter(TorchDispatchMode):
    """Records every kernel that runs inside the block; views are none.

    Attributes:
        in_backward: Whether the backward pass is running; set it before and after.
        operations: What was run, in order.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)  # super().__init__ has no annotations
        self.in_backward = False
        self.operations: list[Operation] = []
        self._formulas = FlopCounterMode(display=False, custom_mapping=attention_flops()).flop_registry

    def __torch_dispatch__(
        self, func: Operator, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        kwargs = kwargs or {}
        overload = cast(torch._ops.OpOverload, func)
        name = overload.overloadpacket.__name__
        inputs = _tensors([args, {key: value for key, value in kwargs.items() if key != "out"}])
        read = {_identity(tensor): _bytes(tensor) for tensor in inputs}
        dtypes = {tensor.dtype for tensor in inputs}
        result = func(*args, **kwargs)
        outputs = _tensors(result)
        written = {_identity(tensor): _bytes(tensor) for tensor in outputs}
        mutates = overload._schema.is_mutable
        if name in _ALLOCATIONS or not outputs or (not mutates and _storages(outputs) <= _storages(inputs)):
            return result
        kind = next(kind for kind, fits in _KINDS.items() if fits(name))
        if name in ("_to_copy", "copy_") and dtypes != {outputs[0].dtype}:
            kind = CAST
        formula = self._formulas.get(overload.overloadpacket) or self._formulas.get(overload)
        flops = float(cast(int, formula(*args, **kwargs, out_val=result))) if formula else 0.0
        moved = sum(read.values()) + sum(written.values()) if mutates else sum((read | written).values())
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        is_float32 = dtypes == {torch.float32}
        one = Operation(self._phase(), kind, name, flops, moved, shapes, is_float32, is_channels_last(outputs[0]))
        self.operations.append(one)
        return result

    def _phase(self) -> str:
        """Gradient checkpointing runs the forward pass again, with gradients enabled, inside the backward pass."""
        if not self.in_backward:
            return FORWARD
        return RECOMPUTATION if torch.is_grad_enabled() else BACKWARD


def totals(operations: Iterable[Operation]) -> dict[str, Traffic]:
    """The traffic of each kind that occurs, in the order of `KINDS`."""
    found: dict[str, Traffic] = {}
    for one in operations:
        before = found.get(one.kind, Traffic())
        found[one.kind] = Traffic(before.calls + 1, before.flops + one.flops, before.bytes + one.bytes)
    return {kind: found[kind] for kind in KINDS if kind in found}


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _storages(tensors: Iterable[Tensor]) -> set[int]:
    return {id(tensor.untyped_storage()) for tensor in tensors}


def _identity(tensor: Tensor) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    """Equal for two tensors that are the same memory."""
    return id(tensor.untyped_storage()), int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()


def _bytes(tensor: Tensor) -> int:
    """Bytes that a tensor occupies; an expanded dimension counts once."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= length if stride else 1
    return size
