"""Panoramas that exist already: which jobs are done. Loads Pillow alone: torch is not imported when all of them are."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from cubediff.generation.jobs import Job
from cubediff.generation.options import FACE_KEYS, Options
from cubediff.generation.records import RECORD, read_record
from cubediff.images.decoding import without_pillow_limits
from cubediff.utils.errors import storage_message

# The values of folders that were written before the keys existed.
_FORMER = {**asdict(Options()), "format": "jpg", "dtype": "fp32"}


def pending_jobs(jobs: Sequence[Job], output: Path, request: Mapping[str, object]) -> list[Job]:
    """The jobs whose folders do not hold their panorama yet.

    Args:
        jobs: The jobs.
        output: The output folder.
        request: What all jobs have in common, under the keys of `generation.json`.

    Raises:
        ValueError: If a folder holds the panorama of another request, or a damaged record.
    """
    return [job for job in jobs if not _is_done(job, output / job.name, request)]


def _is_done(job: Job, folder: Path, common: Mapping[str, object]) -> bool:
    if not (folder / RECORD).is_file():
        return False
    try:
        request = {**common, **job.request()}
    except OSError as error:  # a photo is gone
        raise ValueError(f"{job.label('image')} {storage_message(error)}") from error
    return panorama_exists(folder, request)


def panorama_exists(folder: Path, request: Mapping[str, object]) -> bool:
    """Whether a folder with a record holds the panorama of a request, undamaged.

    Args:
        folder: The panorama's folder.
        request: What determines the panorama, under the keys of its record.

    Raises:
        ValueError: If the record is damaged, or that of another request.
    """
    found = {**_FORMER, **read_record(folder / RECORD)}
    expected = json.loads(json.dumps(request))  # tuples become lists
    if not (with_faces := expected.pop("save_faces", False)):
        expected = {key: value for key, value in expected.items() if key not in FACE_KEYS}
    if differing := [key for key, value in expected.items() if found.get(key) != value]:
        raise ValueError(
            f"{folder} holds a panorama with another {', '.join(differing)}: choose another --output, or remove it"
        )
    try:
        with without_pillow_limits(), Image.open(folder / f"panorama.{found['format']}") as panorama:
            panorama.load()
    except (OSError, SyntaxError):  # missing, or incomplete after a power loss
        return False
    return not with_faces or any((folder / name).is_file() for name in ("faces/faces.json", "cubemap.png"))
