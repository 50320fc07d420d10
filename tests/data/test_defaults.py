"""Defaults of the data are defined once in Python, and conf/data agrees with them."""

import dataclasses
import inspect
from pathlib import Path
from typing import get_type_hints

import pytest
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from cubediff.configs import CONFIG_DIR
from cubediff.data.batches.augmentation import Augmentation
from cubediff.data.batches.panoramas import PanoramaDataModule, PanoramaOptions
from cubediff.data.streaming.settings import StreamOptions, StreamSettings

OFF = (None, 0, False)  # neutral values, which a config may replace by a training default
CONFIGS = sorted(Path(CONFIG_DIR, "data").glob("*.yaml"))


def python_defaults(target: str) -> dict[str, object]:
    """The defaults of a config target's arguments: its own, and those of the dataclasses that its options fill."""
    function = get_method(target)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty
    }
    holders: list[type] = [StreamSettings] if "batch_size" in inspect.signature(function).parameters else []
    holders += [Augmentation] if function is PanoramaDataModule else []
    for holder in holders:
        defaults |= {field.name: field.default for field in dataclasses.fields(holder)}
    return defaults


def nodes(config: DictConfig) -> list[DictConfig]:
    """A config and all configs inside it that have a target."""
    inner = [
        config._get_node(key)
        for key in config
        if isinstance(config._get_node(key), DictConfig) and not config._get_node(key)._is_none()
    ]
    return [config] * ("_target_" in config) + [found for node in inner for found in nodes(node)]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_values_of_conf_data_equal_the_defaults_in_python(file: Path) -> None:
    config = OmegaConf.load(file)
    inherited = OmegaConf.load(file.with_stem("panoramas")) if "defaults" in config else {}
    config = OmegaConf.merge(inherited, config)
    assert isinstance(config, DictConfig)
    compared = 0
    for node in nodes(config):
        defaults = python_defaults(node["_target_"])
        for name, value in OmegaConf.to_container(node).items():  # type: ignore[union-attr]
            default = defaults.get(str(name))
            if str(name) in defaults and default not in OFF and not str(value).startswith("${"):
                assert (tuple(value) if isinstance(value, list) else value) == default, f"{file.name}: {name}"
                compared += 1
    assert compared >= (0 if file.stem == "latents" else 5)


@pytest.mark.parametrize(
    ("options", "holders"), [(StreamOptions, [StreamSettings]), (PanoramaOptions, [StreamSettings, Augmentation])]
)
def test_keyword_options_are_the_fields_of_the_dataclasses_that_hold_their_defaults(
    options: type, holders: list[type]
) -> None:
    fields = {name: hint for holder in holders for name, hint in get_type_hints(holder).items()}
    assert get_type_hints(options) == fields
