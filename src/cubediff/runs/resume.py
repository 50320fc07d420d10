"""Resuming a run: which checkpoint, and whether it belongs to this run."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from cubediff.configs.targets import ADDED, added_at_default, current_name
from cubediff.models.encoders import fingerprint
from cubediff.training.checkpoint_io import IDENTITY, CheckpointError, damage, steps
from cubediff.training.module import CubeDiffModule

# What a checkpoint's own state overrides or contradicts, so that another value would go unheard or break it. What is
# left out here may change: where and how fast the run goes on, how long, and with how many panoramas a step.
_FIXED = ("name", "face_size", "fov", "model", "callbacks.ema")


_FREE = ("model.gradient_checkpointing", "model.compile", "model.channels_last", "model.pipeline.path")


_SUMS = ("encoders", "frozen weights")


def choose(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint that a run begins with, or None for none: by "auto" the last one of its own that is whole, by a
    path that file where it has none of its own. By "never" it must have none.

    Raises CheckpointError where that cannot be done.
    """
    own = steps(run_dir / "checkpoints")
    if resume == "never":
        if own:
            raise CheckpointError(
                f"resume=never, and {run_dir} holds checkpoints up to step {next(iter(own))}: give another run_dir, or "
                "resume=auto to go on"
            )
        return None
    damaged: list[str] = []
    for file in own.values():
        if (fault := damage(file)) is None:
            if damaged:
                print(f"WARNING: {'; '.join(damaged)}: going on from {file.name}")
            return file
        damaged.append(f"{file.name} is damaged ({fault})")
    if damaged:
        raise CheckpointError(
            f"no checkpoint in {run_dir / 'checkpoints'} is whole ({'; '.join(damaged)}): remove them to start anew"
        )
    if resume == "auto":
        return None
    path = Path(resume)
    if not path.is_file():
        raise CheckpointError(f"resume={resume} is no file: give a checkpoint, auto or never")
    if fault := damage(path):
        raise CheckpointError(f"resume={resume} is damaged ({fault}): give another checkpoint")
    return path


def identity(config: DictConfig, module: CubeDiffModule) -> dict[str, Any]:
    """What must be the same for a run to go on: parts of its config, and the weights that it does not train."""
    fixed: dict[str, Any] = {}
    for key in _FIXED:
        part = OmegaConf.select(config, key)
        plain = OmegaConf.to_container(part, resolve=True) if OmegaConf.is_config(part) else part
        fixed |= _flat(key, plain)
    sums = module.backbone.fingerprint(), fingerprint(module.frozen)
    container: Any = OmegaConf.to_container(config)
    uncounted = added_at_default(container)
    kept = {
        key: value
        for key, value in fixed.items()
        if key not in _FREE and not any(key == added or key.startswith(f"{added}.") for added in uncounted)
    }
    return kept | {name: digest[:12] for name, digest in zip(_SUMS, sums, strict=True)}


def check_same(path: Path, run: dict[str, Any], module: CubeDiffModule, own: bool) -> int:
    """The step that a run with this identity goes on from with the checkpoint. Raises CheckpointError where it is not
    the run's; its name counts where it lies in the run's `own` folder."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        before, weights = saved[IDENTITY], saved["state_dict"]
    except Exception as error:  # unpickling raises whatever it likes
        raise CheckpointError(f"{path} is no checkpoint of this cubediff ({type(error).__name__}: {error}): begin with "
                              "its run's export, model.pipeline.path=RUN/export, instead") from error  # fmt: skip
    if own and before["name"] != run["name"]:
        raise CheckpointError(
            f"{path.parent.parent} holds a run of {before['name']}, and this is {run['name']}: give another run_dir"
        )
    differing = [
        k for k in run.keys() | before.keys() if k != "name" and current_name(before.get(k)) != current_name(run.get(k))
    ]
    differing.sort(key=lambda key: (key in _SUMS, key))
    if differing:
        told = ", ".join(
            f"{key} {before.get(key, ADDED.get(key))} and not {run.get(key, ADDED.get(key))}" for key in differing[:8]
        )
        raise CheckpointError(
            f"{path} has {told}: a run goes on as it began. Give what it has, or begin another run_dir with its "
            "weights, model.pipeline.path=RUN/export"
        )
    expected = module.checkpointed
    wrong = [key for key in expected.keys() | weights.keys()
             if key not in weights or key not in expected or weights[key].shape != expected[key].shape]  # fmt: skip
    if wrong:
        raise CheckpointError(
            f"{path} has other weights than the model in {len(wrong)} places, such as {', '.join(sorted(wrong)[:5])}: "
            "it is of another model"
        )
    return int(saved["global_step"])


def _flat(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, part in value.items() for k, v in _flat(f"{key}.{name}", part).items()}
