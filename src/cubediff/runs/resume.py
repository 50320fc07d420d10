"""Resuming a run: finding its checkpoint, and refusing checkpoints of other runs."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from cubediff.models.finite import is_finite
from cubediff.runs.identity import RunIdentity, differing_settings
from cubediff.training.checkpoint_errors import CheckpointError, retry_storage
from cubediff.training.checkpoint_io import (
    FORMAT,
    FORMAT_VERSION,
    IDENTITY,
    find_damage,
    link_last,
    list_checkpoints,
)
from cubediff.training.loaded_checkpoint import LoadedCheckpoint
from cubediff.training.module import CubeDiffModule
from cubediff.utils.errors import check_version
from cubediff.utils.files import set_aside
from cubediff.utils.ranks import is_first_rank

# The keys that a checkpoint has at least, and their types.
_TYPES: dict[str, type] = {
    IDENTITY: dict, "state_dict": dict, "global_step": int, "epoch": int, "loops": dict, "callbacks": dict,
    "optimizer_states": list, "lr_schedulers": list,
}  # fmt: skip


def find_checkpoint(
    resume: str, run_dir: Path, *, rename_damaged: bool = False, loaded: LoadedCheckpoint | None = None
) -> Path | None:
    """Finds the checkpoint that a run starts from.

    Args:
        resume: "auto" for the last undamaged checkpoint of the run, if there is one; "never" to refuse a run that has
            checkpoints; or a checkpoint file to start from if the run has no checkpoints. If it has, the file may be
            missing, with a warning.
        run_dir: The run's folder.
        rename_damaged: Rename the damaged checkpoints that are newer than the one found, so that they are out of the
            run's way. Only rank 0 of a run that holds its folder's lock may do so.
        loaded: Keeps the content of the checkpoint, which is read to verify it; None: the tensors stay on disk.

    Returns:
        The checkpoint, None to start from step 0.

    Raises:
        CheckpointError: If `resume` is "never" and there are checkpoints, all of them are damaged, one cannot be read,
            or the file to start from is missing or damaged.
    """
    own = list_checkpoints(run_dir / "checkpoints")
    verify = find_damage if loaded is None else loaded.verify
    if resume == "never":
        if own:
            raise CheckpointError(
                f"resume=never, but {run_dir} holds checkpoints up to step {next(iter(own))}: choose another run_dir, "
                "or resume=auto to resume"
            )
        return None
    if own:
        # No error: a scheduler restarts a run with its first command, when this file may be gone.
        if resume != "auto" and is_first_rank() and not Path(resume).is_file():
            print(f"WARNING: resume={resume} is not a file: resuming from the checkpoints of {run_dir} in its place")
        return _last_undamaged(own.values(), verify, rename_damaged)
    if resume == "auto":
        return None
    path = Path(resume)
    if not path.is_file():
        raise CheckpointError(f"resume={resume} is not a file: choose a checkpoint file, auto or never")
    if damage := verify(path):
        raise CheckpointError(f"resume={resume} is damaged ({damage}): choose another checkpoint")
    return path


def _last_undamaged(checkpoints: Iterable[Path], verify: Callable[[Path], str | None], rename_damaged: bool) -> Path:
    damaged: dict[Path, str] = {}
    for file in checkpoints:
        try:
            damage = verify(file)
        except FileNotFoundError:  # rank 0 has just renamed it
            continue
        if damage is None:
            if damaged and rename_damaged:
                _set_aside(damaged, file)
            return file
        damaged[file] = damage
    listed = "; ".join(f"{file.name} is damaged ({damage})" for file, damage in damaged.items())
    raise CheckpointError(f"every checkpoint in {file.parent} is damaged ({listed}): remove them to start from step 0")


def _set_aside(damaged: Mapping[Path, str], undamaged: Path) -> None:
    renamed = [
        f"{file.name} is damaged ({damage}) and renamed to {set_aside(file).name}" for file, damage in damaged.items()
    ]
    link_last(undamaged)
    print(f"WARNING: {'; '.join(renamed)}: resuming from {undamaged.name}")


class SavedRun(NamedTuple):
    """The parts of a checkpoint that a resuming run is compared with."""

    identity: RunIdentity
    weights: Mapping[str, Tensor]
    step: int  # the optimizer step that the run resumes at


def read_saved_run(path: Path, loaded: LoadedCheckpoint | None = None) -> SavedRun:
    """Reads what a checkpoint says about its run; tensors that are not `loaded` stay on disk.

    Raises:
        CheckpointError: If the file was not written by this package, cannot be read, or holds a value that is not
            finite.
        DataError: If it was written by a newer version.
    """
    try:
        saved = loaded.content(path) if loaded is not None else None
        if saved is None:
            saved = retry_storage(path, lambda: torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        if not isinstance(saved, dict):
            raise TypeError(f"expected a dict, got {type(saved).__name__}")
        version = saved.get(FORMAT)
        if not isinstance(version, int) or version <= FORMAT_VERSION:
            _check_types(saved)
    except CheckpointError:
        raise
    except Exception as error:  # unpickling raises errors of any class
        raise CheckpointError(
            f"{path} is not a checkpoint of this version of cubediff ({type(error).__name__}: {error}): start from its "
            "run's export instead, model.pipeline.path=RUN/export"
        ) from error
    check_version(version, FORMAT_VERSION, path)
    if place := next(_non_finite(saved), None):
        raise CheckpointError(
            f"{path}: {place} is NaN or infinite: remove this checkpoint to resume from an older one, or start another "
            "run_dir"
        )
    return SavedRun(saved[IDENTITY], saved["state_dict"], saved["global_step"])


def _non_finite(value: object, place: str = "") -> Iterator[str]:
    """The places of tensors and numbers in nested containers that are NaN or infinite, as dotted keys."""
    if isinstance(value, Tensor):
        if not is_finite(value):
            yield place
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield place
    elif isinstance(value, Mapping | list | tuple):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _non_finite(inner, f"{place}.{key}" if place else str(key))


def _check_types(saved: Mapping[str, object]) -> None:
    for key, kind in _TYPES.items():
        if not isinstance(saved[key], kind):
            raise TypeError(f"{key}: expected {kind.__name__}, got {type(saved[key]).__name__}")
    if wrong := [
        key for key, value in cast(dict[str, object], saved["state_dict"]).items() if not torch.is_tensor(value)
    ]:
        raise TypeError(f"state_dict.{wrong[0]}: expected a tensor")


def check_resumable(path: Path, saved: SavedRun, identity: RunIdentity, module: CubeDiffModule, is_own: bool) -> None:
    """Checks that a checkpoint belongs to the run with this identity.

    Args:
        path: The checkpoint.
        saved: Its content, from `read_saved_run`.
        identity: The run's identity, from `run_identity`.
        module: The run's module, whose trainable weights the checkpoint must have.
        is_own: Whether the checkpoint is in the run's folder, where the run's name must match too.

    Raises:
        CheckpointError: If it belongs to another run or model.
    """
    name = saved.identity.get("name")
    if is_own and name != identity["name"]:
        raise CheckpointError(
            f"{path.parent.parent} holds a run named {name}, this run is named {identity['name']}: choose another "
            "run_dir"
        )
    if differing := differing_settings(saved.identity, identity):
        raise CheckpointError(
            f"{path} has {'; '.join(differing[:8])}: a run resumes only with the same settings. Restore them, or start "
            f"another run_dir from its weights, {_as_initial_model(path, saved.step)}"
        )
    _check_weights(path, saved.weights, module.checkpointed)


def _as_initial_model(path: Path, step: int) -> str:
    """How another run starts from a checkpoint's weights: a run that was stopped has no export yet."""
    export = path.parent.parent / "export"
    if (export / "model_index.json").is_file():
        return f"model.pipeline.path={export}"
    return f"model.pipeline.path={export}, which the run's own command writes with trainer.max_steps={step}"


def _check_weights(path: Path, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    wrong = [
        key
        for key in expected.keys() | weights.keys()
        if key not in weights or key not in expected or weights[key].shape != expected[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path} belongs to another model: {len(wrong)} of its weights are missing, unexpected or of another "
            f"shape, such as {', '.join(sorted(wrong)[:5])}; use the model that it was trained with"
        )
