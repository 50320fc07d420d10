"""Gradient checkpointing of a network's blocks: activations are recomputed in the backward pass (arXiv 1604.06174).

The checkpoint is part of a block's forward pass, where diffusers has it outside: a compiled block includes it, and FSDP
gathers a block once for recomputation and backward pass.
"""

from collections.abc import Callable, Iterable
from functools import partial
from types import MethodType
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import SAC_IGNORED_OPS, checkpoint, create_selective_checkpoint_contexts

Checkpointing = bool | Literal["selective"]
CHECKPOINTING: tuple[Checkpointing, ...] = (False, "selective", True)
_aten = torch.ops.aten
# The kernels of attention, whose output "selective" keeps.
_ATTENTION = [
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]
_PROFILING = {
    torch.ops.profiler._record_function_enter_new.default,
    torch.ops.profiler._record_function_exit._RecordFunction,
}


def checkpoint_blocks_(blocks: Iterable[nn.Module], mode: bool | str) -> None:
    """Makes blocks recompute their activations in the backward pass, in place; call it before they are compiled.

    Args:
        blocks: The blocks, none inside another.
        mode: False keeps all activations; True keeps the blocks' inputs alone; "selective" keeps the outputs of
            attention too, so that attention, which takes most of the time, is computed once.

    Raises:
        ValueError: If the mode is another.
    """
    if mode not in CHECKPOINTING:
        raise ValueError(f"gradient_checkpointing={mode!r}: expected False, True or 'selective'")
    if not mode:
        return
    run = partial(checkpoint, use_reentrant=False)
    if mode == "selective":
        # FSDP's hooks of norms inside a block record them for the profiler, in the backward pass at other places.
        SAC_IGNORED_OPS.update(_PROFILING)
        run = partial(run, context_fn=partial(create_selective_checkpoint_contexts, _ATTENTION))
    checkpointed: dict[object, Callable[..., Tensor]] = {}
    for block in blocks:
        forward = cast(MethodType, block.forward).__func__
        if forward not in checkpointed:
            checkpointed[forward] = _checkpointed(forward, run)
        block.forward = MethodType(checkpointed[forward], block)


def _checkpointed(forward: Callable[..., Tensor], run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(block: nn.Module, *args: object, **kwargs: object) -> Tensor:
        return run(forward, block, *args, **kwargs) if torch.is_grad_enabled() else forward(block, *args, **kwargs)

    return call
