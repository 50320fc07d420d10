"""Photos that training conditions on: views of the panoramas themselves, which look anywhere (CubeDiff, section 4.3,
conditions on the front face alone)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Camera(NamedTuple):
    """A photo that the training condition shows, in degrees, relative to the cube; `aspect` is width over height."""

    fov: float
    aspect: float
    yaw: float
    pitch: float
    roll: float


@dataclass(frozen=True)
class RandomViews:
    """A `share` of the panoramas is conditioned on a photo that looks anywhere, the others on their front face.

    The photo's horizontal field of view lies in `fov`, its pitch and roll within ± `pitch` and `roll`, in degrees;
    its aspect is one of `aspects`.
    """

    share: float = 0.5
    fov: Sequence[float] = (40.0, 110.0)
    pitch: float = 45.0
    roll: float = 10.0
    aspects: Sequence[float] = (1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3)

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and 0 < self.fov[0] <= self.fov[1] < 180 and min(self.aspects) > 0):
            raise ValueError(f"{self}: share lies in [0, 1], fov between 0° and 180°, from narrow to wide, and aspects "
                             "are positive")  # fmt: skip

    def draw(self, rng: random.Random) -> Camera | None:
        if rng.random() >= self.share:
            return None
        return Camera(
            fov=rng.uniform(self.fov[0], self.fov[1]),
            aspect=rng.choice(self.aspects),
            yaw=rng.uniform(-180.0, 180.0),
            pitch=rng.uniform(-self.pitch, self.pitch),
            roll=rng.uniform(-self.roll, self.roll),
        )
