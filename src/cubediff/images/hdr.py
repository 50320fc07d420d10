"""High dynamic range images: Radiance .hdr, OpenEXR and floating-point TIFF, and their tone mapping to sRGB.

The paper trains on Poly Haven's HDRIs without naming a tone map; here the exposure adapts to each panorama."""

from collections.abc import Callable
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from cubediff.utils.errors import DataError

if TYPE_CHECKING:
    import OpenEXR

_EXR_LAYERS = ("RGB", "RGBA", "Y")
_HDR_HEADER = 1 << 16  # bytes; a Radiance header is expected to end within them


class ToneMap(TypedDict):
    """How radiance was tone-mapped: the curve's name, the exposure, and the exposed luminance that becomes white."""

    curve: str
    exposure: float
    white: float


def tone_map(radiance: Float[np.ndarray, "h w 3"]) -> tuple[UInt8[np.ndarray, "h w 3"], ToneMap]:
    """Tone-maps the linear radiance of an equirectangular panorama to sRGB.

    The exposure brings the mean log luminance over the sphere to 0.18; then Reinhard's extended curve, with the
    99.9 % quantile of luminance as white (Reinhard et al., "Photographic Tone Reproduction", SIGGRAPH 2002).

    Returns:
        sRGB levels, and the settings of the tone map.

    Raises:
        DataError: If pixels are NaN or infinite, or all are black.
    """
    if not np.isfinite(radiance).all():
        bad = int((~np.isfinite(radiance)).any(-1).sum())
        raise DataError(f"{bad} pixels are NaN or infinite: repair the HDR file")
    radiance = np.maximum(radiance, 0)
    luminance = radiance @ np.array([0.2126, 0.7152, 0.0722], dtype=radiance.dtype)
    if luminance.max() <= 0:
        raise DataError("all one colour (0, 0, 0): not a photograph")
    area = np.cos((0.5 - (np.arange(len(luminance)) + 0.5) / len(luminance)) * np.pi)
    floor = max(0.01 * float(np.median(luminance)), 1e-6 * float(luminance.max()))
    exposure = 0.18 / float(np.exp(np.average(np.log(luminance + floor).mean(1), weights=area)))
    exposed = exposure * luminance
    white = max(1.0, float(np.quantile(exposed, 0.999)))
    mapped = exposed * (1 + exposed / white**2) / (1 + exposed)
    linear = np.clip(radiance * (mapped / np.maximum(luminance, 1e-12))[..., None], 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    record: ToneMap = {
        "curve": "reinhard_extended",
        "exposure": float(f"{exposure:.6g}"),
        "white": float(f"{white:.6g}"),
    }
    return np.round(srgb * 255).astype(np.uint8), record


def radiance_size(file: BufferedReader | BytesIO) -> tuple[int, int]:
    """Width and height by a Radiance header, in pixels.

    Raises:
        SyntaxError: If the header has no resolution.
    """
    for line in file.read(_HDR_HEADER).split(b"\n"):
        if line.startswith((b"-Y", b"+Y")):
            height, width = line.split()[1::2]
            return int(width), int(height)
    raise SyntaxError("no resolution in its Radiance header")


def read_radiance(path: Path) -> Float[np.ndarray, "h w 3"]:
    """Reads the pixels of a Radiance or floating-point TIFF file.

    Raises:
        DataError: If OpenCV cannot decode it, or its pixels are not 32-bit floats.
    """
    try:  # not imdecode, which writes Radiance bytes to a temporary file
        image = cv2.imread(str(path), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        image = None
    if image is None:
        raise DataError("truncated or unreadable: OpenCV cannot decode it")
    if image.dtype != np.float32:
        raise DataError(f"unreadable: {image.dtype} pixels in a layout that Pillow does not know; save it as PNG")
    return image


def exr_size(path: Path) -> tuple[int, int]:
    """Width and height by the header of an OpenEXR file, in pixels.

    Raises:
        DataError: If the file is damaged, has several parts, or is cropped.
    """
    header = _open_exr(path, header_only=True).header()
    (left, top), (right, bottom) = header["dataWindow"]
    if any((a != b).any() for a, b in zip(header["dataWindow"], header["displayWindow"], strict=True)):
        raise DataError("its data window is not its display window: save the whole sphere, uncropped")
    return int(right) - int(left) + 1, int(bottom) - int(top) + 1


def read_exr(
    path: Path, check: Callable[[int, int], None]
) -> tuple[Float[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"] | None]:
    """Reads the pixels of a single-part OpenEXR file, and which of them are opaque if it has alpha.

    Args:
        path: The file.
        check: Called with width and height before pixels are decoded.

    Raises:
        DataError: If the file is damaged or has no colour channels, or `check` raises it.
    """
    check(*exr_size(path))
    with _open_exr(path) as file:
        channels = file.channels()
        layer = next((name for name in _EXR_LAYERS if name in channels), None)
        if layer is None:
            raise DataError(f"channels {', '.join(channels) or 'none'}: R, G, B or Y are needed")
        pixels = np.array(channels[layer].pixels, np.float32)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, -1)
    opaque = pixels[..., 3] >= 0.999 if layer == "RGBA" else None
    return np.ascontiguousarray(pixels[..., :3]), opaque


def _open_exr(path: Path, header_only: bool = False) -> "OpenEXR.File":
    try:
        import OpenEXR  # an optional extra; OpenCV's wheels read no EXR since 5.0
    except ImportError:
        raise DataError(".exr needs the OpenEXR package: pip install 'cubediff[exr]', or save it as .hdr") from None
    try:
        file = OpenEXR.File(str(path), header_only=header_only)
        parts = len(file.parts)
    except Exception as error:
        raise DataError(
            f"truncated or unreadable: {str(error).replace(str(path), 'it') or 'not an OpenEXR file'}"
        ) from error
    if parts != 1:
        raise DataError(f"{parts} parts: save the panorama as a separate file" if parts else "truncated or unreadable")
    return file
