"""The folder of a build, OUTPUT/.building: locking, starting or resuming, and publishing, so that OUTPUT never looks
complete before it is."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, cast

from cubediff.data.format.manifest import DUPLICATES, INDEX, MANIFEST, REJECTED, REPORT, SHARD, Manifest
from cubediff.utils.errors import DataError
from cubediff.utils.files import sync_folder, write_atomic

BUILDING = ".building"  # folder of an unfinished build, inside OUTPUT

_PLAN = "plan.json"

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


@contextmanager
def build_lock(build: Path) -> Iterator[None]:
    """Creates a build's folder and locks it for this process.

    Raises:
        DataError: If another process holds the lock.
    """
    build.mkdir(parents=True, exist_ok=True)
    handle = os.open(build, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, also by a signal
        except BlockingIOError:
            raise DataError(
                f"another process is building in {build.parent}: wait until it has finished, or stop it"
            ) from None
        yield
    finally:
        os.close(handle)


def begin_build(build: Path, plan: Plan, overwrite: bool) -> None:
    """Prepares the folder for a build; keeps the finished work of an interrupted build with the same plan.

    Args:
        build: The build's folder.
        plan: The plan of this build.
        overwrite: Discard an interrupted build with another plan.

    Raises:
        DataError: If the folder holds a build with another plan and `overwrite` is off.
    """
    try:
        previous = json.loads((build / _PLAN).read_bytes())
    except (OSError, ValueError):
        previous = None
    if previous is not None and previous != plan and not overwrite:
        key = next(key for key in (*plan, *previous) if previous.get(key) != plan.get(key))
        raise DataError(
            f"{build} holds an unfinished build with {key.replace('_', '-')} {previous.get(key)}, not "
            f"{plan.get(key)}: resume it with the same arguments, or pass --overwrite to start again"
        )
    if previous != plan:
        clear_build(build)
    (build / "panoramas").mkdir(parents=True, exist_ok=True)
    write_atomic(build / _PLAN, json.dumps(plan))


def clear_build(build: Path, *keep: str) -> None:
    """Removes the content of a build's folder except the files named in `keep`; the plan, which the rest depends on,
    goes last."""
    for path in sorted(build.iterdir(), key=lambda path: path.name == _PLAN):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in keep:
            path.unlink()


def publish(build: Path, output: Path) -> Manifest:
    """Moves a finished dataset from its build folder to `output`; also completes an interrupted move.

    The old manifest is removed first and the new one arrives last, so that no reader sees a mixture of two datasets.
    """
    manifest = cast(Manifest, json.loads((build / MANIFEST).read_bytes()))
    shards = [shard["file"] for split in manifest["splits"].values() for shard in split["shards"]]
    if (output / MANIFEST).exists():
        (output / MANIFEST).unlink()
        sync_folder(output)
    for name in (*shards, INDEX, REJECTED, DUPLICATES, REPORT):
        if (build / name).exists():
            os.replace(build / name, output / name)
    for old in output.iterdir():
        if SHARD.fullmatch(old.name) and old.name not in shards:
            old.unlink()
    sync_folder(output)
    clear_build(build, _PLAN, MANIFEST)
    os.replace(build / MANIFEST, output / MANIFEST)
    sync_folder(output)
    clear_build(build)
    build.rmdir()
    return manifest
