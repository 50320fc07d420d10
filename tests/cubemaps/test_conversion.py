"""Conversions: pixels of direction-coloured panoramas, cubes and views keep their direction, depth and transparency."""

import numpy as np
import pytest
import torch

from cubediff.cubemaps.conversion import (
    Camera,
    CubeImages,
    PanoramaImage,
    Sphere,
    ViewImage,
    to_cube,
    to_panorama,
    to_view,
)
from cubediff.geometry import FACES, face_directions, rotation_matrix
from cubediff.geometry.conventions import sphere_directions
from cubediff.utils.errors import DataError

CAMERA = Camera(70.0, 40.0, 20.0, -15.0)


def panorama(height: int) -> np.ndarray:
    return sphere_directions(height).numpy().astype(np.float32)


def cube(size: int, fov: float) -> dict[str, np.ndarray]:
    return dict(zip(FACES, face_directions(size, fov, torch.float64).numpy().astype(np.float32), strict=True))


def view(width: int, height: int, camera: Camera = CAMERA) -> np.ndarray:
    """The directions of a pinhole camera's pixels."""
    tan = np.tan(np.radians(camera.fov / 2))
    x = tan * ((2 * np.arange(width) + 1) / width - 1)
    y = tan * (height - 1 - 2 * np.arange(height)) / width
    plane = np.stack(np.broadcast_arrays(x, y[:, None], 1.0), -1)
    angles = (torch.tensor(angle, dtype=torch.float64) for angle in (camera.yaw, camera.pitch, camera.roll))
    rays = plane @ rotation_matrix(*angles).numpy().T
    return (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).astype(np.float32)


SOURCES: dict[str, Sphere] = {
    "panorama": PanoramaImage(panorama(128)),
    "cube": CubeImages(cube(96, 95.0), 95.0),
    "cube of 90°": CubeImages(cube(96, 90.0), 90.0),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_pixel_keeps_its_direction(name: str) -> None:
    sphere = SOURCES[name]
    height = len(to_panorama(sphere).pixels)
    assert abs(to_panorama(sphere).pixels - panorama(height)).max() < 4e-3
    for fov in (90.0, 95.0):
        faces = to_cube(sphere, fov, 64).cube
        assert max(abs(faces[face] - cube(64, fov)[face]).max() for face in FACES) < 4e-3
    seen = to_view(sphere, CAMERA, 64, 48).pixels
    assert abs(seen - view(64, 48)).max() < 4e-3


def test_a_view_is_placed_where_its_camera_looked_and_is_transparent_elsewhere() -> None:
    image = np.dstack([view(160, 120), np.ones((120, 160), np.float32)])
    sphere = ViewImage(image, CAMERA)
    whole = to_panorama(sphere, 128).pixels
    shown = whole[..., 3] == 1
    assert ((whole[..., 3] == 0) | shown).all()
    assert 0.02 < shown.mean() < 0.1
    assert abs(whole[shown][:, :3] - panorama(128)[shown]).max() < 8e-3
    assert not whole[~shown].any()
    faces = to_cube(sphere, 90.0, 64).cube
    for face in FACES:
        seen = faces[face][..., 3] == 1
        if seen.any():
            assert abs(faces[face][seen][:, :3] - cube(64, 90.0)[face][seen]).max() < 8e-3
    assert sum(face[..., 3].any() for face in faces.values()) in (2, 3, 4)
    back = to_view(to_cube(sphere, 95.0, 160), CAMERA, 160, 120).pixels
    inside = np.s_[4:-4, 4:-4]
    assert abs(back[inside][..., :3] - view(160, 120)[inside]).max() < 4e-3


def test_faces_of_the_same_size_and_field_of_view_keep_their_pixels() -> None:
    for name in ("cube", "cube of 90°"):
        sphere = SOURCES[name]
        assert isinstance(sphere, CubeImages)
        assert to_cube(sphere, sphere.fov) is sphere
    assert to_panorama(SOURCES["panorama"]) is SOURCES["panorama"]


def test_sizes_follow_the_resolution_of_the_input() -> None:
    wide = PanoramaImage(np.zeros((128, 256, 3), np.uint8))
    assert to_cube(wide).cube["front"].shape == (64, 64, 3)
    assert to_panorama(to_cube(wide)).pixels.shape == (128, 256, 3)
    assert to_view(wide, Camera(90.0)).pixels.shape == (81, 81, 3)  # 256 pixels are 2π
    assert to_cube(CubeImages(to_cube(wide).cube, 95.0)).cube["up"].shape == (64, 64, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_levels_keep_their_depth(dtype: type) -> None:
    full = int(np.iinfo(dtype).max)
    coded = ((panorama(128) + 1) / 2 * full).round().astype(dtype)
    expected = (panorama(128) + 1) / 2 * full
    faces = to_cube(PanoramaImage(coded), 90.0, 128)
    assert faces.cube["front"].dtype == dtype
    back = to_panorama(faces, 128).pixels
    assert back.dtype == dtype
    # 16 bits in 8 would differ by 128 levels of 65535
    assert np.abs(back - expected)[20:-20].mean() < (0.6 if dtype == np.uint8 else 40)


def test_transparent_pixels_stay_transparent_and_their_colours_do_not_bleed() -> None:
    pixels = np.zeros((64, 128, 4), np.uint8)
    pixels[:, :64] = (200, 40, 40, 255)
    pixels[:, 64:] = (0, 255, 0, 0)  # green that nobody may see
    front = to_cube(PanoramaImage(pixels), 90.0, 32).cube["front"]
    assert (front[:, :14, 3] == 255).all()
    assert (front[:, 18:, 3] == 0).all()
    visible = front[front[..., 3] > 0]
    assert (np.abs(visible[:, :3].astype(int) - (200, 40, 40)) <= 2).all()


def test_radiance_beside_a_lamp_does_not_become_negative() -> None:
    radiance = np.full((64, 128, 3), 0.01, np.float32)
    radiance[32, 60] = 10_000
    for face in to_cube(PanoramaImage(radiance), 90.0, 64).cube.values():
        assert face.dtype == np.float32
        assert face.min() >= 0.0099


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Camera(0.0), "field of view of 0°"),
        (lambda: Camera(60.0, float("nan")), "a yaw of nan"),
        (lambda: to_panorama(SOURCES["panorama"], 64), "is not scaled to 64: omit the height"),
        (lambda: to_view(ViewImage(view(8, 8), CAMERA), CAMERA), "convert it to a panorama first"),
        (lambda: to_cube(SOURCES["panorama"], 90.0, 40_000), "a face size of 40000 pixels: expected 1 to 32768"),
        (lambda: to_panorama(ViewImage(view(400, 8), Camera(1.0))), "a height of .* pass a smaller one"),
    ],
)
def test_invalid_values_are_refused(call, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
