"""Image files to pixels and to JPEG, whatever they hold: what cannot be a panorama is refused with the reason, by its
header where that is enough, and no decoder's exception gets out (the paper is silent on file formats)."""

import errno
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

from cubediff.images import hdr
from cubediff.utils.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".hdr", ".exr")
MIN_WIDTH = 32  # below this an image is an icon, not a panorama

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")  # not Pillow's others: some run programs (EPS) or open the network
_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257

Opened = io.BufferedReader | io.BytesIO
SizeCheck = Callable[[int, int], None]


@dataclass(frozen=True)
class Panorama:
    """A readable panorama as the bytes of a baseline sRGB JPEG, twice as wide as high.

    `original` is the file whose own bytes they are, None where they were encoded; `record` says what was done to it
    besides (exposure, tone map, cubemap scheme) and can be written as JSON.
    """

    jpeg: bytes
    width: int
    height: int
    original: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)


class Picture(NamedTuple):
    """An upright decoded image: sRGB levels, or linear radiance. `opaque` says of each pixel whether it is, None where
    there is no alpha; `as_is` whether the file itself is a baseline sRGB JPEG of these pixels, `data` its bytes."""

    pixels: UInt8[np.ndarray, "h w 3"] | Float[np.ndarray, "h w 3"]
    opaque: Bool[np.ndarray, "h w"] | None
    as_is: bool
    data: bytes


# ---- panoramas ---------------------------------------------------------------------------------------------


def load_panorama(path: Path, max_width: int = 16384, quality: int = 95) -> Panorama:
    """Checks an equirectangular image and gives it as an RGB JPEG: the file's own bytes where it is a baseline sRGB
    one, else encoded at `quality` without chroma subsampling; radiance is tone-mapped. Raises DataError with the reason
    where it cannot be used."""
    with faults():
        with path.open("rb") as file:
            picture = decode(file, path.name, lambda width, height: check_panorama(width, height, max_width))
        return as_panorama(picture, quality, original=path)


def as_panorama(picture: Picture, quality: int, original: Path | None = None) -> Panorama:
    """The panorama of an equirectangular picture; `original` is the file that it came from, where it has one."""
    height, width, _ = picture.pixels.shape
    check_opaque(picture.opaque)
    if picture.as_is:
        check_varied(picture.pixels)
        return Panorama(picture.data, width, height, original)
    jpeg, record = encode(picture.pixels, quality)
    return Panorama(jpeg, width, height, None, record)


def encode(
    pixels: UInt8[np.ndarray, "h w 3"] | Float[np.ndarray, "h w 3"], quality: int
) -> tuple[bytes, dict[str, Any]]:
    """An equirectangular image as JPEG, and the record of its tone map where it is radiance."""
    record: dict[str, Any] = {}
    if pixels.dtype != np.uint8:
        pixels, record["tone_map"] = hdr.tone_map(pixels)
    check_varied(pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue(), record


def check_panorama(width: int, height: int, max_width: int) -> None:
    """Raises DataError unless this is the size of a full sphere that is wanted."""
    if width > max_width or height > max_width:
        raise DataError(f"{width}x{height} is too large: shrink it, or raise --max-width {max_width}")
    if width != 2 * height:
        near = max(1, round(width / 2))
        raise DataError(f"{width}x{height} is not 2:1: a full sphere {width} wide is {near} high; pad or crop it")
    if width < MIN_WIDTH:
        raise DataError(f"{width}x{height} is too small: at least {MIN_WIDTH}x{MIN_WIDTH // 2}")


def check_opaque(opaque: Bool[np.ndarray, "h w"] | None) -> None:
    if opaque is not None and not opaque.all():
        raise DataError(f"{1 - opaque.mean():.2%} of its pixels are transparent: not the whole sphere; fill them")


def check_varied(pixels: UInt8[np.ndarray, "h w 3"]) -> None:
    if np.ptp(pixels, axis=(0, 1)).max() <= 2:  # JPEG of one colour may stray by a level
        raise DataError(f"all one colour {tuple(pixels[0, 0].tolist())}: not a photograph")


# ---- files to pixels ---------------------------------------------------------------------------------------


def decode(file: Opened, name: str, check: SizeCheck) -> Picture:
    """The image of an open file, RGB and upright. `check` gets the width and height that the header claims before any
    pixel is decoded, and the upright ones afterwards; it raises DataError where they will not do. To be called inside
    `faults`."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise DataError(f"{suffix or 'a file without suffix'} is not read: use {', '.join(IMAGE_SUFFIXES)}")
    path = Path(file.name) if isinstance(file, io.BufferedReader) else None
    if suffix == ".exr" and path:
        return Picture(*hdr.read_exr(path, check), False, b"")
    check(*_read_size(file, suffix))
    if suffix == ".hdr" and path:
        return _radiance(path, check)
    file.seek(0)
    data = file.read()
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        if suffix not in (".tif", ".tiff") or path is None:
            raise
        return _radiance(path, check)  # Pillow does not know floating-point colours
    with image:
        picture = _decode_levels(image, data)
    check(picture.pixels.shape[1], picture.pixels.shape[0])
    return picture


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file by its header. Raises DataError where it cannot be told."""
    with faults():
        if path.suffix.lower() == ".exr":
            return hdr.exr_size(path)
        with path.open("rb") as file:
            return _read_size(file, path.suffix.lower())


_MACHINE = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}


@contextmanager
def faults() -> Iterator[None]:
    """Whatever is raised inside is a DataError with a reason outside, but an OSError that is the machine's fault, not
    the file's; Pillow's own limit and warnings are off."""
    try:
        with own_limits():
            yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError("unreadable: not an image of a known kind") from error
    except Exception as error:  # decoders raise whatever they like; one bad file must not end the whole build
        if isinstance(error, OSError) and error.errno in _MACHINE:
            raise
        text = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0] or type(error).__name__
        kind = "truncated" if "truncated" in text.lower() else "unreadable"
        raise DataError(f"{kind}: {text}") from error


class _Limits:
    """Counts who is inside `own_limits`: what it changes is the process's own, and threads may overlap."""

    lock = threading.Lock()
    inside = 0
    pixels: int | None = None
    filters: warnings.catch_warnings | None = None


@contextmanager
def own_limits() -> Iterator[None]:
    """Pillow refuses large images by its own count of pixels and warns of odd metadata; inside, neither: --max-width
    and the checks here decide. May be nested, and entered by several threads at once."""
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


def _radiance(path: Path, check: SizeCheck) -> Picture:
    radiance = hdr.read_radiance(path)
    check(radiance.shape[1], radiance.shape[0])
    return Picture(radiance, None, False, b"")


def _read_size(file: Opened, suffix: str) -> tuple[int, int]:
    if suffix == ".hdr":
        return hdr.radiance_size(file)
    try:
        with Image.open(file, formats=_FORMATS) as image:
            known = (
                image.format != "PNG" or "exif" in image.info
            )  # else Pillow decodes the PNG to look behind its pixels
            lying = known and image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
            return image.size[::-1] if lying else image.size
    except UnidentifiedImageError:
        if suffix not in (".tif", ".tiff"):
            raise
    file.seek(0)
    directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
    file.seek(directory.next)
    directory.load(file)
    return int(directory[_TIFF_WIDTH]), int(directory[_TIFF_HEIGHT])


def _decode_levels(image: Image.Image, data: bytes) -> Picture:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # an MPO's other pictures are previews and gain maps of the first
        raise DataError(f"{frames} frames: animated images and pages are not read, save the one to use by itself")
    image.load()
    turned = image.getexif().get(_EXIF_ORIENTATION, 1) != 1
    profile = image.info.get("icc_profile")
    if profile and "srgb" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).lower():
        profile = None
    baseline = image.format == "JPEG" and image.mode == "RGB" and not image.info.get("progressive")
    as_is = baseline and not turned and not profile
    if turned:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":  # grey floating-point TIFF
        return Picture(np.repeat(np.asarray(image, np.float32)[..., None], 3, -1), None, False, data)
    opaque = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opaque = np.asarray(image.getchannel("A")) == 255
        image = image.convert("RGB")
    return Picture(np.asarray(_to_srgb(image, profile)), opaque, as_is, data)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode == "I" or (image.mode.startswith("I;") and not image.mode.startswith("I;16")):
        raise DataError("32-bit integer pixels, whose range is anybody's guess: save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip it at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if profile and image.mode in ("RGB", "CMYK", "L"):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert converted is not None  # None only when converting in place
        return converted
    return image.convert("RGB")
