"""Equirectangular image files as panoramas: checked, and converted to baseline sRGB JPEG if necessary."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from cubediff.images import hdr
from cubediff.images.decoding import decoding
from cubediff.images.levels import DecodedImage
from cubediff.images.limits import MAX_WIDTH, MIN_WIDTH, QUALITY
from cubediff.images.reading import decode
from cubediff.images.writing import encode_jpeg
from cubediff.utils.errors import DataError
from cubediff.utils.files import open_regular


@dataclass(frozen=True)
class PanoramaJpeg:
    """A checked panorama as a baseline sRGB JPEG, twice as wide as high.

    Attributes:
        jpeg: The bytes of the JPEG.
        width: Width in pixels.
        height: Height in pixels.
        original: The file with exactly these bytes; None if they were encoded.
        record: How the image was converted (tone map, cubemap scheme), and under "notes" what was ignored in its file,
            as values of JSON.
    """

    jpeg: bytes
    width: int
    height: int
    original: Path | None = None
    record: dict[str, object] = field(default_factory=dict)


def load_panorama(path: Path, max_width: int = MAX_WIDTH, quality: int = QUALITY) -> PanoramaJpeg:
    """Reads and checks an equirectangular image file.

    A baseline sRGB JPEG keeps its bytes. Other images are encoded without chroma subsampling; radiance is tone-mapped.

    Args:
        path: The file, with one of `IMAGE_SUFFIXES`.
        max_width: Maximum width, in pixels.
        quality: JPEG quality if the image is encoded, from 1 to 100.

    Raises:
        DataError: If it is not a usable panorama; the message is the reason.
        OSError: If the machine fails to read it.
    """
    with decoding():
        with open_regular(path) as file:
            image = decode(file, path.name, lambda width, height: check_panorama(width, height, max_width), sphere=True)
        return as_panorama(image, quality, original=path)


def as_panorama(image: DecodedImage, quality: int, original: Path | None = None) -> PanoramaJpeg:
    """A panorama of a decoded equirectangular image.

    Args:
        image: The image.
        quality: JPEG quality if it is encoded, from 1 to 100.
        original: The file of the image; None if it is part of another file.

    Raises:
        DataError: If pixels are transparent, not finite, or all of one colour.
    """
    height, width, _ = image.pixels.shape
    check_opaque(image.opaque)
    notes: dict[str, object] = {"notes": list(image.notes)} if image.notes else {}
    if image.jpeg is not None:
        check_varied(image.pixels)
        return PanoramaJpeg(image.jpeg, width, height, original, notes)
    jpeg, record = encode_panorama(image.pixels, quality)
    return PanoramaJpeg(jpeg, width, height, None, record | notes)


def encode_panorama(
    pixels: UInt8[np.ndarray, "h w 3"] | Float[np.ndarray, "h w 3"], quality: int
) -> tuple[bytes, dict[str, object]]:
    """Encodes an equirectangular image as JPEG.

    Args:
        pixels: sRGB levels (uint8), or linear radiance (floating point), which is tone-mapped.
        quality: JPEG quality, from 1 to 100.

    Returns:
        The JPEG, and the record of the tone map under "tone_map" if there was one.

    Raises:
        DataError: If radiance is not finite or dark everywhere, or all pixels have one colour.
    """
    record: dict[str, object] = {}
    if pixels.dtype != np.uint8:
        pixels, record["tone_map"] = hdr.tone_map(pixels)
    check_varied(pixels)
    return encode_jpeg(pixels, quality), record


def check_panorama(width: int, height: int, max_width: int) -> None:
    """Checks the size of a full sphere, in pixels.

    Raises:
        DataError: If it is not 2:1, wider than `max_width` or narrower than `MIN_WIDTH`.
    """
    if width > max_width or height > max_width:
        raise DataError(f"{width}x{height} is too large: shrink it, or raise --max-width {max_width}")
    if width != 2 * height:
        near = max(1, round(width / 2))
        raise DataError(f"{width}x{height} is not 2:1: a full sphere {width} wide is {near} high; pad or crop it")
    if width < MIN_WIDTH:
        raise DataError(f"{width}x{height} is too small: at least {MIN_WIDTH}x{MIN_WIDTH // 2}")


def check_opaque(opaque: Bool[np.ndarray, "h w"] | None) -> None:
    """Raises DataError if a pixel is transparent."""
    if opaque is not None and not opaque.all():
        raise DataError(f"{1 - opaque.mean():.2%} of its pixels are transparent: not the whole sphere; fill them")


def check_varied(pixels: UInt8[np.ndarray, "h w 3"]) -> None:
    """Raises DataError if all pixels have one colour, up to the noise of JPEG."""
    if np.ptp(pixels, axis=(0, 1)).max() <= 2:
        raise DataError(f"all one colour {tuple(pixels[0, 0].tolist())}: not a photograph")
