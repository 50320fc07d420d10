"""The folder of a dataset: its files, the unfinished build that may lie in it, and how the one becomes the other, so
that at no moment it looks whole and is not."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cubediff.utils.errors import DataError
from cubediff.utils.files import sync_folder, write_atomic

MANIFEST = "manifest.json"
INDEX = "index.jsonl"
REJECTED = "rejected.jsonl"
DUPLICATES = "duplicates.jsonl"
REPORT = "report.html"
FORMAT = "cubediff-shards"
VERSION = 2

SHARD = re.compile(r"(train|val)-\d{6}\.tar")
BUILDING = ".building"  # in OUTPUT: what an unfinished build has done so far

_PLAN = "plan.json"


@contextmanager
def only_builder(build: Path) -> Iterator[None]:
    """Makes the folder of an unfinished build. Raises DataError where another process works in it."""
    build.mkdir(parents=True, exist_ok=True)
    handle = os.open(build, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however it ends
        except BlockingIOError:
            raise DataError(f"another process is building in {build.parent}: wait for it, or end it") from None
        yield
    finally:
        os.close(handle)


def begin(build: Path, plan: dict[str, Any], overwrite: bool) -> None:
    """Keeps what `build` holds of the same plan. Raises DataError where it is of another, unless told to `overwrite`
    it."""
    try:
        begun = json.loads((build / _PLAN).read_bytes())
    except (OSError, ValueError):
        begun = None
    if begun is not None and begun != plan and not overwrite:
        other = next(name for name in (*plan, *begun) if begun.get(name) != plan.get(name))
        raise DataError(
            f"{build} holds an unfinished build with {other.replace('_', '-')} {begun.get(other)}, not "
            f"{plan.get(other)}: go on with the same arguments, or give --overwrite to start afresh"
        )
    if begun != plan:
        clear(build)
    (build / "panoramas").mkdir(parents=True, exist_ok=True)
    write_atomic(build / _PLAN, json.dumps(plan).encode())


def clear(build: Path, *keep: str) -> None:
    """Removes all that is in the folder but the files to keep, the plan last: it tells of the rest."""
    for path in sorted(build.iterdir(), key=lambda path: path.name == _PLAN):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in keep:
            path.unlink()


def publish(build: Path, output: Path) -> dict[str, Any]:
    """Moves the whole dataset into place, from wherever the last try was cut short. The old manifest goes first and the
    new one comes last, so that nobody trains on a mixture."""
    manifest = json.loads((build / MANIFEST).read_bytes())
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
    clear(build, _PLAN, MANIFEST)
    os.replace(build / MANIFEST, output / MANIFEST)
    sync_folder(output)
    clear(build)
    build.rmdir()
    return manifest
