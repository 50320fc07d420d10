"""The folder of a build, OUTPUT/.building: starting or resuming, and publishing, so that OUTPUT never looks complete
before it is."""

import json
import os
import shutil
from pathlib import Path
from typing import TypedDict, cast

from cubediff.data.building.output_folder import PLAN, REPLACED, listed_files, refuse_foreign_files
from cubediff.data.format.manifest import DUPLICATES, INDEX, MANIFEST, REJECTED, REPORT, SHARD, Manifest
from cubediff.utils.errors import DataError
from cubediff.utils.files import sync_folder, write_atomic
from cubediff.utils.json_text import parse_json

Plan = TypedDict(
    "Plan",
    {
        "source": str,
        "val_fraction": float,
        "max_width": int,
        "quality": int,
        "limit": int | None,
        "shard_size": int,
        "cubediff version": str,
        "PIL version": str,
        "cv2 version": str,
    },
)
Plan.__doc__ = "Everything that the bytes of a build depend on; a build resumes only with an equal plan."


def begin_build(build: Path, plan: Plan, overwrite: bool) -> None:
    """Prepares the folder for a build; keeps the finished work of an interrupted build with the same plan.

    Args:
        build: The build's folder.
        plan: The plan of this build.
        overwrite: Discard an interrupted build with another plan; if only its move to OUTPUT was interrupted, complete
            it first, since the dataset before it is gone.

    Raises:
        DataError: If the folder holds a build with another plan and `overwrite` is off.
    """
    try:
        previous = parse_json((build / PLAN).read_bytes())
    except (OSError, ValueError):
        previous = None
    if previous is not None and previous != plan and not overwrite:
        key = next(key for key in (*plan, *previous) if previous.get(key) != plan.get(key))
        raise DataError(
            f"{build} holds an unfinished build with {key.replace('_', '-')} {previous.get(key)}, not "
            f"{plan.get(key)}: resume it with the same arguments, or pass --overwrite to start again"
        )
    if previous != plan and (build / MANIFEST).exists():
        publish(build, build.parent)
    build.mkdir(parents=True, exist_ok=True)
    if previous != plan:
        clear_build(build, REPLACED)  # an older version may have left OUTPUT with the replaced files and no manifest
    (build / "panoramas").mkdir(exist_ok=True)
    write_atomic(build / PLAN, json.dumps(plan), sync=True)


def end_without_samples(build: Path, output: Path) -> Path:
    """Keeps the reasons of a build that has no panorama: in its folder if `output` holds a dataset, which stays as it
    is, else in `output`; returns their file."""
    if (output / MANIFEST).exists():
        return output / build.name / REJECTED
    (build / REJECTED).replace(output / REJECTED)
    clear_build(build)
    build.rmdir()
    return output / REJECTED


def clear_build(build: Path, *keep: str) -> None:
    """Removes the content of a build's folder except the files named in `keep`; the plan, which the rest depends on,
    goes last."""
    for path in sorted(build.iterdir(), key=lambda path: path.name == PLAN):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in keep:
            path.unlink()


def publish(build: Path, output: Path) -> Manifest:
    """Moves a finished dataset from its build folder to `output`, as `_move` does; completes the move before a
    `KeyboardInterrupt`, so that `output` is not left without a dataset."""
    try:
        return _move(build, output)
    except KeyboardInterrupt:
        if (build / MANIFEST).exists():
            _move(build, output)
        raise


def _move(build: Path, output: Path) -> Manifest:
    """Moves a finished dataset from its build folder to `output`; also completes an interrupted move.

    The old manifest is removed first and the new one arrives last, so that no reader sees a mixture of two datasets. Of
    the files in `output`, only those of earlier builds are replaced or removed.

    Raises:
        DataError: If `output` holds other files; the finished build is kept.
    """
    refuse_foreign_files(output)
    manifest = cast(Manifest, parse_json((build / MANIFEST).read_bytes()))
    shards = [shard["file"] for split in manifest["splits"].values() for shard in split["shards"]]
    replaced = _record_replaced(build)
    if (output / MANIFEST).exists():
        (output / MANIFEST).unlink()
        sync_folder(output)
    for name in (*shards, INDEX, REJECTED, DUPLICATES, REPORT):
        if (build / name).exists():
            os.replace(build / name, output / name)
    for name in replaced:
        if SHARD.fullmatch(name) and name not in shards:
            (output / name).unlink(missing_ok=True)
    sync_folder(output)
    clear_build(build, PLAN, MANIFEST, REPLACED)
    os.replace(build / MANIFEST, output / MANIFEST)
    sync_folder(output)
    clear_build(build)
    build.rmdir()
    return manifest


def _record_replaced(build: Path) -> list[str]:
    """Records which files of OUTPUT are replaced, because the manifests that list them go first."""
    names = sorted(listed_files(build.parent))
    write_atomic(build / REPLACED, json.dumps(names), sync=True)
    return names
