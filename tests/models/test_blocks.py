"""Blocks without diffusers' copies: the same values, and every convolution in the format of the weights."""

import copy
from collections.abc import Sequence

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from support.awake import awaken_
from support.small_unet import TEXT, small_unet
from torch import Tensor, nn

from cubediff.models.blocks import keep_memory_format_
from cubediff.models.inflation import inflate_, sync_group_norm_
from cubediff.planning.cuda_rules import is_channels_last

_GENERATOR = torch.Generator().manual_seed(0)
LATENTS = torch.randn(6, 4, 8, 8, generator=_GENERATOR, dtype=torch.float64)
IMAGES = torch.randn(6, 3, 16, 16, generator=_GENERATOR, dtype=torch.float64)


def unet(use_linear_projection: bool = False, **config: object) -> UNet2DConditionModel:
    return small_unet(attention_head_dim=2, use_linear_projection=use_linear_projection, **config).train()


def autoencoder() -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return awaken_(AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, **blocks)).double()


def predict(model: UNet2DConditionModel, latents: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(len(latents), 5, TEXT, generator=generator, dtype=torch.float64)
    output: Tensor = model(latents, torch.tensor(300), text).sample
    return output


@pytest.mark.parametrize("use_linear_projection", [False, True])
def test_outputs_and_gradients_are_those_of_diffusers(use_linear_projection: bool) -> None:
    stock = unet(use_linear_projection)
    own = copy.deepcopy(stock)
    keep_memory_format_(own)
    assert {type(module) for module in own.modules()} != {type(module) for module in stock.modules()}
    assert own.state_dict().keys() == stock.state_dict().keys()
    outputs = []
    for model in (stock, own):
        output = predict(model, LATENTS)
        output.square().mean().backward()
        outputs.append(output)
    assert (outputs[0] - outputs[1]).abs().max() < 1e-12
    for ours, theirs in zip(own.parameters(), stock.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() < 1e-12


def test_outputs_of_the_autoencoder_are_those_of_diffusers() -> None:
    stock = autoencoder().eval()
    own = copy.deepcopy(stock)
    keep_memory_format_(own)
    with torch.no_grad():
        latents = stock.encode(IMAGES).latent_dist.mean
        assert (own.encode(IMAGES).latent_dist.mean - latents).abs().max() < 1e-12
        assert (own.decode(latents).sample - stock.decode(latents).sample).abs().max() < 1e-12


def test_a_block_of_another_kind_stays() -> None:
    model = unet(resnet_time_scale_shift="scale_shift")
    keep_memory_format_(model)
    blocks = [module for module in model.modules() if isinstance(module, ResnetBlock2D)]
    assert blocks
    assert {type(block) for block in blocks} == {ResnetBlock2D}


def test_a_scaled_block_divides_its_output() -> None:
    stock = unet(mid_block_scale_factor=2.0)
    own = copy.deepcopy(stock)
    keep_memory_format_(own)
    expected = predict(stock, LATENTS)
    assert (predict(own, LATENTS) - expected).abs().max() < 1e-12
    assert (predict(unet(), LATENTS) - expected).abs().max() > 1e-3


def formats(model: nn.Module, sizes: Sequence[int] = (1, 3)) -> dict[str, list[bool]]:
    """Whether input and output of every convolution are in channels_last, by name; filled when the model runs."""
    found: dict[str, list[bool]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size[0] in sizes:

            def note(_: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
                found[name] = [is_channels_last(inputs[0]), is_channels_last(output)]

            layer.register_forward_hook(note)
    return found


@pytest.mark.parametrize("use_linear_projection", [False, True])
def test_every_convolution_of_the_unet_is_in_channels_last(use_linear_projection: bool) -> None:
    model = inflate_(unet(use_linear_projection)).to(memory_format=torch.channels_last)
    found = formats(model)
    predict(model, LATENTS.to(memory_format=torch.channels_last))
    assert len(found) >= 15
    assert [name for name, each in found.items() if not all(each)] == []
    stock = unet(use_linear_projection).to(memory_format=torch.channels_last)
    theirs = formats(stock)
    predict(stock, LATENTS.to(memory_format=torch.channels_last))
    assert not all(all(each) for each in theirs.values())


@pytest.mark.parametrize("use_linear_projection", [False, True])
def test_the_blocks_of_a_contiguous_unet_return_contiguous_tensors(use_linear_projection: bool) -> None:
    model = inflate_(unet(use_linear_projection))
    found = formats(model, sizes=[3])
    predict(model, LATENTS)
    assert len(found) >= 15
    assert [name for name, each in found.items() if any(each)] == []


def test_every_large_convolution_of_the_autoencoder_is_in_channels_last() -> None:
    vae = sync_group_norm_(autoencoder()).to(memory_format=torch.channels_last)
    keep_memory_format_(vae)
    found = formats(vae, sizes=[3])
    with torch.no_grad():
        vae.decode(vae.encode(IMAGES.to(memory_format=torch.channels_last)).latent_dist.mean)
    assert len(found) >= 15
    assert [name for name, each in found.items() if not all(each)] == []
