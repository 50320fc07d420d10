"""Three modes of gradient checkpointing: the same gradients, and what each computes again."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cubediff.diffusion.objective import Objective
from cubediff.models.checkpointing import CHECKPOINTING, Checkpointing, checkpoint_blocks_
from cubediff.pipelines.loading import tiny_random
from cubediff.planning.operations import OperationCounter
from cubediff.training.module import CubeDiffModule


def step(mode: Checkpointing) -> tuple[dict[str, Tensor], OperationCounter]:
    """Gradients and kernels of a step on six different faces."""
    module = CubeDiffModule(
        tiny_random(),
        Objective(drop_text=0.0, drop_image=0.5, drop_both=0.0),
        partial(torch.optim.AdamW, lr=1e-3),
        gradient_checkpointing=mode,
        trainable="full",
    )
    module.encode_null_text()
    faces = torch.rand(2, 6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch: Any = {"faces": faces, "prompts": [[f"{side}" for side in range(6)]] * 2}
    with OperationCounter() as counter:
        loss = module.compute_losses(batch, [(0, 1), (0, 2)])["losses"].mean()
        counter.in_backward = True
        loss.backward()
    return {name: p.grad for name, p in module.trained_parameters.items() if p.grad is not None}, counter


def attentions(counter: OperationCounter, phase: str) -> int:
    return sum(
        one.kind == "attention" and not one.name.endswith("backward") and one.phase == phase
        for one in counter.operations
    )


def test_gradients_are_the_same_and_selective_computes_attention_once() -> None:
    results = {mode: step(mode) for mode in CHECKPOINTING}
    gradients, plain = results[False]
    trained = sum(one.name.endswith("attention_for_cpu_backward") for one in plain.operations)
    assert trained > 0
    for mode, (found, counter) in results.items():
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert (found[name] - gradient).abs().max() <= 1e-6 * gradient.abs().max()
        assert attentions(counter, "forward") == attentions(plain, "forward")
        assert attentions(counter, "recomputation") == (trained if mode is True else 0)
        again = sum(one.flops for one in counter.operations if one.phase == "recomputation")
        assert (again > 0) == (mode is not False)


def test_other_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="gradient_checkpointing='none': expected False, True or 'selective'"):
        checkpoint_blocks_([torch.nn.Linear(2, 2)], "none")


def test_nothing_is_recomputed_without_gradients() -> None:
    block = torch.nn.Linear(4, 4)
    calls: list[int] = []
    block.register_forward_hook(lambda *_: calls.append(1))
    checkpoint_blocks_([block], True)
    with torch.no_grad():
        assert not block(torch.ones(1, 4)).requires_grad
    assert calls == [1]


@pytest.mark.parametrize("mode", [True, "selective"])
def test_dropout_is_repeated(mode: Checkpointing) -> None:
    gradients = []
    for each in (False, mode):
        torch.manual_seed(0)
        block = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 8))
        checkpoint_blocks_([block], each)
        x = torch.ones(4, 8, requires_grad=True)
        y = block(x).square().sum()
        torch.rand(3)
        y.backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


COMPILED = """
import torch
from functools import partial
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from cubediff.diffusion.objective import Objective
from cubediff.pipelines.loading import tiny_random
from cubediff.training.module import CubeDiffModule

original, counts = torch.compile, {"forward": [], "backward": []}

def counting(phase, graph, inputs):
    # A random operator that is recomputed, as attention counts as, is an argument of a wrapper.
    names = [str(node.args[:2] if "rng_state" in str(node.target) else node.target) for node in graph.graph.nodes]
    counts[phase].append(sum("attention" in name and "backward" not in name for name in names))
    return graph

backend = aot_autograd(fw_compiler=partial(counting, "forward"), bw_compiler=partial(counting, "backward"),
                       partition_fn=min_cut_rematerialization_partition)
torch.compile = lambda f, **options: original(f, **{**options, "backend": backend, "fullgraph": True})
faces = torch.rand(1, 6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
for mode in (False, True, "selective"):
    torch._dynamo.reset()
    for each in counts.values():
        each.clear()
    module = CubeDiffModule(tiny_random(), Objective(drop_text=0.0, drop_image=0.0, drop_both=0.0),
                            partial(torch.optim.AdamW, lr=1e-3), gradient_checkpointing=mode, compile="regional")
    module.encode_null_text()
    module.compile_()
    module.compute_losses({"faces": faces, "prompts": [["a hall"] * 6]}, [(0, 0)])["losses"].mean().backward()
    print(mode, len(counts["forward"]) > 0, *(sorted(set(counts[phase])) for phase in ("forward", "backward")))
"""


@pytest.mark.slow
def test_compiled_blocks_include_their_checkpoint(tmp_path: Path) -> None:
    """A transformer block has two attention layers, a residual block none."""
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["False True [0, 2] [0]", "True True [0, 2] [0, 2]", "selective True [0, 2] [0]"]
