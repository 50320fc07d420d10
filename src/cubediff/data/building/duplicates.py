"""Near-duplicate panoramas by a perceptual hash that ignores yaw and flips, so that copies of a panorama stay on one
side of the train/val split (training rotates panoramas in yaw at random, arXiv 2501.17162)."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, UInt8

BITS = 256
THRESHOLD = 48  # bits. On data/samples copies differ by at most 18, different scenes by at least 79 (see the tests)

_WIDTH, _ROWS, _COLUMNS = 128, 8, 16  # of the thumbnail in pixels; vertical and horizontal frequencies
_BLOCK = 2048


class Pairs(NamedTuple):
    """Panoramas `first[k]` < `second[k]` differ by `distance[k]` bits; sorted by `first`, then `second`."""

    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    distance: Int[np.ndarray, " pairs"]


def perceptual_hash(image: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "32"]:
    """256-bit hash of a greyscale panorama (h, 2h), nearly invariant to scaling, re-encoding and any rotation in yaw.

    Fourier transform of the rows, cosine transform of the columns. A rotation in yaw shifts the phase of a horizontal
    frequency by the same angle at all vertical frequencies; the bits are the signs of phase differences between
    neighbouring vertical frequencies, which stay. A horizontal flip inverts the last 128 bits.
    """
    small = cv2.resize(image, (_WIDTH, _WIDTH // 2), interpolation=cv2.INTER_AREA).astype(np.float32)
    horizontal = np.fft.rfft(small, axis=1)[:, 1 : _COLUMNS + 1]
    rows = (np.arange(len(small)) + 0.5) / len(small) * np.pi
    spectrum = np.cos(np.arange(_ROWS + 1)[:, None] * rows) @ horizontal
    differences = spectrum[:-1] * spectrum[1:].conj()
    return np.packbits(np.concatenate([differences.real.ravel(), differences.imag.ravel()]) > 0)


def hash_jpeg(jpeg: bytes, width: int) -> UInt8[np.ndarray, "32"]:
    """The perceptual hash of a JPEG panorama, decoded at reduced size if `width` (in pixels) allows it.

    Raises:
        ValueError: If OpenCV cannot decode the JPEG.
    """
    scale = {8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2}
    flag = next((flag for by, flag in scale.items() if width >= 2 * by * _WIDTH), cv2.IMREAD_GRAYSCALE)
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("OpenCV cannot decode its JPEG")
    return perceptual_hash(image)


def near_duplicates(hashes: UInt8[np.ndarray, "n 32"], threshold: int = THRESHOLD) -> Pairs:
    """All pairs of hashes that differ, possibly after a flip of one, by at most `threshold` bits.

    Equal hashes are paired with their first occurrence only, which represents them in other pairs. Takes n² products
    of vectors of 256 numbers, in blocks: seconds for 10 000 panoramas.

    Args:
        hashes: Hashes of `perceptual_hash`.
        threshold: Maximum number of differing bits.
    """
    distinct, first, inverse = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    representative = first[inverse.reshape(-1)]
    copies = np.flatnonzero(representative != np.arange(len(hashes)))
    found = [(representative[copies], copies, np.zeros_like(copies))]
    signs = np.unpackbits(distinct, axis=1).astype(np.float32) * 2 - 1
    flipped = signs * np.repeat(np.array([1, -1], np.float32), BITS // 2)  # a flip conjugates the frequencies
    for top in range(0, len(signs), _BLOCK):
        for left in range(top, len(signs), _BLOCK):
            others = (hashes[left : left + _BLOCK].T for hashes in (signs, flipped))
            distance = (BITS - np.maximum(*(signs[top : top + _BLOCK] @ other for other in others))) / 2
            i, j = np.nonzero(np.triu(distance <= threshold, 1) if left == top else distance <= threshold)
            a, b = first[top + i], first[left + j]
            found.append((np.minimum(a, b), np.maximum(a, b), distance[i, j].astype(np.int64)))
    i, j, distance = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((j, i))
    return Pairs(i[order], j[order], distance[order])
