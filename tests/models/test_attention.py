"""The attention processor of the transformer blocks against diffusers' own, and what it computes once."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.attention_processor import AttnProcessor2_0
from support.awake import awaken_
from torch import Tensor, nn

from cubediff.models.attention import (
    BackendAttnProcessor,
    constant_text,
    fuse_projections_,
    set_attention_backend_,
)
from cubediff.models.inflation import CubeAttnProcessor, inflate_
from cubediff.models.stable_diffusion import StableDiffusion
from cubediff.models.trainable import select_trainable_
from cubediff.models.visible_faces import visible_faces
from cubediff.pipelines.cubediff import CubeDiffPipeline
from cubediff.pipelines.loading import tiny_random
from cubediff.planning.operations import OperationCounter

GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture
def network() -> nn.Module:
    """An awake inflated UNet in float64."""
    return awaken_(tiny_random().unet).double()


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def inputs_of(network: nn.Module, panoramas: int = 1) -> tuple[Tensor, Tensor]:
    shape = (6 * panoramas, network.config.in_channels, 8, 8)
    return draw(*shape), draw(6 * panoramas, 7, network.config.cross_attention_dim)


def predict(network: nn.Module, latents: Tensor, text: Tensor, **options: object) -> Tensor:
    output: Tensor = network(latents, torch.tensor(300), text, **options).sample
    return output


@pytest.mark.parametrize("cross_attention", ["per_face", "joint"])
@pytest.mark.parametrize("hides_a_face", [False, True])
def test_outputs_and_gradients_are_those_of_diffusers_processor(
    network: nn.Module, cross_attention: str, hides_a_face: bool
) -> None:
    inflate_(network, cross_attention=cross_attention)
    stock = copy.deepcopy(network)
    stock.set_attn_processor(
        {name: type(processor)(AttnProcessor2_0()) for name, processor in stock.attn_processors.items()}
    )
    latents, text = inputs_of(network, 2)
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    hidden[1, 0] = True
    visible = visible_faces(hidden, torch.device("cpu"))
    options = {"cross_attention_kwargs": {"visible_faces": visible}} if hides_a_face else {}
    outputs = [predict(each, latents, text, **options) for each in (network, stock)]
    for each in outputs:
        each.square().mean().backward()
    assert (outputs[0] - outputs[1]).abs().max() < 1e-12
    for ours, theirs in zip(network.parameters(), stock.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() < 1e-12


def test_a_layer_with_a_norm_of_its_own_keeps_its_processor() -> None:
    (attention,) = tiny_random().vae.encoder.mid_block.attentions
    assert attention.group_norm is not None
    assert not BackendAttnProcessor.fits(attention)


@pytest.fixture
def reset_backend() -> Iterator[None]:
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry.set_active_backend(before)


@pytest.mark.usefixtures("reset_backend")
def test_the_attention_backend_is_that_of_set_attention_backend(network: nn.Module) -> None:
    latents, text = inputs_of(network)
    kernels = {}
    for backend in ("native", "_native_math"):
        network.set_attention_backend(backend)
        with torch.no_grad(), OperationCounter() as counter:
            predict(network, latents, text)
        kernels[backend] = Counter(one.name for one in counter.operations if "scaled_dot_product" in one.name)
    layers = len(network.attn_processors)
    assert kernels == {"native": {"_scaled_dot_product_flash_attention_for_cpu": layers}, "_native_math": {}}
    assert {p._attention_backend for p in network.attn_processors.values()} == {"_native_math"}
    network.reset_attention_backend()
    assert {p._attention_backend for p in network.attn_processors.values()} == {None}


@pytest.mark.usefixtures("reset_backend")
def test_a_backend_that_does_not_fit_is_refused_with_those_that_do() -> None:
    unet = tiny_random().unet
    with pytest.raises(
        ValueError, match=r"attention_backend=fastest: on a device of type cuda, .* use one of native, "
    ):
        set_attention_backend_(unet, "fastest", "cuda")
    with pytest.raises(ValueError, match=r"of type cpu, .* use one of native, _native_flash, _native_math$"):
        set_attention_backend_(unet, "_native_cudnn", "cpu")
    with pytest.raises(ValueError, match=r"attention_backend=flash: Flash Attention .*install"):
        set_attention_backend_(unet, "flash", "cuda")
    set_attention_backend_(unet, "_native_math", "cpu")
    assert {p._attention_backend for p in unet.attn_processors.values()} == {"_native_math"}


@pytest.mark.usefixtures("reset_backend")
def test_cudnn_is_refused_for_heads_that_it_has_no_kernel_for() -> None:
    def unet(heads: int) -> UNet2DConditionModel:
        blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
        sizes = {"block_out_channels": (160,), "cross_attention_dim": 8, "layers_per_block": 1}
        return UNet2DConditionModel(**blocks, **sizes, norm_num_groups=4, attention_head_dim=heads)

    message = (
        r"heads of 160 channels, use one of native, _native_flash, _native_math, _native_efficient, flash, xformers$"
    )
    with pytest.raises(ValueError, match=message):
        set_attention_backend_(unet(heads=1), "_native_cudnn", "cuda")
    set_attention_backend_(unet(heads=2), "_native_cudnn", "cuda")


def projections(network: nn.Module) -> Counter[str]:
    """How often each projection of the text runs from now on."""
    runs: Counter[str] = Counter()

    def counted(kind: str) -> Callable[..., None]:
        return lambda *_: runs.update([kind])

    for name, layer in network.named_modules():
        *_, parent, kind = ["", *name.split(".")]
        if parent == "attn2" and kind in ("to_q", "to_k", "to_v"):
            layer.register_forward_hook(counted(kind))
    return runs


@pytest.mark.parametrize("cross_attention", ["per_face", "joint"])
def test_constant_text_is_projected_once(network: nn.Module, cross_attention: str) -> None:
    inflate_(network, cross_attention=cross_attention)
    latents, text = inputs_of(network)
    other_latents, other_text = inputs_of(network)
    expected = [predict(network, each, text) for each in (latents, other_latents)]
    expected.append(predict(network, latents, other_text))
    runs = projections(network)
    layers = sum("attn2" in name for name in network.attn_processors)
    with torch.no_grad():
        with constant_text(network) as keep_text:
            keep_text("text")
            got = [predict(network, each, text) for each in (latents, other_latents)]
        assert runs == {"to_q": 2 * layers, "to_k": layers, "to_v": layers}
        got.append(predict(network, latents, other_text))
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


def test_a_pipeline_call_projects_its_text_once() -> None:
    pipeline = tiny_random()
    awaken_(pipeline.unet)
    fresh = CubeDiffPipeline(**copy.deepcopy(pipeline.components))
    options = {"num_inference_steps": 3, "output_type": "latent"}
    for each in (pipeline, fresh):
        each.set_progress_bar_config(disable=True)
    pipeline("a hall", generator=torch.Generator().manual_seed(0), **options)
    runs = projections(pipeline.unet)
    got = pipeline("a meadow", generator=torch.Generator().manual_seed(0), **options).faces
    layers = sum("attn2" in name for name in pipeline.unet.attn_processors)
    assert runs == {"to_q": 3 * layers, "to_k": layers, "to_v": layers}
    assert torch.equal(got, fresh("a meadow", generator=torch.Generator().manual_seed(0), **options).faces)


def test_fused_projections_compute_the_same() -> None:
    pipeline = tiny_random()
    network = awaken_(pipeline.unet).double()
    latents, text = inputs_of(network)
    expected, keys = predict(network, latents, text), network.state_dict().keys()
    pipeline.fuse_qkv_projections()
    pipeline.fuse_qkv_projections()
    runs = projections(network)
    assert (predict(network, latents, text) - expected).abs().max() < 1e-12
    assert runs["to_k"] == runs["to_v"] == 0
    assert sum(isinstance(p, CubeAttnProcessor) for p in network.attn_processors.values()) > 0
    pipeline.unfuse_qkv_projections()
    assert torch.equal(predict(network, latents, text), expected)
    assert network.state_dict().keys() == keys


def test_projections_with_lora_adapters_are_not_fused() -> None:
    backbone = tiny_random().backbone
    assert isinstance(backbone, StableDiffusion)
    select_trainable_(backbone, "lora", 2)
    with pytest.raises(ValueError, match=r"LoRA adapters.*fuse_lora"):
        fuse_projections_(backbone.unet)
