"""View protocols: the pinhole views of a panorama that extractors see.

An extractor of photographs cannot read an equirectangular panorama, and distances of different views do not compare.
A protocol is a name, a size and the directions of its views, and results store all three.

Legend: C channels, H height, V views, S size of a view.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cubediff.geometry.perspective import equirect_to_perspective


@dataclass(frozen=True)
class View:
    """A view: its direction and horizontal field of view, in degrees (see `rotation_matrix`)."""

    yaw: float
    pitch: float
    fov: float


@dataclass(frozen=True)
class ViewProtocol:
    """How panoramas are looked at.

    Attributes:
        name: The name in results.
        size: Side of a view, in pixels; an extractor resizes it to its own.
        draw: Maps a random generator to the views of a panorama.
        same_for_all: Whether every panorama has the same views; else each has its own. Either way panoramas of the same
            index in two sets have the same views.
    """

    name: str
    size: int
    draw: Callable[[random.Random], list[View]]
    same_for_all: bool = True

    def views(self, index: int, seed: int = 0) -> list[View]:
        """The views of the panorama with an index, which do not depend on the other panoramas.

        Args:
            index: Position of the panorama in its set.
            seed: Seed of random views.
        """
        return self.draw(random.Random(f"{self.name} {seed} {0 if self.same_for_all else index}"))


def render_views(panorama: Float[Tensor, "c h w"], views: list[View], size: int) -> Float[Tensor, "v c s s"]:
    """Renders views of an equirectangular panorama.

    Args:
        panorama: (C, H, 2H).
        views: The views.
        size: Side of a view, in pixels.
    """
    fov, yaw, pitch = (torch.tensor([getattr(view, name) for view in views]) for name in ("fov", "yaw", "pitch"))
    rendered: Tensor = equirect_to_perspective(panorama[None], size, fov, yaw, pitch)
    return rendered


def _random_within(count: int, elevation: float, rng: random.Random) -> list[View]:
    return [View(rng.uniform(-180, 180), rng.uniform(-elevation, elevation), 90.0) for _ in range(count)]


def _uniform_on_the_sphere(count: int, rng: random.Random) -> list[View]:
    return [View(rng.uniform(-180, 180), math.degrees(math.asin(rng.uniform(-1, 1))), 90.0) for _ in range(count)]


def _around(rng: random.Random) -> list[View]:
    return [View(45.0 * turn, 0.0, 90.0) for turn in range(8)]


def _faces(rng: random.Random) -> list[View]:
    return [*(View(90.0 * turn, 0.0, 90.0) for turn in range(4)), View(0.0, 90.0, 90.0), View(0.0, -90.0, 90.0)]


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # CubeDiff, section 5: ten random views of 90°, elevations within ±45°; their distribution is not published.
        ViewProtocol("cubediff_paper", 512, lambda rng: _random_within(10, 45.0, rng), same_for_all=False),
        ViewProtocol("azimuth8", 512, _around),
        # PanFusion (Zhang et al., 2024): 20 views for each panorama, the same for the real and the generated one.
        ViewProtocol("panfusion", 299, lambda rng: _uniform_on_the_sphere(20, rng), same_for_all=False),
        ViewProtocol("faces", 512, _faces),  # in FACES order, of 90°
    )
}
# No views: extractors of whole panoramas see them in this height.
EQUIRECT = ViewProtocol("equirect", 512, lambda rng: [])
