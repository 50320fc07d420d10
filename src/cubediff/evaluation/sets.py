"""Sets of panoramas to evaluate, and sets that are made of others: some of their panoramas, of one height, or changed.

Legend: H height of a panorama, S face size.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from cubediff.data.batches.decoding import resize_panorama
from cubediff.utils.errors import DataError


@dataclass(frozen=True)
class Prompts:
    """What a panorama's text says, empty where there is none.

    Attributes:
        caption: Of the whole panorama.
        faces: Of each face, in FACES order, or None.
    """

    caption: str = ""
    faces: tuple[str, ...] | None = None


@dataclass(frozen=True)
class SavedFaces:
    """The faces that a panorama was made of: (6, 3, S, S) in [0, 1], and their field of view in degrees."""

    pixels: Float[Tensor, "6 3 s s"]
    fov: float


@runtime_checkable
class PanoramaSet(Protocol):
    """Panoramas in a fixed order.

    Attributes:
        path: Where they are.
        names: A name for each, unique in the set.
        prompts: The texts of each.
    """

    path: Path
    names: list[str]
    prompts: list[Prompts]

    def panorama(self, index: int) -> Float[Tensor, "3 h w"]:
        """Reads a panorama in [0, 1].

        Raises:
            DataError: If it is damaged.
        """
        ...

    def has_faces(self, index: int) -> bool:
        """Whether faces were saved with a panorama."""
        ...

    def faces(self, index: int) -> SavedFaces | None:
        """Reads the faces that were saved with a panorama; None: there are none."""
        ...

    def photos(self, index: int) -> list[dict[str, object]]:
        """The photos that a panorama was generated from, as its record has them: file and camera."""
        ...

    def page(self, index: int) -> Path | None:
        """The viewer page of a panorama; None: there is none."""
        ...

    def digest(self) -> str:
        """A checksum of all files and names."""
        ...


def in_order_of(panoramas: PanoramaSet, names: Sequence[str]) -> PanoramaSet:
    """The panoramas of a set with given names, in that order; the whole set, if it has other ones.

    Args:
        panoramas: The set.
        names: The names of all or some of its panoramas.
    """
    places = {name: index for index, name in enumerate(panoramas.names)}
    if panoramas.names == [*names] or not places.keys() >= {*names}:
        return panoramas
    return Selected(panoramas, [places[name] for name in names])


class _Changed:
    """A set that is like another one but for what a subclass changes."""

    def __init__(self, panoramas: PanoramaSet) -> None:
        self.path, self.names, self.prompts = panoramas.path, panoramas.names, panoramas.prompts
        self._all = panoramas

    def panorama(self, index: int) -> Float[Tensor, "3 h w"]:
        return self._all.panorama(index)

    def has_faces(self, index: int) -> bool:
        return self._all.has_faces(index)

    def faces(self, index: int) -> SavedFaces | None:
        return self._all.faces(index)

    def photos(self, index: int) -> list[dict[str, object]]:
        return self._all.photos(index)

    def page(self, index: int) -> Path | None:
        return self._all.page(index)

    def digest(self) -> str:
        return self._all.digest()


class Selected(_Changed):
    """Some panoramas of a set.

    Args:
        panoramas: The set.
        indices: Those of the panoramas, in their new order.
    """

    def __init__(self, panoramas: PanoramaSet, indices: Sequence[int]) -> None:
        super().__init__(panoramas)
        self._indices = indices
        self.names = [panoramas.names[index] for index in indices]
        self.prompts = [panoramas.prompts[index] for index in indices]

    def panorama(self, index: int) -> Float[Tensor, "3 h w"]:
        return super().panorama(self._indices[index])

    def has_faces(self, index: int) -> bool:
        return super().has_faces(self._indices[index])

    def faces(self, index: int) -> SavedFaces | None:
        return super().faces(self._indices[index])

    def photos(self, index: int) -> list[dict[str, object]]:
        return super().photos(self._indices[index])

    def page(self, index: int) -> Path | None:
        return super().page(self._indices[index])

    def digest(self) -> str:
        return hashlib.sha256(f"{super().digest()} {[*self._indices]}".encode()).hexdigest()


class Sized(_Changed):
    """The panoramas of a set with one height.

    Args:
        panoramas: The set.
        height: The height, in pixels.
        others: What to do with panoramas of other heights: "refuse" them, "shrink" larger ones and refuse others, or
            "resize" all.
    """

    def __init__(self, panoramas: PanoramaSet, height: int, others: Literal["refuse", "shrink", "resize"]) -> None:
        super().__init__(panoramas)
        self.height, self._others = height, others

    def panorama(self, index: int) -> Float[Tensor, "3 h w"]:
        panorama = super().panorama(index)
        rows = panorama.shape[1]
        if rows == self.height:
            return panorama
        if self._others == "refuse" or (self._others == "shrink" and rows < self.height):
            raise DataError(
                f"{self.names[index]} of {self.path} has {rows} rows, expected {self.height}: pass "
                "height=ROWS to resize all panoramas"
            )
        return to_tensor(resize_panorama(to_levels(panorama), self.height))

    def digest(self) -> str:
        return hashlib.sha256(f"{super().digest()} {self.height}".encode()).hexdigest()


class Mapped(_Changed):
    """The panoramas of a set, each changed by a function; they have no faces.

    Args:
        panoramas: The set.
        change: The function.
    """

    def __init__(self, panoramas: PanoramaSet, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(panoramas)
        self._change = change

    def panorama(self, index: int) -> Float[Tensor, "3 h w"]:
        return self._change(super().panorama(index))

    def has_faces(self, index: int) -> bool:
        return False

    def faces(self, index: int) -> SavedFaces | None:
        return None


def to_levels(image: Float[Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The 8-bit levels of an image in [0, 1]."""
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def to_tensor(pixels: Shaped[np.ndarray, "h w 3"]) -> Float[Tensor, "3 h w"]:
    """The image in [0, 1] of 8-bit levels."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
