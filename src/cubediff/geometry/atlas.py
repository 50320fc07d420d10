"""Samples six faces along directions (CubeDiff, section 3: faces that overlap).

The faces lie below each other in one image, the atlas. Where they overlap by less than a pixel, each is padded with
samples of its neighbours, so that interpolation does not stop at its border.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from cubediff.geometry import sampling
from cubediff.geometry.conventions import FRAMES, face_directions, tan_half

_RAYS = 1 << 20  # directions that are looked up at once: about 400 MB of float64


class Overlaps(NamedTuple):
    """Directions that a second or third face sees too: their indices, positions on that face, and its weights."""

    indices: Int[Tensor, " m"]
    grid: Float[Tensor, "1 1 m 2"]
    weights: Float[Tensor, " m"]


def check_faces(faces: Tensor, fov: float, overlap: str) -> None:
    """Raises ValueError unless faces are (B, 6, C, S, S) and cover the sphere, and `overlap` is known."""
    if faces.ndim != 5 or faces.shape[1] != 6 or faces.shape[-1] != faces.shape[-2]:
        raise ValueError(f"faces must be (B, 6, C, S, S), not {tuple(faces.shape)}")
    if overlap not in ("blend", "crop"):
        raise ValueError(f"unknown overlap {overlap!r}: use 'blend' or 'crop'")
    check_coverage(fov)


def check_coverage(fov: float) -> None:
    """Raises ValueError unless six faces with a field of view cover the sphere."""
    if not 90 <= fov < 180:
        raise ValueError(f"fov is {fov}°: six faces cover the sphere with at least 90°, and must stay below 180°")


def margin_of(mode: str) -> int:
    """Pixels that a sample at the border of a face reads beyond it."""
    return 2 if mode == "bicubic" else 1


def needs_border(size: int, fov: float) -> bool:
    """Whether faces overlap by less than a pixel, so that samples near an edge need the neighbouring face."""
    return tan_half(fov) * (1 - 1 / size) < 1


def build_atlas(faces: Real[Tensor, "b 6 c s s"], fov: float, margin: int) -> Float[Tensor, "b c rows columns"]:
    """The faces below each other, each padded by `margin` pixels, in the dtype to sample in."""
    batch, size, work = faces.shape[0], faces.shape[-1], sampling.work_dtype(faces)
    padded = F.pad(faces.to(work).flatten(0, 1), (margin,) * 4, mode="replicate")
    atlas: Tensor = padded.unflatten(0, (batch, 6)).transpose(1, 2).flatten(2, 3)
    if needs_border(size, fov):
        indices, grid = border_grid(size, fov, margin, work, faces.device)
        border = sampling.sample(atlas, grid.expand(batch, -1, -1, -1), "bilinear").flatten(2)
        atlas = atlas.flatten(2).index_copy(2, indices, border).view_as(atlas)
    return atlas


def ray_grids(
    rays: Float[Tensor, "n 3"], fov: float, blend: bool, size: int, margin: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "n 2"], Overlaps | None]:
    """Positions of directions in the atlas.

    Args:
        rays: Directions in float64.
        fov: Field of view of a face, in degrees.
        blend: Whether all faces that see a direction count, with the weights of `cube_to_equirect`.
        size: Side of a face, in pixels.
        margin: Padding of a face in the atlas, in pixels.
        dtype: Type of the results.

    Returns:
        The positions on the nearest faces and, to blend, those on the other faces.
    """
    if len(rays) > _RAYS:
        pieces = [ray_grids(part, fov, blend, size, margin, dtype) for part in rays.split(_RAYS)]
        nearest = torch.cat([grid for grid, _ in pieces])
        found = [(k * _RAYS + part.indices, part.grid, part.weights) for k, (_, part) in enumerate(pieces) if part]
        if not found:
            return nearest, None
        return nearest, Overlaps(
            torch.cat([indices for indices, _, _ in found]),
            torch.cat([grid for _, grid, _ in found], 2),
            torch.cat([weight for _, _, weight in found]),
        )
    tan = tan_half(fov)
    face, reach, column, row = nearest_faces(rays, size, tan)
    grids = atlas_grid(face, column, row, size, margin).to(rays.device, dtype)
    if not blend:
        return grids[0], None
    weights = ((tan - reach) / (tan - 1)).clamp(0, 1)
    weights = (weights / weights.sum(0))[1:].to(rays.device, dtype)
    rank, indices = weights.nonzero(as_tuple=True)
    return grids[0], Overlaps(indices, grids[1:][rank, indices][None, None], weights[rank, indices])


def add_overlaps_(samples: Float[Tensor, "b c n"], atlas: Tensor, overlaps: Overlaps, mode: str) -> None:
    """Adds the other faces to samples of the nearest ones."""
    indices, grid, weights = overlaps
    other = sampling.sample(atlas, grid.expand(len(samples), -1, -1, -1), mode).flatten(2)
    samples.index_add_(2, indices, (other - samples[..., indices]) * weights)


def nearest_faces(rays: Tensor, size: int, tan: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The three nearest faces of directions (N, 3): index, distance from the axis, column and row; (3, N) each."""
    local = torch.einsum("fkw,nw->kfn", torch.tensor(FRAMES, dtype=torch.float64), rays)
    u, v = local[:2] / local[2]  # (6, N) each
    reach = torch.where(local[2] > 0, torch.maximum(u.abs(), v.abs()), torch.inf)
    reach, face = reach.topk(3, 0, largest=False)
    column, row = ((w.gather(0, face) / tan + 1) / 2 * size - 0.5 for w in (u, -v))
    return face, reach, column, row


def atlas_grid(face: Tensor, column: Tensor, row: Tensor, size: int, margin: int) -> Tensor:
    """grid_sample coordinates in the atlas: six faces below each other, each padded by `margin` pixels."""
    edge = size + 2 * margin
    x, y = (column + margin + 0.5) / edge, (row + margin + 0.5 + face * edge) / (6 * edge)
    return torch.stack([x, y], -1) * 2 - 1


def border_directions(size: int, fov: float, margin: int) -> tuple[Bool[Tensor, "6 e e"], Float[Tensor, "n 3"]]:
    """The padding of faces by `margin` pixels: its pixels in the padded faces, and their directions in float64."""
    edge = size + 2 * margin
    wide = math.degrees(2 * math.atan(tan_half(fov) * edge / size))
    around = torch.ones(6, edge, edge, dtype=torch.bool)
    around[:, margin:-margin, margin:-margin] = False
    return around, face_directions(edge, wide, torch.float64)[around]


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def border_grid(
    size: int, fov: float, margin: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Float[Tensor, "1 i j 2"]]:
    """The padding of the faces in the atlas: indices of its pixels, and the grid of their directions on other faces."""
    around, rays = border_directions(size, fov, margin)
    face, _, column, row = nearest_faces(rays, size, tan_half(fov))
    grid = atlas_grid(face[0], column[0].clamp(0, size - 1), row[0].clamp(0, size - 1), size, margin)
    indices = around.flatten().nonzero()[:, 0]
    return indices.to(device), grid.view(1, 24, -1, 2).to(device, dtype)
