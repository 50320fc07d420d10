"""Every image format is decoded to the same pixels, and other files are refused with the reason."""

import struct
import threading
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile
from support.pictures import picture, shown

from cubediff.images.decoding import without_pillow_limits
from cubediff.images.panorama_jpeg import load_panorama
from cubediff.utils.errors import DataError


@pytest.mark.parametrize(
    ("suffix", "options", "kept"),
    [
        (".jpg", {}, True),
        (".JPG", {}, True),
        (".jpg", {"progressive": True}, False),
        (".jpg", {"mode": "L"}, False),
        (".jpg", {"mode": "CMYK"}, False),
        (".png", {}, False),
        (".png", {"mode": "RGBA"}, False),
        (".png", {"mode": "LA"}, False),
        (".png", {"mode": "P"}, False),
        (".png", {"mode": "I;16"}, False),
        (".tif", {"mode": "I;16"}, False),
        (".webp", {"lossless": True}, False),
        (".tif", {}, False),
        (".tiff", {"mode": "CMYK"}, False),
    ],
)
def test_every_image_format_is_decoded_to_the_same_picture(
    tmp_path: Path, suffix: str, options: dict, kept: bool
) -> None:
    options = dict(options)
    mode = options.pop("mode", "RGB")
    image = picture()
    grey = mode in ("L", "LA", "I;16")
    expected = np.asarray(image.convert("L").convert("RGB") if grey else image, np.float64)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode == "P":
        image = image.quantize(256)
    else:
        image = image.convert(mode)
    file = tmp_path / f"a{suffix}"
    image.save(file, **options)
    result = load_panorama(file)
    assert result.original == (file if kept else None)
    assert (result.jpeg == file.read_bytes()) == kept
    assert (result.width, result.height, result.record) == (64, 32, {})
    assert np.abs(shown(result.jpeg) - expected).mean() < (8 if mode in ("CMYK", "P") else 3)


def test_sixteen_bit_colour_keeps_its_colours(tmp_path: Path) -> None:
    colours = np.asarray(picture())
    for name in ("a.png", "a.tif"):
        assert cv2.imwrite(str(tmp_path / name), colours[..., ::-1].astype(np.uint16) * 257)
        assert np.abs(shown(load_panorama(tmp_path / name).jpeg) - colours).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_with_an_exif_orientation_is_read_upright(tmp_path: Path, orientation: int) -> None:
    """The stored image is the upright one under the inverse of the EXIF orientation; half of them are stored 1:2."""
    upright = picture()
    turn = Image.Transpose
    stored = {
        1: [],
        2: [turn.FLIP_LEFT_RIGHT],
        3: [turn.ROTATE_180],
        4: [turn.FLIP_TOP_BOTTOM],
        5: [turn.TRANSPOSE],
        6: [turn.ROTATE_90],
        7: [turn.TRANSVERSE],
        8: [turn.ROTATE_270],
    }[orientation]
    image = upright
    for step in stored:
        image = image.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    result = load_panorama(tmp_path / "a.jpg")
    assert (result.original is None) == (orientation != 1)
    assert np.abs(shown(result.jpeg) - np.asarray(upright, np.float64)).mean() < 3


def test_a_foreign_colour_profile_is_converted_and_srgb_is_left_alone(tmp_path: Path) -> None:
    upright = picture()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    upright.save(tmp_path / "srgb.jpg", icc_profile=srgb)
    assert load_panorama(tmp_path / "srgb.jpg").original == tmp_path / "srgb.jpg"
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    assert swapped != srgb
    upright.save(tmp_path / "swap.jpg", icc_profile=swapped, quality=95, subsampling=0)
    result = load_panorama(tmp_path / "swap.jpg")
    assert result.original is None
    assert np.abs(shown(result.jpeg) - np.asarray(upright, np.float64)[..., [1, 0, 2]]).mean() < 3


def test_the_first_image_of_an_mpo_is_read_and_animations_are_refused(tmp_path: Path) -> None:
    first, second = picture(0), picture(1)
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], quality=95, subsampling=0)
    assert np.abs(shown(load_panorama(tmp_path / "a.jpg").jpeg) - np.asarray(first, np.float64)).mean() < 3
    for name in ("a.png", "a.webp", "a.tif"):
        picture(0).save(tmp_path / name, save_all=True, append_images=[picture(1)])
        with pytest.raises(DataError, match="2 frames"):
            load_panorama(tmp_path / name)


def test_transparent_pixels_are_refused(tmp_path: Path) -> None:
    image = picture().convert("RGBA")
    image.putpixel((3, 4), (1, 2, 3, 0))
    image.save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"0\.05% of its pixels are transparent"):
        load_panorama(tmp_path / "a.png")


def test_the_size_is_read_before_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that promises 60000 x 30000 pixels is refused without decoding anything."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 30000, 8, 2, 0, 0, 0)
    checked = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + checked + struct.pack(">I", 9) + b"IDAT")
    (tmp_path / "bomb.hdr").write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 60000\n")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(cv2, "imread", lambda *_: pytest.fail("decoded"))
    for name in ("bomb.png", "bomb.hdr"):
        with pytest.raises(DataError, match="60000x30000 is too large"):
            load_panorama(tmp_path / name)


def test_images_above_pillows_pixel_limit_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # 64 x 32 is 4 times as much, above which Pillow refuses
    picture().save(tmp_path / "a.jpg")
    assert load_panorama(tmp_path / "a.jpg").width == 64
    assert Image.MAX_IMAGE_PIXELS == 500


def test_pillows_settings_are_restored_when_the_last_thread_leaves() -> None:
    limit, filters, log_level = Image.MAX_IMAGE_PIXELS, list(warnings.filters), cv2.utils.logging.getLogLevel()
    assert log_level != cv2.utils.logging.LOG_LEVEL_SILENT
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with without_pillow_limits():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with without_pillow_limits():
        thread.start()
        assert inside.wait(10)
    assert Image.MAX_IMAGE_PIXELS is None  # the other one still reads
    assert cv2.utils.logging.getLogLevel() == cv2.utils.logging.LOG_LEVEL_SILENT
    leave.set()
    thread.join()
    assert limit == Image.MAX_IMAGE_PIXELS
    assert warnings.filters == filters
    assert cv2.utils.logging.getLogLevel() == log_level


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    for name, words in (("no.jpg", "No such file"), ("a.jpg", "Is a directory"), ("a.gif", r"\.gif is not supported")):
        (tmp_path / "a.gif").write_bytes(b"GIF89a")
        with pytest.raises(DataError, match=words):
            load_panorama(tmp_path / name)
