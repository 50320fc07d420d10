"""Checkpoints on disk: written whole or not at all, verified before they are read, and found again by a run that goes
on with them, if it is the same run."""

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

IDENTITY = "cubediff"  # the checkpoint's entry that says which run it is of
_FILE = re.compile(r"step(\d+)\.ckpt")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read, or gone on with; its message says what to do."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name and gives it its own once it is on the disk; reads tensors and plain
    values alone. Lightning's own goes by the folder for temporary files, which may be another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises CheckpointError where it cannot be written; whatever was at `path` before is then still there."""
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        except (OSError, RuntimeError) as error:  # torch's own where a write fails in the middle
            part.unlink(missing_ok=True)
            raise CheckpointError(
                f"the checkpoint {path} cannot be written ({error}): make room or choose another run_dir; the ones "
                "before it are whole, and the same command goes on from the last"
            ) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return super().load_checkpoint(path, map_location, weights_only=True)


def file_name(step: int) -> str:
    return f"step{step:08d}.ckpt"


def steps(folder: Path) -> dict[int, Path]:
    """The checkpoints in a folder by their steps, the last first."""
    found = {int(match[1]): file for file in folder.glob("step*.ckpt") if (match := _FILE.fullmatch(file.name))}
    return dict(sorted(found.items(), reverse=True))


def damage(file: Path) -> str | None:
    """What is wrong with a checkpoint's bytes, by the checksums that are in it; None where it is whole."""
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        return str(error)
    return None if bad is None else f"{bad} in it has another checksum"
