"""The autoencoder's latents of real panoramas in float32 and under bfloat16 autocast, against float64."""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.kernels import KernelDtypes
from torch import Tensor

from cubediff.geometry.projections import equirect_to_cube
from cubediff.models.encoders import FrozenEncoders
from cubediff.models.frozen import CastWeights
from cubediff.pipelines.cubediff import CubeDiffPipeline
from cubediff.planning.cuda_rules import cuda_autocast

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def encoders() -> FrozenEncoders:
    return CubeDiffPipeline.from_pretrained(ROOT / "experiments/cubediff_tiny/model").backbone.encoders


@pytest.fixture(scope="module")
def faces() -> Tensor:
    """Of ten panoramas."""
    files = sorted((ROOT / "data/samples").glob("*.jpg"))[:10]
    assert len(files) == 10
    images = np.stack([np.asarray(Image.open(file).convert("RGB").resize((512, 256))) for file in files])
    return equirect_to_cube(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1, 64, 95.0)


@pytest.fixture(scope="module")
def expected(encoders: FrozenEncoders, faces: Tensor) -> Tensor:
    """Latents in float64."""
    vae = copy.deepcopy(encoders.vae).double()
    with torch.no_grad():
        means = [vae.encode(cube.double()).latent_dist.mean for cube in faces]
    return torch.stack(means) * vae.config.scaling_factor


@pytest.fixture
def cast(encoders: FrozenEncoders) -> Iterator[None]:
    weights = CastWeights.cast_(encoders.vae, torch.bfloat16)
    yield
    weights.restore_()


def test_float32_latents_are_exact(encoders: FrozenEncoders, faces: Tensor, expected: Tensor) -> None:
    with KernelDtypes() as kernels:
        latents = encoders.encode(faces)
    assert kernels.inputs["convolution"] == {torch.float32}
    for one, right in zip(latents, expected, strict=True):
        assert (one - right).norm() < 1e-5 * right.norm()


@pytest.mark.usefixtures("cast")
@pytest.mark.parametrize("sliced", [False, True])
def test_bfloat16_latents_are_within_half_a_percent(
    sliced: bool, encoders: FrozenEncoders, faces: Tensor, expected: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders.vae, "use_slicing", sliced)
    with torch.autocast("cpu", torch.bfloat16), KernelDtypes() as kernels:
        latents = encoders.encode(faces)
    assert kernels.inputs["convolution"] == kernels.inputs["silu"] == {torch.bfloat16}
    activations = [cast for cast in kernels.casts if len(cast[2]) == 4]
    assert activations == [], "autocast is off, and no activation is cast"
    assert latents.dtype is torch.float32
    assert 1e-4 * expected.norm() < (latents - expected).norm() < 5e-3 * expected.norm()


@pytest.mark.usefixtures("cast")
def test_decoding_in_bfloat16_casts_no_activation(encoders: FrozenEncoders, expected: Tensor) -> None:
    """Autocast resizes in float32 on CUDA, which doubles the memory of the largest activation."""
    with cuda_autocast("bf16-mixed"):
        with KernelDtypes() as kernels:
            encoders.decode(expected[:1].float())
        assert kernels.inputs["upsample_nearest2d"] == kernels.inputs["convolution"] == {torch.bfloat16}
        assert [cast for cast in kernels.casts if len(cast[2]) == 4] == []
        with KernelDtypes() as kernels:
            encoders.vae.decode(expected[0].bfloat16())
        assert kernels.inputs["upsample_nearest2d"] == {torch.float32}


@pytest.mark.usefixtures("cast")
def test_without_autocast_the_latents_have_the_same_bits(encoders: FrozenEncoders, faces: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        cubes = torch.stack([encoders.vae.encode(cube).latent_dist.mean for cube in faces[:2].bfloat16()])
    assert torch.equal(encoders.encode(faces[:2]), cubes.float() * encoders.vae.config.scaling_factor)
