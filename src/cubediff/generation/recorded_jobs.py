"""The job that a `generation.json` records, so that its panorama can be generated again.

Loads no library, as `cubediff.generation.jobs`.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

from cubediff.generation.jobs import CAMERA_KEYS, Job, check_prompt, photo_file
from cubediff.generation.options import FACE_KEYS, MAX_SEED, Options, check_value, integer, parse_options
from cubediff.generation.panoramas import PanoramaFile
from cubediff.generation.photos import PhotoFile, sha256_of
from cubediff.generation.records import read_record
from cubediff.utils.errors import DataError


def recorded_job(path: Path) -> Job:
    """The job of a record; file names in it are relative to the working directory, as when it was written.

    Args:
        path: A `generation.json`.

    Raises:
        DataError: If the file is damaged or no record, or a photo or panorama has changed since.
        OSError: If a file cannot be read.
        ValueError: If a value is invalid.
    """
    record = read_record(path)
    try:
        return _parsed(record, path)
    except (KeyError, TypeError, AttributeError):
        message = "is no record of a panorama: pass a generation.json, or JSON lines under another name"
        raise DataError(f"{path} {message}") from None


def _parsed(record: dict[str, Any], path: Path) -> Job:
    values = {str(each.metadata["key"]): record[each.name] for each in fields(Options) if each.name in record}
    if not values.get("save_faces"):
        values = {key: value for key, value in values.items() if key not in FACE_KEYS}
    job = Job("", None, (), 0, where=str(path))
    return replace(
        job,
        prompt=check_prompt(record["prompt"], str(path)),
        photos=tuple(_photo(entry, path) for entry in record["images"]),
        seed=cast(int, check_value(job.label("seed"), record["seed"], integer(0, MAX_SEED))),
        options=parse_options(values, job.label, Options()),
        panorama=_panorama(record.get("panorama"), path),
    )


def _photo(entry: Mapping[str, object], path: Path) -> PhotoFile:
    file = _unchanged(entry, "file", "sha256", path)
    camera = {key: entry[key] for key in CAMERA_KEYS if entry.get(key) is not None}
    return photo_file(file, camera, lambda key: f"{path}: image with {key}")


def _panorama(entry: Mapping[str, object] | None, path: Path) -> PanoramaFile | None:
    if entry is None:
        return None
    mask = None if entry.get("mask") is None else _unchanged(entry, "mask", "mask_sha256", path)
    return PanoramaFile(_unchanged(entry, "file", "sha256", path), mask)


def _unchanged(entry: Mapping[str, object], key: str, digest: str, path: Path) -> str:
    """The name of a file, whose content must be that of the record."""
    file = entry[key]
    if not isinstance(file, str):
        raise TypeError(file)
    if sha256_of(file) != entry[digest]:
        raise DataError(f"{file} has changed since {path} was written: another panorama would be generated")
    return file
