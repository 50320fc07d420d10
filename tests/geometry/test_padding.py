"""Padding of faces against directions in float64, the atlas of the projections, and wider renderings."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cubediff.geometry.atlas import build_atlas
from cubediff.geometry.conventions import face_directions
from cubediff.geometry.padding import pad_faces
from cubediff.geometry.projections import equirect_to_cube


def wide_fov(size: int, fov: float, margin: int) -> float:
    """Field of view of a face that is `margin` pixels wider on every side."""
    return math.degrees(2 * math.atan(math.tan(math.radians(fov) / 2) * (1 + 2 * margin / size)))


def directions(size: int, fov: float) -> Tensor:
    return face_directions(size, fov, torch.float64).movedim(-1, 1)


@pytest.mark.parametrize(("size", "fov", "margin"), [(32, 95.0, 1), (17, 90.0, 1), (32, 118.0, 3), (64, 100.0, 2)])
def test_padding_of_a_direction_coded_cube_shows_the_directions_beyond_the_border(
    size: int, fov: float, margin: int
) -> None:
    expected = directions(size + 2 * margin, wide_fov(size, fov, margin))
    padded = pad_faces(directions(size, fov), fov, margin)
    torch.testing.assert_close(padded[..., margin:-margin, margin:-margin], directions(size, fov))
    # Between pixel centres, a direction bends by at most an eighth of the square of a pixel's angle. Where faces
    # overlap by less than half a pixel, the nearest pixel centre is as far away as that.
    pixel = 2 * math.tan(math.radians(fov) / 2) / size
    reaches = math.tan(math.radians(fov) / 2) * (1 - 1 / size) >= 1
    assert (padded - expected).abs().max() < (pixel**2 / 4 if reaches else 0.75 * pixel)
    assert (padded[:, :, 0] - expected[:, :, 0]).abs().max() > 0


@pytest.mark.parametrize("fov", [90.0, 90.5])
def test_padding_is_that_of_the_atlas_where_faces_barely_overlap(fov: float) -> None:
    faces = torch.rand(12, 3, 16, 16, dtype=torch.float64)
    atlas = build_atlas(faces.unflatten(0, (2, 6)), fov, margin=1)
    padded = pad_faces(faces, fov).unflatten(0, (2, 6)).transpose(1, 2).flatten(2, 3)
    torch.testing.assert_close(padded, atlas, rtol=0, atol=1e-6)


def test_padding_keeps_the_memory_format_and_dtype_and_does_not_mix_panoramas() -> None:
    faces = torch.rand(12, 4, 8, 8, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    padded = pad_faces(faces, 95.0)
    assert padded.dtype is torch.bfloat16
    assert padded.is_contiguous(memory_format=torch.channels_last)
    changed = faces.clone()
    changed[6:] = 0
    assert torch.equal(pad_faces(changed, 95.0)[:6], padded[:6])
    assert (pad_faces(faces.float().contiguous(), 95.0) - padded.float()).abs().max() < 0.004


def test_gradients_reach_the_pixels_that_the_padding_shows() -> None:
    faces = torch.rand(6, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda each: pad_faces(each, 95.0), faces, atol=1e-6)


def test_a_convolution_over_padded_faces_is_that_over_a_wider_rendering() -> None:
    noise = torch.rand(1, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    panorama, size, fov = F.interpolate(noise, (256, 512), mode="bicubic"), 64, 95.0
    faces, wider = (
        equirect_to_cube(panorama, n, each)[0] for n, each in ((size, fov), (size + 2, wide_fov(size, fov, 1)))
    )
    kernel = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 27**0.5
    expected = F.conv2d(wider, kernel)
    errors = [F.conv2d(padded, kernel) - expected for padded in (pad_faces(faces, fov), F.pad(faces, (1,) * 4))]
    cube, zeros = (error[..., [0, -1], :].square().mean().sqrt() for error in errors)
    assert cube < 0.05 * zeros


@pytest.mark.parametrize(
    ("shape", "fov", "message"),
    [((5, 1, 4, 4), 95.0, "square faces"), ((6, 1, 4, 5), 95.0, "square faces"), ((6, 1, 4, 4), 80.0, "at least 90°")],
)
def test_faces_that_cannot_be_padded_are_refused(shape: tuple[int, ...], fov: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pad_faces(torch.zeros(shape), fov)
