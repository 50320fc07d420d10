"""High dynamic range images: Radiance .hdr, and tone mapping of radiance to sRGB.

The paper trains on Poly Haven's HDRIs without naming a tone map; here the exposure adapts to each panorama."""

from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TypedDict

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from cubediff.images.colour import encode_srgb
from cubediff.images.decoding import COPY_AGAIN
from cubediff.utils.errors import DataError
from cubediff.utils.files import text_path

_HDR_HEADER = 1 << 16  # bytes; a Radiance header is expected to end within them
RADIANCE_MAGIC = (b"#?RADIANCE", b"#?RGBE")
_MAX_EXPOSED = 1e15  # brighter pixels are white anyway, and the square of a float32 must not overflow


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
    check_finite(radiance)
    radiance = np.maximum(radiance, 0)
    luminance = radiance @ np.array([0.2126, 0.7152, 0.0722], dtype=radiance.dtype)
    if luminance.max() <= 0:
        raise DataError("all one colour (0, 0, 0): not a photograph; no pixel has radiance above 0, save it again")
    area = np.cos((0.5 - (np.arange(len(luminance)) + 0.5) / len(luminance)) * np.pi)
    # Floor and ceiling follow from quantiles, which a sun or a few defective pixels do not move.
    seen = luminance if np.median(luminance) else luminance[luminance > 0]  # without a black surrounding
    typical, bright = float(np.median(seen)), float(np.quantile(seen, 0.99))
    floor, ceiling = max(0.01 * typical, 1e-6 * bright), 1e4 * bright
    log_luminance = np.log(np.minimum(luminance, ceiling) + floor)
    exposure = 0.18 / float(np.exp(np.average(log_luminance.mean(1), weights=area)))
    exposed = np.minimum(exposure * luminance, _MAX_EXPOSED)
    white = max(1.0, float(np.quantile(exposed, 0.999)))
    mapped = exposed * (1 + exposed / white**2) / (1 + exposed)
    linear = np.clip(radiance * (mapped / np.maximum(luminance, 1e-12))[..., None], 0, 1)
    record: ToneMap = {
        "curve": "reinhard_extended",
        "exposure": float(f"{exposure:.6g}"),
        "white": float(f"{white:.6g}"),
    }
    return np.round(encode_srgb(linear) * 255).astype(np.uint8), record


def check_finite(radiance: Float[np.ndarray, "h w c"]) -> None:
    """Raises DataError if pixels are NaN or infinite, with their number."""
    if not (finite := np.isfinite(radiance).all(-1)).all():
        bad = finite.size - np.count_nonzero(finite)
        raise DataError(
            f"{bad} pixels are NaN or infinite: give them the radiance of their neighbours, and save the file again"
        )


def radiance_size(file: BufferedReader | BytesIO) -> tuple[int, int]:
    """Width and height by a Radiance header, in pixels.

    Raises:
        DataError: If it is not a Radiance header.
        SyntaxError: If it has no resolution.
    """
    header = file.read(_HDR_HEADER)
    if not header.startswith(RADIANCE_MAGIC):  # OpenCV would try other decoders
        raise DataError("unreadable: not a Radiance file: save it as one, or give it the suffix of its own format")
    for line in header.split(b"\n"):
        if line.startswith((b"-Y", b"+Y")):
            height, width = line.split()[1::2]
            return int(width), int(height)
    raise SyntaxError("no resolution in its Radiance header")


def read_radiance(path: Path) -> Float[np.ndarray, "h w 3"]:
    """Reads the pixels of a Radiance file.

    Raises:
        DataError: If OpenCV cannot decode it, or its path is not text.
    """
    try:  # not imdecode, which writes Radiance bytes to a temporary file
        image = cv2.imread(text_path(path), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        image = None
    if image is None or image.dtype != np.float32:
        raise DataError(f"truncated or unreadable: OpenCV cannot decode it: {COPY_AGAIN}")
    return image
