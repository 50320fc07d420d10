"""How well captions fit panoramas, by CLIP.

Legend: P panoramas, V views of each, D features.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cubediff.evaluation.captions import Upright, clip_scores, fits_upright
from cubediff.evaluation.extractors import ClipImages
from cubediff.evaluation.sets import Prompts
from cubediff.geometry.faces import FACES


class Captions:
    """The captions of panoramas, which CLIP embeds.

    Args:
        network: The CLIP model.
        prompts: Of the panoramas.

    Attributes:
        truncated: Number of captions that are longer than the model reads.
    """

    def __init__(self, network: ClipImages, prompts: Sequence[Prompts]) -> None:
        self._network, self._prompts = network, prompts
        captions = [each.caption for each in prompts] + [text for each in prompts for text in each.faces or ()]
        self.truncated = network.truncated([caption for caption in captions if caption])

    def scores(self, views: Float[Tensor, "p v d"]) -> Float[Tensor, " p"]:
        """The mean CLIP score of each panorama's views with its caption.

        Raises:
            ValueError: If a panorama has no caption.
        """
        return clip_scores(views, self._of_panoramas()[:, None].expand_as(views)).mean(1)

    def scores_of_faces(self, faces: Float[Tensor, "p 6 d"]) -> Float[Tensor, " p"]:
        """The mean CLIP score of each panorama's faces with their captions.

        Raises:
            ValueError: If a panorama has no captions of faces.
        """
        texts = [text for each in self._prompts for text in each.faces or ()]
        if len(texts) != len(FACES) * len(self._prompts):
            raise ValueError(f"{sum(each.faces is None for each in self._prompts)} panoramas have no captions of faces")
        return clip_scores(faces, self._embed(texts).unflatten(0, (-1, len(FACES)))).mean(1)

    def fits(self, views: Float[Tensor, "p v d"], upside_down: Tensor, flipped: Tensor) -> list[Upright]:
        """Whether each panorama's caption fits it better than its copies.

        Raises:
            ValueError: If a panorama has no caption.
        """
        return [fits_upright(*each) for each in zip(self._of_panoramas(), views, upside_down, flipped, strict=True)]

    def _of_panoramas(self) -> Float[Tensor, "p d"]:
        texts = [each.caption for each in self._prompts]
        if not all(texts):
            raise ValueError(f"{texts.count('')} panoramas have no caption")
        return self._embed(texts)

    def _embed(self, texts: list[str]) -> Float[Tensor, "n d"]:
        with torch.inference_mode():
            return self._network.texts(texts).float().cpu()
