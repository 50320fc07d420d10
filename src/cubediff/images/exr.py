"""OpenEXR images as linear radiance with sRGB's primaries: RGB, luminance, and luminance with subsampled chroma
(OpenEXR, "Technical Introduction")."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from cubediff.images.colour import SRGB, rgb_to_xyz, to_srgb_primaries
from cubediff.images.decoding import COPY_AGAIN, EMPTY
from cubediff.utils.errors import DataError
from cubediff.utils.files import open_regular, text_path

if TYPE_CHECKING:
    import OpenEXR

EXR_MAGIC = b"v/1\x01"
_OPAQUE = 0.999
_printing = threading.Lock()


def exr_size(path: Path) -> tuple[int, int]:
    """Width and height by the header of an OpenEXR file, in pixels.

    Raises:
        DataError: If the file is damaged, has several parts, or is cropped.
    """
    header = _open(path, header_only=True).header()
    (left, top), (right, bottom) = header["dataWindow"]
    if any((a != b).any() for a, b in zip(header["dataWindow"], header["displayWindow"], strict=True)):
        raise DataError("its data window is not its display window: save the whole sphere, uncropped")
    return int(right) - int(left) + 1, int(bottom) - int(top) + 1


def read_exr(
    path: Path, check: Callable[[int, int], None]
) -> tuple[Float32[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"] | None]:
    """Reads a single-part OpenEXR file: its radiance, and which pixels are opaque if it has alpha.

    Args:
        path: The file.
        check: Called with width and height before pixels are decoded.

    Raises:
        DataError: If the file is damaged or has no colour channels, or `check` raises it.
    """
    width, height = exr_size(path)
    check(width, height)
    with _open(path, separate=True) as file:
        channels = {name: np.asarray(channel.pixels, np.float32) for name, channel in file.channels().items()}
        primaries = tuple(map(float, file.header().get("chromaticities", SRGB)))
    matrix = to_srgb_primaries(primaries)
    radiance = _radiance(channels, (height, width), rgb_to_xyz(primaries)[1])
    if matrix is not None:
        radiance = radiance @ matrix.T.astype(np.float32)
    alpha = channels.get("A")
    return np.ascontiguousarray(radiance), None if alpha is None else alpha >= _OPAQUE


def encode_exr(radiance: Float32[np.ndarray, "h w c"]) -> bytes:
    """Encodes linear radiance with sRGB's primaries as a single-part OpenEXR file of 32-bit floats.

    Args:
        radiance: RGB, or RGB and alpha.

    Raises:
        DataError: If the package OpenEXR is missing.
    """
    library = _library()
    name = "RGBA" if radiance.shape[2] == 4 else "RGB"
    header = {"compression": library.ZIP_COMPRESSION, "type": library.scanlineimage}
    with TemporaryDirectory() as folder:  # the package writes to files alone
        path = Path(folder) / "image.exr"
        library.File(header, {name: np.ascontiguousarray(radiance)}).write(str(path))
        return path.read_bytes()


def _radiance(
    channels: Mapping[str, np.ndarray], size: tuple[int, int], weights: Float64[np.ndarray, " 3"]
) -> Float32[np.ndarray, "h w 3"]:
    """The colours of the file's own primaries, whose luminances are `weights`."""
    if {"R", "G", "B"} <= channels.keys():
        return np.stack([_upsampled(channels[name], size) for name in "RGB"], -1)
    if "Y" not in channels:
        raise DataError(f"channels {', '.join(sorted(channels)) or 'none'}: R, G, B or Y are needed")
    luminance = _upsampled(channels["Y"], size)
    if not {"RY", "BY"} <= channels.keys():
        return np.repeat(luminance[..., None], 3, -1)
    red, blue = (luminance * (1 + _upsampled(channels[name], size)) for name in ("RY", "BY"))
    green = (luminance - weights[0] * red - weights[2] * blue) / weights[1]
    return np.stack([red, green, blue], -1).astype(np.float32)


def _upsampled(channel: Float[np.ndarray, "y x"], size: tuple[int, int]) -> Float32[np.ndarray, "h w"]:
    """A subsampled channel at every pixel, interpolated linearly."""
    for axis, (number, wanted) in enumerate(zip(channel.shape, size, strict=True)):
        if number == wanted:
            continue
        position = np.arange(wanted) * (number / wanted)  # a sample lies on the first of the pixels that share it
        first = position.astype(int)
        second = np.minimum(first + 1, number - 1)
        share = (position - first).astype(np.float32)
        share = share[:, None] if axis == 0 else share
        channel = channel.take(first, axis) * (1 - share) + channel.take(second, axis) * share
    return channel


def _library() -> ModuleType:
    """The package OpenEXR, an optional extra: OpenCV's wheels read no EXR since 5.0."""
    try:
        import OpenEXR
    except ImportError:
        raise DataError(".exr needs the OpenEXR package: pip install 'cubediff[exr]', or save it as .hdr") from None
    module: ModuleType = OpenEXR
    return module


def _open(path: Path, header_only: bool = False, separate: bool = False) -> "OpenEXR.File":
    with open_regular(path) as opened:  # a FIFO would block
        start = opened.read(len(EXR_MAGIC))
    if not start:
        raise DataError(EMPTY)
    if start != EXR_MAGIC:
        raise DataError("unreadable: not an OpenEXR file: save it as one, or give it the suffix of its own format")
    library, name = _library(), text_path(path)
    try:
        with _without_messages():
            file = library.File(name, header_only=header_only, separate_channels=separate)
        parts = len(file.parts)
    except Exception as error:
        raise DataError(f"truncated or unreadable as OpenEXR: {COPY_AGAIN}") from error
    if parts > 1:
        raise DataError(f"{parts} parts: save the panorama as a separate file")
    if not parts:  # pixels that cannot be read
        raise DataError(f"truncated or unreadable as OpenEXR: {COPY_AGAIN}")
    return file


@contextmanager
def _without_messages() -> Iterator[None]:
    """Discards what OpenEXR prints about a damaged file, in Python and on the descriptor of standard error."""
    with _printing, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        descriptor = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(descriptor, 2)
            os.close(descriptor)
