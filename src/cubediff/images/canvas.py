"""Panoramas to edit: levels of the full sphere as their file has them, and which pixels are kept."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import PIL.Image
from jaxtyping import Bool, Float32, Shaped, UInt8, UInt16
from PIL import ImageFile

from cubediff.images.decoding import decoding
from cubediff.images.gpano import Pose, SphereArea, read_pose, sphere_area
from cubediff.images.levels import StoredImage, decode_stored, fill_transparent, to_stored
from cubediff.images.limits import MIN_WIDTH
from cubediff.images.png import without_damaged_metadata
from cubediff.images.profiles import apply_16_bit, convert, srgb_transform
from cubediff.images.reading import MAX_PHOTO_PIXELS, open_levels, read_image, xmp_packet
from cubediff.utils.errors import DataError, reason
from cubediff.utils.files import open_regular

Picture: TypeAlias = str | Path | PIL.Image.Image | np.ndarray
Pixels: TypeAlias = UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"] | Float32[np.ndarray, "h w 3"]

_COLOURED = 64  # levels between the channels of a mask; JPEG makes less of black and white

log = logging.getLogger(__name__)


class MaskError(DataError):
    """A mask that cannot be used; the message begins with its file, if it is one."""

    def __init__(self, mask: Picture, message: object) -> None:
        super().__init__(f"{mask}: {message}" if isinstance(mask, str | Path) else str(message))


@dataclass(frozen=True, eq=False)
class Canvas:
    """A panorama of the full sphere, some of whose pixels are to be repainted.

    Attributes:
        pixels: (h, 2h, 3) levels of 8 or 16 bits, or float32 in `value_range`; of the pixels that are not kept, those
            without a colour are black.
        kept: Which pixels are kept.
        value_range: The values of black and white.
        profile: ICC profile of the pixels; None for sRGB.
        pose: Heading, pitch and roll of the camera by its GPano tags, degrees.
    """

    pixels: Pixels
    kept: Bool[np.ndarray, "h w"]
    value_range: tuple[float, float]
    profile: bytes | None = None
    pose: Pose = (0.0, 0.0, 0.0)

    @property
    def height(self) -> int:
        """Rows of the panorama."""
        return len(self.pixels)

    @property
    def is_16_bit(self) -> bool:
        """Whether its pixels do not fit in a Pillow image."""
        return self.pixels.dtype == np.uint16

    @property
    def is_float(self) -> bool:
        """Whether its pixels were given as floats in [0, 1]."""
        return self.value_range == (0, 1)

    def scaled(self) -> Float32[np.ndarray, "h w 3"]:
        """The pixels in [−1, 1], in their own colour space."""
        low, high = self.value_range
        if low == -1:
            return np.asarray(self.pixels, np.float32)
        return self.pixels.astype(np.float32) / np.float32(high / 2) - 1

    def condition(self) -> Float32[np.ndarray, "h w 3"]:
        """sRGB in [−1, 1], in which each pixel that is not kept has the colour of the nearest one that is."""
        if self.is_16_bit and self.profile is not None:  # 8 bits would be too few for dark tones of linear profiles
            transform, _ = srgb_transform(self.profile, "RGB")
            srgb = apply_16_bit(transform, self.pixels).astype(np.float32) / np.float32(127.5) - 1
        else:
            srgb = self.to_srgb(self.scaled())
        return fill_transparent(srgb, self.kept)

    def from_srgb(self, colours: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
        """Colours in [−1, 1] in the panorama's colour space, of sRGB in [−1, 1]."""
        return colours if self.profile is None else convert(colours, None, self.profile)

    def to_srgb(self, colours: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
        """sRGB in [−1, 1] of colours in [−1, 1] in the panorama's colour space."""
        return colours if self.profile is None else convert(colours, self.profile, None)


def open_canvas(picture: Picture, mask: Picture | None, float_range: tuple[float, float] = (0.0, 1.0)) -> Canvas:
    """Reads a panorama to edit.

    The pixels to repaint are the white ones of the mask, the transparent ones of the panorama, and those of the sphere
    that a panorama with GPano tags of a crop does not show.

    Args:
        picture: The panorama: a JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF file, of which the levels are kept without loss
            and the ICC profile as it is; a Pillow image; or an array (h, w, 3) or (h, w, 4), the fourth channel its
            alpha, of uint8, uint16, or float in `float_range`.
        mask: White (at least half of the maximum) where to repaint: a file, a Pillow image, or an array (h, w) of bool,
            uint8, uint16, or float in [0, 1], or a grey one (h, w, 3) of uint8. None: black.
        float_range: The values of black and white in a float array.

    Raises:
        MaskError: If the mask is unreadable, has another size or colours, or is black or white everywhere.
        DataError: If the panorama is neither 2:1 nor tagged as a crop, or its file is unreadable.
        ValueError: If there is nothing to repaint or nothing to keep, or a value is out of range.
    """
    name = str(picture) if isinstance(picture, str | Path) else "the panorama"
    try:
        if isinstance(picture, np.ndarray):
            xmp, (stored, value_range) = b"", _of_array(picture, float_range)
        else:
            stored, xmp = _read_stored(Path(picture)) if isinstance(picture, str | Path) else _of_image(picture)
            value_range = (0.0, float(np.iinfo(stored.levels.dtype).max))
        height, width = stored.levels.shape[:2]
        area, pose = sphere_area(xmp, width, height), read_pose(xmp)
    except (OSError, DataError) as error:
        raise DataError(f"{name}: not a usable panorama ({error})") from error
    for note in stored.notes:
        log.warning("%s: %s", name, note)
    if 2 * area.height < MIN_WIDTH:
        raise DataError(f"{name} has {2 * area.height}x{area.height} pixels: expected at least {MIN_WIDTH} columns")
    opaque = np.ones((height, width), bool) if stored.opaque is None else stored.opaque
    repaint = np.zeros_like(opaque) if mask is None else open_mask(mask, (width, height))
    canvas = replace(_on_full_sphere(stored, opaque & ~repaint, area, value_range), pose=pose)
    if canvas.kept.all():
        cause = "no mask is given" if mask is None else "the mask is black everywhere"
        message = (
            f"nothing to repaint: {cause}, and the panorama has no transparent or missing pixels; paint the mask white "
            "(255, or 1.0) where to repaint"
        )
        raise ValueError(message) if mask is None else MaskError(mask, message)
    if not canvas.kept.any():
        cause = "the mask is white everywhere" if repaint.all() else "all other pixels are transparent"
        message = f"nothing to keep: {cause}; paint the mask black where to keep the panorama"
        raise ValueError(message) if mask is None else MaskError(mask, message)
    return canvas


def _on_full_sphere(
    stored: StoredImage, kept: Bool[np.ndarray, "h w"], area: SphereArea, value_range: tuple[float, float]
) -> Canvas:
    """The canvas of an image that shows an area of the sphere."""
    height, width = kept.shape
    if (height, width) == (area.height, 2 * area.height):
        return Canvas(stored.levels, kept, value_range, stored.profile)
    pixels = np.full((area.height, 2 * area.height, 3), value_range[0], stored.levels.dtype)
    on_sphere = np.zeros(pixels.shape[:2], bool)
    place = np.s_[area.top : area.top + height, area.left : area.left + width]
    pixels[place], on_sphere[place] = stored.levels, kept
    return Canvas(pixels, on_sphere, value_range, stored.profile)


def _of_image(image: PIL.Image.Image) -> tuple[StoredImage, bytes]:
    if isinstance(image, ImageFile.ImageFile) and ";16" in str([tile.args for tile in image.tile]):
        raise ValueError(
            "the panorama's file has 16 bits a channel, of which a PIL image keeps 8: pass its path, or an array"
        )
    return to_stored(image), xmp_packet(image)


def _read_stored(path: Path) -> tuple[StoredImage, bytes]:
    with decoding(), open_regular(path) as file:
        data, damage = without_damaged_metadata(file.read())
        with open_levels(data) as opened:
            if opened.width * opened.height > MAX_PHOTO_PIXELS:
                raise DataError(f"{opened.width}x{opened.height} is more than {MAX_PHOTO_PIXELS} pixels: shrink it")
            stored = decode_stored(opened, data)
            return stored._replace(notes=damage + stored.notes), xmp_packet(opened)


def _of_array(array: np.ndarray, float_range: tuple[float, float]) -> tuple[StoredImage, tuple[float, float]]:
    if array.ndim != 3 or array.shape[2] not in (3, 4) or array.size == 0:
        raise ValueError(f"the panorama is an array of shape {array.shape}: expected (H, W, 3) or (H, W, 4)")
    if array.dtype in (np.uint8, np.uint16):
        value_range = (0.0, float(np.iinfo(array.dtype).max))
    elif np.issubdtype(array.dtype, np.floating):
        value_range = float_range
        _check_range(array, float_range, "the panorama")
        array = array.astype(np.float32)
    else:
        raise ValueError(f"the panorama is an array of {array.dtype}: expected uint8, uint16, or float")
    opaque = array[..., 3] == value_range[1] if array.shape[2] == 4 else None
    return StoredImage(np.ascontiguousarray(array[..., :3]), opaque), value_range


def _check_range(array: np.ndarray, allowed: tuple[float, float], name: str) -> None:
    low, high = float(array.min()), float(array.max())
    if not (low >= allowed[0] and high <= allowed[1]):  # NaN is neither
        raise ValueError(f"{name} has values from {low:.3g} to {high:.3g}: scale it to {list(allowed)}")


def open_mask(mask: Picture, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Which pixels a mask has in white: at least half of its maximum.

    Args:
        mask: See `open_canvas`.
        size: Width and height of the panorama's image.

    Raises:
        MaskError: If it is unreadable, or has another size, colours, transparent pixels, or values out of range.
    """
    try:
        return _white(mask, size)
    except ValueError as error:
        raise MaskError(mask, error) from error


def _white(mask: Picture, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    if isinstance(mask, str | Path):
        try:
            mask = read_image(Path(mask))
        except (OSError, DataError) as error:
            raise ValueError(f"the mask is not a readable image ({reason(error)})") from error
    if isinstance(mask, np.ndarray) and mask.dtype == np.uint8 and mask.ndim == 3 and mask.shape[2] in (3, 4):
        mask = PIL.Image.fromarray(mask)
    if isinstance(mask, PIL.Image.Image):
        mask = _mask_array(mask)
    if mask.ndim == 3 and mask.shape[-1] == 1:
        mask = mask[..., 0]
    if mask.ndim != 2:
        raise ValueError(f"the mask is an array of shape {mask.shape}: expected (H, W)")
    if mask.shape[::-1] != size:
        raise ValueError(
            f"the mask has {mask.shape[1]}x{mask.shape[0]} pixels and the panorama {size[0]}x{size[1]}: scale the mask "
            "to the panorama's size"
        )
    if mask.dtype == bool:
        return mask
    if mask.dtype in (np.uint8, np.uint16):
        white = int(np.iinfo(mask.dtype).max)
        if mask.max(initial=0) == 1:
            raise ValueError(f"the mask has only the values 0 and 1 of {white}: multiply it by {white}, or pass bool")
        return mask > white // 2
    if np.issubdtype(mask.dtype, np.floating):
        _check_range(mask, (0.0, 1.0), "the mask")
        return mask >= 0.5
    raise ValueError(f"the mask is an array of {mask.dtype}: expected bool, uint8, uint16, or float in [0, 1]")


def _mask_array(mask: PIL.Image.Image) -> Shaped[np.ndarray, "h w"]:
    if mask.has_transparency_data and np.asarray(mask.convert("RGBA").getchannel("A")).min() < 255:
        raise ValueError("the mask has transparent pixels: paint it white where to repaint and black where to keep")
    if mask.mode[0] in "IF" or mask.mode == "1":
        return np.asarray(mask)
    colours = np.asarray(mask.convert("RGB"))
    if int((colours.max(-1) - colours.min(-1)).max(initial=0)) > _COLOURED:
        raise ValueError("the mask has colours: paint it white where to repaint and black where to keep")
    return np.asarray(mask.convert("L"))
