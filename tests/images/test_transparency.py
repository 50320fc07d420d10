"""Transparent pixels: a panorama with any is refused, and in a photo they are marked; 8 and 16 bits, alpha or key."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_files import png, tiff
from support.pictures import picture

from cubediff.images.levels import fill_transparent
from cubediff.images.panorama_jpeg import load_panorama
from cubediff.images.reading import read_image
from cubediff.utils.errors import DataError

LEVELS = np.asarray(picture())


def with_alpha(levels: np.ndarray, transparent: bool) -> np.ndarray:
    alpha = np.full(levels.shape[:2], np.iinfo(levels.dtype).max, levels.dtype)
    alpha[3, 5] = 0 if transparent else alpha[3, 5]
    return np.dstack([levels, alpha])


def transparency(levels: np.ndarray, transparent: bool, factor: int) -> dict[bytes, bytes]:
    """A chunk that makes the colour of one pixel transparent, or a colour that no pixel has."""
    key = np.atleast_1d(levels[3, 5]) if transparent else np.atleast_1d(levels[3, 5]) * 0 + 3 * factor
    return {b"tRNS": struct.pack(f">{len(key)}H", *map(int, key))}


def write(kind: str, path: Path, transparent: bool) -> Path:
    """Writes the picture in one way to store transparency, in colours or in grey with one pixel that stands out."""
    grey = LEVELS[..., 0].clip(10, 250).copy()
    grey[3, 5] = 255
    colours = LEVELS.clip(10, 250).copy()
    colours[3, 5] = 255, 0, 255
    pixels = {
        "rgba": colours,
        "rgba 16": colours.astype(np.uint16) * 257,
        "grey alpha": grey,
        "grey alpha 16": grey.astype(np.uint16) * 257,
        "key": colours,
        "key 16": colours.astype(np.uint16) * 257,
        "grey key": grey,
        "grey key 16": grey.astype(np.uint16) * 257,
        "tiff": colours,
        "tiff 16": colours.astype(np.uint16) * 257,
    }.get(kind)
    if kind == "palette":
        image = Image.fromarray(colours).quantize(64)
        image.save(path, transparency=image.getpixel((5, 3)) if transparent else None)
        return path
    if kind == "webp":
        Image.fromarray(with_alpha(colours, transparent)).save(path, "WEBP", lossless=True)
        return path
    assert pixels is not None
    if kind.startswith("tiff"):
        return tiff(path, with_alpha(pixels, transparent))
    if "key" in kind:
        return png(path, pixels, transparency(pixels, transparent, 257 if "16" in kind else 1))
    return png(path, with_alpha(pixels, transparent))


KINDS = (
    *("rgba", "rgba 16", "grey alpha", "grey alpha 16", "key", "key 16", "grey key", "grey key 16"),
    *("palette", "webp", "tiff", "tiff 16"),
)
SUFFIXES = {"webp": ".webp", "tiff": ".tif", "tiff 16": ".tif"}


@pytest.mark.parametrize("kind", KINDS)
def test_transparency_is_found_however_it_is_stored(tmp_path: Path, kind: str) -> None:
    suffix = SUFFIXES.get(kind, ".png")
    clear, opaque = write(kind, tmp_path / f"a{suffix}", True), write(kind, tmp_path / f"b{suffix}", False)
    with pytest.raises(DataError, match=r"of its pixels are transparent: not the whole sphere; fill them"):
        load_panorama(clear)
    assert load_panorama(opaque).width == 64
    photo = read_image(clear)
    assert photo.mode == "RGBA"
    marked = np.asarray(photo)[..., 3] == 0
    assert marked[3, 5]
    assert kind == "palette" or marked.sum() == 1
    assert read_image(opaque).mode == "RGB"


def test_an_upright_photo_has_its_transparency_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(with_alpha(LEVELS, True)).save(tmp_path / "a.png", exif=exif)
    assert np.argwhere(np.asarray(read_image(tmp_path / "a.png"))[..., 3] == 0).tolist() == [[5, 32 - 1 - 3]]


def test_transparent_pixels_take_the_colour_of_the_nearest_opaque_one() -> None:
    opaque = np.zeros((32, 64), bool)
    opaque[:, 20:30] = True
    filled = fill_transparent(LEVELS, opaque)
    np.testing.assert_array_equal(filled[:, 20:30], LEVELS[:, 20:30])
    np.testing.assert_array_equal(filled[:, :20], np.repeat(LEVELS[:, 20:21], 20, 1))
    np.testing.assert_array_equal(filled[:, 30:], np.repeat(LEVELS[:, 29:30], 34, 1))
    with pytest.raises(DataError, match="only transparent pixels"):
        fill_transparent(LEVELS, ~opaque & opaque)
