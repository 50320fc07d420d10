"""Gains that make the colours of overlapping faces agree: the gain compensation of Brown and Lowe, "Automatic Panoramic
Image Stitching using Invariant Features" (2007), section 6, for each colour channel.

Legend: B cubes, 6 faces, C channels, S face size.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cubediff.geometry.conventions import FACE_FOV
from cubediff.geometry.overlap import sample_overlaps

_DIFFERENCE = 0.01  # standard deviation of two faces' mean colours that agree
_GAIN = 0.1  # of the gains


def correct_gains(
    faces: Float[Tensor, "b 6 c s s"], fov: float = FACE_FOV, fixed: Bool[Tensor, "b 6"] | None = None
) -> Float[Tensor, "b 6 c s s"]:
    """Multiplies each channel of each face by a gain, so that the mean colours of neighbours agree in their overlap.

    The gains minimize the squared differences of the means, and their own distances from 1, weighted by the numbers of
    pixels. They hide differences of brightness and hue, not of content.

    Args:
        faces: Faces in FACES order, in [0, 1].
        fov: Field of view of the faces, degrees.
        fixed: Faces whose gain is 1, such as those that show a photo.

    Returns:
        The faces, which may exceed 1.

    Raises:
        ValueError: If the faces do not overlap, because `fov` is not between 90° and 180°.

    Example:
        >>> dark = torch.full((1, 6, 3, 64, 64), 0.5)
        >>> dark[:, 2] = 0.4
        >>> even = correct_gains(dark)
        >>> bool((even[:, 2] - even[:, 1]).abs().max() < 0.01)
        True
    """
    samples = sample_overlaps(faces, fov)
    pairs = samples.pairs[samples.inside]
    pixels = torch.bincount(pairs, minlength=36).view(6, 6).cpu().double()  # of face i that face j sees
    own, other = (
        _sums(values[..., samples.inside], pairs) / pixels.clamp(min=1) for values in (samples.own, samples.other)
    )
    # Derivatives of Σ pixels_ij · ((g_i · own_ij − g_j · other_ij)² / σ² + (1 − g_i)² / τ²).
    of_squares = (pixels * own.square()).sum(3) + (pixels * other.square()).sum(2)
    of_products = pixels * own * other
    prior = pixels.sum(1).expand(len(faces), 6) * (_DIFFERENCE / _GAIN) ** 2
    if fixed is not None:
        prior = torch.where(fixed.cpu(), 1e6 * prior, prior)
    prior = prior[:, None].expand_as(of_squares)
    matrix = torch.diag_embed(of_squares + prior) - of_products - of_products.mT
    gains: Tensor = torch.linalg.solve(matrix, prior[..., None])[..., 0]  # (B, C, 6)
    return faces * gains.mT[..., None, None].to(faces)


def _sums(values: Float[Tensor, "b c n"], pairs: Int[Tensor, " n"]) -> Float[Tensor, "b c 6 6"]:
    sums: Tensor = values.new_zeros(*values.shape[:2], 36).index_add_(2, pairs, values).unflatten(2, (6, 6))
    return sums.cpu().double()
