"""Autoencoding in chunks, compared with the whole network in float64, and the memory that it takes."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKL
from support.awake import awaken_
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cubediff.models import chunked_vae
from cubediff.models.chunked_vae import decode, encode
from cubediff.models.encoders import FrozenEncoders
from cubediff.models.inflation import sync_group_norm_
from cubediff.models.presets import SD15
from cubediff.pipelines.loading import tiny_random
from cubediff.planning.counting import AllocationCounter, to_fake_parameters_
from cubediff.planning.cuda_rules import CudaFormats
from cubediff.planning.operations import OperationCounter

SMALL = 4  # latent pixels of a tile's side
GIB = 2**30


def small_vae(sync_group_norm: bool = True) -> AutoencoderKL:
    return sync_group_norm_(awaken_(tiny_random().vae), sync_group_norm)


def tiled(vae: AutoencoderKL, tile: int) -> AutoencoderKL:
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = tile, 8 * tile
    return vae


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def limit_to(faces: int, size: int, patch: pytest.MonkeyPatch) -> None:
    """Makes chunks of the small autoencoder hold this many faces, where faces of `size` pixels have most values."""
    values = faces * small_vae().config.block_out_channels[0] * size**2 * 4
    patch.setattr(chunked_vae, "MAX_ACTIVATION", values)


def faces_in_convolutions(counter: OperationCounter, size: int) -> set[int]:
    """Numbers of faces that 3 × 3 convolutions received together, in the resolution of the faces."""
    shapes = [one.shapes for one in counter.operations if one.kind == "convolution"]
    return {image[0] for image, kernel, *_ in shapes if image[2] == size and kernel[2] == 3}


def in_float64(vae: AutoencoderKL, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of six faces, the faces that the whole network decodes in float64, and their moments."""
    exact = copy.deepcopy(vae).double()
    latents = normal(6, 4, size, size)
    faces = exact.decode(latents.double()).sample
    return latents, faces, exact.encode(faces).latent_dist.parameters


@torch.no_grad()
@pytest.mark.parametrize("sync_group_norm", [True, False])
@pytest.mark.parametrize(("number", "size"), [(1, 6), (2, 11), (3, 7)])
def test_faces_and_latents_of_chunks_are_those_of_the_whole_network(
    number: int, size: int, sync_group_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = small_vae(sync_group_norm)
    latents, faces, moments = in_float64(vae, size)
    limit_to(number, 8 * size, monkeypatch)
    with OperationCounter() as decoding:
        assert (decode(vae, latents) - faces).abs().max() < 1e-5 < 1e-1 < faces.std()
    with OperationCounter() as encoding:
        assert (encode(vae, faces.float()) - moments).abs().max() < 1e-5 < 1e-1 < moments.std()
    expected = {number if sync_group_norm else 1}
    assert faces_in_convolutions(decoding, 8 * size) == faces_in_convolutions(encoding, 8 * size) == expected


@torch.no_grad()
@pytest.mark.parametrize("sync_group_norm", [True, False])
@pytest.mark.parametrize(("size", "tile"), [(6, 4), (11, 3), (16, 1)])
def test_faces_and_latents_of_strips_are_those_of_the_whole_network(
    size: int, tile: int, sync_group_norm: bool
) -> None:
    vae = small_vae(sync_group_norm)
    latents, faces, moments = in_float64(vae, size)
    tiled(vae, tile)
    assert (decode(vae, latents) - faces).abs().max() < 1e-5 < 1e-1 < faces.std()
    assert (encode(vae, faces.float()) - moments).abs().max() < 1e-5 < 1e-1 < moments.std()


@torch.no_grad()
def test_small_faces_pass_through_the_whole_network_together_and_slices_are_single_faces() -> None:
    vae, latents = small_vae(), normal(6, 4, 8, 8)
    with OperationCounter() as whole:
        faces = decode(vae, latents)
    with OperationCounter() as sliced:
        assert (decode(vae, latents, sliced=True) - faces).abs().max() < 1e-5
    assert torch.equal(faces, vae.decode(latents).sample)
    assert (faces_in_convolutions(whole, 64), faces_in_convolutions(sliced, 64)) == ({6}, {1})


@torch.no_grad()
def test_a_face_changes_the_others_in_chunks_as_in_the_whole_network() -> None:
    """Through the statistics, which are those of all faces in any chunk."""
    vae, latents = small_vae(), normal(6, 4, 8, 8)
    changed = latents.clone()
    changed[2] *= -3
    exact = copy.deepcopy(vae).double()
    others = [0, 1, 3, 4, 5]
    effect = (exact.decode(changed.double()).sample - exact.decode(latents.double()).sample)[others]
    assert (effect.abs().amax((1, 2, 3)) > 1e-2).all()
    found = (decode(vae, changed, sliced=True) - decode(vae, latents, sliced=True))[others]
    assert (found - effect).abs().max() < 1e-5
    images = exact.decode(latents.double()).sample
    brighter = images.clone()
    brighter[2] += 1
    means = [exact.encode(each).latent_dist.mean[others] for each in (brighter, images)]
    found = encode(vae, brighter.float(), sliced=True)[others] - encode(vae, images.float(), sliced=True)[others]
    assert ((means[0] - means[1]).abs().amax((1, 2, 3)) > 1e-2).all()
    assert (found[:, :4] - (means[0] - means[1])).abs().max() < 1e-5


@torch.no_grad()
def test_the_tiling_of_the_stock_model_gives_other_faces() -> None:
    """Each of its tiles has statistics of its own; what is within 1/255 here is not there."""
    vae, latents = small_vae(), normal(6, 4, 12, 12)
    whole = vae.decode(latents).sample
    tiled(vae, SMALL)
    assert (decode(vae, latents) - whole).abs().max() < 1e-4
    assert (vae.decode(latents).sample - whole).abs().max() > 10 / 255


@torch.no_grad()
def test_a_layer_takes_no_more_pixels_than_one_face_of_a_tile_has() -> None:
    vae, size = tiled(small_vae(), SMALL), 16
    pixels: dict[str, int] = {}

    def record(name: str) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            pixels[name] = max(pixels.get(name, 0), len(output) * output.shape[2] * output.shape[3])

        vae.get_submodule(name).register_forward_hook(hook)

    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            record(name)
    faces = decode(vae, normal(6, 4, size, size))
    encode(vae, faces)
    whole = {name for name in pixels if "mid_block" in name or name.endswith("quant_conv")}
    whole |= {"decoder.conv_in", "encoder.conv_out"}
    for name in whole:
        assert pixels[name] == 6 * size**2  # at the resolution of the latents
    beyond = 2 * 2 * 8 * size  # rows that are read beyond a strip, before and after an upsampling
    for name in pixels.keys() - whole:
        assert pixels[name] <= (8 * SMALL) ** 2 + beyond < (8 * size) ** 2 / 4, name


@torch.no_grad()
@pytest.mark.parametrize("strips", [True, False])
def test_half_precision_is_as_near_to_float32_as_the_whole_network_is(strips: bool) -> None:
    latents, half = normal(6, 4, 12, 12), small_vae().to(torch.bfloat16)
    exact = small_vae().decode(latents).sample
    whole = (half.decode(latents.bfloat16()).sample - exact).abs().mean()
    if strips:
        tiled(half, SMALL)
    assert (decode(half, latents.bfloat16(), sliced=not strips) - exact).abs().mean() < 1.2 * whole


@torch.no_grad()
@pytest.mark.parametrize("strips", [True, False])
def test_weights_that_hooks_fetch_are_used(strips: bool) -> None:
    """As `enable_sequential_cpu_offload` sets them, with the CPU as the device that computes."""
    latents, vae = normal(6, 4, 8, 8), small_vae()
    if strips:
        tiled(vae, SMALL)
    expected = decode(vae, latents, sliced=not strips)
    cpu_offload(vae, torch.device("cpu"), offload_buffers=bool(vae._parameters))
    assert next(vae.parameters()).device.type == "meta"
    assert torch.equal(decode(vae, latents, sliced=not strips), expected)


@torch.no_grad()
def test_an_autoencoder_of_other_layers_is_refused_in_slices_and_tiles() -> None:
    vae = AutoencoderKL(
        up_block_types=("AttnUpDecoderBlock2D",), down_block_types=("AttnDownEncoderBlock2D",), norm_num_groups=4
    )
    latents, images = torch.zeros(6, 4, 8, 8), torch.zeros(6, 3, 8, 8)
    assert torch.equal(decode(vae, latents), vae.decode(latents).sample)
    with pytest.raises(ValueError, match=r"autoencoder's AttnUpDecoderBlock2D in slices or tiles.*disable_vae_slicing"):
        decode(vae, latents, sliced=True)
    with pytest.raises(ValueError, match=r"autoencoder's AttnDownEncoderBlock2D in slices or tiles.*disable_vae_tilin"):
        encode(tiled(vae, 2), images.repeat(1, 1, 4, 4))


# ------------------------------------------------------------------------------------------------ memory


def peak(call: str, dtype: torch.dtype, size: int) -> tuple[float, OperationCounter]:
    """Peak GiB of `FrozenEncoders.encode` or `decode` of six faces on a GPU, weights included; the kernels."""
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(SD15["vae"]).to(dtype)
    pipeline = tiny_random()
    encoders = FrozenEncoders(vae, pipeline.text_encoder, pipeline.tokenizer)
    with FakeTensorMode(allow_non_fake_inputs=True), AllocationCounter() as memory:
        to_fake_parameters_(vae)
        shape = (1, 6, 3, size, size) if call == "encode" else (1, 6, 4, size // 8, size // 8)
        with OperationCounter() as operations, CudaFormats():
            getattr(encoders, call)(torch.empty(shape))
    return memory.peak / GIB, operations


@pytest.mark.parametrize(
    ("call", "dtype", "limit"),
    [
        ("decode", torch.bfloat16, 2.1),
        ("decode", torch.float32, 3.2),
        ("encode", torch.float32, 3.0),
    ],
)
def test_stable_diffusion_takes_little_memory_for_six_faces_of_512_pixels(
    call: str, dtype: torch.dtype, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below 3 GiB in bfloat16, counted without a GPU; a tenth less than all faces at once take."""
    chunked, operations = peak(call, dtype, 512)
    assert max(faces_in_convolutions(operations, 512)) <= 3
    assert faces_in_convolutions(operations, 64) == {6}
    assert chunked < limit
    monkeypatch.setattr(chunked_vae, "MAX_ACTIVATION", 2**62)
    whole, operations = peak(call, dtype, 512)
    assert faces_in_convolutions(operations, 512) == {6}
    assert chunked < 0.9 * whole


def test_stable_diffusion_encodes_six_faces_of_512_pixels_together_in_bfloat16() -> None:
    encoded, operations = peak("encode", torch.bfloat16, 512)
    assert faces_in_convolutions(operations, 512) == {6}
    assert encoded < 2.1


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("strips", [True, False])
def test_the_autoencoder_of_stable_diffusion_within_a_level(strips: bool) -> None:
    torch.manual_seed(0)
    vae = sync_group_norm_(AutoencoderKL.from_config(SD15["vae"]))
    latents = normal(6, 4, 24, 24)
    faces = vae.decode(latents).sample
    if strips:
        tiled(vae, 16)
    assert (decode(vae, latents, sliced=not strips) - faces).abs().max() < 1 / 255 * faces.std()
