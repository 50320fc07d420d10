"""Generation jobs: one panorama each, from the options of the command or from the lines of a JSON-lines file.

Loads no library: jobs are checked before torch is imported.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TypeAlias, cast

from cubediff.generation.options import (
    MAX_SEED,
    OPTION_KEYS,
    Options,
    check_value,
    finite_number,
    integer,
    option_name,
    parse_options,
)
from cubediff.generation.panoramas import PanoramaFile, read_canvas
from cubediff.generation.photos import PhotoFile, check_photo, sha256_of
from cubediff.generation.photos import open_photo as open_photo  # programs import it from here
from cubediff.images.canvas import MaskError
from cubediff.pipelines.face_prompts import six_prompts
from cubediff.utils.json_text import parse_json

JobPrompt: TypeAlias = str | list[str] | dict[str, str] | None

JOB_KEYS = ("prompt", "image", "panorama", "mask", "name", "seed", "count", *OPTION_KEYS)
CAMERA_KEYS = ("fov", "yaw", "pitch", "roll")
MAX_COUNT = 100_000
GALLERY = "index.html"
_FOLDER_NAME = re.compile(r"[^\W_][\w.-]{0,199}(?<!\.)")  # neither hidden nor a path
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)  # devices of Windows
_MAX_ERRORS = 20  # that one message lists


@dataclass(frozen=True)
class Job:
    """One panorama to generate.

    Attributes:
        name: Folder of its files, below the output folder; empty for the output folder itself.
        prompt: One text, six texts in FACES order, a text for each face name, or None.
        photos: Photos that the panorama contains.
        seed: Seed of the initial noise.
        options: How it is sampled and written.
        where: The file and line that it is from, for error messages; empty for the command line.
        panorama: The panorama that is edited; None generates a new one.
    """

    name: str
    prompt: JobPrompt
    photos: tuple[PhotoFile, ...]
    seed: int
    options: Options = field(default_factory=Options)
    where: str = ""
    panorama: PanoramaFile | None = None

    @property
    def format(self) -> str:
        """Format of the panorama's file; an edited one is PNG, which keeps its pixels."""
        return self.options.format or ("jpg" if self.panorama is None else "png")

    @property
    def text(self) -> str:
        """The prompt in one line, in the order of FACES; empty without a prompt."""
        return "" if self.prompt is None else " · ".join(dict.fromkeys(six_prompts(self.prompt)))

    def request(self) -> dict[str, object]:
        """What determines the panorama, for a given model, under the keys of `generation.json`.

        Photos have their SHA-256: a changed file makes another panorama.
        """
        photos = [{**asdict(photo), "sha256": sha256_of(photo.file)} for photo in self.photos]
        options = {key: value for key, value in asdict(self.options).items() if key != "preset"}
        edited = None if self.panorama is None else self.panorama.request()
        return {
            **options,
            "format": self.format,
            "prompt": self.prompt,
            "images": photos,
            "panorama": edited,
            "seed": self.seed,
        }

    def exif_fovs(self) -> dict[str, float]:
        """The fields of view that EXIF data gives, in degrees, by the photos' files."""
        fovs = {photo.file: check_photo(photo.file).exif_fov for photo in self.photos if photo.fov is None}
        return {file: fov for file, fov in fovs.items() if fov is not None}

    def label(self, key: str) -> str:
        """Names an option of the job in an error message."""
        return f"{self.where}: {key}" if self.where else option_name(key)


def repeat_job(job: Job, count: int) -> list[Job]:
    """A job for each of `count` panoramas: numbered names, and the seeds `seed`, `seed + 1` and so on.

    Raises:
        ValueError: If a seed would be too large.
    """
    if job.seed + count - 1 > MAX_SEED:
        raise ValueError(f"{job.label('seed')} is {job.seed}, too large for {count} panoramas: use a smaller seed")
    if count == 1:
        return [job]
    prefix = f"{job.name}-" if job.name else ""
    return [replace(job, name=f"{prefix}{i + 1:03d}", seed=job.seed + i) for i in range(count)]


def read_jobs(path: Path, seed: int = 0, options: Options | None = None, count: int = 1) -> list[Job]:
    """Reads jobs from a JSON-lines file, one or more panoramas a line.

    A line is an object with `prompt`, `image` or `panorama`, and optionally `name` (default: the line's number),
    `seed`, `count` and options by `OPTION_KEYS`. `image` is a file name, an object with `file` and the camera's `fov`,
    `yaw`, `pitch` and `roll` in degrees, or a list of these; `panorama` and its `mask` are file names. File names are
    relative to the folder of the JSON-lines file.

    Args:
        path: The JSON-lines file.
        seed, options, count: The values of lines without.

    Returns:
        The jobs, in the order of the file.

    Raises:
        ValueError: If lines are invalid or two jobs have the same name (the message names the lines), or there are no
            jobs.
    """
    jobs: list[Job] = []
    lines: dict[str, int] = {}  # by folder name, as file systems compare them
    errors: list[str] = []
    for number, value in _lines(path, errors):
        default = Job(f"{number:06d}", None, (), seed, options or Options(), f"{path}, line {number}")
        try:
            parsed = _parse_line(value, path.parent, default, count)
            for job in parsed:
                key = unicodedata.normalize("NFC", job.name).casefold()
                if (earlier := lines.setdefault(key, number)) != number:
                    raise ValueError(f"{job.where}: name {job.name!r} is that of line {earlier} too: use another one")
            jobs += parsed
        except ValueError as error:
            errors.append(str(error))
    raise_errors(errors + unusable_files(jobs) if errors else [])
    if not jobs:
        raise ValueError(f"{path}: no jobs: write one JSON object with prompt, image or panorama a line")
    return jobs


def unusable_files(jobs: Sequence[Job]) -> list[str]:
    """What is wrong with the photos and panoramas of jobs, in their order."""
    errors: list[str] = []
    for job in jobs:
        if job.panorama is not None:
            try:
                read_canvas(job.panorama)
            except MaskError as error:
                errors.append(f"{job.label('mask')} {error}")
            except ValueError as error:
                errors.append(f"{job.label('panorama')}: {error}")
        for photo in job.photos:
            try:
                check_photo(photo.file)
            except ValueError as error:
                errors.append(f"{job.label('image')} {error}")
    return errors


def raise_errors(errors: list[str]) -> None:
    """Raises a ValueError with all errors, if there are any."""
    if errors:
        more = [f"and {len(errors) - _MAX_ERRORS} more"] if len(errors) > _MAX_ERRORS else []
        raise ValueError("\n".join([*errors[:_MAX_ERRORS], *more]))


def _lines(path: Path, errors: list[str]) -> Iterator[tuple[int, object]]:
    """Numbers and values of the lines; what is not JSON is added to the errors."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text ({error.reason}): save the file as UTF-8") from None
    for number, text in enumerate(content.split("\n"), 1):
        if text.strip():
            try:
                yield number, parse_json(text)
            except (ValueError, RecursionError) as error:
                errors.append(f"{path}, line {number}: not JSON ({error}): write one object a line")


def _parse_line(value: object, folder: Path, job: Job, count: int) -> list[Job]:
    """The jobs of a line, whose defaults are those of `job`."""
    where = job.where
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object with prompt, image or panorama, got {value!r:.200}")
    if unknown := sorted(set(value) - set(JOB_KEYS)):
        near = get_close_matches(unknown[0].replace("-", "_"), JOB_KEYS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use {', '.join(JOB_KEYS)}"
        raise ValueError(f"{where}: unknown keys {', '.join(unknown)}: {hint}")
    if all(value.get(key) is None for key in ("prompt", "image", "panorama")):
        raise ValueError(f"{where}: neither prompt nor image nor panorama: specify at least one")
    name = value.get("name", job.name)
    if (
        not isinstance(name, str)
        or not _FOLDER_NAME.fullmatch(name)
        or _RESERVED.fullmatch(name)
        or name.casefold() == GALLERY
    ):
        raise ValueError(
            f"{where}: name {name!r:.200} is not a folder name on every system: use up to 200 letters without "
            f"accents, digits, '.', '-' and '_', and neither a device name of Windows nor {GALLERY}, which is written "
            "beside it"
        )
    seed = cast(int, check_value(job.label("seed"), value.get("seed", job.seed), integer(0, MAX_SEED)))
    count = cast(int, check_value(job.label("count"), value.get("count", count), integer(1, MAX_COUNT)))
    prompt = check_prompt(value.get("prompt"), where)
    photos = _parse_photos(value.get("image"), folder, where)
    options = parse_options(value, job.label, job.options)
    panorama = _parse_panorama(value.get("panorama"), value.get("mask"), folder, where)
    parsed = replace(job, name=name, prompt=prompt, photos=photos, seed=seed, options=options, panorama=panorama)
    check_edit(parsed)
    return repeat_job(parsed, count)


def check_edit(job: Job) -> None:
    """Raises ValueError if a job edits a panorama, and has options that its result cannot have."""
    if job.panorama is None:
        return
    if job.format != "png":
        raise ValueError(
            f"{job.label('format')} is {job.format}: an edited panorama is written as png, which keeps its pixels"
        )
    if job.options.panorama_height is not None:
        raise ValueError(
            f"{job.label('height')} is {job.options.panorama_height}: an edited panorama has the size of its input; "
            "omit the height"
        )


def _parse_panorama(file: object, mask: object, folder: Path, where: str) -> PanoramaFile | None:
    for key, name in (("panorama", file), ("mask", mask)):
        if name is not None and (not isinstance(name, str) or not name):
            raise ValueError(f"{where}: {key} must be a file name, got {name!r:.200}")
    if file is None:
        if mask is not None:
            raise ValueError(f"{where}: a mask without a panorama: name the panorama that it belongs to")
        return None
    return PanoramaFile(str(folder / cast(str, file)), None if mask is None else str(folder / cast(str, mask)))


def check_prompt(value: object, where: str = "") -> JobPrompt:
    """A panorama's prompt, as `Job` has it.

    Args:
        value: The prompt.
        where: Begins an error message; empty for the command line.

    Raises:
        ValueError: If it is neither None nor prompts for the six faces, see `six_prompts`.
    """
    if value is None:
        return None
    try:
        texts = six_prompts(value, allow_empty=True)
    except ValueError as error:
        raise ValueError(f"{where or '--prompt'}: {error}") from None
    if not all(text.strip() for text in texts):
        key = "prompt" if where else "--prompt"
        raise ValueError(f"{where or key}: a prompt is empty: describe the panorama, or omit {key} for no text")
    return cast(JobPrompt, value)


def _parse_photos(value: object, folder: Path, where: str) -> tuple[PhotoFile, ...]:
    entries = [] if value is None else value if isinstance(value, list) else [value]
    if value == []:
        raise ValueError(f"{where}: image is an empty list: name a photo, or leave the image out")
    return tuple(_parse_photo(entry, folder, where) for entry in entries)


def _parse_photo(value: object, folder: Path, where: str) -> PhotoFile:
    entry = {"file": value} if isinstance(value, str) else value
    if not isinstance(entry, dict) or not isinstance(file := entry.get("file"), str) or not file:
        raise ValueError(f"{where}: image must be a file name or an object with a file, got {value!r:.200}")
    if unknown := sorted(set(entry) - {"file", *CAMERA_KEYS}):
        raise ValueError(
            f"{where}: image with {unknown[0]} {entry[unknown[0]]!r:.200}: use {', '.join(CAMERA_KEYS)}, in degrees"
        )
    camera = {key: angle for key, angle in entry.items() if key != "file" and angle is not None}
    return photo_file(str(folder / file), camera, lambda key: f"{where}: image with {key}")


def photo_file(file: str, camera: Mapping[str, object], name: Callable[[str], str]) -> PhotoFile:
    """A photo with a camera.

    Args:
        file: Path of the image.
        camera: Some of `CAMERA_KEYS`, in degrees.
        name: Names the option of a key in an error message.

    Raises:
        ValueError: If an angle is not a finite number, or the field of view is not between 0° and 180°.
    """
    angles = {key: cast(float, check_value(name(key), angle, finite_number())) for key, angle in camera.items()}
    fov = angles.get("fov")
    if fov is not None and not 0 < fov < 180:
        raise ValueError(f"{name('fov')} must be between 0 and 180 degrees, both excluded, got {fov:g}")
    return PhotoFile(file, **angles)
