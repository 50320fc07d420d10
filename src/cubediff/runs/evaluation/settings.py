"""Checks the config of an evaluation, and loads what it names."""

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from cubediff.evaluation import measures
from cubediff.evaluation.extractors import ClipImages, Dinov2, EfficientNetLite0
from cubediff.evaluation.faed import Faed
from cubediff.evaluation.inception import InceptionV3
from cubediff.evaluation.views import PROTOCOLS

EXTRACTORS: dict[str, type[nn.Module]] = {
    "efficientnet_lite0": EfficientNetLite0,
    "inception": InceptionV3,
    "clip": ClipImages,
    "dinov2": Dinov2,
    "faed": Faed,
}


def check_config(config: DictConfig) -> None:
    """Checks an evaluation's config before anything is generated or read.

    Raises:
        ValueError: If a key is missing or has an invalid value; the message names it.
    """
    if OmegaConf.is_missing(config, "output"):
        raise ValueError("output is missing: set output=DIR, the folder for the results")
    if (config.pipeline is None) == (config.samples is None):
        given = "neither" if config.pipeline is None else "both"
        raise ValueError(
            f"{given} pipeline and samples: set pipeline=MODEL to generate panoramas, or samples=FOLDER for panoramas "
            "that exist"
        )
    if config.pipeline is not None and config.reference is None:
        raise ValueError("reference is missing: set reference=PANORAMAS, from whose captions panoramas are generated")
    if config.protocol not in PROTOCOLS:
        raise ValueError(f"protocol={config.protocol}: use one of {', '.join(PROTOCOLS)}")
    for key in ("count", "height", "intervals.panoramas", "intervals.halves"):
        value = OmegaConf.select(config, key)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{key}={value}: expected a positive integer")
    if not isinstance(config.seed, int) or config.seed < 0:
        raise ValueError(f"seed={config.seed}: expected an integer of at least 0")
    if unknown := [name for name in config.extractors if name not in EXTRACTORS]:
        raise ValueError(f"extractors.{unknown[0]} is unknown: use {', '.join(EXTRACTORS)}")
    measures.add_installed_metrics()
    wanted_metrics(config)


def enabled_extractors(config: DictConfig) -> dict[str, object]:
    """The extractors that the config turns on, with their paths (True without one)."""
    return {str(name): path for name, path in config.extractors.items() if path not in (None, False)}


def wanted_metrics(config: DictConfig) -> list[str]:
    """The names of metrics that match the patterns of the config, in the order of the report.

    Raises:
        ValueError: If a pattern matches none.
    """
    names = list(measures.DESCRIPTIONS)
    for extractor in enabled_extractors(config):
        names += measures.names(extractor)
    patterns = list(config.metrics)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            nearest = get_close_matches(str(pattern), names, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"use some of {', '.join(names)}"
            raise ValueError(f"metrics has {pattern}, which matches no metric of the extractors that are on: {hint}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def load_extractors(config: DictConfig, wanted: Iterable[str], device: torch.device) -> dict[str, nn.Module]:
    """Loads the extractors that wanted metrics need.

    Raises:
        ValueError: If one is not installed, or its file is missing or of another kind.
    """
    needed, loaded = set(wanted), dict[str, nn.Module]()
    for name, path in enabled_extractors(config).items():
        if needed.isdisjoint(measures.names(name)):
            continue
        if path is not True and not Path(str(path)).exists():
            raise ValueError(f"extractors.{name}={path} does not exist: pass {_KINDS.get(name, 'its weights')}")
        try:
            network = EXTRACTORS[name]() if path is True else EXTRACTORS[name](str(path))
        except ImportError as error:
            raise ValueError(f"{error}; or set extractors.{name}=false") from error
        except TypeError:
            expected = "true or false" if path is not True else f"the path of {_KINDS.get(name, 'its weights')}"
            raise ValueError(f"extractors.{name}={path}: expected {expected}") from None
        loaded[name] = network.to(device)
    return loaded


_KINDS = {
    "inception": "weights-inception-2015-12-05-6726825d.pth of torch-fidelity",
    "clip": "a folder of a CLIPModel of transformers with its tokenizer",
    "dinov2": "a folder of a Dinov2Model of transformers",
    "faed": "faed.ckpt of PanFusion",
}
