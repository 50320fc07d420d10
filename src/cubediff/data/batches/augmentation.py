"""Random yaw, flip and captions of a training panorama, chosen so that every caption still describes its face.

CubeDiff (section 4.3) rotates panoramas about the vertical axis. A rotation by a multiple of 90° moves the captions of
the four walls from face to face; any other yaw is shown with the caption of the whole panorama.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

from cubediff.data.batches.conditioning_photos import PhotoCamera, RandomPhotos
from cubediff.geometry.conventions import FACES

Yaw: TypeAlias = Literal["uniform", "quarters", "none"]

_WALLS = 4  # the first four of FACES; each is the previous one rotated by 90 degrees of yaw


class AugmentedView(NamedTuple):
    """The augmentation of one panorama in one batch."""

    yaw: float  # degrees
    prompts: list[str]  # one per face after the rotation, in FACES order
    flipped: bool = False  # left and right exchanged, before the rotation
    camera: PhotoCamera | None = None  # of the conditioning photo; None conditions on the front face


@dataclass(frozen=True)
class Augmentation:
    """Draws augmentations of panoramas.

    Args:
        yaw: "uniform" rotates by any angle, "quarters" by a multiple of 90°, which exchanges the side faces; "none"
            does not rotate.
        face_caption_probability: Probability of using the captions of the faces, for panoramas that have them.
        face_caption_jitter: Largest deviation, in degrees, from the multiple of 90° that a panorama with captions of
            its faces is rotated by, if `yaw` is "uniform".
        photos: Cameras of conditioning photos; None conditions every panorama on its front face.
        flip: Fraction of panoramas that are flipped horizontally. Captions that mention left or right become wrong.

    Raises:
        ValueError: If a value is out of range.

    >>> view = Augmentation(yaw="none").draw("a hall", None, random.Random(0))
    >>> view.yaw, view.prompts[0]
    (0.0, 'a hall')
    """

    yaw: Yaw = "uniform"
    face_caption_probability: float = 0.5
    face_caption_jitter: float = 15.0
    photos: RandomPhotos | None = None
    flip: float = 0.0

    def __post_init__(self) -> None:
        if self.yaw not in get_args(Yaw):
            raise ValueError(f"yaw must be one of {', '.join(get_args(Yaw))}, got {self.yaw!r}")
        for name in ("face_caption_probability", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.face_caption_jitter <= 45:
            raise ValueError(f"face_caption_jitter must be in [0, 45] degrees, got {self.face_caption_jitter}")

    def draw(self, caption: str, faces: Mapping[str, str] | None, rng: random.Random) -> AugmentedView:
        """Draws the augmentation of a panorama.

        Args:
            caption: The caption of the panorama.
            faces: The captions of its faces by name, or None if it has none.
            rng: The only source of randomness.
        """
        flipped = bool(self.flip) and rng.random() < self.flip
        if flipped:
            faces = {**faces, "right": faces["left"], "left": faces["right"]} if faces else None
        yaw, prompts = self._draw_yaw(caption, faces, rng)
        return AugmentedView(yaw, prompts, flipped, self.photos.draw(rng) if self.photos else None)

    def _draw_yaw(self, caption: str, faces: Mapping[str, str] | None, rng: random.Random) -> tuple[float, list[str]]:
        """The yaw in degrees and the captions of the rotated faces."""
        if faces is None or rng.random() >= self.face_caption_probability:
            return self._draw_angle(rng), [caption] * len(FACES)
        captions = [faces[face] for face in FACES]
        if self.yaw == "none":
            return 0.0, captions
        quarter = rng.randrange(_WALLS)
        walls = captions[quarter:_WALLS] + captions[:quarter]
        jitter = rng.uniform(-self.face_caption_jitter, self.face_caption_jitter) if self.yaw == "uniform" else 0.0
        return 90.0 * quarter + jitter, walls + captions[_WALLS:]

    def _draw_angle(self, rng: random.Random) -> float:
        match self.yaw:
            case "uniform":
                return rng.uniform(0.0, 360.0)
            case "quarters":
                return 90.0 * rng.randrange(_WALLS)
            case "none":
                return 0.0


def unaugmented(caption: str) -> AugmentedView:
    """A panorama as it is stored, with its own caption on every face (validation)."""
    return AugmentedView(0.0, [caption] * len(FACES))
