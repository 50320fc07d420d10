"""Weights in 16 bits without autocast: which are cast, and what a pipeline then generates."""

import copy

import pytest
import torch
from support.awake import awake_pipeline
from torch import nn

from cubediff import Photo
from cubediff.models.inflation import CubeGroupNorm

PHOTO = Photo(torch.linspace(-1, 1, 32).expand(3, 32, 32), fov=80.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("photo_encoding", ["cube", "face"])
@pytest.mark.parametrize("sync_group_norm", [True, False])
def test_norms_over_six_faces_keep_their_weights_and_all_others_are_cast(
    dtype: torch.dtype, photo_encoding: str, sync_group_norm: bool
) -> None:
    """An encoder whose norms are plain while it encodes a photo has all of its weights in that dtype."""
    pipeline = awake_pipeline(photo_encoding=photo_encoding, sync_group_norm=sync_group_norm)
    components = pipeline.backbone.components()
    before = {name: copy.deepcopy(module) for name, module in components.items()}
    pipeline.cast_weights(dtype)
    for name, module in components.items():
        assert module.dtype == dtype
        keeps = {"unet": sync_group_norm, "vae": photo_encoding == "cube", "text_encoder": False}[name]
        kept = [
            f"{path}.{key}"
            for path, norm in module.named_modules()
            if isinstance(norm, CubeGroupNorm)
            for key, _ in norm.named_parameters()
        ]
        for key, value in module.state_dict().items():
            original = before[name].state_dict()[key]
            expected = original.to(dtype) if original.is_floating_point() and not (keeps and key in kept) else original
            assert value.dtype == expected.dtype
            assert torch.equal(value, expected)
        assert kept or name == "text_encoder" or not sync_group_norm


def test_the_kept_weights_are_in_the_results() -> None:
    """A norm whose weights bfloat16 cannot tell from 1."""
    norm = CubeGroupNorm(2, 4)
    nn.init.constant_(norm.weight, 1.001)
    faces = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = (norm(faces.float()) * 1.0).to(torch.bfloat16)
    assert torch.equal(norm(faces), expected)
    assert not torch.equal(norm.bfloat16()(faces), expected)


@pytest.mark.parametrize("options", [{}, {"sync_group_norm": False, "photo_encoding": "face"}], ids=["own", "public"])
def test_panoramas_in_bfloat16_differ_by_rounding(options: dict[str, object]) -> None:
    pipeline = awake_pipeline(**options)
    made = []
    for dtype in (torch.float32, torch.bfloat16):
        pipeline.cast_weights(dtype)
        generator = torch.Generator().manual_seed(0)
        result = pipeline("a hall", image=PHOTO, num_inference_steps=2, generator=generator, output_type="pt")
        made.append(result.panoramas)
    difference = (made[0] - made[1]).abs()
    assert 0 < difference.mean() < 0.05
