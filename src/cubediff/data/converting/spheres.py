"""Opens a panorama, a cubemap or a pinhole view in its own bit depth, to convert it or to look at it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cubediff.cubemaps.conventions import CONVENTIONS, CROSSES, LAYOUTS, check_layout, engine_images, layout_of
from cubediff.cubemaps.conversion import Camera, CubeImages, PanoramaImage, Sphere, ViewImage
from cubediff.cubemaps.files import CubemapRecord, read_record, record_path
from cubediff.cubemaps.layouts import Cube, from_layout
from cubediff.data.sources.cubemap_records import find_scenes
from cubediff.data.sources.listing import FileTree
from cubediff.data.sources.readings import check_reading, check_width, in_levels
from cubediff.data.sources.schemes import SCHEMES, STRIPS, cut
from cubediff.images.hdr import check_finite
from cubediff.images.pictures import Picture, Pixels, read_picture
from cubediff.images.reading import check_not_cropped, read_size
from cubediff.utils.errors import DataError, naming

FORMS: Final = ("panorama", *LAYOUTS, "view")
_PIXELS = 1 << 29  # of an image: a panorama of 32768 × 16384
_BY_NAME = {
    "cubediff": "words",
    "pannellum": "words",
    "opengl": "axes",
}  # conventions whose names are those of a scheme

_PHOTO = "for a photo, pass its field of view: cubediff convert PHOTO OUT --fov DEGREES"
_FLAT = 16  # levels that the empty cells of a cross may differ by

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Described:
    """What a user says about an input; None: see its record, its shape or the names of its files.

    Args:
        layout: One of FORMS, or an alias.
        convention: A key of CONVENTIONS, SCHEMES or STRIPS.
        fov: Field of view of its faces, in degrees.
        camera: The camera, if it is a view.

    Raises:
        DataError: If a value is unknown or out of range.
    """

    layout: str | None = None
    convention: str | None = None
    fov: float | None = None
    camera: Camera | None = None

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in FORMS:
            object.__setattr__(self, "layout", check_layout(self.layout))
        known = dict.fromkeys((*CONVENTIONS, *SCHEMES, *STRIPS))
        if self.convention is not None and self.convention not in known:
            raise DataError(f"unknown convention {self.convention!r}: use one of {', '.join(known)}")
        if self.fov is not None and not 90 <= self.fov < 180:
            raise DataError(f"faces with a field of view of {self.fov:g}°: expected at least 90 and less than 180")


def open_sphere(path: Path, described: Described, *, as_srgb: bool = False) -> tuple[Sphere, bytes | None]:
    """Reads a panorama, six faces or a view.

    Args:
        path: An image, or a folder of six.
        described: What is known about it.
        as_srgb: Read levels as 8-bit sRGB.

    Returns:
        The pixels, and their ICC profile (None: sRGB). What is ignored in the files is logged.

    Raises:
        DataError: If it is none of them, or unreadable.
        OSError: If the machine fails to read it.
    """
    if path.is_dir():
        if described.layout not in (None, "faces"):
            raise DataError(f"{path} is a folder, which holds six faces: expected an image for {described.layout}")
        return _open_faces(path, described, as_srgb)
    if not path.exists():
        raise DataError(f"{path} does not exist: pass an image, or a folder of six faces")
    with naming(path):
        return _open_image(path, described, as_srgb)


def _open_image(path: Path, described: Described, as_srgb: bool) -> tuple[Sphere, bytes | None]:
    record = read_record(record_path(path, "strip"))
    width, height = read_size(path)
    form = described.layout or _form(width, height, described, record)
    if form is None or (described.layout is None and record is None and form in CROSSES):
        check_not_cropped(path)
    if form is None:
        raise DataError(
            f"{width}x{height}: expected a panorama (2:1), a cross (4:3 or 3:4) or a strip (6:1) of faces; {_PHOTO}"
        )
    if form == "faces":
        raise DataError("an image: six faces are a folder")
    if form == "panorama" and width != 2 * height:
        check_not_cropped(path)
        raise DataError(f"{width}x{height} is not 2:1: expected the panorama of a full sphere; pad or crop it")
    if form not in ("panorama", "view") and layout_of(width, height) != form:
        raise DataError(f"{width}x{height} is no {form}: a cross is 4:3 or 3:4, a strip 6:1 or 1:6")
    picture = _read(path, form == "panorama", as_srgb)
    if form == "panorama":
        return PanoramaImage(picture.pixels), picture.profile
    if form == "view":
        return ViewImage(picture.pixels, described.camera or Camera()), picture.profile
    return _as_cube(_cut(picture.pixels, form, described, record), described, record), picture.profile


def _cut(pixels: Pixels, form: str, described: Described, record: CubemapRecord | None) -> Cube:
    """The upright faces of an image with all six."""
    if described.convention is not None:
        cube, empty = from_layout(pixels, engine_images(_strip_order(described.convention)))
    else:
        _, cube, empty = cut(pixels, STRIPS[0], record)
        if form == "strip" and (record is None or record.images is None):
            readings = {order: cut(pixels, order)[1] for order in STRIPS}
            cube = check_reading(STRIPS[0], readings, "--from-convention")
    if not _is_empty(empty):
        height, width, _ = pixels.shape
        raise DataError(
            f"{width}x{height} has the shape of a {form}, but its corners are not empty: expected a cubemap; {_PHOTO}"
        )
    return cube


def is_cubemap(path: Path) -> bool:
    """Whether an image has the shape of a cubemap and, if that is a cross, empty corners."""
    if layout_of(*read_size(path)) is None:
        return False
    pixels = _read(path, False, True).pixels
    return _is_empty(from_layout(pixels, engine_images(STRIPS[0]))[1])


def _is_empty(cells: list[Pixels]) -> bool:
    """Whether cells of a cross are transparent or of one colour."""
    return all(not cell[..., 3:].any() if cell.shape[2] == 4 else _is_flat(cell) for cell in cells)


def _is_flat(cell: Pixels) -> bool:
    return bool(np.ptp(in_levels(cell), axis=(0, 1)).max() <= _FLAT)


def _form(width: int, height: int, described: Described, record: CubemapRecord | None) -> str | None:
    """What an image is, by its record, a camera or its shape; None: unknown."""
    layout = layout_of(width, height)
    if record is not None and layout is not None:
        return layout
    if described.camera is not None:
        return "view"
    if width == 2 * height:
        return "panorama"
    return layout


def _strip_order(convention: str) -> str:
    return convention if convention in CONVENTIONS or convention in STRIPS else STRIPS[0]


def _open_faces(path: Path, described: Described, as_srgb: bool) -> tuple[Sphere, bytes | None]:
    tree = FileTree(path)
    files = [file for file in tree.images()[0] if "/" not in file]
    scheme = described.convention and _BY_NAME.get(described.convention, described.convention)
    groups, broken, _ = find_scenes(tree, files, scheme)
    if len(groups) != 1:
        found = "; ".join(broken.values()) or f"{len(groups)} cubemaps"
        raise DataError(
            f"{path}: expected the six faces of a cubemap, found {found}; pass an image, or a folder with six images "
            "named by a convention, such as front.png to down.png"
        )
    (group,) = groups
    pictures: dict[str, Picture] = {}
    for file in next(iter(group.readings.values())).values():
        with naming(path / file):
            pictures[file] = _read(path / file, False, as_srgb)
    if len({(picture.pixels.shape, picture.pixels.dtype) for picture in pictures.values()}) > 1:
        shapes = (f"{f} {'x'.join(map(str, p.pixels.shape))} {p.pixels.dtype}" for f, p in pictures.items())
        raise DataError(f"{path}: its faces differ in size or type: {', '.join(shapes)}")
    readings = group.cubes({file: picture.pixels for file, picture in pictures.items()})
    first = next(iter(readings))
    with naming(path):
        cube = check_reading(first, readings, "--from-convention")
        return _as_cube(cube, described, group.record), next(iter(pictures.values())).profile


def _as_cube(cube: Cube, described: Described, record: CubemapRecord | None) -> CubeImages:
    fov = described.fov or (None if record is None else record.fov)
    if fov is None:
        check_width(cube, "--from-fov")
    if all(pixels[..., 3:].all() for pixels in cube.values()):  # only the corners of a cross are transparent
        cube = {face: pixels[..., :3] for face, pixels in cube.items()}
    return CubeImages({face: np.ascontiguousarray(pixels) for face, pixels in cube.items()}, fov or 90.0)


def _read(path: Path, sphere: bool, as_srgb: bool) -> Picture:
    def check(width: int, height: int) -> None:
        if width * height > _PIXELS:
            raise DataError(f"{width}x{height} is more than {_PIXELS} pixels: shrink it")

    picture = read_picture(path, check, sphere=sphere, as_srgb=as_srgb)
    if picture.is_radiance:
        check_finite(picture.pixels)
    for note in picture.notes:
        log.warning("%s: %s", path, note)
    return picture
