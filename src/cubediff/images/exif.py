"""EXIF tags of opened images: the orientation, and the tags of the camera (EXIF 2.3); damaged blocks are ignored."""

import numpy as np
from jaxtyping import Shaped
from PIL import Image

ORIENTATION = 0x0112
EXIF_IFD = 0x8769

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


def camera_tags(image: Image.Image) -> bytes:
    """The EXIF block of an opened image with the tags of its camera alone; empty without such tags."""
    kept = Image.Exif()
    try:
        kept.get_ifd(EXIF_IFD).update(image.getexif().get_ifd(EXIF_IFD))
        return kept.tobytes() if kept.get_ifd(EXIF_IFD) else b""
    except Exception:  # Pillow raises many types
        return b""
