"""The Hydra configs: where they are, and how one becomes objects, with errors that name the override to give."""

import os
import re
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from cubediff.configs.arguments import check_types
from cubediff.configs.targets import rename_targets_

# Packages that some choices need, and the extras that bring them.
EXTRAS = {"bitsandbytes": "bnb"}


def _find() -> str:
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return str(folder)
    raise FileNotFoundError(f"no conf/ beside {package} or at the top of its checkout: install cubediff again")


CONFIG_DIR = _find()


def check(config: DictConfig) -> None:
    """Raises ValueError, before anything is loaded, where a value is missing."""
    missing = sorted(OmegaConf.missing_keys(config))
    if "data.path" in missing:
        raise ValueError("data.path is missing: give data.path=SHARDS, a folder that python -m cubediff.prepare wrote")
    if missing:
        raise ValueError(f"{', '.join(missing)} missing: give {' '.join(f'{key}=VALUE' for key in missing)}")
    launched = max(int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    words = [*HydraConfig.get().overrides.task, *HydraConfig.get().overrides.hydra] if HydraConfig.initialized() else []
    if launched > 1 and "run_dir" in config and not any(re.match(r"run_dir=|hydra\.run\.dir=", word) for word in words):
        raise ValueError(
            f"run_dir is missing: {launched} processes were started, and each would make a folder of its own; give "
            "run_dir=DIR"
        )


def check_devices(config: DictConfig) -> None:
    """Raises ValueError where the devices are not there."""
    trainer = config.trainer
    devices = len(trainer.devices) if isinstance(trainer.devices, ListConfig) else trainer.devices
    if not isinstance(devices, int):
        return
    if trainer.accelerator in ("gpu", "cuda"):
        import torch

        present = torch.cuda.device_count()
        if not present:
            raise ValueError(f"trainer.devices={trainer.devices} of GPUs, and this machine has none: give trainer=cpu")
        if devices > present:
            raise ValueError(
                f"trainer.devices={trainer.devices} of GPUs, and this machine has {present}: "
                f"give trainer.devices={present}, trainer=gpu (one GPU) or trainer=cpu"
            )
    if devices > 1 and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        launcher = HydraConfig.get().launcher
        # Lightning starts a device's process with the command line of the sweep, but not where SLURM has started all.
        if launcher.get("tasks_per_node") != devices or "Slurm" not in launcher["_target_"]:
            raise ValueError(
                f"trainer.devices={trainer.devices} in a sweep, which every device's process would repeat as a whole: "
                f"give trainer.devices=1; or under SLURM hydra/launcher=submitit_slurm with "
                f"hydra.launcher.tasks_per_node={devices} hydra.launcher.gpus_per_node={devices}, which gives each job "
                "its own processes; or start the runs one by one without -m"
            )


def build(config: DictConfig, **options: Any) -> Any:
    """What the config's `_target_` makes of it and `options`; a failure is a ValueError that names the config's key."""
    rename_targets_(config)
    check_types(config)
    try:
        return hydra.utils.instantiate(config, **options)
    except InstantiationException as error:
        key = re.search(r"full_key: (\S+)", str(error))
        where, cause = key[1] if key else "the configuration", error.__cause__ or error
        path = OmegaConf.select(config, "pipeline.path") if where == "model.pipeline" else None
        if path is not None and isinstance(cause, OSError):
            raise ValueError(
                f"model.pipeline.path={path} cannot be loaded: {cause}\n"
                "give model.pipeline.path=FOLDER with a local Stable Diffusion 1.x / 2.x folder in diffusers layout, "
                "or model=tiny_random for random weights"
            ) from error
        extra = next((e for package, e in EXTRAS.items() if f"No module named '{package}'" in str(cause)), None)
        remedy = f"\ninstall it: pip install 'cubediff[{extra}]'" if extra else ""
        raise ValueError(f"{where}: {cause}{remedy}") from error
