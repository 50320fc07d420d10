"""What changing a config key means for a run that resumes: refused, announced, or without effect on the training."""

from collections.abc import Iterator, Mapping
from enum import Enum


class OnResume(Enum):
    """The effect of another value of a config key on a run that resumes."""

    MUST_MATCH = "the run is refused, because the checkpoint's state overrides or contradicts the value"
    ANNOUNCED = "the run resumes, and prints the change, because it trains or validates differently from now on"
    IRRELEVANT = "the run resumes, because training does not depend on the value"


_MUST, _ANNOUNCED, _IRRELEVANT = OnResume.MUST_MATCH, OnResume.ANNOUNCED, OnResume.IRRELEVANT

# Dotted key, or the keys below it → effect; the longest one that fits counts.
ON_RESUME: dict[str, OnResume] = {
    "name": _MUST,  # in the run's own folder
    "seed": _IRRELEVANT,  # model.seed and data.seed follow it
    "face_size": _MUST,
    "fov": _MUST,
    "run_dir": _IRRELEVANT,
    "resume": _IRRELEVANT,
    "dry_run": _IRRELEVANT,
    "plan": _IRRELEVANT,
    "logger": _IRRELEVANT,
    "model": _MUST,
    "model.pipeline.path": _IRRELEVANT,  # the fingerprints of its weights must match
    "model.pipeline.config": _IRRELEVANT,  # as path; the noise schedule is compared, too
    "model.gradient_checkpointing": _IRRELEVANT,
    "model.compile": _IRRELEVANT,
    "model.channels_last": _IRRELEVANT,
    "model.attention_backend": _IRRELEVANT,
    "data._target_": _ANNOUNCED,
    "data.path": _IRRELEVANT,  # the checksums of its manifests are announced
    "data.weights": _ANNOUNCED,
    "data.cache_dir": _IRRELEVANT,
    "data.cache_gb": _IRRELEVANT,
    "data.max_skipped_share": _IRRELEVANT,
    "data.retry_minutes": _IRRELEVANT,
    "data.batch_size": _ANNOUNCED,
    "data.face_size": _ANNOUNCED,
    "data.fov": _ANNOUNCED,
    "data.panorama_height": _ANNOUNCED,
    "data.jpeg_scaling": _IRRELEVANT,  # the value in the checkpoint's data state is used
    "data.num_workers": _IRRELEVANT,
    "data.shuffle_buffer": _ANNOUNCED,
    "data.yaw": _ANNOUNCED,
    "data.face_caption_probability": _ANNOUNCED,
    "data.face_caption_jitter": _ANNOUNCED,
    "data.photos": _ANNOUNCED,
    "data.flip": _ANNOUNCED,
    "data.limit_val": _ANNOUNCED,
    "data.seed": _ANNOUNCED,
    "data.stages": _ANNOUNCED,
    "callbacks.checkpoint": _IRRELEVANT,
    "callbacks.ema": _MUST,
    "callbacks.samples": _IRRELEVANT,
    "callbacks.progress": _IRRELEVANT,
    "callbacks.metrics": _IRRELEVANT,
    "callbacks.finite": _IRRELEVANT,
    "callbacks.watchdog": _IRRELEVANT,
    "callbacks.learning_rate": _IRRELEVANT,
    # Every argument of lightning.Trainer.
    "trainer._target_": _ANNOUNCED,
    "trainer.accelerator": _ANNOUNCED,
    "trainer.strategy": _ANNOUNCED,
    "trainer.devices": _ANNOUNCED,
    "trainer.num_nodes": _ANNOUNCED,
    "trainer.precision": _ANNOUNCED,
    "trainer.logger": _IRRELEVANT,
    "trainer.callbacks": _ANNOUNCED,
    "trainer.fast_dev_run": _ANNOUNCED,
    "trainer.max_epochs": _ANNOUNCED,
    "trainer.min_epochs": _ANNOUNCED,
    "trainer.max_steps": _ANNOUNCED,  # the learning rate schedule may depend on it
    "trainer.min_steps": _ANNOUNCED,
    "trainer.max_time": _IRRELEVANT,
    "trainer.limit_train_batches": _ANNOUNCED,
    "trainer.limit_val_batches": _ANNOUNCED,
    "trainer.limit_test_batches": _IRRELEVANT,
    "trainer.limit_predict_batches": _IRRELEVANT,
    "trainer.overfit_batches": _ANNOUNCED,
    "trainer.val_check_interval": _IRRELEVANT,
    "trainer.check_val_every_n_epoch": _IRRELEVANT,
    "trainer.num_sanity_val_steps": _IRRELEVANT,
    "trainer.log_every_n_steps": _IRRELEVANT,
    "trainer.enable_checkpointing": _IRRELEVANT,
    "trainer.enable_progress_bar": _IRRELEVANT,
    "trainer.enable_model_summary": _IRRELEVANT,
    "trainer.enable_autolog_hparams": _IRRELEVANT,
    "trainer.accumulate_grad_batches": _ANNOUNCED,
    "trainer.gradient_clip_val": _ANNOUNCED,
    "trainer.gradient_clip_algorithm": _ANNOUNCED,
    "trainer.deterministic": _ANNOUNCED,
    "trainer.benchmark": _IRRELEVANT,
    "trainer.inference_mode": _IRRELEVANT,
    "trainer.use_distributed_sampler": _ANNOUNCED,
    "trainer.profiler": _IRRELEVANT,
    "trainer.detect_anomaly": _IRRELEVANT,
    "trainer.barebones": _ANNOUNCED,
    "trainer.plugins": _ANNOUNCED,
    "trainer.sync_batchnorm": _ANNOUNCED,
    "trainer.reload_dataloaders_every_n_epochs": _ANNOUNCED,
    "trainer.default_root_dir": _IRRELEVANT,
    "trainer.model_registry": _IRRELEVANT,
}


def find_rule(key: str) -> OnResume | None:
    """The effect of a dotted key by the table; None for a key that it does not have."""
    parts = key.split(".")
    found = (ON_RESUME.get(".".join(parts[:length])) for length in range(len(parts), 0, -1))
    return next((rule for rule in found if rule is not None), None)


def settings_by_rule(config: Mapping[str, object], rule: OnResume) -> dict[str, object]:
    """The dotted keys of a config that have a rule, with their values. Keys of extensions are announced."""
    return {key: value for key, value in flatten(config) if (find_rule(key) or OnResume.ANNOUNCED) is rule}


def flatten(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and values of nested mappings; an empty mapping is a value."""
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from flatten(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner
