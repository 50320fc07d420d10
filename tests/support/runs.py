"""Composes configs and trains with them in this process, as the command line does."""

import csv
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from cubediff.configs import CONFIG_DIR

QUICK = (
    "model=tiny_random",
    "trainer=cpu",
    "data.batch_size=2",
    "data.num_workers=0",
    "trainer.max_steps=2",
    "trainer.log_every_n_steps=1",
)
FEW_SAMPLING_STEPS = "callbacks.samples.steps=1"


def composed(*overrides: str, run_dir: Path | None = None, name: str = "train") -> DictConfig:
    """Composes the config of a job; references to Hydra's config resolve to the last composed one."""
    into = [] if run_dir is None else [f"run_dir={run_dir}"]
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        config = compose(name, overrides=[*overrides, *into], return_hydra_config=True)
    with open_dict(config):
        config.hydra.runtime.output_dir = config.hydra.run.dir
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return config


def train(shards: Path, run_dir: Path, *overrides: str) -> Path:
    """Trains a tiny model for a few steps and returns `run_dir`."""
    from cubediff.runs.fit import fit

    run_dir.mkdir(parents=True)
    quick = QUICK if "callbacks=none" in overrides else (*QUICK, FEW_SAMPLING_STEPS)
    fit(composed(*quick, f"data.path={shards}", *overrides, run_dir=run_dir), run_dir)
    return run_dir


def validations(run_dir: Path) -> list[tuple[str, str]]:
    """The steps and losses of all validations in metrics.csv."""
    with (run_dir / "logs/metrics.csv").open(newline="") as file:
        return [(row["step"], row["val/loss"]) for row in csv.DictReader(file) if row.get("val/loss")]
