"""The record of a run in run.json: commit, package versions, checksums of the data's manifests, and the plan."""

import hashlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import NotRequired

import lightning as L
import torch
from omegaconf import DictConfig
from typing_extensions import TypedDict

from cubediff.configs.trainer import canonical_precision
from cubediff.data.format.manifest import MANIFEST
from cubediff.data.format.validation import MAX_MANIFEST
from cubediff.data.streaming.catalog import names_tars
from cubediff.data.streaming.remote import is_remote, read_bytes
from cubediff.planning.cost import cost
from cubediff.planning.gpus import find_gpu
from cubediff.training.module import CubeDiffModule
from cubediff.training.protocols import TrainingData
from cubediff.utils.files import read_limited
from cubediff.utils.text import redact

PACKAGES = ("cubediff", "torch", "lightning", "diffusers", "transformers", "wandb")


class GitRecord(TypedDict):
    """The checkout that the code runs from."""

    commit: str
    changed: bool  # whether tracked files differ from the commit


class DataRecord(TypedDict):
    """One dataset of a run."""

    path: str
    manifest_sha256: str | None  # None for tars, which have no manifest


class PlanRecord(TypedDict):
    """Sizes of a run; the optional keys are present only on a GPU that `cubediff plan` supports."""

    parameters: int
    trained_parameters: int
    panoramas_per_step: int
    steps: int
    peak_memory_gib: NotRequired[float]
    flops_per_panorama: NotRequired[float]
    device_flops_per_s: NotRequired[float]
    not_counted: NotRequired[str]  # why the cost of the config cannot be counted


class RunRecord(TypedDict):
    """The content of run.json."""

    git: GitRecord | None  # None for an installed package
    versions: dict[str, str]
    data: list[DataRecord]
    plan: PlanRecord


def run_record(config: DictConfig, trainer: L.Trainer, module: CubeDiffModule, data: TrainingData) -> RunRecord:
    """Collects the record; counting the cost takes some seconds on a GPU."""
    return RunRecord(
        git=_git(),
        versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        data=data_records(data),
        plan=_plan(config, trainer, module),
    )


def data_records(data: TrainingData) -> list[DataRecord]:
    """The datasets of a run, in their order."""
    return [DataRecord(path=redact(path), manifest_sha256=_manifest_sha256(path)) for path in data.paths]


def _git() -> GitRecord | None:
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / ".git").exists():  # an installed package may lie inside another repository
        return None
    try:
        commit = _run_git(checkout, "rev-parse", "HEAD").strip()
        changes = _run_git(checkout, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):  # git is not installed, or refuses the repository
        return None
    return GitRecord(commit=commit, changed=bool(changes))


def _run_git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def _manifest_sha256(path: str) -> str | None:
    folder = path.removeprefix("file://").rstrip("/")
    if names_tars(folder):
        return None
    file = f"{folder}/{MANIFEST}"
    content = read_bytes(file, MAX_MANIFEST) if is_remote(folder) else read_limited(Path(file), MAX_MANIFEST)
    return hashlib.sha256(content).hexdigest()


def _plan(config: DictConfig, trainer: L.Trainer, module: CubeDiffModule) -> PlanRecord:
    plan = PlanRecord(
        parameters=sum(p.numel() for p in module.network.parameters()),
        trained_parameters=sum(p.numel() for p in module.trained_parameters.values()),
        panoramas_per_step=config.data.batch_size * trainer.accumulate_grad_batches * trainer.world_size,
        steps=trainer.max_steps,
    )
    device = trainer.strategy.root_device
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is None:
        return plan
    try:
        rate = gpu.rate(canonical_precision(config.trainer))
        planned = cost(config, config.data.batch_size)
    except ValueError as error:  # training may use a precision or an optimizer that the plan cannot count
        return {**plan, "not_counted": str(error)}
    return {
        **plan,
        "peak_memory_gib": planned.peak / 2**30,
        "flops_per_panorama": planned.model_flops / config.data.batch_size,
        "device_flops_per_s": rate,
    }
