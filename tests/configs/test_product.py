"""Every experiment composes with every data module, model, trainer and logger and passes the checks before a run, or is
refused in one sentence."""

import inspect
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from support.runs import composed

from cubediff.configs import CONFIG_DIR, build, check, check_devices
from cubediff.configs.arguments import check_types
from cubediff.configs.targets import without_added_nulls


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in Path(CONFIG_DIR, group).glob("*.yaml") if file.stem != "base")


EXPERIMENTS, DATA, MODELS = choices("experiment"), choices("data"), choices("model")
DEVICES = list(product(choices("trainer"), choices("logger")))
ALL = list(product(EXPERIMENTS, DATA, MODELS))


def targets(node: Any) -> Iterator[DictConfig]:
    """Every node of a config with a `_target_`."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield node
        for name in node:
            yield from targets(node[name])


def assert_composes(experiment: str, data: str, model: str, trainer: str, logger: str) -> None:
    """The config has its types, its targets take their arguments, and the data module can be made."""
    groups = {"experiment": experiment, "data": data, "model": model, "trainer": trainer, "logger": logger}
    words = [f"{group}={choice}" for group, choice in groups.items()]
    config = composed(*words, "data.path=SHARDS", run_dir=Path("run"))
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    check(config)
    check_types(config)
    for node in targets(config):
        arguments = [str(name) for name in without_added_nulls(node) if name not in ("_target_", "_partial_")]
        inspect.signature(get_method(node["_target_"])).bind_partial(**dict.fromkeys(arguments))
    assert isinstance(build(config.data), L.LightningDataModule)
    if trainer in ("auto", "cpu"):
        check_devices(config)
        assert isinstance(build(config.trainer, logger=False), L.Trainer)
    else:
        with pytest.raises(ValueError, match=r"^trainer\.devices=\d GPUs, but this machine has none: set trainer=cpu$"):
            check_devices(config)


@pytest.fixture(autouse=True)
def _no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize("number", range(len(ALL)))
def test_every_experiment_composes_with_every_data_module_and_model(number: int) -> None:
    """With the trainers and loggers in turn; they share no key with data modules and models."""
    assert_composes(*ALL[number], *DEVICES[number % len(DEVICES)])


def test_trainers_and_loggers_share_no_key_with_data_modules_and_models() -> None:
    """So the test above covers the product."""
    plain = composed("data.path=SHARDS", run_dir=Path("run"))
    for trainer, logger in DEVICES:
        other = composed("data.path=SHARDS", f"trainer={trainer}", f"logger={logger}", run_dir=Path("run"))
        assert {key for key in plain if plain[key] != other[key]} <= {"trainer", "logger"}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_whole_product_composes(experiment: str) -> None:
    for data, model, (trainer, logger) in product(DATA, MODELS, DEVICES):
        assert_composes(experiment, data, model, trainer, logger)
