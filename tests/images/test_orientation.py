"""The EXIF orientation counts in every format, and damaged EXIF blocks are ignored with a note."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_files import exif_block, icc, png, tiff
from support.pictures import picture, shown

from cubediff.images.panorama_jpeg import load_panorama
from cubediff.images.reading import read_image, read_size

# What was done to the upright image to store it, for each orientation (EXIF 2.3, tag 0x0112).
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: np.swapaxes(x, 0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.swapaxes(x[::-1, ::-1], 0, 1),
    8: lambda x: np.rot90(x, -1),
}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def save(path: Path, upright: np.ndarray, orientation: int) -> None:
    stored = np.ascontiguousarray(STORED[orientation](upright))
    tags = exif(orientation)
    if path.suffix == ".tif":
        profile = {34675: icc(gamma=1.0)} if path.stem == "linear16" else {}
        tiff(path, stored, orientation, profile)
    elif path.stem == "linear16":
        png(path, stored, {b"eXIf": tags.tobytes()[6:], b"iCCP": b"x\0\0" + zlib.compress(icc(gamma=1.0))})
    elif path.stem == "behind":
        png(path, stored, after={b"eXIf": tags.tobytes()[6:]})
    else:
        options = {"lossless": True} if path.suffix == ".webp" else {"quality": 100, "subsampling": "4:4:4"}
        Image.fromarray(stored).save(path, exif=tags, **options)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "a.png",
        "behind.png",
        "a.webp",
        "a.avif",
        "a.tif",
        "sixteen.tif",
        "linear16.tif",
        "linear16.png",
        "float.tif",
    ],
)
def test_images_are_read_upright_in_every_format(tmp_path: Path, name: str, orientation: int) -> None:
    upright = np.asarray(picture())
    upright = upright.astype(np.uint16) * 257 if name.startswith(("sixteen", "linear16")) else upright
    upright = (upright / 255).astype(np.float32) if name == "float.tif" else upright
    (tmp_path / "reference").mkdir()
    save(tmp_path / "reference" / name, upright, 1)
    reference = shown(load_panorama(tmp_path / "reference" / name).jpeg)
    save(tmp_path / name, upright, orientation)
    assert np.abs(shown(load_panorama(tmp_path / name).jpeg) - reference).mean() < 2
    assert read_size(tmp_path / name) == ((32, 64) if name == "behind.png" and orientation > 4 else (64, 32))


DAMAGED = {
    "no TIFF header": b"Exif\0\0garbage",
    "zeros": bytes(40),
    "directory outside": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "endless directory": b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01" + b"\xff" * 40,
    "orientation 9": exif_block(0x0112, 3, struct.pack("<H", 9)),
    "orientation 0": exif_block(0x0112, 3, struct.pack("<H", 0)),
    "orientation in letters": exif_block(0x0112, 2, b"six\0"),
    "camera tags outside": exif_block(0x8769, 4, struct.pack("<I", 0xFFFFFFF0)),
    "camera tags in letters": exif_block(0x8769, 2, b"abc\0"),
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_damaged_exif_blocks_are_ignored(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {"quality": 100, "subsampling": "4:4:4"}
    picture().save(path, exif=DAMAGED[kind], **options)
    image = read_image(path)
    assert np.abs(np.asarray(image, np.float64) - np.asarray(picture())).mean() < 2
    assert image.getexif().get_ifd(0x8769) == {}
    result = load_panorama(path)
    assert (result.original is not None) == (suffix == ".jpg")
    if kind in ("orientation 9", "orientation in letters"):
        assert "expected 1 to 8: taken as upright" in result.record["notes"][0]
    if kind in ("no TIFF header", "zeros") and suffix != ".jpg":
        assert result.record["notes"] == ["its EXIF block is damaged: ignored, taken as upright"]


def test_a_png_whose_exif_chunk_has_a_wrong_checksum_is_read(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", np.asarray(picture()), {b"eXIf": exif(6).tobytes()[6:]})
    data = path.read_bytes()
    end = data.index(b"IDAT") - 5
    path.write_bytes(data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :])
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(picture()))
    assert load_panorama(path).record["notes"] == ["its EXIF block is damaged: ignored"]
    assert read_size(path) == (64, 32)
