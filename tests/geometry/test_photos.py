"""Photos as conditions: each is projected to its direction at any size and field of view, and continued around."""

import io
import math
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import ImageCms
from support.image_files import DISPLAY_P3, icc
from torch import Tensor

from cubediff.geometry import (
    equirect_to_cube,
    equirect_to_perspective,
    face_directions,
    perspective_to_cube,
    rotation_matrix,
)
from cubediff.geometry.photos import Photo, exif_fov, project_photos
from cubediff.images.exif import EXIF_IFD, FOCAL_LENGTH_35MM
from cubediff.pipelines.prompts import photos_by_panorama

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
ANGLE = st.floats(-180, 180)
PITCH = st.floats(-90, 90)


def direction_panorama(height: int) -> Tensor:
    """A panorama whose colours are the directions of its pixels."""
    yaw = ((torch.arange(2 * height, dtype=torch.float64) + 0.5) / (2 * height) - 0.5) * 2 * math.pi
    pitch = (0.5 - (torch.arange(height, dtype=torch.float64) + 0.5) / height)[:, None] * math.pi
    colours = torch.stack(torch.broadcast_tensors(pitch.cos() * yaw.sin(), pitch.sin(), pitch.cos() * yaw.cos()))
    return colours[None].float()


def panorama_of(name: str) -> Tensor:
    pixels = cv2.imread(str(SAMPLES / f"{name}.jpg"))[..., ::-1].copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


def inside(size: int, photo: Photo, margin: float) -> Tensor:
    """Whether each face pixel's direction lies in the photo by more than `margin` of its half width (6, 1, S, S);
    float64, from the conventions."""
    rows, columns = photo.image.shape[1:]
    turn = rotation_matrix(*(torch.tensor(a, dtype=torch.float64) for a in (photo.yaw, photo.pitch, photo.roll)))
    x, y, z = (face_directions(size, 95.0, torch.float64) @ turn).unbind(-1)
    tan = math.tan(math.radians(photo.fov) / 2)
    reach = torch.maximum(x.abs() / z, y.abs() / z * columns / rows) / tan
    return ((z > 0) & (reach <= 1 - margin))[:, None]


@settings(max_examples=25, deadline=None)
@given(st.floats(20, 150), ANGLE, PITCH, ANGLE, st.sampled_from([(96, 96), (60, 120), (120, 60)]))
def test_a_photo_is_projected_to_its_direction(fov, yaw, pitch, roll, size):
    assume((fov, yaw, pitch, roll) != (95.0, 0, 0, 0))  # a front face, which the next tests are about
    picture = equirect_to_perspective(direction_panorama(128), size, fov, yaw, pitch, roll)[0]
    photo = Photo(picture, fov, yaw, pitch, roll)
    faces, covered = (one[0] for one in project_photos([[photo]], 48, 95.0))
    assert inside(48, photo, 1e-3)[~covered].sum() == 0
    assert inside(48, photo, -1e-3)[covered].all()
    well_inside = inside(48, photo, 0.05).expand_as(faces)
    expected = face_directions(48, 95.0).movedim(-1, 1)
    step = 2 * math.tan(math.radians(fov) / 2) / min(size)  # what a photo's pixel sees, at its centre
    assert ((faces - expected).abs()[well_inside] < 0.02 + step**2).all()


@pytest.mark.parametrize("name", ["courtyard", "hotel_room"])
@pytest.mark.parametrize("view", [(60, 0, 0, 0), (75, 35, 20, 10), (100, -150, -30, -5), (65, 10, 80, 0)])
def test_a_photo_rendered_from_a_panorama_projects_to_the_panoramas_faces(name, view):
    panorama = panorama_of(name)
    fov, *turn = (float(angle) for angle in view)
    picture = equirect_to_perspective(panorama, (480, 640), fov, *turn, mode="bicubic")[0].clamp(-1, 1)
    faces, covered = project_photos([[Photo(picture, fov, *turn)]], 128, 95.0)
    expected = equirect_to_cube(panorama, 128, mode="bicubic").clamp(-1, 1)
    error = (faces - expected).square()[covered.expand_as(faces)].mean()
    assert 10 * torch.log10(4 / error) > 38  # dB


def test_a_picture_with_a_faces_size_and_fov_becomes_exactly_the_front_face():
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for photo in (Photo(picture), Photo(picture, 95.0)):
        faces, covered = project_photos([[photo]], 64, 95.0)
        assert torch.equal(faces[0, 0], picture)
        assert covered[0, 0].all()
        assert not covered[0, 1:].any()


def test_without_a_fov_the_central_square_fills_the_front_face():
    wide = torch.rand(3, 64, 100, generator=torch.Generator().manual_seed(0)) * 2 - 1
    faces, _ = project_photos([[Photo(wide)]], 64, 95.0)
    assert torch.equal(faces[0, 0], wide[:, :, 18:82])
    rotated, where = project_photos([[Photo(wide, yaw=90.0)]], 64, 95.0)
    square, there = project_photos([[Photo(wide[:, :, 18:82], 95.0, yaw=90.0)]], 64, 95.0)
    assert torch.equal(rotated, square)
    assert torch.equal(where, there)
    assert where[0, 1].float().mean() > 0.99
    assert not where[0, 3].any()


@pytest.mark.parametrize(("size", "focal", "expected"), [((4000, 3000), 26, 67.3), ((3000, 4000), 26, 53.1)])
def test_exif_focal_length_gives_the_field_of_view(tmp_path, size, focal, expected):
    """A main camera of "26 mm" has 79.5° along the diagonal, as its makers state; 4:3."""
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = focal
    PIL.Image.new("RGB", (size[0] // 50, size[1] // 50)).save(tmp_path / "p.jpg", exif=exif)
    with PIL.Image.open(tmp_path / "p.jpg") as opened:
        fov = exif_fov(opened)
        assert fov == pytest.approx(expected, abs=0.1)
        by_exif = project_photos([[Photo(opened)]], 32, 95.0)
        explicit = project_photos([[Photo(opened, fov)]], 32, 95.0)
    assert torch.equal(by_exif[1], explicit[1])
    assert 0 < by_exif[1][0, 0].float().mean() < 0.7
    wide, high = (math.tan(math.radians(a) / 2) for a in (67.3, 53.1))
    assert 2 * math.degrees(math.atan(math.hypot(wide, high))) == pytest.approx(79.5, abs=0.2)


def test_without_exif_the_field_of_view_is_none():
    assert exif_fov(PIL.Image.new("RGB", (4, 3))) is None
    assert exif_fov(torch.zeros(3, 4, 4)) is None
    unknown = PIL.Image.new("RGB", (4, 3))
    unknown.getexif().get_ifd(0x8769)[0xA405] = 0  # "unknown" in EXIF
    assert exif_fov(unknown) is None


def test_each_pixel_shows_the_photo_with_the_nearest_centre():
    red, blue = (torch.tensor(c)[:, None, None].expand(3, 40, 40) for c in ([1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]))
    photos = [Photo(red, 90.0, yaw=-30.0), Photo(blue, 90.0, yaw=30.0)]
    faces, covered = (one[0] for one in project_photos([photos], 64, 95.0))
    alone = [project_photos([[photo]], 64, 95.0)[1][0] for photo in photos]
    assert torch.equal(covered, alone[0] | alone[1])
    x = face_directions(64, 95.0)[..., 0]
    assert torch.equal(faces[:, 0] > 0, x < 0)  # they overlap around the middle, which divides them
    either = alone[0] ^ alone[1]
    assert either.any()
    other = project_photos([photos[::-1]], 64, 95.0)
    assert torch.equal(other[1][0], covered)
    assert torch.equal(other[0][0], faces)


def test_faces_continue_without_a_jump_outside_a_photo():
    panorama = panorama_of("courtyard")
    picture = equirect_to_perspective(panorama, 96, 70.0, 20.0, -10.0, mode="bicubic")[0].clamp(-1, 1)
    faces, covered = (one[0] for one in project_photos([[Photo(picture, 70.0, 20.0, -10.0)]], 96, 95.0))
    real = equirect_to_cube(panorama, 96, mode="bicubic")[0]
    jumps = max((faces.diff(dim=d).abs().amax()) for d in (2, 3))
    assert jumps < 1.1 * max(real.diff(dim=d).abs().amax() for d in (2, 3))
    assert faces[~covered.expand_as(faces)].std() > 0.5 * faces[covered.expand_as(faces)].std()


def test_a_batch_with_different_cameras_equals_single_projections():
    pictures = torch.rand(3, 3, 14, 20, generator=torch.Generator().manual_seed(0))
    views = [80.0, 90.0, 120.0], [0.0, 90.0, -100.0], [5.0, -30.0, 80.0], [0.0, 10.0, -70.0]
    fov, yaw, pitch, roll = (torch.tensor(angles) for angles in views)  # none is finer than the faces
    faces, covered = perspective_to_cube(pictures, 24, 95.0, fov, yaw, pitch, roll)
    for i in range(3):
        turn = [float(a[i]) for a in (fov, yaw, pitch, roll)]
        one, where = perspective_to_cube(pictures[i : i + 1], 24, 95.0, *turn)
        assert torch.equal(where[0], covered[i])
        torch.testing.assert_close(one[0], faces[i], rtol=0, atol=1e-4)


def test_uint8_pictures_stay_uint8_and_are_antialiased():
    fine = (torch.arange(800)[:, None] + torch.arange(800)) % 2 * 255  # a chessboard of single pixels
    picture = fine.to(torch.uint8).expand(1, 3, -1, -1)
    faces, covered = perspective_to_cube(picture, 32, 95.0, 80.0)
    assert faces.dtype == torch.uint8
    inside = faces[:, 0, :, 6:-6, 6:-6].float()
    assert (inside - 127.5).abs().max() < 8
    assert covered.dtype == torch.bool


@pytest.mark.parametrize("fov", [0.0, 180.0, -20.0])
def test_an_invalid_field_of_view_raises(fov):
    with pytest.raises(ValueError, match=f"fov is {fov}°"):
        perspective_to_cube(torch.zeros(1, 3, 4, 4), 8, 95.0, fov)


def test_gradients_and_batches():
    pictures = torch.rand(2, 3, 16, 24, requires_grad=True)
    faces, _ = project_photos([[Photo(pictures[0], 60.0)], [Photo(pictures[1], 80.0, 40.0)]], 16, 95.0)
    assert faces.shape == (2, 6, 3, 16, 16)
    faces.sum().backward()
    assert (pictures.grad.flatten(1).abs().sum(1) > 0).all()


def test_images_in_every_form_become_photos_by_panorama():
    pil, tensor = PIL.Image.new("RGB", (4, 4)), torch.zeros(3, 4, 4)
    assert [len(own) for own in photos_by_panorama(pil)] == [1]
    assert [len(own) for own in photos_by_panorama(tensor)] == [1]
    assert [len(own) for own in photos_by_panorama(torch.zeros(5, 3, 4, 4))] == [1] * 5
    assert [len(own) for own in photos_by_panorama([pil, tensor, pil])] == [1, 1, 1]
    assert [len(own) for own in photos_by_panorama([Photo(pil), Photo(tensor, 60.0)])] == [2]
    assert [len(own) for own in photos_by_panorama([[pil], (tensor, pil), [Photo(pil)]])] == [1, 2, 1]
    assert [len(own) for own in photos_by_panorama([[pil, Photo(tensor, 60.0)]])] == [2]


def test_files_and_arrays_become_the_photos_that_images_and_tensors_do(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    PIL.Image.fromarray(levels).save(tmp_path / "photo.png")
    expected = torch.from_numpy(levels).permute(2, 0, 1) / 127.5 - 1
    ((from_levels,),) = photos_by_panorama(levels)
    torch.testing.assert_close(from_levels.image, expected)
    ((from_floats,),) = photos_by_panorama(levels.astype(np.float64) / 255)
    torch.testing.assert_close(from_floats.image, expected)
    assert [len(own) for own in photos_by_panorama(np.stack([levels] * 3))] == [1] * 3
    for file in (tmp_path / "photo.png", str(tmp_path / "photo.png"), Photo(tmp_path / "photo.png", yaw=30.0)):
        ((from_file,),) = photos_by_panorama(file)
        assert np.array_equal(np.asarray(from_file.image), levels)
    faces = [project_photos([[Photo(each, 60.0)]], 8, 95.0)[0] for each in (tmp_path / "photo.png", levels, expected)]
    assert (faces[0] - faces[1]).abs().max() < 1e-6
    assert torch.equal(faces[1], faces[2])
    assert [len(own) for own in photos_by_panorama([str(tmp_path / "photo.png"), levels])] == [1, 1]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            [Photo(PIL.Image.new("RGB", (4, 4))), PIL.Image.new("RGB", (4, 4))],
            r"a list of Photo, Image: pass image=\[a",
        ),
        (
            [[PIL.Image.new("RGB", (4, 4))], PIL.Image.new("RGB", (4, 4))],
            r"a list of list, Image: .* image=\[\[a, b\]\]",
        ),
        ({"front": PIL.Image.new("RGB", (4, 4))}, r"image is a dict: pass image=\[a, b\] for two"),
        ([[None]], "image is a NoneType"),
        ([[PIL.Image.new("RGB", (4, 4))], []], "image has an empty list for a panorama"),
        ("no such.jpg", "image='no such.jpg': not a readable image"),
        (np.zeros((3, 4, 4)), r"an array \(3, 4, 4\) of float64: expected \(H, W, 3\)"),
        (np.zeros((4, 4, 3), np.int64), r"of int64: expected \(H, W, 3\)"),
        (np.full((4, 4, 3), 255.0), r"values from 255 to 255: scale it to \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), "values from nan to nan"),
    ],
)
def test_images_in_another_form_raise(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        photos_by_panorama(image)


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        ({"fov": 0.0}, "a photo's fov is 0.0°: it lies between 0° and 180°"),
        ({"fov": 180.0}, "a photo's fov is 180.0°"),
        ({"fov": float("nan")}, "a photo's fov is nan°"),
        ({"yaw": float("inf")}, "yaw, pitch and roll are inf, 0.0, 0.0: expected finite degrees"),
    ],
)
def test_invalid_angles_raise(photo, message):
    with pytest.raises(ValueError, match=message):
        Photo(PIL.Image.fromarray(np.zeros((4, 4, 3), np.uint8)), **photo)


@pytest.mark.parametrize("camera", [{}, {"fov": 60.0}, {"fov": 80.0, "yaw": 30.0, "pitch": -20.0, "roll": 10.0}])
def test_transparent_pixels_of_a_photo_cover_nothing(camera: dict) -> None:
    """Left of the middle the photo is transparent; there it does not matter which colours the file has."""
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[:, :32] = 0
    other = levels.copy()
    other[:, :32] = 0, 255, 0
    projected = [
        project_photos([[Photo(PIL.Image.fromarray(np.dstack([pixels, alpha])), **camera)]], 64, 95.0)
        for pixels in (levels, other)
    ]
    assert all(torch.equal(*pair) for pair in zip(*projected, strict=True))
    whole = project_photos([[Photo(PIL.Image.fromarray(levels), **camera)]], 64, 95.0)[1]
    covered = projected[0][1]
    assert not (covered & ~whole).any()
    assert 0.35 < covered.sum() / whole.sum() < 0.65  # faces show equal angles at different sizes


def test_semi_transparent_pixels_cover_nothing_and_opaque_alpha_changes_nothing() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    plain = project_photos([[Photo(PIL.Image.fromarray(levels))]], 64, 95.0)
    opaque = PIL.Image.fromarray(np.dstack([levels, np.full((64, 64), 255, np.uint8)]))
    assert all(torch.equal(*pair) for pair in zip(plain, project_photos([[Photo(opaque)]], 64, 95.0), strict=True))
    half = np.full((64, 64), 255, np.uint8)
    half[:32] = 254
    covered = project_photos([[Photo(PIL.Image.fromarray(np.dstack([levels, half])))]], 64, 95.0)[1]
    assert not covered[0, 0, 0, :32].any()
    assert covered[0, 0, 0, 33:].all()


def test_a_photo_without_an_opaque_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="image has only transparent pixels: expected a photo"):
        project_photos([[Photo(PIL.Image.new("RGBA", (32, 32)))]], 32, 95.0)


def test_the_profile_of_a_pil_image_counts() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image = PIL.Image.fromarray(levels)
    image.info["icc_profile"] = icc(DISPLAY_P3)
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(icc(DISPLAY_P3))), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(PIL.Image.fromarray(levels), source, target)
    faces, expected = (project_photos([[Photo(one)]], 64, 95.0)[0] for one in (image, converted))
    np.testing.assert_allclose(faces[0, 0], expected[0, 0], atol=1 / 127.5)


@pytest.mark.parametrize("focal", [0, (28, 0), "far", (1, 2, 3)])
def test_odd_focal_lengths_of_exif_data_are_ignored(focal: object) -> None:
    image = PIL.Image.new("RGB", (64, 48))
    image.getexif().get_ifd(EXIF_IFD)[FOCAL_LENGTH_35MM] = focal
    assert exif_fov(image) is None
