"""Overlapping faces against a float64 reference, pixel by pixel, and their blend against that of panoramas."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cubediff.geometry import cube_to_equirect, equirect_to_cube, face_directions
from cubediff.geometry.overlap import blend_overlaps, sample_overlaps

# The axes of each face by the conventions of the project: right, top, centre of its image.
AXES = np.array(
    [
        [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
        [(0, 0, -1), (0, 1, 0), (1, 0, 0)],
        [(-1, 0, 0), (0, 1, 0), (0, 0, -1)],
        [(0, 0, 1), (0, 1, 0), (-1, 0, 0)],
        [(1, 0, 0), (0, 0, -1), (0, 1, 0)],
        [(1, 0, 0), (0, 0, 1), (0, -1, 0)],
    ],
    float,
)


def bilinear(face: np.ndarray, column: float, row: float) -> float:
    last = len(face) - 1
    column, row = min(max(column, 0), last), min(max(row, 0), last)
    left, top = min(int(column), last - 1), min(int(row), last - 1)
    x, y = column - left, row - top
    upper = (1 - x) * face[top, left] + x * face[top, left + 1]
    lower = (1 - x) * face[top + 1, left] + x * face[top + 1, left + 1]
    return (1 - y) * upper + y * lower


def reference_blend(faces: np.ndarray, fov: float) -> np.ndarray:  # (6, S, S)
    size, t = faces.shape[-1], math.tan(math.radians(fov) / 2)
    blended = np.empty_like(faces)
    for own in range(6):
        for i in range(size):
            for j in range(size):
                x, y = t * ((2 * j + 1) / size - 1), t * (1 - (2 * i + 1) / size)
                ray = AXES[own].T @ (x, y, 1)
                total = weights = 0.0
                for face in range(6):
                    u, v, depth = AXES[face] @ ray
                    if depth <= 0 or (reach := max(abs(u), abs(v)) / depth) >= t:
                        continue
                    weight = min(1.0, (t - reach) / (t - 1))
                    column = (u / depth / t + 1) / 2 * size - 0.5
                    row = (1 - v / depth / t) / 2 * size - 0.5
                    total += weight * bilinear(faces[face], column, row)
                    weights += weight
                blended[own, i, j] = total / weights
    return blended


def noise(size: int, batch: int = 1, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(batch, 6, channels, size, size, generator=generator, dtype=torch.float64)


def smooth_faces(size: int, fov: float = 95.0) -> Tensor:
    rays = face_directions(size, fov, torch.float64)
    return (rays + (3 * rays).sin()).movedim(-1, 1)[None]  # (1, 6, 3, S, S)


@pytest.mark.parametrize(("size", "fov"), [(2, 95.0), (8, 95.0), (16, 95.0), (17, 100.0), (12, 120.0), (40, 91.0)])
def test_the_blend_is_that_of_a_float64_reference(size: int, fov: float) -> None:
    faces = noise(size)
    blended = blend_overlaps(faces, fov)[0, :, 0]
    np.testing.assert_allclose(blended, reference_blend(faces[0, :, 0].numpy(), fov), atol=1e-12)


@pytest.mark.parametrize("size", [16, 64])
def test_other_faces_show_the_direction_of_a_pixel(size: int) -> None:
    """On direction-coded faces a sample is the pixel's own direction, up to the error of interpolation."""
    samples = sample_overlaps(smooth_faces(size))
    error = (samples.own - samples.other).abs().amax((0, 1))
    assert error[samples.inside].max() < 12 / size**2
    faces, counts = samples.indices // size**2, samples.indices.bincount(minlength=6 * size * size)
    assert faces.bincount().tolist() == [len(samples.indices) // 6] * 6
    border = torch.zeros(size, size, dtype=torch.bool)
    border[0] = border[-1] = border[:, 0] = border[:, -1] = True
    assert (counts.view(6, size, size)[:, border] > 0).all()
    corners = counts.view(6, size, size)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 2).all()  # the two other faces that meet there


def test_a_continuous_cube_stays_itself_and_pixels_of_one_face_keep_their_bits() -> None:
    faces = smooth_faces(128)
    blended = blend_overlaps(faces)
    assert (blended - faces).abs().max() < 1e-3
    rough = noise(32, batch=2, channels=3)
    changed = (blend_overlaps(rough) != rough).any(2)
    seen_twice = torch.zeros(6 * 32 * 32, dtype=torch.bool)
    seen_twice[sample_overlaps(rough).indices] = True
    assert torch.equal(changed, seen_twice.view(1, 6, 32, 32).expand(2, -1, -1, -1))
    assert not changed[..., 3:-3, 3:-3].any()


def test_the_blend_makes_faces_agree() -> None:
    faces = smooth_faces(64) + torch.randn(6, generator=torch.Generator().manual_seed(0)).view(1, 6, 1, 1, 1)
    before, after = (
        (samples.own - samples.other)[..., samples.inside].square().mean().sqrt()
        for samples in (sample_overlaps(faces), sample_overlaps(blend_overlaps(faces)))
    )
    assert before > 1
    assert after < 0.05 * before


def test_blended_faces_make_the_panorama_that_blending_them_makes() -> None:
    faces = smooth_faces(128) + torch.arange(6.0, dtype=torch.float64).view(1, 6, 1, 1, 1)
    cropped = cube_to_equirect(blend_overlaps(faces), 256, overlap="crop")
    blended = cube_to_equirect(faces, 256, overlap="blend")
    unblended = cube_to_equirect(faces, 256, overlap="crop")
    assert (cropped - blended).abs().max() < 0.1 * (unblended - blended).abs().max()


def test_faces_of_a_real_panorama_agree() -> None:
    panorama = torch.nn.functional.interpolate(
        torch.rand(1, 3, 8, 16, generator=torch.Generator().manual_seed(0)), (256, 512), mode="bicubic"
    )
    samples = sample_overlaps(equirect_to_cube(panorama, 128))
    assert (samples.own - samples.other)[..., samples.inside].abs().max() < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_blend_has_the_dtype_of_the_faces(dtype: torch.dtype) -> None:
    faces = noise(16).to(dtype)
    blended = blend_overlaps(faces)
    assert blended.dtype == dtype
    atol = 1e-4 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps  # sample positions are float32, too
    torch.testing.assert_close(blended.double(), blend_overlaps(faces.double()), rtol=0, atol=atol)


@pytest.mark.parametrize("fov", [60.0, 90.0, 180.0])
def test_faces_without_overlap_are_refused(fov: float) -> None:
    with pytest.raises(ValueError, match=f"fov is {fov}°: faces overlap with more than 90°"):
        blend_overlaps(noise(8), fov)
