"""Counts the bytes of a training step of Stable Diffusion 1.5 with model.compile=regional on paper, per panorama.

    python benchmarks/compiled_on_paper.py [OVERRIDE …]

Each kind of block is traced as one graph, as `compile_blocks_` does it, and lowered by inductor, whose schedule tells
the bytes of its fused kernels; no code is compiled. Of the rest of the step, bytes are those that
`benchmarks/step_on_paper.py` counts. Schedules are those for CPU tensors, except that reused exponentials are not
stored, which inductor does on CPUs alone; gradient checkpointing is not counted.
"""

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, cast
from unittest.mock import patch

import torch
from functorch.compile import make_boxed_func
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import detect_fake_mode
from torch._inductor import compile_fx, ir
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode

from cubediff.configs import CONFIG_DIR
from cubediff.planning import cost
from cubediff.planning.counting import to_fake_parameters_
from cubediff.planning.cuda_rules import cuda_autocast


class Argument(NamedTuple):
    """What determines a block's graph of a tensor that it is called with."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    def tensor(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, requires_grad=self.requires_grad)


class Call(NamedTuple):
    """A call of a block, equal for all blocks and calls that share a graph."""

    kind: type[nn.Module]
    parameters: tuple[object, ...]
    values: tuple[tuple[object, ...], tuple[tuple[str, object], ...]]
    training: bool

    def run(self, forward: Callable[..., Tensor]) -> None:
        """Calls a block's forward pass with tensors like those of the call; in training the backward pass too."""
        args, kwargs = self.values
        with torch.set_grad_enabled(self.training):
            result = forward(*map(_tensor, args), **{name: _tensor(value) for name, value in kwargs})
        if self.training:
            result.backward(torch.empty_like(result))


def _tensor(value: object) -> object:
    return value.tensor() if isinstance(value, Argument) else value


class Calls:
    """Records the calls of blocks, and one block for each kind of call."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        self.counts: Counter[Call] = Counter()
        self.blocks: dict[Call, nn.Module] = {}
        self._hooks = [block.register_forward_pre_hook(self._record, with_kwargs=True) for block in blocks]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _record(self, block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        parameters = tuple((name, p.shape, p.requires_grad) for name, p in block.named_parameters())
        described = tuple(map(_describe, args)), tuple((name, _describe(value)) for name, value in kwargs.items())
        call = Call(type(block), parameters, described, torch.is_grad_enabled())
        self.counts[call] += 1
        self.blocks[call] = block


def _describe(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return Argument(tuple(value.shape), value.stride(), value.dtype, value.requires_grad)


class ScheduledBytes:
    """A compiler backend that adds up the bytes of the kernels that inductor schedules for a graph."""

    def __init__(self) -> None:
        self.bytes = 0
        self.backend = aot_autograd(fw_compiler=self._count, bw_compiler=self._count, partition_fn=_partition,
                                    inference_compiler=self._count, decompositions=select_decomp_table)  # fmt: skip

    def _count(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        fake = detect_fake_mode(inputs)
        assert fake is not None
        with V.set_fake_mode(fake), DebugContext():
            compile_fx._recursive_post_grad_passes(graph, is_inference=False)
            lowering = GraphLowering(graph, shape_env=fake.shape_env)
            with V.set_graph_handler(lowering), V.set_real_inputs(inputs):
                lowering.run(*inputs)
                lowering._update_scheduler()
                self.bytes += lowering.count_bytes()[0]
        return make_boxed_func(graph.forward)


def _partition(joint: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
    compile_fx._recursive_joint_graph_passes(joint)
    return min_cut_rematerialization_partition(joint, inputs, **options)


def _moved(run: Callable[[Any], None]) -> float:
    """Bytes that the kernels of `run` move, in the memory formats of a GPU."""
    return sum(one.bytes for one in cost._run(run, on_gpu=True)[1])


def _eager(call: Call, block: nn.Module) -> float:
    return _moved(lambda _: call.run(block))


def _compiled(call: Call, block: nn.Module) -> float:
    scheduled = ScheduledBytes()
    compile_ = cast(Callable[..., Callable[..., Tensor]], torch.compile)  # its annotations lack options
    forward = compile_(type(block).forward, backend=scheduled.backend, fullgraph=True, dynamic=False,
                       isolate_recompiles=True)  # fmt: skip
    call.run(partial(forward, block))
    return scheduled.bytes


def main() -> None:
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        config = compose("plan", overrides=["experiment=sd15_l4x4", *sys.argv[1:]])
    module, batch = cost._meta_module(config), config.data.batch_size
    module.adapt_to("cuda", "bf16-mixed", sharded=False)
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for component in module.backbone.components().values():
            to_fake_parameters_(component)
        stack.enter_context(cuda_autocast("bf16-mixed"))
        stack.enter_context(patch.object(ir, "is_cpu", lambda _: False))  # it is asked whether to store exponentials
        module.encode_null_text()
        example, _ = cost._batch(config, module, batch)
        calls = Calls([*module.backbone.blocks(), *module.backbone.frozen_blocks()])

        def step(_: object) -> None:
            module.compute_losses(example, [(0, 0, index) for index in range(batch)])["losses"].mean().backward()

        whole = _moved(step)
        calls.remove()
        saved = 0.0
        print(f"{'block':24s}{'input':>24s}{'calls':>7s}{'eager GB':>10s}{'compiled GB':>13s}")
        for call, count in calls.counts.items():
            eager, compiled = _eager(call, calls.blocks[call]), _compiled(call, calls.blocks[call])
            saved += count * (eager - compiled)
            name, shape = call.kind.__name__.lstrip("_"), cast(Argument, call.values[0][0]).shape
            print(f"{name:24s}{shape!s:>24s}{count:7d}{eager / 1e9:10.2f}{compiled / 1e9:13.2f}", flush=True)
    print(f"a step moves {whole / batch / 1e9:.2f} GB a panorama, compiled {(whole - saved) / batch / 1e9:.2f}")


if __name__ == "__main__":
    main()
