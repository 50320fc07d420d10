"""Compatibility of configs over time: renamed `_target_`s, and keys added since the first release.

Configs, checkpoints and sweep folders written with the first names stay valid: `rename_targets_` translates their
targets, and fingerprints are computed on the form that a config had first (`first_form`).
"""

import copy
import sys
from importlib.util import find_spec

from omegaconf import DictConfig, ListConfig, Node, OmegaConf, open_dict

# Optional packages that some choices need → the extra that installs them.
EXTRAS = {"bitsandbytes": "bnb"}

# Old name → current name.
RENAMED = {
    **{
        f"cubediff.callbacks.{name}": f"cubediff.training.callbacks.{name}"
        for name in (
            "NonFiniteGuard",
            "RunCheckpoint",
            "SampleLogger",
            "StepMetrics",
            "StepProgress",
            "UNetEMA",
            "Watchdog",
        )
    },
    "cubediff.data.encode.TurnsDataModule": "cubediff.data.latent_cache.source.CachingDataModule",
    "cubediff.data.RandomViews": "cubediff.data.RandomPhotos",
    "cubediff.module.CubeDiffModule": "cubediff.training.module.CubeDiffModule",
    "cubediff.objective.Objective": "cubediff.diffusion.objective.Objective",
    "cubediff.pipeline.load_pipeline": "cubediff.pipelines.loading.load_pipeline",
    "cubediff.runs.checkpoints.AtomicCheckpointIO": "cubediff.training.checkpoint_io.AtomicCheckpointIO",
    "cubediff.runs.loggers.CSVRun": "cubediff.training.loggers.CSVRun",
    "cubediff.runs.loggers.CurveLogger": "cubediff.training.loggers.CurveLogger",
    "cubediff.runs.loggers.WandbRun": "cubediff.training.loggers.WandbRun",
    "cubediff.runs.results.Summary": "cubediff.runs.sweeps.end_of_sweep.Summary",
    "cubediff.sharding.ShardedStrategy": "cubediff.training.fsdp.ShardedStrategy",
    "cubediff.tiny.tiny_random": "cubediff.pipelines.loading.tiny_random",
}
_FIRST_NAMES = {new: old for old, new in RENAMED.items()}

# Dotted key → default, of keys that the first configs did not have. At its default a key does not count: configs with
# and without it have the same fingerprint, and checkpoints without it resume. Write a default as in conf/, an
# interpolation as its text.
ADDED: dict[str, object] = {
    "data.jpeg_scaling": True,
    "data.retry_minutes": 10,
    "data.stages": None,
    "model.attention_backend": None,
    "model.objective.overlap_weight": 0.0,
    "model.objective.process": None,
    "model.objective.timesteps": None,
    "model.objective.weighting": None,
    "model.pipeline.config": None,
    "model.pipeline.conv_padding": None,
    "model.pipeline.inflate": None,
    "model.pipeline.revision": None,
    "model.pipeline.sync_vae_group_norm": None,
    "model.pipeline.variant": None,
    **{
        f"trainer.{name}": None
        for name in (
            *("barebones", "benchmark", "callbacks", "default_root_dir", "detect_anomaly", "enable_autolog_hparams"),
            *("enable_checkpointing", "enable_progress_bar", "fast_dev_run", "gradient_clip_algorithm"),
            *("inference_mode", "limit_predict_batches", "limit_test_batches", "limit_train_batches", "logger"),
            *("max_epochs", "max_time", "min_epochs", "min_steps", "model_registry", "num_nodes", "overfit_batches"),
            *("profiler", "reload_dataloaders_every_n_epochs", "strategy", "sync_batchnorm"),
            "use_distributed_sampler",
        )
    },
}

# The same of data=latents alone: those of panoramas had these keys first.
_LATENTS = "cubediff.data.LatentDataModule"
_ADDED_TO_LATENTS: dict[str, object] = {
    "data.cache_dir": None,
    "data.cache_gb": 100.0,
    "data.limit_val": None,
    "data.max_skipped_share": 0.01,
    "data.seed": "${seed}",
    "data.shuffle_buffer": 1024,
    "data.weights": None,
}

# Dotted key → the value that the first configs had, of keys that are null now: the model folder says it, or this value
# holds. They are compared by the value that a run has (see `cubediff.runs.fit`), and fingerprints have the first one.
UNSET: dict[str, object] = {
    "model.channels_last": False,
    "model.pipeline.position_encoding": "uv",
    "model.pipeline.position_samples": "centers",
    "model.pipeline.sync_group_norm": True,
    "model.pipeline.cross_attention": "per_face",
    "model.pipeline.image_drop": "noise",
}

# The settings of `cubediff plan` in the first configs. No run depends on them, so fingerprints always have these.
_FIRST_PLAN = {"memory_gb": 22, "utilisation": 0.4, "panorama_kb": 500}


def null_means_default(key: str) -> bool:
    """Whether null in a config, at a dotted key, stands for the default of the target's own parameter."""
    return key in UNSET or ADDED.get(key, ...) is None


def current_name(value: object) -> object:
    """The current name of a `_target_`; other values are returned unchanged."""
    return RENAMED.get(value, value) if isinstance(value, str) else value


def check_module(target: str, key: str) -> None:
    """Checks that the module of a `_target_` is on the Python path; an optional package of `EXTRAS` need not be.

    Args:
        target: The dotted name of a class or function.
        key: The dotted key of the `_target_`, for the message.

    Raises:
        ValueError: If it is not; the message says how to start the command.
    """
    module = target.partition(".")[0]
    if module and module not in EXTRAS and module not in sys.modules and find_spec(module) is None:
        raise ValueError(
            f"{key}={target}: there is no module {module} on the Python path: start the command with "
            "PYTHONPATH=FOLDER, the folder that holds it"
        )


def rename_targets_(config: DictConfig | ListConfig) -> None:
    """Replaces old `_target_`s in a config and in all configs inside it."""
    keys = range(len(config)) if isinstance(config, ListConfig) else list(config)
    for key in keys:
        if OmegaConf.is_missing(config, key):
            continue
        node = config._get_node(key)
        if isinstance(node, DictConfig | ListConfig):
            if not node._is_none():
                rename_targets_(node)
        elif key == "_target_":
            config[key] = current_name(config[key])


def without_added_nulls(config: DictConfig) -> DictConfig:
    """A copy of a target's config without the nulls that stand for the target's own default."""
    given = copy.deepcopy(config)
    with open_dict(given):
        for key in config:
            node = config._get_node(key)
            if isinstance(node, Node) and node._is_none() and null_means_default(config._get_full_key(key)):
                del given[key]
    return given


def added_at_default(config: dict[str, object]) -> list[str]:
    """The keys of `ADDED` that a config has at their default, dotted; `config` is a plain container, unresolved."""
    added = ADDED | (_ADDED_TO_LATENTS if _has_default(config, ["data", "_target_"], _LATENTS) else {})
    return [key for key, default in added.items() if _has_default(config, key.split("."), default)]


def first_form(config: dict[str, object]) -> dict[str, object]:
    """A config as the first release would have written it, for fingerprints that stay equal over time.

    Args:
        config: A complete config as a plain container, with references unresolved.

    Returns:
        A copy with every `_target_` under its first name, without the keys of `ADDED` that have their default, with the
        first values of the keys of `UNSET` that are null, and with the first settings of the plan.
    """
    form = {key: _with_first_names(value, key) for key, value in config.items()}
    for added in added_at_default(config):
        parent, key = _parent(form, added)
        del parent[key]
    for unset, first in UNSET.items():
        if _has_default(config, unset.split("."), None):
            parent, key = _parent(form, unset)
            parent[key] = first
    return form | ({"plan": dict(_FIRST_PLAN)} if "plan" in form else {})


def _parent(form: object, dotted: str) -> tuple[dict[str, object], str]:
    """The dict that holds a dotted key, and the key's last part."""
    *parents, last = dotted.split(".")
    for name in parents:
        assert isinstance(form, dict)
        form = form[name]
    assert isinstance(form, dict)
    return form, last


def _with_first_names(value: object, key: str = "") -> object:
    if isinstance(value, dict):
        return {name: _with_first_names(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_first_names(inner) for inner in value]
    return _FIRST_NAMES.get(value, value) if key == "_target_" and isinstance(value, str) else value


def _has_default(value: object, path: list[str], default: object) -> bool:
    if path:
        return isinstance(value, dict) and path[0] in value and _has_default(value[path[0]], path[1:], default)
    return value == default and isinstance(value, bool) == isinstance(default, bool)  # since True == 1
