"""Classifier-free guidance towards text and image (CubeDiff, section 4.3; with two scales arXiv 2211.09800).

Legend: B panoramas, 6 faces, C latent channels, h w latent size.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

log = logging.getLogger(__name__)


class Branch(NamedTuple):
    """One prediction that guidance combines: whether it is conditioned on the text and on the image, and its weight."""

    text: bool
    image: bool
    weight: float


@dataclass(frozen=True)
class Guidance:
    """The predictions of a sampling step and how they are combined.

    Attributes:
        branches: The predictions to make, the fully conditioned one last; their weights add up to 1.
        rescale: Share in [0, 1] by which the combination's standard deviation is rescaled to that of the fully
            conditioned prediction ("Common Diffusion Noise Schedules…", arXiv 2305.08891, section 3.4).
        start, stop: Fractions of the steps in [0, 1] between which guidance applies ("Applying Guidance in a Limited
            Interval…", arXiv 2404.07724); before and after, only the fully conditioned prediction is made.
    """

    branches: tuple[Branch, ...]
    rescale: float = 0.0
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.start < 1 and self.start <= self.stop <= 1):
            raise ValueError(
                f"guidance_start={self.start} and guidance_stop={self.stop}: expected fractions of the steps, "
                "0 <= guidance_start <= guidance_stop <= 1 and guidance_start < 1"
            )

    def applies(self, step: int, steps: int) -> bool:
        """Whether guidance applies to a step, as diffusers' guiders count them.

        Args:
            step: The step, from 0.
            steps: The number of steps.
        """
        return int(self.start * steps) <= step < int(self.stop * steps)

    def combine(
        self, predictions: Sequence[Float[Tensor, "b 6 c h w"]], t: Tensor | None = None
    ) -> Float[Tensor, "b 6 c h w"]:
        """The guided prediction.

        Args:
            predictions: One prediction for each branch, in their order; or only that of the last branch, which is
                then the result.
            t: The timestep; this guidance is the same at all of them.
        """
        if len(predictions) == 1:
            return predictions[0]
        weighted = (branch.weight * p for branch, p in zip(self.branches, predictions, strict=True))
        combined = sum(weighted, torch.zeros_like(predictions[-1]))
        if not self.rescale:
            return combined
        ratio = predictions[-1].std((1, 2, 3, 4), keepdim=True) / combined.std((1, 2, 3, 4), keepdim=True)
        return combined * torch.lerp(torch.ones_like(ratio), ratio, self.rescale)


def make_guidance(
    text: bool,
    image: bool,
    scale: float,
    image_scale: float | None = None,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Guidance:
    """The guidance for a call that has a text, an image, both, or neither.

    Args:
        text: Whether the panorama is conditioned on a text.
        image: Whether it is conditioned on an image.
        scale: Guidance scale; 1 and below turns guidance off. With `image_scale` it is that of the text alone.
        image_scale: Guidance scale of the image (InstructPix2Pix, equation 3); None for one scale over both.
        rescale: See `Guidance`.
        interval: `start` and `stop` of `Guidance`.

    Raises:
        ValueError: If a scale is not a finite number, or the interval is not within [0, 1].

    Example:
        >>> [branch.weight for branch in make_guidance(text=True, image=False, scale=3.5).branches]
        [-2.5, 3.5]
    """
    scales = {"guidance_scale": scale, "image_guidance_scale": image_scale, "guidance_rescale": rescale}
    for name, value in scales.items():
        if value is not None and not _is_finite(value):
            raise ValueError(f"{name}={value!r}: expected a finite number")
    if not (text or image):
        return Guidance((Branch(False, False, 1.0),), rescale, *interval)
    if text and image and image_scale is not None:
        others = [Branch(False, False, 1 - image_scale), Branch(False, True, image_scale - scale)]
        full = Branch(True, True, scale)
    else:
        s = image_scale if image and not text and image_scale is not None else scale
        s = s if s > 1 else 1.0
        others, full = [Branch(False, False, 1 - s)], Branch(text, image, s)
    return Guidance((*(branch for branch in others if branch.weight), full), rescale, *interval)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def warn_untrained_conditions(branches: Sequence[Branch], dropout: Sequence[float] | None) -> None:
    """Warns of branches with conditions that the model has never seen in training.

    Args:
        branches: The branches of a `Guidance`.
        dropout: The shares of training panoramas without text, without image, and without both; None if unknown.
    """
    if dropout is None:
        return
    drop_text, drop_image, drop_both = dropout
    shares = {
        (False, False): ("without text and image", drop_both),
        (False, True): ("without text", drop_text),
        (True, False): ("without an image", drop_image),
        (True, True): ("with text and image together", 1 - drop_text - drop_image - drop_both),
    }
    for branch in branches:
        condition, share = shares[branch.text, branch.image]
        if share < 1e-9:
            remedy = "" if branch is branches[-1] else ", which guidance needs: use guidance_scale=1"
            log.warning("this model was never trained %s%s", condition, remedy)
