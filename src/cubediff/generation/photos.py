"""The photos of generation jobs: their files, cameras and checks. Only `open_photo` loads torch."""

import logging
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from PIL import Image

from cubediff.images.exif import camera_fov
from cubediff.images.reading import read_photo
from cubediff.utils.errors import reason
from cubediff.utils.files import sha256_file

if TYPE_CHECKING:
    from cubediff.geometry.photos import Photo

_NARROW = 10.0  # degrees; a photo that is wider covers a latent pixel
FileVersion: TypeAlias = tuple[int, int]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhotoFile:
    """A photo's file and the camera that took it; angles in degrees.

    Attributes:
        file: Path of the image.
        fov: Horizontal field of view. None: that of the EXIF data; without any, the central square fills a face.
        yaw: Direction of the camera, to the right of the panorama's front.
        pitch: Elevation of the camera, upwards.
        roll: Rotation of the camera, clockwise.
    """

    file: str
    fov: float | None = None
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0


def sha256_of(file: str) -> str:
    """The SHA-256 of a photo's file, which is read once.

    Raises:
        OSError: If it cannot be read.
    """
    return _sha256(file, file_version(file))


class PhotoFacts(NamedTuple):
    """Facts about a photo: its upright size, its horizontal field of view by EXIF in degrees, and whether pixels of it
    are transparent."""

    width: int
    height: int
    exif_fov: float | None
    is_transparent: bool


def check_photo(file: str) -> PhotoFacts:
    """Decodes a photo, once, to find out whether it is usable.

    Raises:
        ValueError: If the file is not a readable image, or all of its pixels are transparent.
    """
    try:
        return _facts(file, file_version(file))
    except OSError as error:
        raise ValueError(f"{file}: not a readable image ({reason(error)})") from error


def file_version(file: str) -> FileVersion:
    """Size and time of a file, so that what is known of it does not outlast a change.

    Raises:
        OSError: If there is no such file.
    """
    status = Path(file).stat()
    return status.st_size, status.st_mtime_ns


@cache
def _sha256(file: str, version: FileVersion) -> str:
    return sha256_file(Path(file))


@cache
def _facts(file: str, version: FileVersion) -> PhotoFacts:
    image, notes = _read(file)
    is_transparent = image.mode == "RGBA"
    if is_transparent and image.getchannel("A").getextrema()[1] != 255:
        raise ValueError(f"{file}: only transparent pixels: expected a photo")
    fov, note = camera_fov(image)
    for each in (*notes, *([note] if note else [])):
        log.warning("%s: %s", file, each)
    return PhotoFacts(image.width, image.height, fov, is_transparent)


def photo_may_be_unseen(photo: PhotoFile) -> bool:
    """Whether a photo is so narrow or transparent that it might cover no latent pixel."""
    facts = check_photo(photo.file)
    fov = photo.fov or facts.exif_fov
    if fov is None:  # its central square fills a face
        return facts.is_transparent
    tangent = math.tan(math.radians(fov / 2)) * min(1, facts.height / facts.width)
    return facts.is_transparent or tangent < math.tan(math.radians(_NARROW / 2))


def open_photo(photo: PhotoFile) -> "Photo":
    """Reads a photo, upright as its EXIF orientation says.

    Raises:
        ValueError: If the file is not a readable image, or the camera's angles are invalid.
    """
    from cubediff.geometry.photos import Photo  # loads torch, which the checks do not need

    image, _ = _read(photo.file)  # `check_photo` has logged the notes
    fov = check_photo(photo.file).exif_fov if photo.fov is None else photo.fov
    image.info.pop("exif", None)
    return Photo(image, fov, photo.yaw, photo.pitch, photo.roll)


def _read(file: str) -> tuple[Image.Image, tuple[str, ...]]:
    try:
        return read_photo(Path(file))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not a readable image ({reason(error)})") from error
