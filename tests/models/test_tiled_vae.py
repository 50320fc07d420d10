"""Autoencoding strip by strip, compared with the whole network in float64 and with the tiling of the stock model."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKL
from support.awake import awaken_
from torch import Tensor, nn

from cubediff.models.inflation import sync_group_norm_
from cubediff.models.presets import SD15
from cubediff.models.tiled_vae import decode_tiled, encode_tiled
from cubediff.pipelines.loading import tiny_random

SMALL = 4  # latent pixels of a tile's side


def small_vae(tile: int, sync_group_norm: bool = True) -> AutoencoderKL:
    vae = sync_group_norm_(awaken_(tiny_random().vae), sync_group_norm)
    vae.tile_latent_min_size, vae.tile_sample_min_size = tile, 8 * tile
    return vae


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("sync_group_norm", [True, False])
@pytest.mark.parametrize(("size", "tile"), [(6, 4), (11, 3), (16, 1)])
def test_tiled_faces_and_latents_are_those_of_the_whole_network(size: int, tile: int, sync_group_norm: bool) -> None:
    vae = small_vae(tile, sync_group_norm)
    exact = copy.deepcopy(vae).double()
    latents = normal(6, 4, size, size)
    faces = exact.decode(latents.double()).sample
    assert (decode_tiled(vae, latents) - faces).abs().max() < 1e-5 < 1e-1 < faces.std()
    moments = exact.encode(faces).latent_dist.parameters
    assert (encode_tiled(vae, faces.float()) - moments).abs().max() < 1e-5 < 1e-1 < moments.std()


@torch.no_grad()
def test_the_tiling_of_the_stock_model_gives_other_faces() -> None:
    """Each of its tiles has statistics of its own; what is within 1/255 here is not there."""
    vae, latents = small_vae(SMALL), normal(6, 4, 12, 12)
    whole = vae.decode(latents).sample
    assert (decode_tiled(vae, latents) - whole).abs().max() < 1e-4
    vae.enable_tiling()
    assert (vae.decode(latents).sample - whole).abs().max() > 10 / 255


@torch.no_grad()
def test_a_layer_takes_no_more_pixels_than_one_face_of_a_tile_has() -> None:
    vae, size = small_vae(SMALL), 16
    pixels: dict[str, int] = {}

    def record(name: str) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            pixels[name] = max(pixels.get(name, 0), len(output) * output.shape[2] * output.shape[3])

        vae.get_submodule(name).register_forward_hook(hook)

    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            record(name)
    faces = decode_tiled(vae, normal(6, 4, size, size))
    encode_tiled(vae, faces)
    whole = {name for name in pixels if "mid_block" in name or name.endswith("quant_conv")}
    whole |= {"decoder.conv_in", "encoder.conv_out"}
    for name in whole:
        assert pixels[name] == 6 * size**2  # at the resolution of the latents
    beyond = 2 * 2 * 8 * size  # rows that are read beyond a strip, before and after an upsampling
    for name in pixels.keys() - whole:
        assert pixels[name] <= (8 * SMALL) ** 2 + beyond < (8 * size) ** 2 / 4, name


@torch.no_grad()
def test_half_precision_is_as_near_to_float32_as_the_whole_network_is() -> None:
    latents, half = normal(6, 4, 12, 12), small_vae(SMALL).to(torch.bfloat16)
    exact = small_vae(SMALL).decode(latents).sample
    whole = (half.decode(latents.bfloat16()).sample - exact).abs().mean()
    assert (decode_tiled(half, latents.bfloat16()) - exact).abs().mean() < 1.2 * whole


@torch.no_grad()
def test_weights_that_hooks_fetch_are_used() -> None:
    """As `enable_sequential_cpu_offload` sets them, with the CPU as the device that computes."""
    latents, vae = normal(6, 4, 8, 8), small_vae(SMALL)
    expected = decode_tiled(vae, latents)
    cpu_offload(vae, torch.device("cpu"), offload_buffers=bool(vae._parameters))
    assert next(vae.parameters()).device.type == "meta"
    assert torch.equal(decode_tiled(vae, latents), expected)


def test_an_autoencoder_of_other_layers_is_refused() -> None:
    vae = AutoencoderKL(
        up_block_types=("AttnUpDecoderBlock2D",), down_block_types=("AttnDownEncoderBlock2D",), norm_num_groups=4
    )
    with pytest.raises(ValueError, match=r"autoencoder's AttnUpDecoderBlock2D in tiles.*disable_vae_tiling"):
        decode_tiled(vae, torch.zeros(6, 4, 8, 8))
    with pytest.raises(ValueError, match=r"autoencoder's AttnDownEncoderBlock2D in tiles.*disable_vae_tiling"):
        encode_tiled(vae, torch.zeros(6, 3, 8, 8))


@torch.no_grad()
@pytest.mark.slow
def test_the_autoencoder_of_stable_diffusion_within_a_level() -> None:
    torch.manual_seed(0)
    vae = sync_group_norm_(AutoencoderKL.from_config(SD15["vae"]))
    vae.tile_latent_min_size = 16
    latents = normal(6, 4, 24, 24)
    faces = vae.decode(latents).sample
    assert (decode_tiled(vae, latents) - faces).abs().max() < 1 / 255 * faces.std()
