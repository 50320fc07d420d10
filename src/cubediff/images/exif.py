"""EXIF tags of opened images: the orientation, and the tags of the camera (EXIF 2.3); damaged blocks are ignored."""

import math

import numpy as np
from jaxtyping import Shaped
from PIL import Image

ORIENTATION = 0x0112
EXIF_IFD = 0x8769
FOCAL_LENGTH_35MM = 0xA405
DIAGONAL_35MM = math.hypot(36, 24)  # mm, of the film that a "focal length in 35 mm film" refers to
FOCAL_LENGTHS = (5, 3000)  # mm in 35 mm film, of lenses that exist: 153° to 0.7°

_DAMAGED = "its EXIF block is damaged: ignored, taken as upright"


def orientation(image: Image.Image) -> tuple[int, str | None]:
    """The EXIF orientation of an opened image, 1 to 8, and why it is ignored if it is invalid.

    Without EXIF data in front of its pixels, a PNG is decoded to look for them behind.
    """
    try:
        value: object = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises many types
        return 1, _DAMAGED
    if isinstance(value, int) and 1 <= value <= 8:
        return value, None
    return 1, None if value == 0 else f"its EXIF orientation is {value!r:.40}, expected 1 to 8: taken as upright"


def upright(pixels: Shaped[np.ndarray, "h w *c"], turned: int) -> Shaped[np.ndarray, "h2 w2 *c"]:
    """Pixels that were stored with an EXIF orientation, as they are seen."""
    if turned in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if turned in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turned in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def camera_tags(image: Image.Image) -> tuple[bytes, str | None]:
    """The EXIF block of an opened image with the tags of its camera alone, and why they are ignored if damaged.

    The block is empty without such tags.
    """
    kept = Image.Exif()
    try:
        kept.get_ifd(EXIF_IFD).update(image.getexif().get_ifd(EXIF_IFD))
        return (kept.tobytes() if kept.get_ifd(EXIF_IFD) else b""), None
    except Exception:  # Pillow raises many types
        return b"", "the EXIF tags of its camera are damaged: ignored"


def camera_fov(image: Image.Image) -> tuple[float | None, str | None]:
    """The horizontal field of view of an upright image by its EXIF data, and why that is ignored if it is invalid.

    It follows from the focal length in 35 mm film (EXIF 2.3, tag 0xA405), which refers to the diagonal (CIPA DCG-001);
    a length of 0 means that it is unknown.

    Returns:
        Degrees, or None without valid data; and the reason, or None.
    """
    try:
        value = image.getexif().get_ifd(EXIF_IFD).get(FOCAL_LENGTH_35MM, 0)
    except Exception:  # Pillow raises many types on damaged EXIF data
        return None, "the EXIF tags of its camera are damaged: ignored"
    try:
        focal = float(value)
    except (TypeError, ValueError, ArithmeticError):
        focal = math.nan
    if focal == 0:
        return None, None
    low, high = FOCAL_LENGTHS
    if not low <= focal <= high:
        return None, (
            f"its EXIF focal length in 35 mm film is {value!r:.40}, expected {low} to {high} mm: ignored; "
            "set the photo's fov if it is known"
        )
    width = image.width / math.hypot(image.width, image.height)
    return math.degrees(2 * math.atan(DIAGONAL_35MM / 2 * width / focal)), None
