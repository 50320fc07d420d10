"""Metrics of generated faces that need no reference: agreement where faces overlap, colour steps at their edges,
sharpness.

The paper gives no number for the consistency of faces; these are this project's definitions.

Legend: B panoramas, 6 faces, C channels, S face size.
"""

import itertools
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from cubediff.geometry import sampling
from cubediff.geometry.atlas import atlas_grid
from cubediff.geometry.conventions import FACE_FOV, FRAMES, tan_half
from cubediff.geometry.overlap import sample_overlaps

BAND = 1 / 32  # width of the band beside an edge, relative to the distance between the edge and the face's centre
_SAMPLES = (4, 128)  # across and along a band


def overlap_rms(faces: Float[Tensor, "b 6 c s s"], fov: float = FACE_FOV) -> Float[Tensor, " b"]:
    """RMS difference between pixels of neighbouring faces that see the same direction.

    Every pixel is compared with the bilinear samples of the other faces that see its direction. Perfectly consistent
    faces have the error of this interpolation, which real panoramas have too.

    Args:
        faces: Faces in [0, 1].
        fov: Field of view of the faces, degrees.

    Raises:
        ValueError: If the faces do not overlap, because `fov` is not between 90° and 180°, or by less than a pixel.
    """
    samples = sample_overlaps(faces, fov)
    if not samples.inside.any():
        raise ValueError(f"faces of {faces.shape[-1]} pixels and {fov}° overlap by less than a pixel: use larger ones")
    difference = (samples.other - samples.own)[..., samples.inside]
    rms: Tensor = difference.square().mean((1, 2)).sqrt()
    return rms


def colour_step(faces: Float[Tensor, "b 6 c s s"], fov: float = FACE_FOV) -> Float[Tensor, " b"]:
    """Mean absolute difference between the colours on both sides of the cube's edges.

    At 128 places along each of the twelve edges, the mean colour of a narrow band on one side is compared with that on
    the other; a band reaches 1/32 of the way to the centre of the face, and is sampled from that face alone. Panoramas
    without seams have the small value that their gradients make.

    Args:
        faces: Faces in [0, 1].
        fov: Field of view of the faces, degrees; at least 90.

    Returns:
        The mean over edges, places and channels.
    """
    size, work = faces.shape[-1], sampling.work_dtype(faces)
    atlas = faces.to(work).transpose(1, 2).flatten(2, 3)  # (B, C, 6·S, S)
    grid = _band_grid(size, fov, work, faces.device)
    samples = sampling.sample(atlas, grid.expand(len(faces), -1, -1, -1), "bilinear")  # (B, C, 12·2, samples)
    bands = samples.unflatten(3, _SAMPLES).mean(3).unflatten(2, (12, 2))  # (B, C, 12, 2, places)
    steps: Tensor = (bands[:, :, :, 0] - bands[:, :, :, 1]).abs().mean((1, 2, 3))
    return steps


def sharpness(faces: Float[Tensor, "b 6 c s s"]) -> Float[Tensor, " b"]:
    """Mean magnitude of the gradient inside faces, by forward differences of pixels.

    Args:
        faces: Faces in [0, 1].
    """
    corner = faces[..., :-1, :-1]
    across, down = faces[..., :-1, 1:] - corner, faces[..., 1:, :-1] - corner
    return (across.square() + down.square()).sqrt().mean((1, 2, 3, 4))


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _band_grid(size: int, fov: float, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "1 bands n 2"]:
    """grid_sample coordinates, in six faces below each other, of the two bands of each edge."""
    frames = torch.tensor(FRAMES, dtype=torch.float64)
    across, along = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in _SAMPLES)
    reach, place = (1 - BAND * across).repeat_interleave(len(along)), (2 * along - 1).repeat(len(across))
    grids = []
    for pair in itertools.combinations(range(6), 2):
        axes = frames[list(pair), 2]
        if axes[0] @ axes[1]:
            continue  # opposite faces
        edge = torch.linalg.cross(axes[0], axes[1])
        for face, (own, other) in zip(pair, (axes, axes.flip(0)), strict=True):
            right, up, _ = frames[face]
            points = own + reach[:, None] * other + place[:, None] * edge  # in the face's plane at distance 1
            column, row = ((points @ axis / tan_half(fov) + 1) / 2 * size - 0.5 for axis in (right, -up))
            grids.append(atlas_grid(torch.tensor(face), column.clamp(0, size - 1), row.clamp(0, size - 1), size, 0))
    return torch.stack(grids)[None].to(device, dtype)
