"""Panoramas to edit: their levels come without loss, and the pixels to repaint are the ones a user means."""

from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from support.image_files import DISPLAY_P3, gpano, icc, png, tiff
from support.pictures import picture

from cubediff.images.canvas import open_canvas, open_mask
from cubediff.utils.errors import DataError

WHITE_BELOW = np.arange(32)[:, None].repeat(64, 1) >= 24  # the lower quarter of a 64 × 32 panorama


def levels(dtype: type = np.uint8, channels: int = 3) -> np.ndarray:
    """Random levels (32, 64, channels)."""
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (32, 64, channels), dtype, endpoint=True)


def mask_file(path: Path, white: np.ndarray = WHITE_BELOW) -> Path:
    PIL.Image.fromarray(white).save(path)
    return path


# ---------------------------------------------------------------------------------------------------- levels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_a_file_keeps_its_levels_in_their_depth(tmp_path: Path, kind: str, dtype: type) -> None:
    stored = levels(dtype)
    path = png(tmp_path / "a.png", stored) if kind == "png" else tiff(tmp_path / "a.tif", stored)
    canvas = open_canvas(path, WHITE_BELOW)
    assert canvas.pixels.dtype == dtype
    np.testing.assert_array_equal(canvas.pixels, stored)
    np.testing.assert_array_equal(canvas.kept, ~WHITE_BELOW)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp", "gif"])
def test_other_files_have_the_levels_that_pillow_decodes(tmp_path: Path, suffix: str) -> None:
    picture().save(tmp_path / f"a.{suffix}")
    with PIL.Image.open(tmp_path / f"a.{suffix}") as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(open_canvas(tmp_path / f"a.{suffix}", WHITE_BELOW).pixels, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_levels_become_equal_channels(tmp_path: Path, dtype: type) -> None:
    grey = levels(dtype, 1)
    canvas = open_canvas(png(tmp_path / "a.png", grey[..., 0]), WHITE_BELOW)
    assert canvas.pixels.dtype == dtype
    np.testing.assert_array_equal(canvas.pixels, grey.repeat(3, -1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_profile_is_kept_with_the_levels_as_they_are(tmp_path: Path, dtype: type) -> None:
    PIL.Image.fromarray(levels()).save(tmp_path / "a.png", icc_profile=icc(DISPLAY_P3))
    if dtype is np.uint16:
        tiff(tmp_path / "a.tif", levels(dtype), tags={34675: icc(DISPLAY_P3)})
    canvas = open_canvas(tmp_path / ("a.png" if dtype is np.uint8 else "a.tif"), WHITE_BELOW)
    np.testing.assert_array_equal(canvas.pixels, levels(dtype))
    assert canvas.profile == icc(DISPLAY_P3)
    red = np.zeros((32, 64, 3), dtype)
    red[..., 0] = np.iinfo(dtype).max
    # Display P3's red is out of sRGB's gamut, and sRGB's red is (0.918, 0.200, 0.138) in Display P3.
    back = canvas.from_srgb(2 * np.float32(red / np.iinfo(dtype).max) - 1)
    np.testing.assert_allclose(back[0, 0] / 2 + 0.5, (0.918, 0.200, 0.138), atol=0.03)
    np.testing.assert_allclose(canvas.to_srgb(back)[0, 0], (1, -1, -1), atol=0.03)


def test_pillow_images_and_arrays_keep_their_levels() -> None:
    for given in (levels(), levels(np.uint16), PIL.Image.fromarray(levels())):
        np.testing.assert_array_equal(open_canvas(given, WHITE_BELOW).pixels, np.asarray(given))
    floats = np.random.default_rng(0).random((32, 64, 3), np.float32)
    canvas = open_canvas(floats, WHITE_BELOW)
    np.testing.assert_array_equal(canvas.pixels, floats)
    np.testing.assert_allclose(canvas.scaled(), 2 * floats - 1, atol=1e-6)


def test_a_file_is_read_upright(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # rotated by 180°
    PIL.Image.fromarray(levels()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(open_canvas(tmp_path / "a.png", WHITE_BELOW).pixels, levels()[::-1, ::-1])


def test_what_would_lose_levels_is_refused(tmp_path: Path) -> None:
    with (
        PIL.Image.open(png(tmp_path / "a.png", levels(np.uint16))) as image,
        pytest.raises(ValueError, match="16 bits a channel, of which a PIL image keeps 8: pass its path"),
    ):
        open_canvas(image, WHITE_BELOW)
    tiff(tmp_path / "a.tif", levels().astype(np.float32))
    (tmp_path / "a.hdr").write_bytes(b"#?RADIANCE\n")
    for name in ("a.tif", "a.hdr"):
        with pytest.raises(DataError, match="floating-point radiance: save it with 8 or 16 bits"):
            open_canvas(tmp_path / name, WHITE_BELOW)
    picture().save(tmp_path / "a.avif")
    open_canvas(tmp_path / "a.avif", WHITE_BELOW)
    content = bytearray((tmp_path / "a.avif").read_bytes())
    content[content.index(b"av1C") + 6] |= 0x40  # its headers say 10 bits
    (tmp_path / "deep.avif").write_bytes(content.replace(b"\3\x08\x08\x08", b"\3\x0a\x0a\x0a", 1))
    with pytest.raises(DataError, match="more than 8 bits a channel in an AVIF, of which Pillow reads 8"):
        open_canvas(tmp_path / "deep.avif", WHITE_BELOW)
    linear = png(tmp_path / "linear.png", levels(), {b"gAMA": (100000).to_bytes(4, "big")})
    with pytest.raises(DataError, match="a gAMA or cHRM chunk of another colour space than sRGB: save it as sRGB"):
        open_canvas(linear, WHITE_BELOW)
    with pytest.raises(ValueError, match="array of int64: expected uint8, uint16, or float"):
        open_canvas(levels().astype(np.int64), WHITE_BELOW)
    with pytest.raises(ValueError, match=r"has values from 0 to 255: scale it to \[0.0, 1.0\]"):
        open_canvas(levels().astype(np.float32), WHITE_BELOW)


# --------------------------------------------------------------------------------- what is repainted, and where


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparent_pixels_are_repainted(tmp_path: Path, dtype: type) -> None:
    stored = levels(dtype, 4)
    stored[..., 3] = np.where(WHITE_BELOW, np.iinfo(dtype).max // 2, np.iinfo(dtype).max)
    for given in (png(tmp_path / "a.png", stored), stored):
        canvas = open_canvas(given, None)
        np.testing.assert_array_equal(canvas.kept, ~WHITE_BELOW)
        np.testing.assert_array_equal(canvas.pixels[canvas.kept], stored[..., :3][~WHITE_BELOW])
        np.testing.assert_array_equal(open_canvas(given, WHITE_BELOW[::-1]).kept, ~WHITE_BELOW & ~WHITE_BELOW[::-1])


CROP = {
    "FullPanoWidthPixels": 128,
    "FullPanoHeightPixels": 64,
    "CroppedAreaImageWidthPixels": 64,
    "CroppedAreaImageHeightPixels": 32,
    "CroppedAreaLeftPixels": 40,
    "CroppedAreaTopPixels": 20,
}


@pytest.mark.parametrize("scale", [1, 2, 0.5])
def test_the_missing_part_of_a_tagged_crop_is_repainted(tmp_path: Path, scale: float) -> None:
    tags = {name: round(value / scale) for name, value in CROP.items()}  # of the file before it was scaled
    picture().save(tmp_path / "a.jpg", xmp=gpano(tags))
    with PIL.Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(image)
        of_image = open_canvas(image, None)
    canvas = open_canvas(tmp_path / "a.jpg", None)
    kept = np.zeros((64, 128), bool)
    kept[20:52, 40:104] = True
    for each in (canvas, of_image):
        np.testing.assert_array_equal(each.kept, kept)
        np.testing.assert_array_equal(each.pixels[20:52, 40:104], expected)
    masked = open_canvas(tmp_path / "a.jpg", WHITE_BELOW)
    np.testing.assert_array_equal(masked.kept[20:52, 40:104], ~WHITE_BELOW)


def test_a_crop_may_have_any_shape_and_touch_the_borders(tmp_path: Path) -> None:
    tags = CROP | {"CroppedAreaImageWidthPixels": 101, "CroppedAreaLeftPixels": 27, "CroppedAreaTopPixels": 32}
    png(tmp_path / "a.png", np.asarray(picture(width=101)), {b"iTXt": b"XML:com.adobe.xmp\0\0\0\0\0" + gpano(tags)})
    canvas = open_canvas(tmp_path / "a.png", None)
    assert canvas.kept.shape == (64, 128)
    assert canvas.kept[32:, 27:].all()
    assert canvas.kept.sum() == 101 * 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"CroppedAreaLeftPixels": 65}, "contradict"),
        ({"CroppedAreaTopPixels": 40}, "contradict"),
        ({"FullPanoHeightPixels": 100}, "contradict"),
        ({"CroppedAreaImageHeightPixels": 16}, "contradict each other or its 64x32 pixels"),
        ({"ProjectionType": "cylindrical"}, "ProjectionType is 'cylindrical'"),
    ],
)
def test_tags_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    picture().save(tmp_path / "a.jpg", xmp=gpano(CROP | change))
    with pytest.raises(DataError, match=words):
        open_canvas(tmp_path / "a.jpg", None)


def test_a_picture_that_is_not_2_to_1_needs_tags(tmp_path: Path) -> None:
    picture(width=65).save(tmp_path / "a.png")
    for given in (tmp_path / "a.png", np.zeros((32, 65, 3), np.uint8), picture(width=65)):
        with pytest.raises(DataError, match="65x32 is not 2:1: expected the full sphere, or GPano tags"):
            open_canvas(given, np.zeros((32, 65), bool))


# ------------------------------------------------------------------------------------------------------ masks


def test_white_is_at_least_half_of_the_maximum(tmp_path: Path) -> None:
    size = (4, 1)
    for mask in (
        np.array([[0, 127, 128, 255]], np.uint8),
        np.array([[0, 32767, 32768, 65535]], np.uint16),
        np.array([[0, 0.49, 0.5, 1]]),
        np.array([[False, False, True, True]]),
        np.array([[[0], [127], [128], [255]]], np.uint8),
        np.array([[[0], [127], [128], [255]]], np.uint8).repeat(3, -1),
    ):
        assert open_mask(mask, size).tolist() == [[False, False, True, True]]
    grey = PIL.Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8))
    deep = PIL.Image.fromarray(np.array([[0, 32767, 32768, 65535]], np.uint16))
    for number, image in enumerate((grey, grey.convert("RGB"), grey.convert("RGBA"), grey.convert("P"), deep)):
        image.save(tmp_path / f"{number}.png")
        for mask in (image, tmp_path / f"{number}.png", str(tmp_path / f"{number}.png")):
            assert open_mask(mask, size).tolist() == [[False, False, True, True]]
    assert open_mask(mask_file(tmp_path / "1bit.png"), (64, 32)).tolist() == WHITE_BELOW.tolist()


@pytest.mark.parametrize("quality", [50, 95])
def test_a_jpeg_mask_is_read_as_black_and_white(tmp_path: Path, quality: int) -> None:
    big = WHITE_BELOW.repeat(8, 0).repeat(8, 1)
    PIL.Image.fromarray(big).convert("RGB").save(tmp_path / "m.jpg", quality=quality)
    assert (open_mask(tmp_path / "m.jpg", (512, 256)) == big).all()


def test_masks_that_may_mean_anything_are_refused(tmp_path: Path) -> None:
    white = np.full((32, 64), 255, np.uint8)
    see_through = PIL.Image.fromarray(np.dstack([white, white, white, white // 2]))
    red = PIL.Image.new("RGB", (64, 32), "red")
    for mask, words in (
        (white[:, :60], "the mask has 60x32 pixels and the panorama 64x32: scale the mask"),
        (see_through, "the mask has transparent pixels: paint it white where to repaint"),
        (red, "the mask has colours"),
        (white // 255, "only the values 0 and 1 of 255: multiply it by 255, or pass bool"),
        (white.astype(int), "the mask is an array of int64: expected bool"),
        (white.astype(float), r"the mask has values from 255 to 255: scale it to \[0.0, 1.0\]"),
        (np.full((32, 64), np.nan), "the mask has values from nan"),
        (np.zeros((32, 64, 3), bool), r"shape \(32, 64, 3\): expected \(H, W\)"),
        (np.asarray(red), "the mask has colours"),
    ):
        with pytest.raises(ValueError, match=words):
            open_canvas(levels(), mask)
    (tmp_path / "m.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="unreadable"):
        open_canvas(levels(), tmp_path / "m.png")


def test_nothing_to_repaint_and_nothing_to_keep_are_errors() -> None:
    black = np.zeros((32, 64), bool)
    with pytest.raises(ValueError, match="nothing to repaint: the mask is black everywhere"):
        open_canvas(levels(), black)
    with pytest.raises(ValueError, match="nothing to repaint: no mask is given"):
        open_canvas(levels(), None)
    with pytest.raises(ValueError, match="nothing to keep: the mask is white everywhere"):
        open_canvas(levels(), ~black)
    half = np.dstack([levels(), np.where(WHITE_BELOW, 0, 255).astype(np.uint8)])
    with pytest.raises(ValueError, match="nothing to keep: all other pixels are transparent"):
        open_canvas(half, ~WHITE_BELOW)


def test_pixels_to_repaint_take_no_part_in_the_condition() -> None:
    changed = levels()
    changed[WHITE_BELOW] = 255 - changed[WHITE_BELOW]
    before, after = (open_canvas(given, WHITE_BELOW).condition() for given in (levels(), changed))
    np.testing.assert_array_equal(before, after)
    np.testing.assert_allclose(before[~WHITE_BELOW], levels()[~WHITE_BELOW] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(before[24:], before[23:24].repeat(8, 0))  # the nearest kept colour


def test_png_levels_agree_with_another_decoder(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", levels(np.uint16))
    expected = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., ::-1]
    np.testing.assert_array_equal(open_canvas(path, WHITE_BELOW).pixels, expected)
