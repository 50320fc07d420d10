"""Recorded kernels against bytes and operations by hand, and against torch's own counter."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.runs import composed
from support.step_memory import TINY
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from cubediff.planning.cost import cost
from cubediff.planning.operations import KINDS, OperationCounter, totals

PAGE = Path(__file__).parents[2] / "docs/performance.md"


def test_bytes_are_those_of_the_distinct_tensors_that_a_kernel_reads_and_writes() -> None:
    x, y = torch.ones(8, 16), torch.ones(16)
    n = x.nbytes
    with OperationCounter() as counter:
        x + y
        x + x  # read once
        x.add_(1)  # read and written
        x + y.expand(8, 16)
        x.bfloat16()
        x.clone()
        x.t().contiguous()
        torch.empty_like(x)
        x.view(4, 32).t()[:2].detach().unsqueeze(0).expand(3, 2, 4)
    found = [(one.kind, one.bytes) for one in counter.operations]
    assert found == [
        *[("elementwise", 2 * n + y.nbytes), ("elementwise", 2 * n), ("elementwise", 2 * n)],
        *[("elementwise", 2 * n + y.nbytes), ("cast", 1.5 * n), ("copy", 2 * n), ("copy", 2 * n)],
    ]


def test_kinds_are_told_by_operators() -> None:
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with OperationCounter() as counter:
        y = F.conv2d(x, torch.ones(4, 4, 1, 1))
        y = F.silu(F.group_norm(y, 2))
        y = F.scaled_dot_product_attention(y, y, y)
        F.interpolate(F.layer_norm(F.linear(y, torch.ones(8, 8)), (8,)), scale_factor=2).sum().backward()
    assert totals(counter.operations).keys() >= set(KINDS) - {"copy", "cast"}
    assert {one.kind for one in counter.operations if "convolution" in one.name} == {"convolution"}
    assert not any(one.kind == "elementwise" and one.flops for one in counter.operations)


def test_the_forward_pass_that_is_repeated_is_recomputation() -> None:
    layer = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    x = torch.randn(4, 8, requires_grad=True)
    for again in (False, True):
        with OperationCounter() as counter:
            y = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
            counter.in_backward = True
            y.sum().backward()
        with FlopCounterMode(display=False) as expected:
            y = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
            y.sum().backward()
        assert sum(one.flops for one in counter.operations) == expected.get_total_flops()
        flops = {phase: totals(one for one in counter.operations if one.phase == phase) for phase in
                 ("forward", "backward", "recomputation")}  # fmt: skip
        assert flops["forward"]["matrix product"].flops == 2 * (2 * 4 * 8 * 8)
        assert flops["backward"]["matrix product"].flops == 2 * 2 * (2 * 4 * 8 * 8)
        assert (sum(one.flops for one in flops["recomputation"].values()) > 0) == again


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_counted_step_tells_recomputation_from_the_model(checkpointing: bool) -> None:
    planned = cost(composed(*TINY, f"model.gradient_checkpointing={checkpointing}".lower()), 1)
    assert (planned.model_flops < planned.flops) == checkpointing


@pytest.mark.slow
def test_the_documentation_has_the_counts_of_the_step() -> None:
    row = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| total "))
    cells = [float(cell) for cell in row.strip("|").split("|")[1:]]
    documented = [*cells[:3], *cells[-2:]]  # between them is an earlier commit
    found = [0.0]
    for words in ((), ("data=latents",)):
        overrides = ("data.path=SHARDS", "data.batch_size=1", "model.gradient_checkpointing=false", *words)
        operations = cost(composed("experiment=sd15_l4x4", *overrides), 1).operations
        found[0] = found[0] or len(operations)
        found += [sum(one.flops for one in operations) / 1e12, sum(one.bytes for one in operations) / 1e9]
    assert documented == [pytest.approx(value, abs=0.006) for value in found]
