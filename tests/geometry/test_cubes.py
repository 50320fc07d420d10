"""Views of six faces: pixels of a direction-coloured cube keep their direction, and new faces agree at their edges."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from cubediff.geometry import FACES, cube_to_equirect, equirect_to_cube, equirect_to_perspective, face_directions
from cubediff.geometry.cubes import cube_to_cube, cube_to_perspective
from cubediff.geometry.projections import _sphere_grids


def coloured(size: int, fov: float) -> Tensor:
    """A cube whose pixels hold their own direction."""
    return face_directions(size, fov, torch.float64).movedim(-1, 1)[None]


def smooth(size: int, fov: float, offsets: float = 0.0) -> Tensor:
    """Faces of a smooth function of the direction in [0, 255]; with `offsets`, each face is brighter than the last."""
    x, y, z = face_directions(size, fov, torch.float64).unbind(-1)
    values = 120 + 60 * torch.sin(3 * x + y) + 40 * torch.cos(4 * z - 2 * y * x)
    return (values + offsets * torch.arange(6.0, dtype=torch.float64).view(6, 1, 1))[None, :, None]


def edge_steps(faces: Tensor) -> Tensor:
    """Differences of the pixels on both sides of the twelve edges, found by the directions of the pixels."""
    size = faces.shape[-1]
    rays = face_directions(size, 90.0, torch.float64)
    rim = torch.zeros(size, size, dtype=torch.bool)
    rim[0] = rim[-1] = rim[:, 0] = rim[:, -1] = True
    steps = []
    for a, b in product(range(6), repeat=2):
        if a < b and abs(float(rays[a].mean((0, 1)) @ rays[b].mean((0, 1)))) < 1e-6:  # faces that share an edge
            cosines = rays[a][rim] @ rays[b][rim].T
            best, partner = cosines.max(1)
            near = best > math.cos(2.2 / size)  # a pixel's distance across the edge
            steps.append((faces[0, a, 0][rim] - faces[0, b, 0][rim][partner]).abs()[near])
    assert sum(len(step) for step in steps) >= 12 * (size - 4)
    return torch.cat(steps)


@pytest.mark.parametrize("overlap", ["blend", "crop"])
@pytest.mark.parametrize(("face_fov", "fov"), [(95.0, 90.0), (90.0, 95.0), (110.0, 90.0), (95.0, 70.0)])
def test_every_pixel_of_a_resampled_cube_keeps_its_direction(face_fov: float, fov: float, overlap: str) -> None:
    resampled = cube_to_cube(coloured(96, face_fov), 64, fov, face_fov, overlap)
    assert (resampled - coloured(64, fov)).abs().max() < 2e-3


@pytest.mark.parametrize("fov", [90.0, 95.0])
def test_faces_of_the_same_size_and_field_of_view_are_unchanged_where_one_face_sees_them(fov: float) -> None:
    faces = torch.rand(1, 6, 3, 32, 32, dtype=torch.float64)
    resampled = cube_to_cube(faces, 32, fov, fov)
    inner = slice(None) if fov == 90 else slice(3, -3)
    torch.testing.assert_close(resampled[..., inner, inner], faces[..., inner, inner], atol=1e-9, rtol=0)


def test_resampled_faces_agree_at_their_edges_where_the_given_ones_differ() -> None:
    offsets = 30.0  # of neighbours; of front and down 150
    given, true = smooth(128, 95.0, offsets), smooth(128, 90.0)
    wide = edge_steps(given)
    resampled = edge_steps(cube_to_cube(given, 128))
    assert wide.mean() > 30
    # 5 levels a pixel remain where the blend covers 150 levels in the width of the overlap
    assert resampled.mean() < edge_steps(true).mean() + 150 / 11
    assert edge_steps(cube_to_cube(smooth(128, 95.0), 128)).mean().item() == pytest.approx(
        edge_steps(true).mean().item(), rel=0.03
    )


def test_resampled_faces_show_the_panorama_that_is_blended_from_the_same_faces() -> None:
    given = smooth(128, 95.0, offsets=20.0)
    panorama = cube_to_equirect(given, 1024, 95.0, mode="bicubic")
    expected = equirect_to_cube(panorama, 128, 90.0, mode="bicubic")
    difference = (cube_to_cube(given, 128) - expected).abs()
    assert difference.mean() < 0.1
    assert difference.max() < 3  # at a corner, where three faces that differ by up to 100 meet


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (40, 40)])
@pytest.mark.parametrize("camera", [(0.0, 0.0, 0.0), (45.0, 0.0, 0.0), (130.0, 50.0, -20.0), (-10.0, -90.0, 5.0)])
def test_views_of_a_cube_equal_those_of_its_panorama(size: tuple[int, int], camera: tuple[float, float, float]) -> None:
    panorama = cube_to_equirect(coloured(256, 95.0), 512, 95.0)
    angles = (torch.tensor(angle, dtype=torch.float64) for angle in camera)
    expected = equirect_to_perspective(panorama, size, 70.0, *angles)
    view = cube_to_perspective(coloured(256, 95.0), size, 70.0, *camera)
    assert (view - expected).abs().max() < 2e-3


def test_faces_that_are_much_finer_than_the_result_are_averaged() -> None:
    noise = torch.rand(1, 6, 1, 256, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small = cube_to_cube(noise, 16, 90.0, 90.0)
    view = cube_to_perspective(noise, 16, 90.0, face_fov=90.0)
    assert small.std() < 0.05  # point samples of this noise have 0.29
    torch.testing.assert_close(view, small[:, FACES.index("front")])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_dtype_and_rows_are_kept(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = (torch.rand(2, 6, 3, 24, 24) * 255).to(dtype)
    whole = cube_to_cube(faces, 20)
    assert whole.dtype == dtype
    monkeypatch.setattr("cubediff.geometry.cubes._RAYS", 100)
    assert torch.equal(cube_to_cube(faces, 20), whole)
    assert torch.equal(cube_to_cube(faces[1:], 20), whole[1:])


@pytest.mark.parametrize("fov", [90.0, 95.0, 120.0])
def test_directions_that_are_looked_up_in_parts_give_the_same_panorama(
    fov: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = torch.rand(1, 6, 3, 32, 32)
    whole = cube_to_equirect(faces, 70, fov, mode="bicubic")
    monkeypatch.setattr("cubediff.geometry.atlas._RAYS", 1000)
    _sphere_grids.cache_clear()
    assert torch.equal(cube_to_equirect(faces, 70, fov, mode="bicubic"), whole)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cube_to_cube(torch.rand(1, 5, 3, 8, 8), 8), "faces must be"),
        (lambda: cube_to_cube(torch.rand(1, 6, 3, 8, 8), 0), "at least 1 pixel"),
        (lambda: cube_to_cube(torch.rand(1, 6, 3, 8, 8), 8, 90.0, 80.0), "at least 90"),
        (lambda: cube_to_cube(torch.rand(1, 6, 3, 8, 8), 8, 180.0), "between 0° and 180°"),
        (lambda: cube_to_cube(torch.rand(1, 6, 3, 8, 8), 8, overlap="sum"), "unknown overlap"),
        (lambda: cube_to_perspective(torch.rand(1, 6, 3, 8, 8), (0, 8), 90.0), "height is 0"),
    ],
)
def test_invalid_arguments_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
