"""Configs with the names and keys of the first release still resolve and have the same fingerprints."""

from importlib import import_module

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict
from support.runs import composed

from cubediff.configs import targets
from cubediff.configs.targets import ADDED, RENAMED, current_name, first_form, rename_targets_
from cubediff.runs.sweeps.isolation import config_fingerprint

# Every target of cubediff in the configs of the first release (commit a16afbe).
FIRST_TARGETS = [
    "cubediff.callbacks.NonFiniteGuard",
    "cubediff.callbacks.RunCheckpoint",
    "cubediff.callbacks.SampleLogger",
    "cubediff.callbacks.StepMetrics",
    "cubediff.callbacks.StepProgress",
    "cubediff.callbacks.UNetEMA",
    "cubediff.callbacks.Watchdog",
    "cubediff.data.LatentDataModule",
    "cubediff.data.PanoramaDataModule",
    "cubediff.data.RandomViews",
    "cubediff.data.encode.TurnsDataModule",
    "cubediff.module.CubeDiffModule",
    "cubediff.objective.Objective",
    "cubediff.pipeline.load_pipeline",
    "cubediff.runs.checkpoints.AtomicCheckpointIO",
    "cubediff.runs.loggers.CSVRun",
    "cubediff.runs.loggers.CurveLogger",
    "cubediff.runs.loggers.WandbRun",
    "cubediff.runs.results.Summary",
    "cubediff.sharding.ShardedStrategy",
    "cubediff.tiny.tiny_random",
]
# Fingerprints of jobs, computed by the code of that commit with its configs.
FIRST_FINGERPRINTS = {
    ("data.path=SHARDS",): "1b395167563ba7a960bd8e0bf8881d168a80d628a72210873428b2795805d0f4",
    ("experiment=sd15_l4x4", "data=photos", "optimizer=adamw_8bit", "objective=zero_snr", "data.path=SHARDS"):
        "45a3fbc66c517c74d1e83c894472f71ea8792ae42d284a48faa56655bc7c45f1",
    ("experiment=tiny_sweep", "data=latents", "logger=tensorboard", "variant=lora", "data.path=SHARDS", "trainer=fsdp"):
        "eed10980716c8fe52588f0ad1a2de879122a5686ed7ae1f5e4949be43e8e149c",
}  # fmt: skip
# Values of that release's experiment=sd15_l4x4 that have changed since.
RECIPE = ("data.batch_size=2", "trainer.accumulate_grad_batches=8", "trainer.val_check_interval=8000",
          "model.gradient_checkpointing=true")  # fmt: skip


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two keys that the first configs did not have: a number, and a node with a target."""
    node = {"_target_": "cubediff.diffusion.objective.Objective", "size": "${face_size}"}
    monkeypatch.setattr(targets, "ADDED", {**ADDED, "data.stride": 1, "model.extra": node})


@pytest.mark.parametrize("target", FIRST_TARGETS)
def test_every_target_of_the_first_configs_resolves(target: str) -> None:
    module, _, name = str(current_name(target)).rpartition(".")
    assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize("words", FIRST_FINGERPRINTS)
def test_fingerprints_of_jobs_are_those_of_the_first_release(words: tuple[str, ...]) -> None:
    changed = RECIPE if "experiment=sd15_l4x4" in words else ()
    assert config_fingerprint(composed(*words, *changed)) == FIRST_FINGERPRINTS[words]


def test_settings_of_the_plan_do_not_count() -> None:
    config = composed("data.path=SHARDS", "plan.gpu=A10", "plan.panorama_kb=100")
    assert config_fingerprint(config) == FIRST_FINGERPRINTS["data.path=SHARDS",]


def test_old_targets_are_renamed_wherever_they_are_in_a_config() -> None:
    config = OmegaConf.create(
        {"a": {"_target_": "cubediff.module.CubeDiffModule"}, "b": [{"_target_": "cubediff.objective.Objective"}],
         "c": None, "d": "???", "e": "cubediff.objective.Objective"}
    )  # fmt: skip
    rename_targets_(config)
    assert config.a["_target_"] == RENAMED["cubediff.module.CubeDiffModule"]
    assert config.b[0]["_target_"] == RENAMED["cubediff.objective.Objective"]
    assert config.e == "cubediff.objective.Objective"


def test_every_added_key_is_in_the_configs_at_its_default() -> None:
    """Otherwise the defaults of the table and of conf/ differ, and fingerprints change."""
    groups = [composed("data.path=x", f"data={data}") for data in ("panoramas", "photos", "latents")]
    for key, default in (ADDED | targets._ADDED_TO_LATENTS).items():
        containers = [OmegaConf.to_container(config) for config in groups]
        assert any(targets._has_default(container, key.split("."), default) for container in containers), key


def with_additions(**changes: object) -> DictConfig:
    config = composed("data.path=SHARDS")
    with open_dict(config):
        config.data.stride = changes.get("stride", 1)
        config.model.extra = {"_target_": "cubediff.objective.Objective", "size": changes.get("size", "${face_size}")}
    rename_targets_(config)
    return config


@pytest.mark.usefixtures("added")
def test_added_keys_count_in_a_fingerprint_only_when_they_differ_from_their_default() -> None:
    first = FIRST_FINGERPRINTS["data.path=SHARDS",]
    assert config_fingerprint(with_additions()) == first
    changed = [
        config_fingerprint(with_additions(**change)) for change in ({"stride": 2}, {"stride": True}, {"size": 512})
    ]
    assert len({first, *changed}) == 4


@pytest.mark.usefixtures("added")
def test_the_first_form_leaves_the_config_as_it_is() -> None:
    config: dict[str, object] = {
        "data": {"stride": 1, "path": "x"},
        "model": {"_target_": next(iter(RENAMED.values()))},
    }
    assert first_form(config) == {"data": {"path": "x"}, "model": {"_target_": next(iter(RENAMED))}}
    assert config["data"] == {"stride": 1, "path": "x"}
