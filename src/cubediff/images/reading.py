"""Decoding of image files: file formats, EXIF orientation, ICC profiles, alpha, bit depth.

Sizes are checked by the header before pixels are decoded, and every error is a DataError that states the cause."""

import errno
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

from cubediff.images import hdr
from cubediff.utils.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".hdr", ".exr")

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")  # other decoders of Pillow start programs (EPS) or are rarely tested
_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257

OpenFile = io.BufferedReader | io.BytesIO
SizeCheck = Callable[[int, int], None]  # of width and height in pixels; raises DataError


class DecodedImage(NamedTuple):
    """An upright image.

    Attributes:
        pixels: sRGB levels (uint8), or linear radiance (float32).
        opaque: Which pixels are opaque; None if the file has no alpha.
        jpeg: The bytes of the file if it is a baseline sRGB JPEG of exactly these pixels, else None.
    """

    pixels: UInt8[np.ndarray, "h w 3"] | Float[np.ndarray, "h w 3"]
    opaque: Bool[np.ndarray, "h w"] | None = None
    jpeg: bytes | None = None


def read_image(path: Path) -> Image.Image:
    """Reads any image file that Pillow knows as an upright 8-bit sRGB image (mode RGB); alpha is dropped.

    The EXIF tags are kept, without the orientation. Of several frames, the first is read.

    Raises:
        DataError: If the file is not a readable image, exceeds Pillow's limit of pixels, or has more than 8 bits a
            channel.
        OSError: If the machine fails to read it.
    """
    with _translated_errors(), path.open("rb") as file, Image.open(file) as opened:
        upright = ImageOps.exif_transpose(opened)
        if upright.mode[0] in "IF":  # Pillow's conversion would clip at 255
            raise DataError(f"mode {upright.mode!r}, more than 8 bits a channel: save it as 8-bit RGB")
        image = _to_srgb(_without_alpha(upright)[0], _foreign_profile(upright))
        image.info = {key: value for key, value in upright.info.items() if key != "icc_profile"}
    return image


def decode(file: OpenFile, name: str, check: SizeCheck) -> DecodedImage:
    """Decodes an open file of one of `IMAGE_SUFFIXES`; call it inside `decoding`.

    Args:
        file: The file, or its content; HDR formats need a file on disk.
        name: Its name; the suffix selects the decoder of .hdr and .exr.
        check: Called with the size in the header before pixels are decoded, and with the upright size afterwards.

    Raises:
        DataError: If the suffix is unknown, the image has several frames or 32-bit integers, or `check` raises it.
        Exception: Any error of a decoder; `decoding` turns it into a DataError.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise DataError(f"{suffix or 'a file without suffix'} is not supported: use {', '.join(IMAGE_SUFFIXES)}")
    path = Path(file.name) if isinstance(file, io.BufferedReader) else None
    if suffix == ".exr" and path:
        return DecodedImage(*hdr.read_exr(path, check))
    check(*_read_size(file, suffix))
    if suffix == ".hdr" and path:
        return _decode_radiance(path, check)
    file.seek(0)
    data = file.read()
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        if suffix not in (".tif", ".tiff") or path is None:
            raise
        return _decode_radiance(path, check)  # Pillow does not read colour TIFF in floating point
    with image:
        decoded = _decode_levels(image, data)
    check(decoded.pixels.shape[1], decoded.pixels.shape[0])
    return decoded


def read_size(path: Path) -> tuple[int, int]:
    """Upright width and height of an image file by its header, in pixels.

    Raises:
        DataError: If the header cannot be read.
    """
    with decoding():
        if path.suffix.lower() == ".exr":
            return hdr.exr_size(path)
        with path.open("rb") as file:
            return _read_size(file, path.suffix.lower())


@contextmanager
def decoding() -> Iterator[None]:
    """A context for decoders: Pillow's limits are off, and their exceptions become DataErrors with a reason.

    An OSError that is the machine's fault, not the file's, passes.
    """
    with _translated_errors(), without_pillow_limits():
        yield


# Errors of the machine, such as a full disk or lost network drive.
_MACHINE_ERRORS = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError("unreadable: not an image of a known kind") from error
    except Exception as error:  # decoders raise many types; one bad file must not end a build
        if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
            raise
        text = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0] or type(error).__name__
        kind = "truncated" if "truncated" in text.lower() else "unreadable"
        raise DataError(f"{kind}: {text}") from error


class _Limits:
    """Number of threads inside `without_pillow_limits`, and Pillow's settings before the first; they are global."""

    lock = threading.Lock()
    inside = 0
    pixels: int | None = None
    filters: warnings.catch_warnings | None = None


@contextmanager
def without_pillow_limits() -> Iterator[None]:
    """Lifts Pillow's limit of pixels and silences its warnings; the checks of this project apply instead.

    The context may be nested, and entered by several threads at once.
    """
    with _Limits.lock:
        if _Limits.inside == 0:
            _Limits.pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            _Limits.filters = warnings.catch_warnings()
            _Limits.filters.__enter__()
            warnings.filterwarnings("ignore", module="PIL")
        _Limits.inside += 1
    try:
        yield
    finally:
        with _Limits.lock:
            _Limits.inside -= 1
            if _Limits.inside == 0 and _Limits.filters is not None:
                _Limits.filters.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = _Limits.pixels


def _decode_radiance(path: Path, check: SizeCheck) -> DecodedImage:
    radiance = hdr.read_radiance(path)
    check(radiance.shape[1], radiance.shape[0])
    return DecodedImage(radiance)


def _read_size(file: OpenFile, suffix: str) -> tuple[int, int]:
    if suffix == ".hdr":
        return hdr.radiance_size(file)
    try:
        with Image.open(file, formats=_FORMATS) as image:
            # Without EXIF in front, Pillow would decode a PNG to look for EXIF after its pixels.
            has_exif = image.format != "PNG" or "exif" in image.info
            is_sideways = has_exif and image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
            return image.size[::-1] if is_sideways else image.size
    except UnidentifiedImageError:
        if suffix not in (".tif", ".tiff"):
            raise
    file.seek(0)
    directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
    file.seek(directory.next)
    directory.load(file)
    return int(directory[_TIFF_WIDTH]), int(directory[_TIFF_HEIGHT])


def _decode_levels(image: Image.Image, data: bytes) -> DecodedImage:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # the other frames of an MPO are previews and gain maps of the first
        raise DataError(f"{frames} frames: animations and pages are not supported, save one frame as a separate file")
    image.load()
    rotated = image.getexif().get(_EXIF_ORIENTATION, 1) != 1
    profile = _foreign_profile(image)
    baseline = image.format == "JPEG" and image.mode == "RGB" and not image.info.get("progressive")
    original = data if baseline and not rotated and not profile else None
    if rotated:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":  # grey TIFF in floating point
        return DecodedImage(np.repeat(np.asarray(image, np.float32)[..., None], 3, -1))
    image, opaque = _without_alpha(image)
    return DecodedImage(np.asarray(_to_srgb(image, profile)), opaque, original)


def _without_alpha(image: Image.Image) -> tuple[Image.Image, Bool[np.ndarray, "h w"] | None]:
    """The image without its alpha channel, and which pixels are opaque, or None without alpha."""
    if not image.has_transparency_data:
        return image, None
    image = image.convert("RGBA")
    return image.convert("RGB"), np.asarray(image.getchannel("A")) == 255


def _foreign_profile(image: Image.Image) -> bytes | None:
    """The ICC profile of an image, unless it is sRGB."""
    profile: bytes | None = image.info.get("icc_profile")
    if profile and "srgb" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).lower():
        return None
    return profile


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode == "I" or (image.mode.startswith("I;") and not image.mode.startswith("I;16")):
        raise DataError("32-bit integer pixels of unknown range: save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # Pillow's conversion would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if profile and image.mode in ("RGB", "CMYK", "L"):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert converted is not None  # it is None only for a conversion in place
        return converted
    return image.convert("RGB")
