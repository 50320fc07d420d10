"""The Hydra configs: where they are, checks before a run, and instantiation with errors that name the config's key."""

import os
import re
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from cubediff.configs.arguments import check_no_nan, check_types
from cubediff.configs.targets import EXTRAS, rename_targets_, without_added_nulls
from cubediff.configs.trainer import canonical_precision, check_trainer


def _find_config_dir() -> str:
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return str(folder)
    raise FileNotFoundError(f"no conf/train.yaml in {package} or in its checkout: reinstall cubediff")


CONFIG_DIR = _find_config_dir()
# Config groups whose files write into other keys, and the package that such a file begins with.
PACKAGES = {
    "experiment": "_global_", "objective": "model", "optimizer": "model.optimizer", "sweep": "_global_",
    "variant": "_global_",
}  # fmt: skip


def check(config: DictConfig) -> None:
    """Checks, before anything is loaded, that no value is missing or NaN, the seed, and the Trainer's arguments.

    Raises:
        ValueError: If a mandatory value is missing, a number is NaN, or the seed is no seed of numpy; if `run_dir` is
            missing in a run whose processes are started by a launcher; or as `check_model` and `check_trainer`.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if "data.path" in missing:
        raise ValueError("data.path is missing: set data.path=SHARDS, a folder that `cubediff prepare` wrote")
    if missing:
        raise ValueError(f"{', '.join(missing)} missing: set {' '.join(f'{key}=VALUE' for key in missing)}")
    check_no_nan(config)
    for group, package in PACKAGES.items():
        if group in config:
            raise ValueError(
                f"{group}: nothing reads this key of the config: begin the file of {group}=NAME with the line "
                f"`# @package {package}`, as examples/conf/objective/p2.yaml begins"
            )
    if "model" in config:
        check_model(config.model)
    seed = config.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: expected an integer from 0 to {2**32 - 1}, which numpy accepts")
    check_trainer(config.trainer)
    processes = max(int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    overrides: list[str] = []
    if HydraConfig.initialized():
        overrides = [*HydraConfig.get().overrides.task, *HydraConfig.get().overrides.hydra]
    has_run_dir = any(re.match(r"run_dir=|hydra\.run\.dir=", override) for override in overrides)
    if processes > 1 and "run_dir" in config and not has_run_dir:
        raise ValueError(
            f"run_dir is missing: {processes} processes were started, and each would write to a different folder; "
            "set run_dir=DIR"
        )


def check_model(model: DictConfig) -> None:
    """Checks that the model's config says what creates the pipeline, which conf/model/base.yaml leaves to models.

    Raises:
        ValueError: If it does not.
    """
    if "_target_" not in model.pipeline:
        raise ValueError("model.pipeline has no _target_, as in model/base.yaml: choose another with model=NAME")


def check_devices(config: DictConfig) -> None:
    """Checks that the devices of `config.trainer` exist and can run in this mode.

    Raises:
        ValueError: If GPUs are missing, which trainer.precision=16-mixed needs too, or a sweep uses several devices
            with a launcher that does not start them.
    """
    trainer = config.trainer
    devices = len(trainer.devices) if isinstance(trainer.devices, ListConfig) else trainer.devices
    if trainer.accelerator == "auto" and canonical_precision(trainer) == "16-mixed":
        _check_half_precision(trainer)
    if not isinstance(devices, int):
        return
    if trainer.accelerator in ("gpu", "cuda"):
        _check_gpus(trainer, devices)
    if devices > 1 and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        launcher = HydraConfig.get().launcher
        # Lightning starts a process per device with the sweep's command line, except under SLURM, which starts them.
        if launcher.get("tasks_per_node") != devices or "Slurm" not in launcher["_target_"]:
            raise ValueError(
                f"trainer.devices={trainer.devices} in a sweep: the process of every device would run the whole sweep. "
                "Set trainer.devices=1; or under SLURM hydra/launcher=submitit_slurm with "
                f"hydra.launcher.tasks_per_node={devices} hydra.launcher.gpus_per_node={devices}, which starts the "
                "processes of each job; or start the runs one by one without -m"
            )


def _check_gpus(trainer: DictConfig, devices: int) -> None:
    import torch  # start-up time

    present = torch.cuda.device_count()
    if not present:
        raise ValueError(f"trainer.devices={trainer.devices} GPUs, but this machine has none: set trainer=cpu")
    if devices > present:
        raise ValueError(
            f"trainer.devices={trainer.devices} GPUs, but this machine has {present}: "
            f"set trainer.devices={present}, trainer=gpu (one GPU) or trainer=cpu"
        )


def _check_half_precision(trainer: DictConfig) -> None:
    import torch  # start-up time

    if not torch.accelerator.is_available():  # Lightning would train in bf16-mixed on the CPU
        raise ValueError(
            f"trainer.precision={trainer.precision} needs a GPU, but this machine has none: set "
            "trainer.precision=bf16-mixed or 32-true"
        )


def to_plain(config: DictConfig, resolve: bool = False) -> dict[str, object]:
    """Converts a config to nested dicts and lists, its interpolations resolved if `resolve` is true."""
    return cast(dict[str, object], OmegaConf.to_container(config, resolve=resolve))


def build(config: DictConfig, **options: object) -> Any:
    """Instantiates the object that a config's `_target_` names.

    Args:
        config: A node of a composed config; old names of targets are replaced in it. Null for a key of `ADDED` or
            `UNSET` stands for the target's own default.
        options: Further arguments of the target.

    Raises:
        ValueError: If a value has the wrong type or the target fails; names the config's key.
    """
    rename_targets_(config)
    check_types(config)
    try:
        return hydra.utils.instantiate(without_added_nulls(config), **options)
    except InstantiationException as error:
        key = re.search(r"full_key: (\S+)", str(error))
        where, cause = key[1] if key else "the config", error.__cause__ or error
        path = OmegaConf.select(config, "pipeline.path") if where == "model.pipeline" else None
        if path is not None and isinstance(cause, OSError):
            raise ValueError(
                f"model.pipeline.path={path} cannot be loaded: {cause}\n"
                "set model.pipeline.path=FOLDER with a local Stable Diffusion 1.x / 2.x folder in diffusers layout or "
                "a .safetensors file, or model=tiny_random for random weights"
            ) from error
        extra = next((e for package, e in EXTRAS.items() if f"No module named '{package}'" in str(cause)), None)
        remedy = f"\ninstall it: pip install 'cubediff[{extra}]'" if extra else ""
        if isinstance(cause, TypeError) and re.search(r"missing \d+ required positional argument", str(cause)):
            remedy = f"\na function that is called later needs {where}._partial_=true"
        raise ValueError(f"{where}: {cause}{remedy}") from error
