"""Whether captions fit panoramas, by CLIP: the score of views, and whether the panorama fits better than its copies.

Everything works on embeddings, so that those of a view are computed once. Legend: N pairs of a view and a text,
V views of a panorama, D features, C channels, H and W height and width.
"""

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Upright(NamedTuple):
    """Whether a caption fits a panorama better than its copies.

    Attributes:
        than_upside_down: Than the panorama upside down; half of the panoramas by chance.
        than_flipped: Than the panorama with left and right swapped; half of the panoramas by chance.
    """

    than_upside_down: bool
    than_flipped: bool


def clip_scores(images: Float[Tensor, "*n d"], texts: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
    """CLIP scores: 100 · max(cosine, 0), as torchmetrics scales them; Hessel et al. (2021) multiply by 2.5 instead.

    The score of a panorama is the mean over its views with its caption, or over its faces with a caption for each.
    torchmetrics sets a negative mean to 0, this function each negative score.

    Args:
        images: Embeddings of views.
        texts: Embeddings of the caption of each view.
    """
    return 100 * F.cosine_similarity(images, texts, dim=-1).clamp_min(0)


def fits_upright(
    text: Float[Tensor, " d"],
    views: Float[Tensor, "v d"],
    upside_down: Float[Tensor, "v d"],
    flipped: Float[Tensor, "v d"],
) -> Upright:
    """Whether the mean CLIP score of a panorama's views is greater than those of its copies.

    Args:
        text: Embedding of the caption.
        views: Embeddings of the views of the panorama.
        upside_down: Those of the same protocol of `turn_upside_down(panorama)`.
        flipped: Those of the same protocol of `mirror(panorama)`.
    """
    own, turned, swapped = (
        clip_scores(each, text.expand_as(each)).mean().item() for each in (views, upside_down, flipped)
    )
    return Upright(own > turned, own > swapped)


def turn_upside_down(panorama: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
    """An equirectangular panorama as a viewer sees it after a roll by 180° about the direction of the front.

    Rows and columns are reversed. A flip of the rows alone would mirror the scene as well.
    """
    return panorama.flip((-2, -1))


def mirror(panorama: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
    """An equirectangular panorama with left and right swapped."""
    return panorama.flip(-1)
