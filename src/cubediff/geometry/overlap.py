"""Where faces overlap: pixels whose direction a neighbouring face sees too (CubeDiff, section 3: faces of 95°).

Legend: B cubes, 6 faces, C channels, S face size, N pairs of a pixel and another face that sees its direction.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cubediff.geometry import sampling
from cubediff.geometry.atlas import atlas_grid, nearest_faces
from cubediff.geometry.conventions import FACE_FOV, face_directions, tan_half


class OverlapSamples(NamedTuple):
    """The pixels of faces whose direction another face sees, and that face's value there.

    A pixel near a corner of the cube, which two other faces see, has two entries.

    Attributes:
        indices: Indices of the pixels in the flattened faces (6·S·S).
        own: Values of the pixels.
        other: Bilinear samples of the other face in the pixels' directions.
        weights: Share of `other` in the blend of all faces that see the direction, see `cube_to_equirect`.
        inside: Whether the direction lies between pixel centres of the other face, so that no sample is extrapolated.
        pairs: The two faces: 6 × that of the pixel + the other.
    """

    indices: Int[Tensor, " n"]
    own: Float[Tensor, "b c n"]
    other: Float[Tensor, "b c n"]
    weights: Float[Tensor, " n"]
    inside: Bool[Tensor, " n"]
    pairs: Int[Tensor, " n"]


class _Pairs(NamedTuple):
    indices: Tensor
    grid: Tensor
    weights: Tensor
    inside: Tensor
    pairs: Tensor


def sample_overlaps(faces: Float[Tensor, "b 6 c s s"], fov: float = FACE_FOV) -> OverlapSamples:
    """Compares the faces of cubes where they overlap.

    Args:
        faces: Faces in FACES order, of any value range; half precision is sampled in float32.
        fov: Field of view of the faces, degrees.

    Raises:
        ValueError: If the faces do not overlap, because `fov` is not between 90° and 180°.

    Example:
        >>> samples = sample_overlaps(torch.ones(1, 6, 3, 64, 64), fov=95.0)
        >>> (samples.own - samples.other).abs().max().item() < 1e-6
        True
    """
    if not 90 < fov < 180:
        raise ValueError(f"fov is {fov}°: faces overlap with more than 90°, and stay below 180°")
    size, work = faces.shape[-1], sampling.work_dtype(faces)
    pairs = _pairs(size, fov, work, faces.device)
    atlas = faces.to(work).transpose(1, 2).flatten(2, 3)  # (B, C, 6·S, S)
    other = sampling.sample(atlas, pairs.grid.expand(len(faces), -1, -1, -1), "bilinear").flatten(2)
    own = atlas.flatten(2)[..., pairs.indices]
    return OverlapSamples(pairs.indices, own, other, pairs.weights, pairs.inside, pairs.pairs)


def blend_overlaps(faces: Float[Tensor, "b 6 c s s"], fov: float = FACE_FOV) -> Float[Tensor, "b 6 c s s"]:
    """Replaces pixels that several faces see by the average of these faces, weighted as `cube_to_equirect` blends them.

    The weights depend on the direction alone, so that all faces receive the same average. They fall to 0 at the border
    of a face, so that the average has no step there.

    Args:
        faces: Faces in FACES order.
        fov: Field of view of the faces, degrees.

    Returns:
        The faces; pixels that one face alone sees are unchanged.

    Raises:
        ValueError: If the faces do not overlap, because `fov` is not between 90° and 180°.

    Example:
        >>> faces = torch.arange(6.0).view(1, 6, 1, 1, 1).expand(1, 6, 1, 64, 64)
        >>> [round(value, 2) for value in blend_overlaps(faces)[0, 0, 0, 32, -5:].tolist()]  # towards the right face, 1
        [0.22, 0.41, 0.52, 0.64, 0.84]
    """
    samples = sample_overlaps(faces, fov)
    change = torch.zeros_like(faces, dtype=samples.own.dtype).transpose(1, 2).flatten(2)  # (B, C, 6·S·S)
    change.index_add_(2, samples.indices, (samples.other - samples.own) * samples.weights)
    return (faces + change.view_as(faces.transpose(1, 2)).transpose(1, 2)).to(faces.dtype)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _pairs(size: int, fov: float, dtype: torch.dtype, device: torch.device) -> _Pairs:
    tan = tan_half(fov)
    rays = face_directions(size, fov, torch.float64).flatten(0, 2)
    face, reach, column, row = nearest_faces(rays, size, tan)  # (3, 6·S·S) each: no direction has more faces
    weights = ((tan - reach) / (tan - 1)).clamp(0, 1)
    weights /= weights.sum(0)
    own = torch.arange(6).repeat_interleave(size * size)
    rank, indices = ((weights > 0) & (face != own)).nonzero(as_tuple=True)
    face, reach, column, row, weights = (values[rank, indices] for values in (face, reach, column, row, weights))
    grid = atlas_grid(face, column.clamp(0, size - 1), row.clamp(0, size - 1), size, margin=0)
    return _Pairs(
        indices.to(device), grid.view(1, 1, -1, 2).to(device, dtype), weights.to(device, dtype),
        (reach <= tan * (1 - 1 / size) + 1e-9).to(device), (6 * own[indices] + face).to(device),
    )  # fmt: skip
