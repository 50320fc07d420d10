"""Pixels of images that Pillow has opened: upright sRGB levels, by their EXIF orientation, alpha and ICC profile."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped, UInt8, UInt16
from PIL import Image, ImageCms, ImageFile

from cubediff.images import exif, profiles
from cubediff.images.colour import levels_of_gamma, to_srgb_primaries
from cubediff.images.decoding import COPY_AGAIN
from cubediff.images.tiff import decode_tiff
from cubediff.utils.errors import DataError

_GREY = ("1", "L", "LA", "La")
_SRGB_GAMMA = 0.45455  # as programs write it into sRGB files without an sRGB chunk
_SAME_GAMMA = 0.02


class DecodedImage(NamedTuple):
    """An upright image.

    Attributes:
        pixels: sRGB levels (uint8), or linear radiance (float32).
        opaque: Which pixels are opaque; None if the file has no alpha.
        jpeg: The bytes of the file if it is a baseline sRGB JPEG of exactly these pixels, else None.
        notes: What the file holds that was ignored.
    """

    pixels: UInt8[np.ndarray, "h w 3"] | Float[np.ndarray, "h w 3"]
    opaque: Bool[np.ndarray, "h w"] | None = None
    jpeg: bytes | None = None
    notes: tuple[str, ...] = ()


def decode_levels(image: ImageFile.ImageFile, data: bytes) -> DecodedImage:
    """Decodes the first frame of an image.

    Args:
        image: Opened by Pillow; its pixels are not loaded yet.
        data: The content of the file.

    Raises:
        DataError: If its pixels are 32-bit integers.
        Exception: Any error of a decoder.
    """
    raw_modes = str([tile.args for tile in image.tile])
    stored = exif.orientation(image)[0] if image.format == "TIFF" else 1
    image.load()  # a TIFF is upright afterwards
    turned, exif_note = exif.orientation(image)
    if image.mode == "F":  # grey TIFF in floating point
        grey = np.asarray(image, np.float32)
        notes = (exif_note,) if exif_note else ()
        return DecodedImage(exif.upright(np.repeat(grey[..., None], 3, -1), turned), notes=notes)
    is_16_bit = image.mode.startswith("I;16")
    is_grey = is_16_bit or image.mode in _GREY or "LA;16" in raw_modes
    transform, profile_note = _transform(image, is_grey)
    gamma, gamma_note = _png_gamma(image)
    needs_16_bit = transform is not None or gamma is not None or image.has_transparency_data
    if is_16_bit or (";16" in raw_modes and needs_16_bit and image.mode != "CMYK"):
        deep, opaque = _levels_16_bit(image, data, stored, is_grey)
        if gamma is None:
            pixels = profiles.apply_16_bit(transform, deep)
        else:
            pixels = levels_of_gamma(np.repeat(deep, 3, -1) if is_grey else deep, *gamma)
    else:
        pixels, opaque = _levels_8_bit(image, transform)
        pixels = pixels if gamma is None else levels_of_gamma(pixels, *gamma)
    baseline = image.format == "JPEG" and image.mode == "RGB" and not image.info.get("progressive")
    return DecodedImage(
        exif.upright(pixels, turned),
        None if opaque is None else exif.upright(opaque, turned),
        data if baseline and turned == 1 and transform is None else None,
        tuple(note for note in (exif_note, profile_note, gamma_note) if note),
    )


class StoredImage(NamedTuple):
    """An upright image in its own bit depth and colour space.

    Attributes:
        levels: RGB levels of 8 or 16 bits; equal channels for a grey image.
        opaque: Which pixels are opaque; None if the file has no alpha.
        profile: The ICC profile of the levels; None for sRGB.
        notes: What the file holds that was ignored.
    """

    levels: UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"]
    opaque: Bool[np.ndarray, "h w"] | None = None
    profile: bytes | None = None
    notes: tuple[str, ...] = ()


def decode_stored(image: ImageFile.ImageFile, data: bytes) -> StoredImage:
    """Decodes the first frame of an image without loss.

    CMYK and CIELAB levels, and grey levels with an ICC profile, become sRGB.

    Args:
        image: Opened by Pillow; its pixels are not loaded yet.
        data: The content of the file.

    Raises:
        DataError: If it has floating-point or 32-bit pixels, or more than 8 bits a channel that cannot be kept.
        Exception: Any error of a decoder.
    """
    if image.format == "AVIF" and _has_high_bit_depth(data):
        raise DataError("more than 8 bits a channel in an AVIF, of which Pillow reads 8: save it as 16-bit PNG")
    raw_modes = str([tile.args for tile in image.tile])
    stored = exif.orientation(image)[0] if image.format == "TIFF" else 1
    image.load()  # a TIFF is upright afterwards
    turned, exif_note = exif.orientation(image)
    gamma, gamma_note = _png_gamma(image)
    if gamma is not None:
        raise DataError(
            "a gAMA or cHRM chunk of another colour space than sRGB: save it as sRGB or with an ICC profile"
        )
    if (image.mode.startswith("I;16") or ";16" in raw_modes) and image.mode not in ("CMYK", "LAB"):
        is_grey = image.mode.startswith("I;16") or "LA;16" in raw_modes
        transform, profile_note = _transform(image, is_grey)
        if is_grey and transform is not None:
            raise DataError("16-bit grey levels with an ICC profile: save it as RGB")
        levels, opaque = _levels_16_bit(image, data, stored, is_grey)
        levels = np.repeat(levels, 3, -1) if is_grey else levels
        decoded = StoredImage(levels, opaque, None if transform is None else image.info["icc_profile"])
    else:
        decoded = to_stored(image)
        profile_note = None if not decoded.notes else decoded.notes[0]
    return StoredImage(
        exif.upright(decoded.levels, turned),
        None if decoded.opaque is None else exif.upright(decoded.opaque, turned),
        decoded.profile,
        tuple(note for note in (exif_note, profile_note, gamma_note) if note),
    )


def _has_high_bit_depth(avif: bytes) -> bool:
    """Whether the first image of an AVIF has 10 or 12 bits a channel (AV1 in ISO BMFF, section 2.3: av1C)."""
    place = avif.find(b"av1C")
    return place >= 0 and len(avif) > place + 6 and bool(avif[place + 6] & 0x40)


def to_stored(image: Image.Image) -> StoredImage:
    """The levels of a Pillow image as they are, in the orientation in which it is; as `decode_stored`.

    Raises:
        DataError: If it has floating-point or 32-bit pixels.
    """
    if image.mode.startswith("I;16"):
        return StoredImage(np.repeat(np.asarray(image).astype(np.uint16)[..., None], 3, -1))
    if image.mode[0] in "IF":
        raise DataError(f"pixels of the mode {image.mode!r}, of unknown range: save it with 8 or 16 bits a channel")
    transform, note = _transform(image, image.mode in _GREY)
    colours, opaque = _split_alpha(image)
    has_own_space = colours.mode == "RGB" and transform is not None
    levels = (
        np.asarray(colours.convert("RGB")) if transform is None or has_own_space else profiles.apply(transform, colours)
    )
    return StoredImage(
        levels, opaque, image.info["icc_profile"] if has_own_space else None, () if note is None else (note,)
    )


def to_srgb(
    image: Image.Image,
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"] | None, str | None]:
    """The sRGB levels of an image by its ICC profile, in the orientation in which it is.

    Returns:
        The levels; which pixels are opaque, or None without alpha; and why its profile is ignored, or None.

    Raises:
        DataError: If it has more than 8 bits a channel.
    """
    if image.mode[0] in "IF":  # Pillow's conversion would clip at 255
        raise DataError(f"mode {image.mode!r}, more than 8 bits a channel: save it as 8-bit RGB")
    transform, note = _transform(image, image.mode in _GREY)
    return *_levels_8_bit(image, transform), note


def _levels_8_bit(
    image: Image.Image, transform: ImageCms.ImageCmsTransform | None
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"] | None]:
    if image.mode.startswith("I"):
        raise DataError("32-bit integer pixels of unknown range: save it with 8 or 16 bits")
    colours, opaque = _split_alpha(image)
    pixels = np.asarray(colours.convert("RGB")) if transform is None else profiles.apply(transform, colours)
    return pixels, opaque


def _transform(image: Image.Image, is_grey: bool) -> tuple[ImageCms.ImageCmsTransform | None, str | None]:
    profile: bytes | None = image.info.get("icc_profile")
    if image.mode == "LAB":
        return profiles.lab_transform(), None
    if not profile:
        return None, None
    return profiles.srgb_transform(profile, "L" if is_grey else "CMYK" if image.mode == "CMYK" else "RGB")


def _png_gamma(image: Image.Image) -> tuple[tuple[float, Float64[np.ndarray, "3 3"] | None] | None, str | None]:
    """The gamma of a PNG without colour profile, and the matrix of its primaries to sRGB's; None if they are sRGB's.

    The second result is why its chunks are ignored, if they are.
    """
    if image.format != "PNG" or image.info.keys() & {"icc_profile", "srgb"}:
        return None, None
    gamma: float = image.info.get("gamma", _SRGB_GAMMA)
    white_first: tuple[float, ...] | None = image.info.get("chromaticity")
    try:
        matrix = to_srgb_primaries((*white_first[2:], *white_first[:2])) if white_first else None
        if not 0.1 < gamma < 10:
            raise ValueError(gamma)
    except ValueError:  # includes DataError
        return None, "its gAMA or cHRM chunk is invalid: read as sRGB"
    is_srgb = matrix is None and abs(gamma - _SRGB_GAMMA) < _SAME_GAMMA
    return None if is_srgb else (gamma, matrix), None


def _levels_16_bit(
    image: Image.Image, data: bytes, stored: int, is_grey: bool
) -> tuple[UInt16[np.ndarray, "h w c"], Bool[np.ndarray, "h w"] | None]:
    """Levels of one channel or of three, of which Pillow keeps the upper byte; and which pixels are opaque."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)
        key = image.info.get("transparency")
        return grey[..., None], None if key is None else grey != key
    if image.format == "TIFF":
        pixels = exif.upright(decode_tiff(data), stored)
    else:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is None or decoded.ndim != 3:
            raise DataError(f"truncated or unreadable: OpenCV cannot decode it: {COPY_AGAIN}")
        pixels = decoded[..., [2, 1, 0, 3][: decoded.shape[2]]]
    if pixels.dtype != np.uint16 or pixels.shape[:2] != (image.height, image.width):
        raise DataError(f"unreadable: decoded to {pixels.dtype} {pixels.shape}; save it as PNG with 8 bits a channel")
    opaque = pixels[..., 3] == np.iinfo(np.uint16).max if image.has_transparency_data else None
    return pixels[..., : 1 if is_grey else 3], opaque


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Bool[np.ndarray, "h w"] | None]:
    """The image without alpha in the mode L, RGB, CMYK or LAB, and which pixels are opaque; None without alpha."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        colours = rgba.getchannel("R") if image.mode in _GREY else rgba.convert("RGB")
        return colours, np.asarray(rgba.getchannel("A")) == 255
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def fill_transparent(
    levels: Shaped[np.ndarray, "h w 3"], opaque: Bool[np.ndarray, "h w"]
) -> Shaped[np.ndarray, "h w 3"]:
    """The image with each transparent pixel in the colour of the nearest opaque one, which interpolation may reach.

    Raises:
        DataError: If no pixel is opaque.
    """
    if not opaque.any():
        raise DataError("only transparent pixels: expected a photo")
    source = (~opaque).astype(np.uint8)
    _, labels = cv2.distanceTransformWithLabels(source, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL)
    colours = np.zeros((int(labels.max()) + 1, 3), levels.dtype)
    colours[labels[opaque]] = levels[opaque]
    filled: Shaped[np.ndarray, "h w 3"] = colours[labels]
    return filled
