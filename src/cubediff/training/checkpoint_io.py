"""Checkpoints on disk: atomic writes, integrity checks, and the list of a folder's checkpoints."""

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from cubediff.utils.files import atomic_file

IDENTITY = "cubediff"  # key of the run's identity in a checkpoint
_FILE = re.compile(r"step(\d+)\.ckpt")


class CheckpointError(ValueError):
    """A checkpoint cannot be written, read or resumed from; the message says what to do."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, next to their final path; loads tensors and plain values only.

    Lightning's own implementation writes to the folder for temporary files first, which may be another file system.
    """

    def save_checkpoint(
        self, checkpoint: Mapping[str, object], path: str | Path, storage_options: object | None = None
    ) -> None:
        """Writes a checkpoint, or leaves the previous file at `path` as it is.

        Raises:
            CheckpointError: If it cannot be written, for example on a full disk.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for part in path.parent.glob(f".{path.name}.*.part"):  # of a process that was killed while writing
                part.unlink()
            with atomic_file(path, sync=True) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a write that fails midway
            raise CheckpointError(
                f"the checkpoint {path} cannot be written ({error}): free disk space or choose another run_dir; the "
                "previous checkpoints are undamaged, and the same command resumes from the last one"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., object] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Always loads with `weights_only=True`, so that a checkpoint cannot execute code."""
        return super().load_checkpoint(path, map_location, weights_only=True)


def file_name(step: int) -> str:
    """The name of the checkpoint after an optimizer step."""
    return f"step{step:08d}.ckpt"


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints in a folder by their optimizer step, newest first."""
    found = {int(match[1]): file for file in folder.glob("step*.ckpt") if (match := _FILE.fullmatch(file.name))}
    return dict(sorted(found.items(), reverse=True))


def find_damage(file: Path) -> str | None:
    """Verifies a checkpoint by the checksums inside it.

    Returns:
        A description of the damage; None for an undamaged file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        return str(error)
    return None if bad is None else f"the checksum of {bad} in it differs"
