"""Padding of faces with their neighbours, so that a convolution does not stop at the border of a face.

A face is a window of an infinite plane. A pixel of the padding is a pixel of that plane beyond the window; its
direction is looked up on the face that is nearest to it, between pixel centres, bilinearly. This is exact for any field
of view; at 90°, where faces meet without overlap, it differs from copying the neighbour's border pixels because their
grids do not continue each other beyond the first row.

Legend: B cubes, 6 faces, C channels, S face size, m margin, N pixels of the padding of a face.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cubediff.geometry.atlas import border_directions, check_coverage, nearest_faces
from cubediff.geometry.conventions import FACES, tan_half


class _Taps(NamedTuple):
    """Where the pixels of the padding are, and the four pixels of other faces between which each of them lies."""

    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]
    source_faces: Int[Tensor, "4 6n"]
    source_rows: Int[Tensor, "4 6n"]
    source_columns: Int[Tensor, "4 6n"]
    weights: Float[Tensor, "4 6n 1 1"]


def pad_faces(faces: Float[Tensor, "b6 c s t"], fov: float, margin: int = 1) -> Float[Tensor, "b6 c e f"]:
    """Pads the faces of cubes with what the neighbouring faces show there.

    Args:
        faces: (B·6, C, S, S), panorama-major, in FACES order; any memory format, which the result keeps.
        fov: Field of view of a face, in degrees: at least 90, below 180.
        margin: Pixels to add on every side.

    Returns:
        (B·6, C, S + 2·margin, S + 2·margin).

    Raises:
        ValueError: If the batch is no multiple of six, the faces are not square, or `fov` is out of range.

    Example:
        >>> faces = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 4, 4)
        >>> pad_faces(faces, fov=90.0)[0, 0, 2].round().tolist()  # face 0, between faces 3 and 1
        [3.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    """
    count, _, height, width = faces.shape
    if count % len(FACES) or height != width:
        raise ValueError(f"expected square faces (B·6, C, S, S), got {tuple(faces.shape)}")
    check_coverage(fov)
    taps = _taps(height, fov, margin, faces.device)
    cubes = faces.unflatten(0, (-1, len(FACES)))
    sources = cubes[:, taps.source_faces, :, taps.source_rows, taps.source_columns]  # (4, 6·N, B, C)
    border = (sources * taps.weights).sum(0).to(faces.dtype)
    padded = F.pad(faces, (margin,) * 4)
    padded[:, :, taps.rows, taps.columns] = border.unflatten(0, (6, -1)).permute(2, 0, 3, 1).flatten(0, 1)
    return padded


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _cached_taps(size: int, fov: float, margin: int, device: torch.device) -> _Taps:
    around, rays = border_directions(size, fov, margin)
    rows, columns = around[0].nonzero(as_tuple=True)
    face, _, column, row = (values[0] for values in nearest_faces(rays, size, tan_half(fov)))
    row, column = (position.clamp(0, size - 1) for position in (row, column))
    top, left = row.floor().long(), column.floor().long()
    bottom, right = ((first + 1).clamp(max=size - 1) for first in (top, left))
    down, across = row - top, column - left
    weights = torch.stack([(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across])
    return _Taps(
        rows.to(device),
        columns.to(device),
        face.expand(4, -1).to(device),
        torch.stack([top, top, bottom, bottom]).to(device),
        torch.stack([left, right, left, right]).to(device),
        weights[:, :, None, None].to(device, torch.float32),
    )


def _constant_taps(size: int, fov: float, margin: int, device: torch.device) -> _Taps:
    return _cached_taps(size, fov, margin, device)


# In compiled code, which would ignore the cache and compute them in every call.
_taps: Callable[[int, float, int, torch.device], _Taps] = torch.compiler.assume_constant_result(_constant_taps)
