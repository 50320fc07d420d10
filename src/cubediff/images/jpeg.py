"""JPEG files of samples, which others may have written: their size is checked before they are decoded."""

import io

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from cubediff.images.decoding import without_pillow_limits

MAX_PIXELS = 1 << 29  # 32768 x 16384, decoded in 1.6 GB


def decode_jpeg(content: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a JPEG as it is stored, without its EXIF orientation and ICC profile.

    Returns:
        RGB levels.

    Raises:
        ValueError: If it is not a JPEG, has more than `MAX_PIXELS` by its header, or cannot be decoded.
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
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("its JPEG cannot be decoded")
    return image
