"""Samples of faces where they meet: along the twelve edges of the cube, and around its eight corners.

Legend: B panoramas, C channels, S face size.
"""

import itertools
import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cubediff.geometry.conventions import FACE_FOV, FRAMES, tan_half
from cubediff.geometry.cubes import sample_faces

_PLACES = 128  # along an edge
_AXES = torch.tensor(FRAMES, dtype=torch.float64)[:, 2]  # the faces' centres
EDGES = [(a, b) for a, b in itertools.combinations(range(6), 2) if not _AXES[a] @ _AXES[b]]


def edge_columns(faces: Float[Tensor, "b 6 c s s"], width: int, fov: float = FACE_FOV) -> Float[Tensor, "b 12 c l n"]:
    """Columns of samples along the twelve edges, a pixel apart: `width` of either side, each from its own face.

    Args:
        faces: Faces in FACES order.
        width: Columns of one side.
        fov: Field of view of the faces, degrees.

    Returns:
        Images 2·`width` columns wide, with the edge in the middle.
    """
    depths = 2 * tan_half(fov) / faces.shape[-1] * (torch.arange(width, dtype=torch.float64) + 0.5)
    first, second = sides(faces, fov, depths).unbind(3)  # (B, C, 12, width, places)
    return torch.cat([first.flip(3), second], 3).permute(0, 2, 1, 4, 3)


def sides(
    faces: Tensor, fov: float, depths: Float[Tensor, " n"], cut: float | None = None
) -> Float[Tensor, "b c k 2 n places"]:
    """Samples on both sides of lines through the faces, at depths in the plane of a face at distance 1.

    The lines are the twelve edges, whose sides are sampled from their own faces, or, with `cut`, two in each face
    through its centre, moved by `cut`.
    """
    place = (2 * torch.arange(_PLACES, dtype=torch.float64) + 1) / _PLACES - 1
    if cut is None:
        lines = [(a, b, a, b) for a, b in EDGES]
    else:
        lines = [
            (a, b, a, a) for a, b in itertools.permutations(range(6), 2) if not _AXES[a] @ _AXES[b] and b in (0, 1, 4)
        ]
    rays, seen = [], []
    for a, b, first, second in lines:
        own, other = _AXES[a], _AXES[b]
        along = torch.linalg.cross(own, other)
        for sign, face in ((-1, first), (1, second)):
            for depth in depths:
                if cut is not None:
                    ray = own + (cut + sign * depth) * other
                else:
                    ray = own + (1 - depth) * other if sign < 0 else other + (1 - depth) * own
                rays.append(ray + place[:, None] * along)
                seen.append(torch.full((_PLACES,), face))
    samples = sample_faces(faces, torch.cat(rays), torch.cat(seen), fov)
    both: Tensor = samples.unflatten(2, (len(lines), 2, len(depths), _PLACES))
    return both


def strips(faces: Tensor, fov: float) -> tuple[Tensor, Tensor]:
    """Both faces of each edge, (12·B, C, across, along), where both see the directions."""
    size, tan = faces.shape[-1], tan_half(fov)
    limit = tan * (1 - 1 / size)  # the outermost pixel centres
    if limit <= 1:
        raise too_small(size, fov)
    width = math.atan(limit) - math.pi / 4  # on either side of the edge
    samples = max(11, round(2 * width * size / tan))  # a pixel beside the edge sees an angle of tan / size
    angle = width * torch.linspace(-1, 1, samples, dtype=torch.float64)
    place = (2 * torch.arange(size, dtype=torch.float64) + 1) / size - 1
    rays, first, second = [], [], []
    for a, b in EDGES:
        along = torch.linalg.cross(_AXES[a], _AXES[b])
        across = (math.pi / 4 + angle).cos()[:, None] * _AXES[a] + (math.pi / 4 + angle).sin()[:, None] * _AXES[b]
        rays.append((across[:, None] + math.sqrt(0.5) * place[:, None] * along).flatten(0, 1))
        first.append(torch.full((samples * size,), a))
        second.append(torch.full((samples * size,), b))
    both = (sample_faces(faces, torch.cat(rays), torch.cat(seen), fov) for seen in (first, second))
    one, other = (x.unflatten(2, (12, samples, size)).transpose(1, 2).flatten(0, 1) for x in both)
    return one, other


def too_small(size: int, fov: float) -> ValueError:
    """The error for faces whose overlap holds no pixel."""
    return ValueError(f"faces of {size} pixels and {fov}° overlap by less than a pixel: use larger ones")


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def corner_rays(size: int, fov: float) -> tuple[Float[Tensor, "n 3"], Int[Tensor, " n"]]:
    """Directions around the corners that three faces see, and a face for each: corners × faces × directions."""
    reach = tan_half(fov) * (1 - 1 / size)
    if reach <= 1:
        raise too_small(size, fov)
    radius = (reach - 1) / (reach + 1)  # (1 + radius) / (1 − radius) is the reach
    offsets = radius * torch.linspace(-1, 1, 5, dtype=torch.float64)
    rays, seen = [], []
    for corner in itertools.product((-1.0, 1.0), repeat=3):
        # Two coordinates vary and the third balances them, so that none exceeds the radius.
        x, y = (grid.flatten() for grid in torch.meshgrid(offsets, offsets, indexing="ij"))
        inside = (x + y).abs() <= radius + 1e-12
        change = torch.stack([x, y, -x - y], -1)[inside]
        directions = torch.tensor(corner, dtype=torch.float64) * (1 + change)
        for axis in range(3):
            centre = torch.zeros(3, dtype=torch.float64)
            centre[axis] = corner[axis]
            rays.append(directions)
            seen.append(torch.full((len(directions),), int((_AXES @ centre).argmax())))
    return torch.cat(rays), torch.cat(seen)
