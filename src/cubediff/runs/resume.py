"""Resuming a run: finding its checkpoint, and refusing checkpoints of other runs."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from cubediff.configs import to_plain
from cubediff.configs.targets import ADDED, added_at_default, current_name
from cubediff.models.encoders import fingerprint
from cubediff.training.checkpoint_io import IDENTITY, CheckpointError, find_damage, link_last, list_checkpoints
from cubediff.training.module import CubeDiffModule
from cubediff.utils.files import set_aside

RunIdentity = dict[str, object]

# Config keys that must match the checkpoint on resume: its state overrides or contradicts other values. Everything else
# may change: devices, speed, length, panoramas per step.
_FIXED = ("name", "face_size", "fov", "model", "callbacks.ema")
_FREE = ("model.gradient_checkpointing", "model.compile", "model.channels_last", "model.pipeline.path")
_FINGERPRINTS = ("encoders", "frozen weights")


def find_checkpoint(resume: str, run_dir: Path, *, rename_damaged: bool = False) -> Path | None:
    """Finds the checkpoint that a run starts from.

    Args:
        resume: "auto" for the last undamaged checkpoint of the run, if there is one; "never" to refuse a run that has
            checkpoints; or a checkpoint file to start from if the run has no checkpoints.
        run_dir: The run's folder.
        rename_damaged: Rename the damaged checkpoints that are newer than the one found, so that they are out of the
            run's way. Only rank 0 of a run that holds its folder's lock may do so.

    Returns:
        The checkpoint, None to start from step 0.

    Raises:
        CheckpointError: If `resume` is "never" and there are checkpoints, all of them are damaged, one cannot be read,
            or the file is missing or damaged.
    """
    own = list_checkpoints(run_dir / "checkpoints")
    if resume == "never":
        if own:
            raise CheckpointError(
                f"resume=never, but {run_dir} holds checkpoints up to step {next(iter(own))}: choose another run_dir, "
                "or resume=auto to resume"
            )
        return None
    if own:
        return _last_undamaged(own.values(), rename_damaged)
    if resume == "auto":
        return None
    path = Path(resume)
    if not path.is_file():
        raise CheckpointError(f"resume={resume} is not a file: choose a checkpoint file, auto or never")
    if damage := find_damage(path):
        raise CheckpointError(f"resume={resume} is damaged ({damage}): choose another checkpoint")
    return path


def _last_undamaged(checkpoints: Iterable[Path], rename_damaged: bool) -> Path:
    damaged: dict[Path, str] = {}
    for file in checkpoints:
        try:
            damage = find_damage(file)
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


def run_identity(config: DictConfig, module: CubeDiffModule) -> RunIdentity:
    """The settings that must be equal for a run to resume.

    Args:
        config: The composed config of `cubediff train`.
        module: The run's module, for the weights' fingerprints.

    Returns:
        Dotted config keys with their values, and fingerprints of the frozen weights, which checkpoints leave out.
    """
    settings: RunIdentity = {}
    for key in _FIXED:
        node = OmegaConf.select(config, key)
        settings |= _flat(key, OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)
    ignored = (*_FREE, *added_at_default(to_plain(config)))
    identity = {
        key: value
        for key, value in settings.items()
        if not any(key == other or key.startswith(f"{other}.") for other in ignored)
    }
    digests = module.backbone.fingerprint(), fingerprint(module.frozen)
    return identity | {name: digest[:12] for name, digest in zip(_FINGERPRINTS, digests, strict=True)}


def check_resumable(path: Path, identity: RunIdentity, module: CubeDiffModule, is_own: bool) -> int:
    """Checks that a checkpoint belongs to the run with this identity.

    Args:
        path: The checkpoint.
        identity: The run's identity, from `run_identity`.
        module: The run's module, whose trainable weights the checkpoint must have.
        is_own: Whether the checkpoint is in the run's folder, where the run's name must match too.

    Returns:
        The optimizer step that the run resumes at.

    Raises:
        CheckpointError: If it belongs to another run or model, or was not written by this package.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        saved_identity, weights = saved[IDENTITY], saved["state_dict"]
    except Exception as error:  # unpickling raises errors of any class
        raise CheckpointError(
            f"{path} is not a checkpoint of this version of cubediff ({type(error).__name__}: {error}): start from its "
            "run's export instead, model.pipeline.path=RUN/export"
        ) from error
    if is_own and saved_identity["name"] != identity["name"]:
        raise CheckpointError(
            f"{path.parent.parent} holds a run named {saved_identity['name']}, this run is named {identity['name']}: "
            "choose another run_dir"
        )
    _check_identity(path, saved_identity, identity)
    _check_weights(path, weights, module.checkpointed)
    return int(saved["global_step"])


def _check_identity(path: Path, saved: RunIdentity, own: RunIdentity) -> None:
    names = (saved.keys() | own.keys()) - {"name"}
    differing = [name for name in names if current_name(saved.get(name)) != current_name(own.get(name))]
    differing.sort(key=lambda name: (name in _FINGERPRINTS, name))
    if not differing:
        return
    listed = "; ".join(
        f"{name} {saved.get(name, ADDED.get(name))}, not {own.get(name, ADDED.get(name))}" for name in differing[:8]
    )
    raise CheckpointError(
        f"{path} has {listed}: a run resumes only with the same settings. Restore them, or start another run_dir from "
        "the checkpoint's weights, model.pipeline.path=RUN/export"
    )


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


def _flat(key: str, value: object) -> RunIdentity:
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, inner in value.items() for k, v in _flat(f"{key}.{name}", inner).items()}
