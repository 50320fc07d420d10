"""Decodes image files to upright sRGB levels or linear radiance: one set of rules for panoramas and photos."""

import io
import logging
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from cubediff.images import exif, hdr
from cubediff.images.decoding import EMPTY, decoding
from cubediff.images.exr import EXR_MAGIC, exr_size, read_exr
from cubediff.images.gpano import check_full_sphere
from cubediff.images.levels import DecodedImage, decode_levels
from cubediff.images.png import SIGNATURE, without_damaged_metadata
from cubediff.images.tiff import TIFF_MAGIC, decode_tiff, read_tiff_header
from cubediff.utils.errors import DataError
from cubediff.utils.files import open_regular

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".hdr", ".exr")
MAX_PHOTO_PIXELS = 1 << 28  # sensors have up to 200 million; 800 MB as 8-bit RGB

# Other decoders of Pillow start programs (EPS) or are rarely tested.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF")
PHOTO_FORMATS = (*_FORMATS, "BMP", "GIF")
_TIFF = (".tif", ".tiff")
_RADIANCE = "floating-point radiance: save it with 8 or 16 bits a channel, a panorama by cubediff convert --tone-map"

OpenFile = io.BufferedReader | io.BytesIO
SizeCheck = Callable[[int, int], None]  # of width and height in pixels; raises DataError

log = logging.getLogger(__name__)


class _Header(NamedTuple):
    """Upright size in pixels, and XMP packet. A PNG may have its orientation behind its pixels."""

    width: int
    height: int
    xmp: bytes = b""
    may_be_sideways: bool = False


def read_image(path: Path, max_pixels: int = MAX_PHOTO_PIXELS) -> Image.Image:
    """Reads a photo as an upright 8-bit sRGB image; mode RGBA if some of its pixels are transparent, else RGB.

    The file may have any suffix. The EXIF tags of its camera are kept. Of several frames, the first is read. What is
    ignored in the file, such as a damaged colour profile, is logged as a warning.

    Raises:
        DataError, OSError: As `read_photo`.
    """
    image, notes = read_photo(path, max_pixels)
    for note in notes:
        log.warning("%s: %s", path, note)
    return image


def read_photo(path: Path, max_pixels: int = MAX_PHOTO_PIXELS) -> tuple[Image.Image, tuple[str, ...]]:
    """Reads a photo as `read_image` does, and returns notes on what was ignored in the file instead of logging them.

    Raises:
        DataError: If the file is not a readable JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF file, has more than
            `max_pixels`, or radiance in place of levels.
        OSError: If the machine fails to read it.
    """
    with decoding(), open_regular(path) as file:
        data, damage = without_damaged_metadata(file.read())
        with open_levels(data) as opened:
            if opened.width * opened.height > max_pixels:
                raise DataError(f"{opened.width}x{opened.height} is more than {max_pixels} pixels: shrink it")
            decoded = decode_levels(opened, data)
            tags, tags_note = exif.camera_tags(opened)
    if decoded.pixels.dtype != np.uint8:
        raise DataError(_RADIANCE)
    image = Image.fromarray(decoded.pixels)
    if decoded.opaque is not None and not decoded.opaque.all():
        image.putalpha(Image.fromarray(decoded.opaque.astype(np.uint8) * 255))
    if tags:
        image.info["exif"] = tags
    notes = (*damage, *decoded.notes)
    return image, notes if tags_note is None or notes else (tags_note,)


def open_levels(data: bytes) -> ImageFile.ImageFile:
    """Opens a JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF file by Pillow, without decoding its pixels.

    Args:
        data: The content of the file.

    Raises:
        DataError: If it is empty, or holds radiance.
        UnidentifiedImageError: If it is of another format.
    """
    if not data:
        raise DataError(EMPTY)
    try:
        return Image.open(io.BytesIO(data), formats=PHOTO_FORMATS)
    except UnidentifiedImageError:
        is_float_tiff = data.startswith(TIFF_MAGIC) and read_tiff_header(io.BytesIO(data)).is_float
        if is_float_tiff or data.startswith((EXR_MAGIC, *hdr.RADIANCE_MAGIC)):
            raise DataError(_RADIANCE) from None
        raise


def decode(file: OpenFile, name: str, check: SizeCheck, sphere: bool = False) -> DecodedImage:
    """Decodes an open file of one of `IMAGE_SUFFIXES`; call it inside `decoding`.

    Args:
        file: The file, or its content; HDR formats need a file on disk.
        name: Its name; the suffix selects the decoder of .hdr and .exr.
        check: Called with the size in the header before pixels are decoded, and with the upright size afterwards.
        sphere: Reject images whose GPano tags do not describe a full equirectangular sphere.

    Raises:
        DataError: If the suffix is unknown, the image has several frames or 32-bit integers, or `check` raises it.
        Exception: Any error of a decoder; `decoding` turns it into a DataError.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise DataError(f"{suffix or 'a file without suffix'} is not supported: use {', '.join(IMAGE_SUFFIXES)}")
    path = Path(file.name) if isinstance(file, io.BufferedReader) else None
    if suffix == ".exr" and path:
        return DecodedImage(*read_exr(path, check))
    file, damage = _without_damage(file)
    header = _read_header(file, suffix)
    if sphere:
        check_full_sphere(header.xmp, header.width, header.height)
    _check_header(header, check)
    if suffix == ".hdr" and path:
        decoded = DecodedImage(hdr.read_radiance(path))
    else:
        file.seek(0)
        data = file.read()
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError:
            if suffix not in _TIFF:
                raise
            decoded = _decode_float_tiff(data)  # Pillow does not read colour TIFF in floating point
        else:
            with image:
                check_frames(image)
                decoded = decode_levels(image, data)
                height, width, _ = decoded.pixels.shape
                if sphere:  # a PNG may have its tags behind its pixels
                    check_full_sphere(xmp_packet(image), width, height)
    check(decoded.pixels.shape[1], decoded.pixels.shape[0])
    return decoded._replace(notes=damage + decoded.notes)


def read_size(path: Path) -> tuple[int, int]:
    """Upright width and height of an image file by its header, in pixels.

    Raises:
        DataError: If the header cannot be read.
    """
    header = _header_of(path)
    return header.width, header.height


def check_not_cropped(path: Path) -> None:
    """Checks that the header of an image file has no GPano tags of a part of a sphere, as `check_full_sphere`.

    Raises:
        DataError: If it has, or it cannot be read.
    """
    header = _header_of(path)
    check_full_sphere(header.xmp, header.width, header.height)


def _header_of(path: Path) -> _Header:
    with decoding():
        if path.suffix.lower() == ".exr":
            return _Header(*exr_size(path))
        with open_regular(path) as file:
            return _read_header(_without_damage(file)[0], path.suffix.lower())


def _without_damage(file: OpenFile) -> tuple[OpenFile, tuple[str, ...]]:
    """The file, or the content of a PNG without damaged metadata, and notes on what was removed."""
    start = file.read(len(SIGNATURE))
    file.seek(0)
    if not start:
        raise DataError(EMPTY)
    if start != SIGNATURE:
        return file, ()
    data, notes = without_damaged_metadata(file.read())
    return io.BytesIO(data), notes


def _read_header(file: OpenFile, suffix: str) -> _Header:
    if suffix == ".hdr":
        return _Header(*hdr.radiance_size(file))
    try:
        with Image.open(file, formats=_FORMATS) as image:
            # Without EXIF in front, Pillow would decode a PNG to look for EXIF after its pixels.
            if image.format == "PNG" and "exif" not in image.info:
                return _Header(*image.size, xmp_packet(image), may_be_sideways=True)
            # Pillow turns the size of a TIFF itself.
            is_sideways = image.format != "TIFF" and exif.orientation(image)[0] in (5, 6, 7, 8)
            return _Header(*(image.size[::-1] if is_sideways else image.size), xmp_packet(image))
    except UnidentifiedImageError:
        if suffix not in _TIFF:
            raise
    file.seek(0)
    width, height, turned, xmp, _ = read_tiff_header(file)
    return _Header(*((height, width) if turned in (5, 6, 7, 8) else (width, height)), xmp)


def _check_header(header: _Header, check: SizeCheck) -> None:
    try:
        check(header.width, header.height)
    except DataError:
        if not header.may_be_sideways:
            raise
        try:
            check(header.height, header.width)
        except DataError:
            pass
        else:
            return  # the upright size is checked when it is known
        raise


def check_frames(image: Image.Image) -> None:
    """Raises DataError for an animation, or a file of several pages."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # the other frames of an MPO are previews and gain maps of the first
        raise DataError(f"{frames} frames: animations and pages are not supported, save one frame as a separate file")


def xmp_packet(image: Image.Image) -> bytes:
    """The XMP packet of an opened image; empty without one."""
    xmp: object = image.info.get("xmp")
    return xmp if isinstance(xmp, bytes) else xmp.encode() if isinstance(xmp, str) else b""


def _decode_float_tiff(data: bytes) -> DecodedImage:
    turned = read_tiff_header(io.BytesIO(data)).orientation
    pixels = decode_tiff(data)
    if pixels.dtype != np.float32 or pixels.ndim != 3:
        raise DataError(f"unreadable: {pixels.dtype} pixels in a layout that Pillow does not know; save it as PNG")
    pixels = exif.upright(pixels, turned)
    opaque = pixels[..., 3] >= 0.999 if pixels.shape[2] == 4 else None
    return DecodedImage(np.ascontiguousarray(pixels[..., :3]), opaque)
