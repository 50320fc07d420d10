"""TIFF images that Pillow does not decode in full precision: floating-point colours, and 16 bits a channel."""

import struct
from io import BufferedReader, BytesIO
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Shaped
from PIL import TiffImagePlugin

from cubediff.images.decoding import COPY_AGAIN
from cubediff.utils.errors import DataError

_WIDTH, _HEIGHT, _ORIENTATION, _SAMPLE_FORMAT, _XMP = 256, 257, 274, 339, 700
_FLOAT = 3  # of the sample format
TIFF_MAGIC = (b"II*\0", b"MM\0*")  # of classic TIFF


class TiffHeader(NamedTuple):
    """Of the first page: size in pixels as stored, EXIF orientation, XMP packet, whether its pixels are floats."""

    width: int
    height: int
    orientation: int
    xmp: bytes
    is_float: bool


def read_tiff_header(file: BufferedReader | BytesIO) -> TiffHeader:
    """Reads the first directory of a TIFF file.

    Raises:
        SyntaxError: If it is not a TIFF file.
        DataError: If its directory has no size.
    """
    start = file.read(8)
    if not start.startswith(TIFF_MAGIC):
        raise SyntaxError("not a TIFF file")
    directory = TiffImagePlugin.ImageFileDirectory_v2(start)
    file.seek(directory.next)
    directory.load(file)
    if _WIDTH not in directory or _HEIGHT not in directory:
        raise DataError(f"truncated: its directory is missing: {COPY_AGAIN}")
    orientation, xmp = directory.get(_ORIENTATION, 1), directory.get(_XMP, b"")
    xmp = xmp[0] if isinstance(xmp, tuple) and xmp else xmp
    return TiffHeader(
        int(directory[_WIDTH]),
        int(directory[_HEIGHT]),
        orientation if orientation in range(1, 9) else 1,
        xmp if isinstance(xmp, bytes) else b"",
        _FLOAT in directory.get(_SAMPLE_FORMAT, ()),
    )


def decode_tiff(data: bytes) -> Shaped[np.ndarray, "h w *c"]:
    """Decodes the first page of a TIFF file as it is stored, without its orientation, by OpenCV.

    Returns:
        Pixels in the file's type: grey (h, w), RGB (h, w, 3) or RGBA (h, w, 4).

    Raises:
        DataError: If OpenCV cannot decode it.
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(_without_orientation(data), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise DataError(f"truncated or unreadable: OpenCV cannot decode it: {COPY_AGAIN}")
    return pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def _without_orientation(data: bytes) -> bytes:
    """The file with the orientation 1: OpenCV 5.0 fails at images that are stored sideways."""
    order = "<" if data.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (entries,) = struct.unpack_from(f"{order}H", data, start)
    for place in range(start + 2, start + 2 + 12 * entries, 12):
        if struct.unpack_from(f"{order}H", data, place) == (_ORIENTATION,):
            if struct.unpack_from(f"{order}H", data, place + 8) == (1,):
                return data
            return data[: place + 8] + struct.pack(f"{order}HH", 1, 0) + data[place + 12 :]
    return data
