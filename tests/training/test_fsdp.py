"""FSDP's dtypes, on one process; `tests/runs/test_ddp.py` trains with it on two."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.awake import awaken_
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from cubediff.models.checkpointing import CHECKPOINTING, Checkpointing, checkpoint_blocks_
from cubediff.pipelines.loading import tiny_random
from cubediff.training.fsdp import apply_fsdp, gather_to_rank_zero


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def gradients_of(network: nn.Module) -> list[Tensor]:
    return [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_in_bf16_outputs_and_gradients_are_those_of_autocast(mesh: DeviceMesh, checkpointing: Checkpointing) -> None:
    """Norms are gathered in float32, other weights in the dtype that autocast converts them to."""
    pipeline = tiny_random()
    plain = awaken_(pipeline.unet).train()
    pipeline.unet = sharded = copy.deepcopy(plain)
    checkpoint_blocks_(pipeline.backbone.blocks(), checkpointing)
    apply_fsdp(sharded, pipeline.backbone.blocks(), mesh, torch.bfloat16)
    dtypes: dict[str, set[torch.dtype]] = {}
    for layer in sharded.modules():
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm | nn.Conv2d | nn.Linear):

            def note(layer: nn.Module, _: object) -> None:
                kind = "norm" if isinstance(layer, nn.GroupNorm | nn.LayerNorm) else "projection"
                dtypes.setdefault(kind, set()).add(layer.weight.dtype)

            layer.register_forward_pre_hook(note)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(6, plain.config.in_channels, 8, 8, generator=generator)
    text = torch.randn(6, 7, plain.config.cross_attention_dim, generator=generator)
    outputs: list[Tensor] = []
    for network in (plain, sharded):
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(network(latents, torch.tensor(300), text).sample)
        outputs[-1].float().square().mean().backward()
    assert dtypes == {"norm": {torch.float32}, "projection": {torch.bfloat16}}
    assert torch.equal(*outputs)
    gathered = [p.grad.full_tensor() for p in sharded.parameters()]
    assert {gradient.dtype for gradient in gathered} == {torch.float32}
    ours, theirs = (torch.cat([gradient.flatten() for gradient in each]) for each in (gathered, gradients_of(plain)))
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()  # gradients of weights that are gathered in bf16 are in bf16


def test_rank_zero_gathers_to_the_cpu(mesh: DeviceMesh) -> None:
    whole = torch.arange(6.0)
    plain = torch.ones(2)
    gathered = gather_to_rank_zero([distribute_tensor(whole, mesh, [Shard(0)]), plain])
    assert torch.equal(gathered[0], whole)
    assert type(gathered[0]) is Tensor
    assert gathered[1] is plain
