"""Linear RGB of any primaries in sRGB's primaries, and the transfer function of sRGB (IEC 61966-2-1)."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Float64, UInt8, UInt16

from cubediff.utils.errors import DataError

SRGB = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329)  # x, y of red, green, blue and white

Levels: TypeAlias = UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"]

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_STRIP = 1 << 20  # pixels that are converted at a time


def rgb_to_xyz(chromaticities: Sequence[float]) -> Float64[np.ndarray, "3 3"]:
    """XYZ of linear RGB, with white at Y = 1.

    Args:
        chromaticities: x and y of red, green, blue and white.

    Raises:
        DataError: If they are not those of a colour space.
    """
    xy = np.reshape(np.asarray(chromaticities, np.float64), (4, 2))
    try:
        if not (np.isfinite(xy).all() and (xy[:, 1] != 0).all()):
            raise np.linalg.LinAlgError
        red, green, blue, white = np.stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(1)) / xy[:, 1]], -1)
        columns = np.stack([red, green, blue], -1)
        matrix: Float64[np.ndarray, "3 3"] = columns * np.linalg.solve(columns, white)
    except np.linalg.LinAlgError:
        raise DataError(f"its chromaticities are {tuple(chromaticities)}: write those of its colour space") from None
    return matrix


def to_srgb_primaries(chromaticities: Sequence[float]) -> Float64[np.ndarray, "3 3"] | None:
    """The matrix from linear RGB to linear sRGB, with Bradford's adaptation to its white; None if nothing changes.

    Raises:
        DataError: As `rgb_to_xyz`.
    """
    own, srgb = rgb_to_xyz(chromaticities), rgb_to_xyz(SRGB)
    if np.allclose(chromaticities, SRGB, atol=1e-3):
        return None
    gains = (_BRADFORD @ srgb.sum(1)) / (_BRADFORD @ own.sum(1))  # white is the sum of the primaries
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(gains) @ _BRADFORD @ own
    matrix: Float64[np.ndarray, "3 3"] = np.linalg.inv(srgb) @ adapted
    return matrix


def encode_srgb(linear: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """sRGB in [0, 1] of linear RGB in [0, 1]."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def decode_srgb(encoded: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """Linear RGB in [0, 1] of sRGB in [0, 1], the inverse of `encode_srgb`."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4).astype(encoded.dtype)


def levels_of_gamma(
    levels: UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"],
    gamma: float,
    matrix: Float64[np.ndarray, "3 3"] | None,
) -> UInt8[np.ndarray, "h w 3"]:
    """sRGB levels of levels that are a power of linear RGB.

    Args:
        levels: Of 8 or 16 bits.
        gamma: Linear RGB is levels^(1 / gamma); 1 for linear levels.
        matrix: Of `to_srgb_primaries`.
    """
    full = np.float32(np.iinfo(levels.dtype).max)

    def convert(strip: Levels) -> UInt8[np.ndarray, "h w 3"]:
        linear = (strip / full) ** np.float32(1 / gamma)
        linear = linear if matrix is None else (linear @ matrix.T.astype(np.float32)).clip(0, 1)
        return np.round(255 * encode_srgb(linear)).astype(np.uint8)

    return in_strips(convert, levels)


def in_strips(convert: Callable[[Levels], UInt8[np.ndarray, "h w 3"]], levels: Levels) -> UInt8[np.ndarray, "h w 3"]:
    """Converts an image strip by strip, so that intermediate results stay small."""
    rows = max(1, _STRIP // levels.shape[1])
    return np.concatenate([convert(levels[start : start + rows]) for start in range(0, len(levels), rows)])
