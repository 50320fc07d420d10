"""Conditioning on perspective photos that are rendered from the training panoramas at random cameras (CubeDiff,
section 4.3, conditions on the front face only)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class PhotoCamera(NamedTuple):
    """The camera of a conditioning photo, in degrees relative to the cube."""

    fov: float  # horizontal
    aspect: float  # width / height
    yaw: float
    pitch: float
    roll: float


@dataclass(frozen=True)
class RandomPhotos:
    """Random cameras of conditioning photos.

    Args:
        share: Fraction of panoramas that are conditioned on a photo; the others are conditioned on their front face.
        fov: Smallest and largest horizontal field of view, in degrees.
        pitch: Largest absolute pitch, in degrees.
        roll: Largest absolute roll, in degrees.
        aspects: Aspect ratios (width / height) to choose from.

    Raises:
        ValueError: If a value is out of range.

    >>> RandomPhotos(share=0.0).draw(random.Random(0)) is None
    True
    >>> 40 <= RandomPhotos(share=1.0).draw(random.Random(0)).fov <= 110
    True
    """

    share: float = 0.5
    fov: Sequence[float] = (40.0, 110.0)
    pitch: float = 45.0
    roll: float = 10.0
    aspects: Sequence[float] = (1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be in [0, 1], got {self.share}")
        if len(self.fov) != 2 or not 0 < self.fov[0] <= self.fov[1] < 180:
            raise ValueError(f"fov must be two angles in (0, 180) degrees in ascending order, got {list(self.fov)}")
        for name, largest in (("pitch", 90), ("roll", 180)):
            if not 0 <= getattr(self, name) <= largest:
                raise ValueError(f"{name} must be in [0, {largest}] degrees, got {getattr(self, name)}")
        if not self.aspects or min(self.aspects) <= 0:
            raise ValueError(f"aspects must be a list of positive numbers, got {list(self.aspects)}")

    def draw(self, rng: random.Random) -> PhotoCamera | None:
        """Draws the camera of one panorama's photo, or None if its condition is the front face."""
        if rng.random() >= self.share:
            return None
        return PhotoCamera(
            fov=rng.uniform(self.fov[0], self.fov[1]),
            aspect=rng.choice(self.aspects),
            yaw=rng.uniform(-180.0, 180.0),
            pitch=rng.uniform(-self.pitch, self.pitch),
            roll=rng.uniform(-self.roll, self.roll),
        )
