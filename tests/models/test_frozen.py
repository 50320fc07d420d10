"""Frozen weights in 16 bits: what autocast computes, bit by bit."""

import copy

import pytest
import torch
from torch import nn

from cubediff.models.frozen import CastWeights
from cubediff.models.trainable import select_trainable_
from cubediff.pipelines.loading import tiny_random

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("trainable", ["attention", "lora", "full"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_outputs_and_gradients_under_autocast_are_the_same_bits(trainable: str, dtype: torch.dtype) -> None:
    backbone = tiny_random().backbone
    select_trainable_(backbone, trainable, 2)
    plain = backbone.network
    ours = copy.deepcopy(plain)
    cast = CastWeights.cast_(ours, dtype)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(6, plain.config.in_channels, 8, 8, generator=generator)
    text = torch.randn(6, 7, plain.config.cross_attention_dim, generator=generator)
    outputs = []
    for network in (plain, ours):
        with torch.autocast("cpu", dtype):
            outputs.append(network(latents, torch.tensor(300), text).sample)
        outputs[-1].float().square().mean().backward()
    assert torch.equal(*outputs)
    assert bool(cast.parameters) == (trainable != "full")
    for (name, p), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert p.dtype is (dtype if name in cast.parameters else torch.float32)
        assert (p.grad is None) == (other.grad is None)
        assert p.grad is None or torch.equal(p.grad, other.grad)


def test_norms_embeddings_and_trained_weights_stay_and_the_rest_returns() -> None:
    backbone = tiny_random().backbone
    select_trainable_(backbone, "attention")
    network = backbone.network
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    cast = CastWeights.cast_(network, torch.bfloat16)
    norms = [p for m in network.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm) for p in m.parameters()]
    assert norms
    assert {p.dtype for p in [*norms, *filter(lambda p: p.requires_grad, network.parameters())]} == {torch.float32}
    share = sum(p.numel() for p in cast.parameters.values()) / sum(p.numel() for p in network.parameters())
    assert share > 0.6
    cast.restore_()
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
