"""JPEG files of samples, which others may have written: their size is checked before they are decoded."""

import io

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from cubediff.images.decoding import without_pillow_limits

MAX_PIXELS = 1 << 29  # 32768 x 16384, decoded in 1.6 GB

# Divisor of the size → flag; in RGB, which the flags IMREAD_REDUCED_COLOR_2 … would make BGR.
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def jpeg_size(content: bytes) -> tuple[int, int]:
    """Reads the size of a JPEG from its header.

    Returns:
        Width and height, in pixels.

    Raises:
        ValueError: If it is not a JPEG, or has more than `MAX_PIXELS`.
    """
    try:
        with without_pillow_limits(), Image.open(io.BytesIO(content), formats=("JPEG",)) as header:
            width, height = header.size
    except UnidentifiedImageError:  # OpenCV would try many formats
        raise ValueError("its JPEG cannot be decoded: it is in another format") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"its JPEG cannot be decoded: {error}") from None
    if width * height > MAX_PIXELS:
        raise ValueError(f"its JPEG has {width}x{height} pixels, more than {MAX_PIXELS}")
    return width, height


def decode_jpeg(content: bytes, min_height: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a JPEG as it is stored, without its EXIF orientation and ICC profile.

    libjpeg computes a reduced size from the low frequencies of each block. It differs from an area average of the full
    size by 0.5 to 1.1 levels (RMS, mean over panoramas), and is about as close to the image before it was encoded
    (`benchmarks/jpeg_scaling.py`).

    Args:
        content: The file.
        min_height: Decode at 1/2, 1/4 or 1/8 of the size, the smallest that has this many rows at least and divides
            width and height; None decodes at full size.

    Returns:
        RGB levels.

    Raises:
        ValueError: If it is not a JPEG, has more than `MAX_PIXELS` by its header, or cannot be decoded.
    """
    width, height = jpeg_size(content)
    divisor = 1
    if min_height is not None:
        divisor = max(d for d in _REDUCED if d == 1 or (height >= d * min_height and width % d == height % d == 0))
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | _REDUCED[divisor]
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if image is None or image.shape[:2] != (height // divisor, width // divisor):
        raise ValueError("its JPEG cannot be decoded")
    return image
