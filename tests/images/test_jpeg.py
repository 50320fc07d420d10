"""JPEGs of samples at reduced sizes: which size is decoded, and how close it is to the full size."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cubediff.images import jpeg as jpeg_files
from cubediff.images.jpeg import decode_jpeg, jpeg_size

SAMPLES = sorted((Path(__file__).parents[2] / "data" / "samples").glob("*.jpg"))
HEIGHTS = (256, 128, 64, 32)


def averaged(image: np.ndarray, height: int) -> np.ndarray:
    """The area average of an image with `height` rows, in float64."""
    size = (image.shape[1] * height // image.shape[0], height)
    return cv2.resize(image.astype(np.float64), size, interpolation=cv2.INTER_AREA)


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(difference**2)))


def encoded(size: tuple[int, int] = (256, 128), mode: str = "RGB", **options: object) -> bytes:
    """A smooth picture as a JPEG."""
    columns, rows = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    pixels = np.stack([255 * columns, 255 * rows, 128 + 100 * np.sin(9 * columns * rows)], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "min_height", "expected"),
    [
        ((512, 256), None, (512, 256)),
        ((512, 256), 256, (512, 256)),
        ((512, 256), 129, (512, 256)),
        ((512, 256), 128, (256, 128)),
        ((512, 256), 65, (256, 128)),
        ((512, 256), 64, (128, 64)),
        ((512, 256), 32, (64, 32)),
        ((512, 256), 1, (64, 32)),  # the smallest that libjpeg computes
        ((512, 256), 300, (512, 256)),
        ((510, 255), 16, (510, 255)),  # half of it would not be 2:1
        ((508, 254), 16, (254, 127)),
        ((127, 64), 16, (127, 64)),
    ],
)
def test_the_smallest_size_that_has_the_rows_and_divides_the_image_is_decoded(
    size: tuple[int, int], min_height: int | None, expected: tuple[int, int]
) -> None:
    content = encoded(size)
    assert jpeg_size(content) == size
    assert decode_jpeg(content, min_height).shape == (expected[1], expected[0], 3)


@pytest.mark.parametrize("subsampling", [0, 2], ids=["4:4:4", "4:2:0"])
@pytest.mark.parametrize("file", SAMPLES, ids=lambda file: file.stem)
def test_a_reduced_size_is_nearly_as_close_to_the_original_as_the_average_of_the_full_size(
    file: Path, subsampling: int
) -> None:
    """The original is the decoded sample; it is encoded again."""
    original = decode_jpeg(file.read_bytes())
    buffer = io.BytesIO()
    Image.fromarray(original).save(buffer, "JPEG", quality=95, subsampling=subsampling)
    full = decode_jpeg(buffer.getvalue())
    for height in (original.shape[0] // divisor for divisor in (2, 4, 8)):
        reduced = decode_jpeg(buffer.getvalue(), height)
        assert reduced.shape == (height, 2 * height, 3)
        exact, average = averaged(original, height), np.round(averaged(full, height))
        assert rms(reduced - exact) < rms(average - exact) + 0.3
        assert rms(reduced - average) < 2
        assert np.abs((reduced - average).mean((0, 1))).max() < 0.5  # no shift of the colours


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_every_mode_has_the_colours_of_the_full_size(mode: str, options: dict[str, object]) -> None:
    content = encoded(mode=mode, **options)
    full = decode_jpeg(content)
    assert np.ptp(full) > 100
    for height in (64, 32, 16):
        reduced = decode_jpeg(content, height)
        assert reduced.shape == (height, 2 * height, 3)
        assert np.abs(reduced - averaged(full, height)).max() < 4


def test_a_reduced_size_ignores_the_orientation_as_the_full_size_does() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90°
    for min_height in (None, 64):
        assert (decode_jpeg(encoded(exif=exif), min_height) == decode_jpeg(encoded(), min_height)).all()


def outcome(content: bytes, min_height: int | None) -> str:
    try:
        return f"{decode_jpeg(content, min_height).ndim} dimensions"
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_damage_has_the_same_outcome_at_every_size(options: dict[str, object]) -> None:
    content = encoded(**options)
    damaged = [content[:end] for end in range(0, len(content), 41)]
    damaged += [content[:start] + b"\xff\xd9\x00" * 9 + content[start + 27 :] for start in range(0, len(content), 97)]
    outcomes = [outcome(each, None) for each in damaged]
    assert len({*outcomes}) > 2
    for min_height in (64, 32, 16):
        assert [outcome(each, min_height) for each in damaged] == outcomes


def test_an_image_of_another_size_than_its_header_says_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_files, "jpeg_size", lambda content: (128, 64))
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_jpeg(encoded((64, 32)))
