"""Old names of `_target_`s, so that configs, checkpoints and sweeps written with them stay valid."""

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

# Old name: the name that it has now.
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
    "cubediff.data.encode.TurnsDataModule": "cubediff.data.latent_cache.TurnsDataModule",
    "cubediff.module.CubeDiffModule": "cubediff.training.module.CubeDiffModule",
    "cubediff.objective.Objective": "cubediff.diffusion.objective.Objective",
    "cubediff.pipeline.load_pipeline": "cubediff.pipelines.loading.load_pipeline",
    "cubediff.runs.checkpoints.AtomicCheckpointIO": "cubediff.training.checkpoint_io.AtomicCheckpointIO",
    "cubediff.runs.loggers.CSVRun": "cubediff.training.loggers.CSVRun",
    "cubediff.runs.loggers.CurveLogger": "cubediff.training.loggers.CurveLogger",
    "cubediff.runs.loggers.WandbRun": "cubediff.training.loggers.WandbRun",
    "cubediff.runs.results.Summary": "cubediff.runs.sweeps.results.Summary",
    "cubediff.sharding.ShardedStrategy": "cubediff.training.fsdp.ShardedStrategy",
    "cubediff.tiny.tiny_random": "cubediff.pipelines.loading.tiny_random",
}
_FIRST_NAMES = {new: old for old, new in RENAMED.items()}


def current(name: Any) -> Any:
    """The present name of a `_target_`; other values are returned unchanged."""
    return RENAMED.get(name, name) if isinstance(name, str) else name


def rename_targets_(config: DictConfig | ListConfig) -> None:
    """Replaces old `_target_`s in a config and all configs inside it."""
    keys = range(len(config)) if isinstance(config, ListConfig) else list(config)
    for key in keys:
        if OmegaConf.is_missing(config, key):
            continue
        node = config._get_node(key)
        if isinstance(node, DictConfig | ListConfig):
            if not node._is_none():
                rename_targets_(node)
        elif key == "_target_":
            config[key] = current(config[key])


def first_names(content: Any) -> Any:
    """A container with every `_target_` under its oldest name, which fingerprints of configs are computed with."""
    if isinstance(content, dict):
        return {
            key: _FIRST_NAMES.get(value, value) if key == "_target_" else first_names(value)
            for key, value in content.items()
        }
    return [first_names(value) for value in content] if isinstance(content, list) else content
