"""Photos of any format become upright 8-bit sRGB images with their camera's EXIF tags."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps
from support.image_files import exr, tiff
from support.pictures import SAMPLES, picture

from cubediff.images.reading import read_image
from cubediff.utils.errors import DataError

FOCAL_LENGTH_35MM = 0xA405


def tags(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[FOCAL_LENGTH_35MM] = 28
    return exif


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", "RGB", {}),
        ("a.jpg", "L", {}),
        ("a.jpg", "CMYK", {}),
        ("no suffix", "RGB", {"format": "PNG"}),
        ("a.png", "RGBA", {}),
        ("a.png", "LA", {}),
        ("a.png", "P", {}),
        ("a.png", "1", {}),
        ("a.png", "RGB", {"transparency": (0, 0, 0)}),
        ("a.webp", "RGBA", {"lossless": True}),
        ("a.tif", "RGB", {}),
        ("a.bmp", "RGB", {}),
        ("a.gif", "RGB", {"save_all": True, "append_images": [picture(1)]}),
    ],
)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_ordinary_photo_keeps_the_pixels_that_pillow_reads(
    tmp_path: Path, name: str, mode: str, options: dict, orientation: int
) -> None:
    photo = picture().convert(mode)
    if photo.has_transparency_data:
        photo.putalpha(photo.convert("L"))
    if not name.endswith((".bmp", ".gif")):
        options = options | {"exif": tags(orientation)}
    photo.save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as opened:
        expected = ImageOps.exif_transpose(opened)
    image = read_image(tmp_path / name)
    if expected.has_transparency_data and np.asarray(expected.convert("RGBA"))[..., 3].min() < 255:
        rgba = np.asarray(expected.convert("RGBA"))
        assert image.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(image)[..., 3] == 255, rgba[..., 3] == 255)
    else:
        assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[..., :3], np.asarray(expected.convert("RGB")))
    assert dict(image.getexif().get_ifd(0x8769)) == dict(expected.getexif().get_ifd(0x8769))


def test_a_rotated_photo_keeps_its_focal_length(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", exif=tags(6))
    image = read_image(tmp_path / "a.jpg")
    assert image.size == (32, 64)
    assert image.getexif().get_ifd(0x8769)[FOCAL_LENGTH_35MM] == 28
    assert 0x0112 not in image.getexif()


def test_the_samples_are_read_unchanged() -> None:
    for path in sorted(SAMPLES.glob("*.jpg"))[:5]:
        np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(Image.open(path)))


def test_a_foreign_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    """The profile swaps red and green."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    picture().save(tmp_path / "a.png", icc_profile=swapped)
    image = read_image(tmp_path / "a.png")
    levels = np.asarray(picture(), np.float64)
    assert np.abs(np.asarray(image, np.float64) - levels[..., [1, 0, 2]]).mean() < 3
    assert np.abs(np.asarray(image, np.float64) - levels).mean() > 20
    assert "icc_profile" not in image.info


def test_unreadable_photos_are_refused_with_the_reason(tmp_path: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tif")
    tiff(tmp_path / "colours.tif", np.ones((8, 8, 3), np.float32))
    (tmp_path / "sky.hdr").write_bytes(b"#?RADIANCE\n")
    exr(tmp_path / "sky.exr", {"Y": np.ones((8, 8))})
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "text.tif").write_bytes(b"II*\0no image")
    picture().save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:700])
    for name, reason in {
        "float.tif": "floating-point radiance: save it with 8 or 16 bits a channel",
        "colours.tif": "floating-point radiance: save it with 8 or 16 bits a channel",
        "sky.hdr": "floating-point radiance: save it with 8 or 16 bits a channel",
        "sky.exr": "radiance: save it with 8 or 16 bits a channel, a panorama by cubediff convert --tone-map",
        "empty.jpg": "unreadable: the file is empty: copy or save it again",
        "text.tif": r"^(unreadable|truncated): ",
        "text.jpg": "unreadable: not an image of a known kind",
        "cut.jpg": "truncated: image file is truncated",
        "missing.jpg": "unreadable: No such file or directory",
        ".": "unreadable: Is a directory",
    }.items():
        with pytest.raises(DataError, match=reason):
            read_image(tmp_path / name)


def test_more_pixels_than_the_limit_are_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture().save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=2048).size == (64, 32)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match="64x32 is more than 2047 pixels: shrink it"):
        read_image(tmp_path / "a.png", max_pixels=2047)
