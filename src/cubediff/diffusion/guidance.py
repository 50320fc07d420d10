"""Which conditions guidance combines, and with what weights (CubeDiff, section 4.3; InstructPix2Pix, arXiv 2211.09800,
for two scales)."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

log = logging.getLogger(__name__)


class Branch(NamedTuple):
    """One of the conditions that guidance combines: whether it has the text, whether the image, and its weight."""

    text: bool
    image: bool
    weight: float


def guidance_branches(text: bool, image: bool, scale: float, image_scale: float | None) -> list[Branch]:
    """What the UNet is asked at every step, the full condition last; the answers' weights add up to 1."""
    if text and image and image_scale is not None:
        candidates = [
            Branch(False, False, 1 - image_scale),
            Branch(False, True, image_scale - scale),
            Branch(True, True, scale),
        ]
    else:
        s = image_scale if image and not text and image_scale is not None else scale
        candidates = [Branch(False, False, 1 - s if s > 1 else 0.0), Branch(text, image, s if s > 1 else 1.0)]
    *others, full = candidates
    branches = [branch for branch in others if branch.weight and (text or image)] + [full]
    if not (text or image):
        branches = [Branch(False, False, 1.0)]
    return branches


def warn_of_the_unknown(branches: list[Branch], drops: Sequence[float] | None) -> None:
    """Says where a branch is a condition that the model has never seen in training; `drops` are its shares of panoramas
    without text, without image, and without both, if they are known."""
    if drops is None:
        return
    drop_text, drop_image, drop_both = drops
    shares = {
        (False, False): ("without text and image", drop_both),
        (False, True): ("without text", drop_text),
        (True, False): ("without an image", drop_image),
        (True, True): ("with text and image together", 1 - drop_text - drop_image - drop_both),
    }
    for branch in branches:
        told, share = shares[branch.text, branch.image]
        if share < 1e-9:
            remedy = "" if branch is branches[-1] else ", which guidance needs: use guidance_scale=1"
            log.warning("this model was never trained %s%s", told, remedy)
