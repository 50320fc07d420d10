"""What `python -m cubediff.generate` is asked to make: one panorama by its options, or one for each line of a file."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[^\W_][\w.-]*")  # a file name, and none that is hidden or leads elsewhere


@dataclass(frozen=True)
class PhotoFile:
    """A photo and where it was taken to, in degrees; fov None: as its EXIF says, else a face's."""

    file: str
    fov: float | None = None
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0


@dataclass(frozen=True)
class Job:
    """One panorama: where its files go under the output folder, and what it is made from."""

    name: str
    prompt: Any  # one text, six texts, or a text for each face
    photos: tuple[PhotoFile, ...]
    seed: int

    def record(self) -> dict[str, Any]:
        """What generation.json keeps: with the photos' SHA-256, so that a changed file is another job."""
        photos = [{**asdict(p), "sha256": hashlib.sha256(Path(p.file).read_bytes()).hexdigest()} for p in self.photos]
        return {"prompt": self.prompt, "images": photos, "seed": self.seed}


def read_jobs(path: Path, seed: int) -> list[Job]:
    """The jobs of a JSON-lines file, a panorama a line: `prompt`, `image`, or both; `name` and `seed`, where wanted.

    `image` is a file, an object with `file` and, in degrees, `fov`, `yaw`, `pitch`, `roll`, or a list of such; files
    are looked for beside the JSON-lines file. Raises ValueError with the line's number where one cannot be meant.
    """
    jobs: list[Job] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            told = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON ({error})") from None
        if not isinstance(told, dict):
            raise ValueError(f"{where}: not an object with prompt, image or both")
        if unknown := sorted(set(told) - {"prompt", "image", "name", "seed"}):
            raise ValueError(f"{where}: unknown {', '.join(unknown)}; known are prompt, image, name, seed")
        if told.get("prompt") is None and told.get("image") is None:
            raise ValueError(f"{where}: neither prompt nor image")
        name, own_seed = told.get("name", f"{number:06d}"), told.get("seed", seed)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{where}: name {name!r} is no folder name; use letters, digits, '.', '-' and '_'")
        if isinstance(own_seed, bool) or not isinstance(own_seed, int) or own_seed < 0:
            raise ValueError(f"{where}: seed {own_seed!r} is no whole number from 0 on")
        jobs.append(
            Job(name, _prompt(told.get("prompt"), where), _photos(told.get("image"), path.parent, where), own_seed)
        )
    if not jobs:
        raise ValueError(f"{path}: no jobs in it")
    names = [job.name for job in jobs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: several jobs are named {', '.join(twice[:5])}")
    return jobs


def _prompt(told: Any, where: str) -> Any:
    texts = [told] if isinstance(told, str) else list(told.values()) if isinstance(told, Mapping) else told
    if told is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise ValueError(f"{where}: prompt is no text, list of six texts, or object with a text for each face")
    return told


def _photos(told: Any, folder: Path, where: str) -> tuple[PhotoFile, ...]:
    photos = []
    for one in [] if told is None else told if isinstance(told, list) else [told]:
        one = {"file": one} if isinstance(one, str) else one
        if not isinstance(one, dict) or not isinstance(one.get("file"), str):
            raise ValueError(f"{where}: image {one!r} is no file name and no object with a file")
        angles = {name: value for name, value in one.items() if name != "file"}
        for name, value in angles.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if name not in ("fov", "yaw", "pitch", "roll") or not number:
                raise ValueError(f"{where}: image with {name} {value!r}; known are fov, yaw, pitch, roll, in degrees")
        photos.append(PhotoFile(str(folder / one["file"]), **{name: float(value) for name, value in angles.items()}))
    return tuple(photos)


def open_photo(photo: PhotoFile) -> Any:
    """The picture, upright, as the pipeline takes it."""
    import PIL.Image
    import PIL.ImageOps

    from cubediff.geometry.photos import Photo

    try:
        with PIL.Image.open(photo.file) as opened:
            picture = PIL.ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"--image {photo.file}: not a readable picture ({error})") from error
    return Photo(picture, photo.fov, photo.yaw, photo.pitch, photo.roll)
