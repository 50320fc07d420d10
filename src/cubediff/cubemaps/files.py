"""Files of a cubemap: six images or one, with a JSON record of field of view, order and rotations beside them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from cubediff.cubemaps.conventions import (
    CONVENTIONS,
    CROSSES,
    LAYOUTS,
    FaceImage,
    Images,
    check_layout,
    engine_images,
    layout_images,
)
from cubediff.cubemaps.layouts import Cube, to_engine, to_layout
from cubediff.geometry.conventions import FACES
from cubediff.utils.errors import DataError, check_version
from cubediff.utils.files import read_limited, write_atomic, write_json
from cubediff.utils.json_text import parse_json

RECORD = "faces.json"  # in the folder of six images; STEM.faces.json beside one image
VERSION = 1
_MAX_RECORD = 1 << 16  # bytes

Encode = Callable[[Shaped[np.ndarray, "h w c"]], bytes]


@dataclass(frozen=True)
class CubemapFormat:
    """How six faces are written.

    Args:
        layout: One of LAYOUTS or an alias: six files, or one image.
        convention: One of CONVENTIONS.
        fov: Field of view of a face, in degrees: at least 90, below 180.

    Raises:
        DataError: If a value is unknown or out of range.
    """

    layout: str = "faces"
    convention: str = "cubediff"
    fov: float = 90.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", check_layout(self.layout))
        if self.convention not in CONVENTIONS:
            raise DataError(f"unknown convention {self.convention!r}: use one of {', '.join(CONVENTIONS)}")
        if not 90 <= self.fov < 180:
            raise DataError(f"a field of view of {self.fov:g}°: six faces cover the sphere from 90° to below 180°")


@dataclass(frozen=True)
class CubemapRecord:
    """What a record says about the images beside it.

    Attributes:
        fov: Field of view of a face, in degrees.
        images: The files without suffix, or the parts of one image, in their order; None: not said.
    """

    fov: float
    images: Images | None = field(default=None)


def write_cubemap(path: Path, cube: Cube, written_as: CubemapFormat, encode: Encode, suffix: str = ".png") -> Path:
    """Writes six faces and their record.

    Args:
        path: The folder to write to, which is created; or, for one image, its file.
        cube: The faces, which have the field of view `written_as.fov`.
        written_as: Layout and convention.
        encode: Encodes an image.
        suffix: Suffix of the six files.

    Returns:
        `path`.

    Raises:
        OSError: If a file cannot be written.
    """
    images = layout_images(written_as.layout, engine_images(written_as.convention))
    if written_as.layout == "faces":
        path.mkdir(parents=True, exist_ok=True)
        files = []
        for name, pixels in to_engine(cube, images).items():
            files.append(f"{name}{suffix}")
            write_atomic(path / files[-1], encode(np.ascontiguousarray(pixels)))
    else:
        files = [path.name]
        write_atomic(path, encode(to_layout(cube, written_as.layout, images)))
    record = {
        "version": VERSION,
        "layout": written_as.layout,
        "convention": written_as.convention,
        "field_of_view": written_as.fov,
        "face_size": len(cube["front"]),
        "order": [image.face for image in images],
        "rotation": [90 * image.quarter_turns for image in images],
        "files": files,
    }
    write_json(record_path(path, written_as.layout), record)
    return path


def record_path(path: Path, layout: str = "faces") -> Path:
    """The record of a folder of six images, or of one image.

    Example:
        >>> record_path(Path("out/sky.png"), "cross").as_posix()
        'out/sky.faces.json'
    """
    return path / RECORD if layout == "faces" else path.with_suffix(f".{RECORD}")


def remove_cubemap(path: Path) -> None:
    """Removes the cubemap in a folder or an image, with its record; other files and folders are kept.

    Args:
        path: A folder of six images by its record, or by the names of `cubediff` without one; or the file of an image.

    Raises:
        OSError: If a file cannot be removed.
    """
    if path.is_dir():
        record = path / RECORD
        for name in _listed_files(record) or [f"{face}.png" for face in FACES]:
            (path / name).unlink(missing_ok=True)
        record.unlink(missing_ok=True)
        if not any(path.iterdir()):
            path.rmdir()
    else:
        path.unlink(missing_ok=True)
        record_path(path, "strip").unlink(missing_ok=True)


def _listed_files(record: Path) -> list[str]:
    """The files that a record lists in its own folder; none if it cannot be read."""
    try:
        value = parse_json(read_limited(record, _MAX_RECORD))
    except (OSError, ValueError, RecursionError):
        return []
    files = value.get("files") if isinstance(value, dict) else None
    return [name for name in files if isinstance(name, str) and name == Path(name).name] if files else []


def is_record(value: object) -> bool:
    """Whether the value of a JSON file is a record of a cubemap."""
    return isinstance(value, dict) and "field_of_view" in value


def read_record(path: Path) -> CubemapRecord | None:
    """Reads the record of a cubemap.

    Args:
        path: The JSON file, see `record_path`. Only `field_of_view` is required.

    Returns:
        The record; None if there is no such file, or it is another JSON file, without `field_of_view`.

    Raises:
        DataError: If the file is damaged, a value is invalid, or a newer version wrote it.
        OSError: If the file cannot be read.
    """
    if not path.is_file():
        return None
    try:
        value = parse_json(read_limited(path, _MAX_RECORD))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}): correct or remove it") from None
    if not isinstance(value, dict) or not is_record(value):
        return None
    check_version(value.get("version"), VERSION, path)
    fov = value["field_of_view"]
    is_number = isinstance(fov, int | float) and not isinstance(fov, bool) and math.isfinite(fov)
    if not is_number or not 90 <= fov < 180:
        raise DataError(f"{path}: field_of_view is {fov!r}: expected degrees, at least 90 and below 180")
    return CubemapRecord(float(fov), _read_images(path, value))


def _read_images(path: Path, value: dict[str, object]) -> Images | None:
    """The order, rotations and files of a record; None if it has none of them."""
    if value.get("order") is None:
        return None
    order, turns, files = value["order"], value.get("rotation", [0] * 6), value.get("files")
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(FACES):
        raise DataError(f"{path}: order is {order!r}: expected the faces {', '.join(FACES)}, each once")
    if not isinstance(turns, list) or len(turns) != 6 or any(turn not in (0, 90, 180, 270) for turn in turns):
        raise DataError(f"{path}: rotation is {turns!r}: expected six of 0, 90, 180 and 270 degrees")
    names = order
    layout = value.get("layout", "faces")
    if layout not in LAYOUTS:
        raise DataError(f"{path}: layout is {layout!r}: expected one of {', '.join(LAYOUTS)}")
    if layout == "faces":
        if not isinstance(files, list) or len({*map(str, files)}) != 6 or not all(isinstance(f, str) for f in files):
            raise DataError(f"{path}: files is {files!r}: expected the names of six files, in the order of `order`")
        names = [Path(file).stem for file in files]
    images = tuple(FaceImage(n, face, turn // 90) for n, face, turn in zip(names, order, turns, strict=True))
    if layout in CROSSES and images != layout_images(layout, images):
        raise DataError(f"{path}: order and rotation are not those of a {layout}: omit them, or write layout strip")
    return images
