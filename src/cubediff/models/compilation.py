"""Compilation of a network's blocks: one function for all blocks of a kind, one graph for all batch sizes."""

import logging
import shutil
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from types import MethodType
from typing import cast

import torch
from torch import Tensor, nn
from torch._dynamo.decorators import maybe_mark_dynamic
from torch._inductor import config as inductor
from torch.fx.experimental import _config as symbolic_shapes
from torch.utils._config_module import ConfigModule

log = logging.getLogger(__name__)

Forward = Callable[..., Tensor]
_MOST_GRAPHS = 64  # of a kind of block: sizes of faces, modes, dtypes


def compile_blocks_(blocks: Iterable[nn.Module], fullgraph: bool = True) -> None:
    """Compiles the forward passes of blocks, in place.

    Blocks of one class whose parameters have equal shapes share their graphs: one for each size of the faces, and for
    training and inference. A graph takes any number of faces in its batch, so that the last batch of an epoch and
    samples with guidance are not compiled again. Hooks of a block, such as FSDP's, stay outside.

    Args:
        blocks: The blocks, none inside another; with `checkpoint_blocks_` applied before.
        fullgraph: Whether each block must be one graph. FSDP's hooks of the norms inside a block divide it.

    Raises:
        torch._dynamo.exc.Unsupported: In the first call of a block that must be one graph and cannot.
    """
    compiled: dict[object, Forward] = {}
    for block in blocks:
        forward = cast(MethodType, block.forward).__func__
        kind = forward, *((name, parameter.shape) for name, parameter in block.named_parameters())
        if kind not in compiled:
            compiled[kind] = _compiled(forward, fullgraph)
        block.forward = MethodType(compiled[kind], block)


def _compiled(forward: Forward, fullgraph: bool) -> Forward:
    compile_ = cast(Callable[..., Forward], torch.compile)  # its annotations lack the last two options
    run = compile_(forward, fullgraph=fullgraph, dynamic=False, isolate_recompiles=True, recompile_limit=_MOST_GRAPHS)

    def call(block: nn.Module, *args: object, **kwargs: object) -> Tensor:
        for tensor in (*args, *kwargs.values()):
            if isinstance(tensor, Tensor):
                maybe_mark_dynamic(tensor, 0)  # not where panoramas attend to visible faces alone, in groups
        # By default the graph of one panorama, in which a size is 1, would be for one panorama alone.
        with cast(ConfigModule, symbolic_shapes).patch("backed_size_oblivious", True):
            return run(block, *args, **kwargs)

    return call


def can_compile(device_type: str) -> bool:
    """Whether what torch compiles with is installed; warns if it is not.

    Args:
        device_type: The device of the network, such as "cuda".
    """
    if device_type == "cpu":
        cxx = inductor.cpp.cxx
        names = [name for name in (cxx if isinstance(cxx, tuple) else (cxx,)) if name]
        found, missing = any(map(shutil.which, names)), f"a C++ compiler ({' or '.join(names)}; CXX names another)"
    else:
        found, missing = find_spec("triton") is not None, "the package triton"
    if not found:
        log.warning("model.compile=regional needs %s, which is not installed: the network is not compiled", missing)
    return found
