"""Generation jobs: one panorama each, from the options of the command or from the lines of a JSON-lines file."""

import math
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cubediff.utils.files import read_json_lines, sha256_file

if TYPE_CHECKING:
    from cubediff.geometry.photos import Photo

JobPrompt: TypeAlias = str | list[str] | dict[str, str] | None

MAX_SEED = 2**63 - 1  # of torch.Generator

_JOB_KEYS = ("prompt", "image", "name", "seed")
_CAMERA_KEYS = ("fov", "yaw", "pitch", "roll")
_FOLDER_NAME = re.compile(r"[^\W_][\w.-]{0,199}(?<!\.)")  # neither hidden nor a path
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)  # devices of Windows


@dataclass(frozen=True)
class PhotoFile:
    """A photo's file and the camera that took it; angles in degrees.

    Args:
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


@dataclass(frozen=True)
class Job:
    """One panorama to generate.

    Args:
        name: Folder of its files, below the output folder; empty for the output folder itself.
        prompt: One text, six texts in FACES order, a text for each face name, or None.
        photos: Photos that the panorama contains.
        seed: Seed of the initial noise.
    """

    name: str
    prompt: JobPrompt
    photos: tuple[PhotoFile, ...]
    seed: int

    def record(self) -> dict[str, object]:
        """The job's part of `generation.json`. Photos have their SHA-256: a changed file makes another job."""
        photos = [{**asdict(photo), "sha256": sha256_file(Path(photo.file))} for photo in self.photos]
        return {"prompt": self.prompt, "images": photos, "seed": self.seed}


def read_jobs(path: Path, seed: int) -> list[Job]:
    """Reads jobs from a JSON-lines file, one panorama a line.

    A line is an object with `prompt`, `image` or both, and optionally `name` (default: the line's number) and `seed`.
    `image` is a file name, an object with `file` and the camera's `fov`, `yaw`, `pitch` and `roll` in degrees, or a
    list of these. File names are relative to the folder of the JSON-lines file.

    Args:
        path: The JSON-lines file.
        seed: The default seed.

    Returns:
        The jobs, in the order of the file.

    Raises:
        ValueError: If a line is invalid (the message names it), there are no jobs, or two jobs have the same name.
    """
    jobs: list[Job] = []
    try:
        lines = read_json_lines(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text ({error.reason}): save the file as UTF-8") from None
    while True:
        try:
            number, value = next(lines)
        except StopIteration:
            break
        except ValueError as error:
            raise ValueError(f"{path}, {error}") from None
        jobs.append(_parse_job(value, f"{path}, line {number}", path.parent, f"{number:06d}", seed))
    if not jobs:
        raise ValueError(f"{path}: no jobs: write one JSON object with prompt, image or both a line")
    names = Counter(job.name.casefold() for job in jobs)  # file systems of Windows and macOS ignore the case
    if repeated := sorted({job.name for job in jobs if names[job.name.casefold()] > 1}):
        raise ValueError(f"{path}: several jobs are named {', '.join(repeated[:5])}: use a unique name for every job")
    return jobs


def _parse_job(value: object, where: str, folder: Path, name: str, seed: int) -> Job:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object with prompt, image or both, got {value!r}")
    if unknown := sorted(set(value) - set(_JOB_KEYS)):
        raise ValueError(f"{where}: unknown keys {', '.join(unknown)}: use {', '.join(_JOB_KEYS)}")
    if value.get("prompt") is None and value.get("image") is None:
        raise ValueError(f"{where}: neither prompt nor image: specify at least one")
    name, seed = value.get("name", name), value.get("seed", seed)
    if not isinstance(name, str) or not _FOLDER_NAME.fullmatch(name) or _RESERVED.fullmatch(name):
        raise ValueError(
            f"{where}: name {name!r} is not a folder name on every system: use up to 200 letters, digits, '.', '-' and "
            "'_', and no device name of Windows"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"{where}: seed must be a non-negative integer of 63 bits, got {seed!r}")
    return Job(name, _parse_prompt(value.get("prompt"), where), _parse_photos(value.get("image"), folder, where), seed)


def _parse_prompt(value: object, where: str) -> JobPrompt:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return value
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return value
    raise ValueError(
        f"{where}: prompt must be a text, a list of six texts or an object with a text for each face, got {value!r}"
    )


def _parse_photos(value: object, folder: Path, where: str) -> tuple[PhotoFile, ...]:
    entries = [] if value is None else value if isinstance(value, list) else [value]
    return tuple(_parse_photo(entry, folder, where) for entry in entries)


def _parse_photo(value: object, folder: Path, where: str) -> PhotoFile:
    entry = {"file": value} if isinstance(value, str) else value
    if not isinstance(entry, dict) or not isinstance(file := entry.get("file"), str):
        raise ValueError(f"{where}: image must be a file name or an object with a file, got {value!r}")
    camera: dict[str, float] = {}
    for key, angle in entry.items():
        if key == "file":
            continue
        is_number = isinstance(angle, int | float) and not isinstance(angle, bool) and math.isfinite(angle)
        if key not in _CAMERA_KEYS or not is_number:
            raise ValueError(f"{where}: image with {key} {angle!r}: use {', '.join(_CAMERA_KEYS)}, in degrees")
        camera[key] = float(angle)
    return PhotoFile(str(folder / file), **camera)


def open_photo(photo: PhotoFile) -> "Photo":
    """Reads a photo, upright as its EXIF orientation says.

    Raises:
        ValueError: If the file is not a readable image, or the camera's angles are invalid.
    """
    # Imported here so that --help does not wait for torch.
    from cubediff.geometry.photos import Photo
    from cubediff.images.reading import read_image

    try:
        image = read_image(Path(photo.file))
    except (OSError, ValueError) as error:
        raise ValueError(f"--image {photo.file}: not a readable image ({error})") from error
    return Photo(image, photo.fov, photo.yaw, photo.pitch, photo.roll)
