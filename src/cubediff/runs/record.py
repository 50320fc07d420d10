"""What a run is made of beyond its config: the code's commit, versions, the data's sums, and what the plan says."""

import hashlib
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cubediff.planning.gpus import gpu_rate

PACKAGES = ("cubediff", "torch", "lightning", "diffusers", "transformers", "wandb")


def run_record(config: DictConfig, trainer: Any, module: Any, datamodule: Any) -> dict[str, Any]:
    """The record, whose values JSON can hold.

    git: commit of the checkout that the code runs from and whether its files were changed, null where it is installed.
    data: of each path the manifest's sha256, null for tars, which have none. plan: sizes, and on a GPU that
    `cubediff.plan` knows also memory and operations.
    """
    return {
        "git": _git(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "data": [{"path": path, "manifest_sha256": _manifest(path)} for path in datamodule.paths],
        "plan": _plan(config, trainer, module),
    }


def _git() -> dict[str, Any] | None:
    top = Path(__file__).resolve().parents[3]
    if not (top / ".git").exists():  # an installed package may lie within some other repository
        return None
    try:
        commit = _told(top, "rev-parse", "HEAD").strip()
        return {"commit": commit, "changed": bool(_told(top, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):  # no git here, or a repository that it will not read
        return None


def _told(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def _manifest(path: str) -> str | None:
    from cubediff.data.format.manifest import MANIFEST
    from cubediff.data.streaming.remote import is_remote, read_bytes

    folder = path.removeprefix("file://").rstrip("/")
    if folder.startswith("pipe:") or re.search(r"\.tar(\?.*)?$", folder):
        return None
    file = f"{folder}/{MANIFEST}"
    return hashlib.sha256(read_bytes(file) if is_remote(folder) else Path(file).read_bytes()).hexdigest()


def _plan(config: DictConfig, trainer: Any, module: Any) -> dict[str, Any]:
    """What is known at once; on a GPU whose rate is known also what `planning.cost` counts, in some seconds."""
    import torch

    plan = {
        "parameters": sum(p.numel() for p in module.network.parameters()),
        "trained_parameters": sum(p.numel() for p in module.trained_parameters.values()),
        "panoramas_per_step": config.data.batch_size * trainer.accumulate_grad_batches * trainer.world_size,
        "steps": trainer.max_steps,
    }
    device = trainer.strategy.root_device
    rate = gpu_rate(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if rate is None:
        return plan
    from cubediff.planning.cost import cost

    try:
        made = cost(config, config.data.batch_size)
    except ValueError as error:  # a precision or an optimizer that it cannot count is no reason not to train
        return {**plan, "not_counted": str(error)}
    return {
        **plan,
        "peak_memory_gib": made.peak / 2**30,
        "flops_per_panorama": made.flops / config.data.batch_size,
        "device_flops_per_s": rate,
    }
