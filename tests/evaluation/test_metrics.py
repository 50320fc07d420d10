"""Seam metrics against float64 references and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cubediff.evaluation.metrics import colour_step, overlap_rms, sharpness
from cubediff.geometry import face_directions

FRONT, RIGHT, BACK, LEFT, UP, DOWN = range(6)
# The edges of a cube: a face and a side of its image, and those of its neighbour.
EDGES = [
    (FRONT, "right", RIGHT, "left"), (RIGHT, "right", BACK, "left"), (BACK, "right", LEFT, "left"),
    (LEFT, "right", FRONT, "left"), (UP, "bottom", FRONT, "top"), (UP, "right", RIGHT, "top"),
    (UP, "top", BACK, "top"), (UP, "left", LEFT, "top"), (DOWN, "top", FRONT, "bottom"),
    (DOWN, "right", RIGHT, "bottom"), (DOWN, "bottom", BACK, "bottom"), (DOWN, "left", LEFT, "bottom"),
]  # fmt: skip
# Edges along which the images of the two faces run in opposite directions.
REVERSED = {(UP, RIGHT), (UP, BACK), (DOWN, BACK), (DOWN, LEFT)}


def noise(size: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 6, 3, size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)


def direction_coded(size: int) -> Tensor:
    return face_directions(size, 95.0, torch.float64).movedim(-1, 1)[None] / 2 + 0.5


def band(face: Tensor, side: str, width: int) -> Tensor:
    return {
        "left": face[..., :width],
        "right": face[..., -width:],
        "top": face[..., :width, :],
        "bottom": face[..., -width:, :],
    }[side]


def test_colour_step_of_90_degree_faces_is_that_of_their_outer_pixels() -> None:
    """On 256 pixels a band has 4, and a place along the edge has 2. Sides are listed so that both run the same way."""
    faces = noise(256)[0]
    steps = []
    for a, here, b, there in EDGES:
        first, second = (
            F.avg_pool2d(band(faces[face], side, 4), (2, 4) if side in ("left", "right") else (4, 2)).flatten(1)
            for face, side in ((a, here), (b, there))
        )
        if (a, b) in REVERSED:
            second = second.flip(1)
        steps.append((first - second).abs().mean())
    torch.testing.assert_close(colour_step(faces[None], 90.0)[0], torch.stack(steps).mean(), rtol=0, atol=1e-9)


def test_a_face_of_another_brightness_is_a_step_at_its_four_edges() -> None:
    faces = torch.full((2, 6, 3, 64, 64), 0.25, dtype=torch.float64)
    for face in range(6):
        brighter = faces.clone()
        brighter[1, face] += 0.3
        torch.testing.assert_close(colour_step(brighter), torch.tensor([0.0, 0.3 * 4 / 12], dtype=torch.float64))
        torch.testing.assert_close(
            overlap_rms(brighter), torch.tensor([0.0, 0.3 * math.sqrt(4 / 12)], dtype=torch.float64)
        )


def test_overlap_rms_of_consistent_faces_is_the_error_of_interpolation() -> None:
    assert overlap_rms(direction_coded(64)).item() < 1e-3
    assert overlap_rms(direction_coded(128)).item() < 0.3 * overlap_rms(direction_coded(64)).item()
    assert overlap_rms(direction_coded(64).roll(1, 1)).item() > 0.2


def test_overlap_rms_grows_with_noise_as_its_standard_deviation() -> None:
    """The difference of two independent pixels; interpolation averages away some noise of the second."""
    size, sigma = 128, 0.1
    shaken = direction_coded(size) + sigma * torch.randn(
        1, 6, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    assert sigma * 1.1 < overlap_rms(shaken).item() < sigma * math.sqrt(2)
    with pytest.raises(ValueError, match=r"faces of 8 pixels and 95.0° overlap by less than a pixel"):
        overlap_rms(noise(8))


def test_sharpness_of_a_ramp_is_its_slope() -> None:
    rows, columns = torch.meshgrid(*[torch.arange(32, dtype=torch.float64)] * 2, indexing="ij")
    ramp = (0.003 * rows + 0.004 * columns).expand(1, 6, 3, 32, 32)
    assert sharpness(ramp).item() == pytest.approx(0.005)
    assert sharpness(torch.ones(1, 6, 3, 8, 8)).item() == 0
    blurred = F.avg_pool2d(noise(64)[0], 3, 1, 1)[None]
    assert sharpness(blurred).item() < 0.7 * sharpness(noise(64)).item()


def test_metrics_are_those_of_each_panorama_in_any_dtype() -> None:
    faces = noise(64, batch=3)
    for metric in (overlap_rms, colour_step, sharpness):
        joint = metric(faces)
        assert joint.shape == (3,)
        for i in range(3):
            torch.testing.assert_close(metric(faces[i : i + 1])[0], joint[i])
        torch.testing.assert_close(metric(faces.float()).double(), joint, rtol=0, atol=1e-5)
