"""Checkpoints on disk: atomic writes, integrity checks, and the list of a folder's checkpoints."""

import os
import pickle
import re
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from cubediff.training.checkpoint_errors import DAMAGE, CheckpointError, retry_storage
from cubediff.training.loaded_checkpoint import LoadedCheckpoint
from cubediff.utils.files import atomic_file, remove_partial

IDENTITY = "cubediff"  # key of the run's identity in a checkpoint
FORMAT = "format_version"  # key of the format's version; the first checkpoints have none
FORMAT_VERSION = 1
_FILE = re.compile(r"step(\d+)\.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, next to their final path; loads tensors and plain values only.

    Lightning's own implementation writes to the folder for temporary files first, which may be another file system.

    Attributes:
        loaded: A checkpoint in memory, which is not read again.
    """

    loaded: LoadedCheckpoint | None = None

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
            remove_partial(path)
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
        """Always loads with `weights_only=True`, so that a checkpoint cannot execute code; retries storage errors."""
        if self.loaded is not None and (content := self.loaded.take(Path(path))) is not None:
            return cast(dict[str, Any], content)
        load = super().load_checkpoint
        return retry_storage(Path(path), lambda: load(path, map_location, weights_only=True))


def file_name(step: int) -> str:
    """The name of the checkpoint after an optimizer step."""
    return f"step{step:08d}.ckpt"


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints in a folder by their optimizer step, newest first; none if there is no such folder.

    Raises:
        CheckpointError: If the folder cannot be read.
    """
    try:
        names = retry_storage(folder, lambda: os.listdir(folder))
    except FileNotFoundError:
        return {}
    found = {int(match[1]): folder / name for name in names if (match := _FILE.fullmatch(name))}
    return dict(sorted(found.items(), reverse=True))


def link_last(checkpoint: Path) -> None:
    """Makes last.ckpt, next to a checkpoint, a link to it."""
    link = checkpoint.with_name(".last.ckpt")
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(checkpoint.name)
    except OSError:  # Windows needs a privilege for symbolic links
        os.link(checkpoint, link)
    link.replace(checkpoint.with_name("last.ckpt"))


def find_damage(file: Path) -> str | None:
    """Verifies a checkpoint by the checksums inside it.

    Returns:
        A description of the damage; None for an undamaged file.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file cannot be read, which says nothing about its content.
    """
    return retry_storage(file, lambda: _find_damage(file))


def _find_damage(file: Path) -> str | None:
    if not stat.S_ISREG(file.stat().st_mode):
        return "it is not a regular file"
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
        return str(error)
    except Exception as error:  # zipfile raises errors of many classes for damaged headers
        return str(error) or type(error).__name__
    return _find_damaged_header(file) if bad is None else f"the checksum of {bad} in it differs"


def _find_damaged_header(file: Path) -> str | None:
    """Damage to headers that zipfile does not read and torch does; a file of another program is not damaged."""
    try:
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "PytorchStreamReader" in str(error):
            return str(error).splitlines()[0]
    except (pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError):
        pass
    return None
