"""Arrays of six faces to and from the images of a convention, as six files or in one image."""

import numpy as np
from jaxtyping import Shaped

from cubediff.cubemaps.conventions import CROSSES, Images, layout_images, layout_of
from cubediff.geometry.faces import FACES
from cubediff.utils.errors import DataError

Cube = dict[str, Shaped[np.ndarray, "s s ..."]]  # face by its name in FACES, upright


def to_engine(cube: Cube, images: Images) -> Cube:
    """The six images by the names of their files, in their order.

    Args:
        cube: The faces.
        images: See `engine_images`.

    Example:
        >>> from cubediff.cubemaps.conventions import engine_images
        >>> cube = {face: np.full((1, 1), number) for number, face in enumerate(FACES)}
        >>> [int(image[0, 0]) for image in to_engine(cube, engine_images("three")).values()]  # px shows left
        [3, 1, 4, 5, 2, 0]
    """
    return {image.name: np.rot90(cube[image.face], image.quarter_turns) for image in images}


def from_engine(named: Cube, images: Images) -> Cube:
    """The upright faces of six images, the inverse of `to_engine`."""
    by_face = {image.face: np.rot90(named[image.name], -image.quarter_turns) for image in images}
    return {face: by_face[face] for face in FACES}


def to_layout(cube: Cube, layout: str, images: Images) -> Shaped[np.ndarray, "h w ..."]:
    """One image with all six faces.

    Args:
        cube: The faces.
        layout: "cross" (4:3: up above, down below front; left, front, right, back), "cross-vertical" (3:4: back upside
            down below down) or "strip" (6:1, the images of a convention in its order).
        images: Those of the convention.

    Returns:
        The image; the empty cells of a cross are 0.
    """
    images = layout_images(layout, images)
    named = to_engine(cube, images)
    if layout == "strip":
        return np.concatenate(list(named.values()), 1)
    empty = np.zeros_like(cube["front"])
    rows = [[empty if face is None else named[face] for face in row] for row in CROSSES[layout]]
    return np.concatenate([np.concatenate(row, 1) for row in rows])


def from_layout(
    image: Shaped[np.ndarray, "h w ..."], images: Images
) -> tuple[Cube, list[Shaped[np.ndarray, "s s ..."]]]:
    """The faces of an image with all six, the inverse of `to_layout`; a strip may also be vertical.

    Args:
        image: The image.
        images: Those of the convention, for a strip.

    Returns:
        The upright faces, which are views of the image, and the empty cells of a cross.

    Raises:
        DataError: If the image has not the shape of a layout.
    """
    height, width = image.shape[:2]
    layout = layout_of(width, height)
    if layout is None:
        raise DataError(f"{width}x{height} is not a cubemap: a cross is 4:3 or 3:4, a strip 6:1 or 1:6")
    images = layout_images(layout, images)
    if layout == "strip":
        parts = np.split(image, 6, axis=1 if width > height else 0)
        return from_engine({part.name: cell for part, cell in zip(images, parts, strict=True)}, images), []
    cells: Cube = {}
    empty, size = [], height // len(CROSSES[layout])
    for i, row in enumerate(CROSSES[layout]):
        for j, face in enumerate(row):
            cell = image[i * size : (i + 1) * size, j * size : (j + 1) * size]
            if face is None:
                empty.append(cell)
            else:
                cells[face] = cell
    return from_engine(cells, images), empty
