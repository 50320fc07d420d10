"""The discontinuity score of Christensen et al. (2024), "Geometry Fidelity for Spherical Images".

At a seam, columns of pixels of both sides are put next to each other and filtered by the horizontal Scharr kernel. The
score relates the gradients of the two columns at the seam to those a column away. Legend: B panoramas, H and W height
and width, S face size, K seams, L length of a seam.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cubediff.evaluation.face_edges import edge_columns
from cubediff.geometry.conventions import FACE_FOV

STABILITY = 0.1  # added to the gradients beside a seam, of grey values in [0, 1]
_GREY = (0.2989, 0.5870, 0.1140)


def seam_scores(columns: Float[Tensor, "b k 3 l 6"], padding: str = "replicate") -> Float[Tensor, "b k"]:
    """The score of seams between the third and the fourth of six columns of pixels; below 1 for a smooth one.

    Args:
        columns: Pixels in [0, 1].
        padding: Of the ends of the columns, a mode of `torch.nn.functional.pad`.
    """
    weights = columns.new_tensor(_GREY).view(3, 1, 1)
    grey = (columns * weights).sum(2).flatten(0, 1)[:, None]
    kernel = columns.new_tensor([[3.0, 0, -3], [10, 0, -10], [3, 0, -3]]) / 16
    padded = F.pad(grey, (0, 0, 1, 1), mode=padding)
    gradients = F.conv2d(padded, kernel[None, None])[:, 0].abs()  # of the four inner columns
    ratios = gradients[..., 1] / (gradients[..., 0] + STABILITY) + gradients[..., 2] / (gradients[..., 3] + STABILITY)
    scores: Tensor = (ratios.mean(-1) / 2).unflatten(0, columns.shape[:2])
    return scores


def discontinuity_of_border(panoramas: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """The score of the left and right border of equirectangular panoramas, as the paper defines it.

    Of a panorama that is made of cube faces it says nothing about their edges: the border is the middle of the back
    face.
    """
    columns = torch.cat([panoramas[..., -3:], panoramas[..., :3]], -1)
    return seam_scores(columns[:, None])[:, 0]


def discontinuity_as_published_code(panoramas: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """The score as public code computes it, to compare with numbers that it made.

    That code puts six columns of each side next to each other but reads the second to the fifth, so that it never sees
    the seam between the sixth and the seventh; and it multiplies by 6 / H.
    """
    return seam_scores(panoramas[:, None, :, :, -6:], padding="constant")[:, 0] * 6 / panoramas.shape[-2]


def discontinuity_of_edges(faces: Float[Tensor, "b 6 3 s s"], fov: float = FACE_FOV) -> Float[Tensor, " b"]:
    """The mean score of the twelve edges of the cube, each side of which is sampled from its own face."""
    return seam_scores(edge_columns(faces, 3, fov)).mean(1)
