"""Pictures in the bit depth of their file: levels of 8 or 16 bits, or linear radiance in floating point."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import PIL.Image
from jaxtyping import Bool, Float32, Shaped, UInt8, UInt16
from PIL import UnidentifiedImageError

from cubediff.images.colour import decode_srgb
from cubediff.images.decoding import decoding
from cubediff.images.exr import encode_exr
from cubediff.images.gpano import check_full_sphere
from cubediff.images.levels import decode_stored
from cubediff.images.png import without_damaged_metadata
from cubediff.images.reading import PHOTO_FORMATS, SizeCheck, check_frames, decode, xmp_packet
from cubediff.images.writing import encode_png
from cubediff.utils.errors import DataError
from cubediff.utils.files import open_regular, write_atomic

Pixels = UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"] | Float32[np.ndarray, "h w c"]

RADIANCE_SUFFIXES: Final = (".exr", ".hdr")
LEVEL_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
TIFF_SUFFIXES: Final = (".tif", ".tiff")  # for both
WRITTEN_SUFFIXES: Final = (*LEVEL_SUFFIXES, *TIFF_SUFFIXES, *RADIANCE_SUFFIXES)
_WITH_ALPHA = (".png", ".webp", ".exr", *TIFF_SUFFIXES)
_LZW = 5  # of TIFF
_QUALITY = 95


@dataclass(frozen=True)
class Picture:
    """An upright picture.

    Attributes:
        pixels: RGB levels (uint8, uint16) or linear radiance with sRGB's primaries (float32); with four channels, the
            last is alpha.
        profile: The ICC profile of the levels; None for sRGB.
        notes: What the file holds that was ignored.
    """

    pixels: Pixels
    profile: bytes | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_radiance(self) -> bool:
        """Whether the pixels are radiance."""
        return self.pixels.dtype == np.float32


def read_picture(path: Path, check: SizeCheck, *, sphere: bool = False, as_srgb: bool = False) -> Picture:
    """Reads an image file in its own bit depth.

    Args:
        path: The file, with one of `IMAGE_SUFFIXES`.
        check: Called with the width and height; raises DataError.
        sphere: Reject images whose GPano tags do not describe a full equirectangular sphere.
        as_srgb: Read levels of any depth and colour space as 8-bit sRGB.

    Returns:
        The picture, with alpha if some of its pixels are transparent.

    Raises:
        DataError: If the file cannot be read, has several frames, or `check` raises it.
        OSError: If the machine fails to read it.
    """
    with decoding(), open_regular(path) as file:
        if as_srgb or path.suffix.lower() in RADIANCE_SUFFIXES:
            decoded = decode(file, path.name, check, sphere)
            return Picture(_with_alpha(decoded.pixels, decoded.opaque), None, decoded.notes)
        data, damage = without_damaged_metadata(file.read())
        try:
            opened = PIL.Image.open(io.BytesIO(data), formats=PHOTO_FORMATS)
        except UnidentifiedImageError:
            opened = None
        if opened is None or opened.mode == "F":  # TIFF in floating point, or no image
            decoded = decode(io.BytesIO(data), path.name, check, sphere)
            return Picture(_with_alpha(decoded.pixels, decoded.opaque), None, damage + decoded.notes)
        with opened:
            check(*opened.size)
            check_frames(opened)
            stored = decode_stored(opened, data)
            height, width = stored.levels.shape[:2]
            if sphere:
                check_full_sphere(xmp_packet(opened), width, height)
        check(width, height)
        return Picture(_with_alpha(stored.levels, stored.opaque), stored.profile, damage + stored.notes)


def _with_alpha(pixels: Shaped[np.ndarray, "h w 3"], opaque: Bool[np.ndarray, "h w"] | None) -> Pixels:
    if opaque is None or opaque.all():
        return pixels
    return np.concatenate(
        [pixels, opaque[..., None].astype(pixels.dtype) * pixels.dtype.type(full_value(pixels.dtype))], 2
    )


def full_value(dtype: np.dtype) -> int:
    """White, or full alpha, of a dtype of pixels."""
    return 1 if dtype == np.float32 else int(np.iinfo(dtype).max)


def check_writable(suffix: str, picture: Picture) -> None:
    """Checks that a format can hold a picture.

    Raises:
        DataError: If it is no format to write, or the picture is radiance or has an ICC profile that it cannot hold.
    """
    if suffix not in WRITTEN_SUFFIXES:
        name = suffix or "a file without suffix"
        raise DataError(f"{name} cannot be written: use {', '.join(WRITTEN_SUFFIXES)}")
    if picture.is_radiance and suffix in LEVEL_SUFFIXES:
        raise DataError(
            f"{suffix} holds levels, and the input is radiance: write .exr, .hdr or .tif, or pass --tone-map"
        )
    if picture.profile is not None and suffix not in LEVEL_SUFFIXES:
        raise DataError(
            f"{suffix} is written without an ICC profile, and the input has one: convert it to sRGB, or write .png"
        )


def encode_picture(picture: Picture, suffix: str, xmp: str = "") -> bytes:
    """Encodes a picture.

    PNG keeps 8 and 16 bits, and TIFF floating point, too; OpenEXR and Radiance hold levels as linear radiance, Radiance
    values below 0 as 0; JPEG and WebP have 8 bits and quality 95. Formats without alpha (JPEG, Radiance) show
    transparent pixels in black.

    Args:
        picture: The picture.
        suffix: One of WRITTEN_SUFFIXES.
        xmp: An XMP packet for PNG, JPEG and WebP; empty for none.

    Raises:
        DataError: As `check_writable`; or the package OpenEXR is missing.
    """
    check_writable(suffix, picture)
    pixels = picture.pixels
    if pixels.shape[2] == 4 and suffix not in _WITH_ALPHA:
        shown = pixels[..., 3:] / np.float32(full_value(pixels.dtype))
        pixels = to_pixels(pixels[..., :3] * shown, pixels.dtype)
    if suffix == ".png":
        return encode_png(pixels, picture.profile, xmp)
    if suffix in TIFF_SUFFIXES:
        return _encode(".tif", pixels, cv2.IMWRITE_TIFF_COMPRESSION, _LZW)  # the default is lossy for radiance
    if suffix in RADIANCE_SUFFIXES:
        radiance = pixels if picture.is_radiance else _as_radiance(pixels)
        # Radiance has no sign: OpenCV would write garbage for a pixel with a channel below 0.
        return encode_exr(radiance) if suffix == ".exr" else _encode(".hdr", np.maximum(radiance, 0))
    levels = pixels if pixels.dtype == np.uint8 else to_pixels(pixels / np.float32(257), np.dtype(np.uint8))
    buffer = io.BytesIO()
    options = {"icc_profile": picture.profile} if picture.profile is not None else {}
    options |= {"xmp": xmp.encode()} if xmp else {}
    image = PIL.Image.fromarray(levels)
    if suffix == ".webp":
        image.save(buffer, "WEBP", quality=_QUALITY, **options)
    else:
        image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0, **options)
    return buffer.getvalue()


def write_picture(path: Path, picture: Picture, xmp: str = "") -> Path:
    """Writes a picture in the format of the file's suffix; see `encode_picture`. Returns `path`."""
    write_atomic(path, encode_picture(picture, path.suffix.lower(), xmp))
    return path


def to_pixels(values: Float32[np.ndarray, "h w c"], dtype: np.dtype) -> Pixels:
    """Values in the range of a dtype of pixels as that dtype: levels are rounded and clamped."""
    if dtype == np.float32:
        return values
    levels: Pixels = np.rint(values).clip(0, np.iinfo(dtype).max).astype(dtype)
    return levels


def _as_radiance(levels: UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h w c"]:
    values = levels / np.float32(np.iinfo(levels.dtype).max)
    values[..., :3] = decode_srgb(values[..., :3])
    return values.astype(np.float32)


def _encode(suffix: str, pixels: Pixels, *options: int) -> bytes:
    """Encodes by OpenCV, which takes blue first."""
    _, data = cv2.imencode(suffix, np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]), options)
    return bytes(data.tobytes())
