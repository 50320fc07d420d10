"""gain_correction of the pipeline: the decoded faces, with a photo that keeps its colours."""

import pytest
import torch
from support.awake import awaken_
from torch import Tensor

from cubediff import CubeDiffPipeline
from cubediff.geometry import correct_gains, cube_to_equirect
from cubediff.pipelines.loading import tiny_random


def pipeline_of(fov: float = 95.0) -> CubeDiffPipeline:
    pipeline = tiny_random(fov=fov)
    for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        awaken_(model.eval())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: CubeDiffPipeline, **options: object) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    output = pipeline("a hall", num_inference_steps=2, generator=generator, output_type="pt", **options)
    return output.panoramas, output.faces


@pytest.mark.parametrize("with_photo", [False, True])
def test_gains_are_those_of_the_decoded_faces(with_photo: bool) -> None:
    pipeline = pipeline_of()
    image = {"image": torch.rand(3, 64, 64) * 2 - 1} if with_photo else {}
    fixed = torch.tensor([[with_photo, False, False, False, False, False]])
    plain = generate(pipeline, **image)[1]
    expected = correct_gains(plain / 2 + 0.5, fixed=fixed) * 2 - 1
    panoramas, faces = generate(pipeline, **image, gain_correction=True)
    assert (faces - plain).abs().max() > 1e-3
    torch.testing.assert_close(faces, expected)
    blended = cube_to_equirect(expected, panoramas.shape[2], 95.0, mode="bicubic").clamp(-1, 1)
    torch.testing.assert_close(panoramas, blended)


def test_faces_that_do_not_overlap_are_refused_before_sampling() -> None:
    pipeline = pipeline_of(90.0)
    pipeline.unet.forward = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"gain_correction=True with faces of 90°, .*use gain_correction=False"):
        generate(pipeline, gain_correction=True)
