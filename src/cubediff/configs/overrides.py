"""Hydra's command lines, with errors that say what was meant: the nearest key where one does not exist, and the extra
where a plugin is not installed."""

import sys
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import DictConfig

from cubediff.configs import CONFIG_DIR

# Hydra's plugins, and the extra that brings them.
PLUGINS = ("hydra/launcher/joblib", "hydra/launcher/submitit_slurm", "hydra/launcher/submitit_local",
           "hydra/sweeper/optuna")  # fmt: skip


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Makes a task a command line, as hydra.main does, on `conf/<config_name>.yaml`."""

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        start = hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name=config_name)(task)

        def main() -> None:
            try:
                start()
            except SystemExit as end:
                # Hydra exits while it handles the error that it has printed.
                if isinstance(end.__context__, Exception) and (told := hint(end.__context__)):
                    print(told, file=sys.stderr)
                raise

        return main

    return decorate


def hint(error: Exception) -> str | None:
    """What to give instead, where Hydra could not compose a configuration for `error`."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file in PLUGINS:
        return f"{error.missing_cfg_file} is not installed: pip install 'cubediff[sweep]'"
    parent = getattr(error.__cause__, "parent_node", None)
    if not isinstance(error, ConfigCompositionException) or parent is None:
        return None
    wanted = str(error).split("'")[1]  # Could not override 'KEY'.
    groups = {folder.name for folder in Path(CONFIG_DIR).iterdir() if folder.is_dir()}
    nearest = nearest_key(wanted, {*groups, *_keys(parent._get_root())})
    return f"did you mean {nearest}?" if nearest else None


def nearest_key(wanted: str, keys: set[str]) -> str | None:
    """The key whose last part is most like that of `wanted`, and of several such the one most like it as a whole."""

    def likeness(key: str) -> tuple[float, float]:
        ends = key.rpartition(".")[2], wanted.rpartition(".")[2]
        return SequenceMatcher(None, *ends).ratio(), SequenceMatcher(None, key, wanted).ratio()

    best = max(sorted(keys), key=likeness)
    return best if likeness(best)[0] >= 0.7 else None


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """All keys, dotted; unresolved, since what some refer to is known to a job alone."""
    for key in map(str, config):
        yield f"{prefix}{key}"
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from _keys(node, f"{prefix}{key}.")
