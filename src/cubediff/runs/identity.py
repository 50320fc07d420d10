"""What identifies a run in its checkpoints: the settings, model and data that a resuming run is compared with."""

import copy
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from cubediff.configs import to_plain
from cubediff.configs.targets import ADDED, UNSET, added_at_default, current_name
from cubediff.models.encoders import fingerprint, same_fingerprint
from cubediff.pipelines.base import CubePipeline
from cubediff.runs.on_resume import OnResume, settings_by_rule
from cubediff.runs.record import DataRecord
from cubediff.training.module import CubeDiffModule

RunIdentity = dict[str, object]

_FINGERPRINTS = ("encoders", "frozen weights")
_FOLLOWED = {"model.seed": "seed"}  # keys by those that they follow, which a user sets
_NOISE = "noise schedule"
# Settings of a scheduler that training depends on; the others are of sampling.
_NOISE_KEYS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr",
)  # fmt: skip
# Keys of what is announced; the first checkpoints have neither.
_ANNOUNCED, _DATASETS = "announced settings", "datasets"
_ABSENT = "absent"


def with_model_settings(config: DictConfig, pipeline: CubePipeline) -> tuple[DictConfig, dict[str, object]]:
    """A copy of a run's config in which the settings that it leaves to the model have their values; and these by name.

    Args:
        config: The composed config of `cubediff train`.
        pipeline: The pipeline that was built from it.
    """
    filled, values = copy.deepcopy(config), dict[str, object]()
    for key in UNSET:
        name = key.rpartition(".")[2]
        if OmegaConf.select(config, key, default=...) is None and name in pipeline.config:
            values[name] = pipeline.config[name]
            OmegaConf.update(filled, key, values[name])
    return filled, values


def run_identity(config: DictConfig, module: CubeDiffModule, datasets: Sequence[DataRecord] = ()) -> RunIdentity:
    """Collects what a checkpoint stores of its run.

    Args:
        config: The composed config of `cubediff train`.
        module: The run's module, for the weights' fingerprints.
        datasets: The run's datasets.

    Returns:
        Dotted config keys with their values, and fingerprints of the frozen weights, which checkpoints leave out: these
        must match on resume. Also the settings and datasets whose change is announced.
    """
    plain, default = to_plain(config, resolve=True), added_at_default(to_plain(config))
    must_match, announced = (
        {key: value for key, value in settings_by_rule(plain, rule).items() if not _is_below(key, default)}
        for rule in (OnResume.MUST_MATCH, OnResume.ANNOUNCED)
    )
    digests = module.backbone.fingerprint(), fingerprint(module.frozen)
    shortened = ("-".join(part[:12] for part in digest.split("-")) for digest in digests)
    return {
        **must_match,
        **dict(zip(_FINGERPRINTS, shortened, strict=True)),
        _NOISE: {key: module.pipeline.scheduler.config.get(key) for key in _NOISE_KEYS},
        _ANNOUNCED: announced,
        _DATASETS: [dict(dataset) for dataset in datasets],
    }


def differing_settings(saved: RunIdentity, own: RunIdentity) -> list[str]:
    """What must match on resume and does not, as "KEY SAVED, not OWN"; the run's name is not compared."""
    names = (saved.keys() | own.keys()) - {"name", _NOISE, _ANNOUNCED, _DATASETS}
    differing = [name for name in names if not _equal(name, saved.get(name), own.get(name))]
    differing.sort(key=lambda name: (name in _FINGERPRINTS, name))
    listed = [
        f"other {name} than model.pipeline.path"
        if name in _FINGERPRINTS
        else f"{_FOLLOWED.get(name, name)} {saved.get(name, ADDED.get(name))}, not {own.get(name, ADDED.get(name))}"
        for name in differing
    ]
    noise, own_noise = saved.get(_NOISE), own.get(_NOISE)
    if isinstance(noise, Mapping) and isinstance(own_noise, Mapping):
        listed += [
            f"{_NOISE}: {key} {noise.get(key)}, not {own_noise.get(key)}"
            for key in _NOISE_KEYS
            if noise.get(key) != own_noise.get(key)
        ]
    return listed


def announced_changes(saved: RunIdentity, own: RunIdentity) -> list[str]:
    """What has changed since the checkpoint and lets the run resume, as "KEY SAVED → OWN"."""
    before, now = saved.get(_ANNOUNCED), own.get(_ANNOUNCED)
    changes: list[str] = []
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted(before.keys() | now.keys()):
            old, new = (current_name(each.get(key, ADDED.get(key, _ABSENT))) for each in (before, now))
            if old != new:
                changes.append(f"{key} {old} → {new}")
    old_data, new_data = saved.get(_DATASETS), own.get(_DATASETS)
    if not isinstance(old_data, list) or not isinstance(new_data, list):
        return changes
    if list(map(_content, old_data)) != list(map(_content, new_data)):
        changes.append(f"data.path {_list(old_data)} → {_list(new_data)}: other data, from the same sample index on")
    return changes


def _is_below(key: str, parents: Sequence[str]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def _equal(name: str, saved: object, own: object) -> bool:
    if name in _FINGERPRINTS:
        return isinstance(saved, str) and isinstance(own, str) and same_fingerprint(saved, own)
    return current_name(saved) == current_name(own)


def _content(dataset: object) -> object:
    """Identifies a dataset by its manifest's checksum, tars without a manifest by their path."""
    return (dataset.get("manifest_sha256") or dataset.get("path")) if isinstance(dataset, Mapping) else dataset


def _list(datasets: Sequence[object]) -> str:
    return ", ".join(
        f"{each.get('path')} (manifest {str(each.get('manifest_sha256'))[:12]})"
        if isinstance(each, Mapping)
        else str(each)
        for each in datasets
    )
