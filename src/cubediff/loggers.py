"""Weights & Biases as a run's logger: without an account it keeps the run on this machine, and never asks for one."""

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn


class WandbRun(WandbLogger):
    """Lightning's logger with `options`; offline, with a warning, where no credentials are found.

    `log_export`: also keep the exported pipeline as an artifact of type "model", named after the run's id. Offline its
    files stay where they are, and must be there when `wandb sync` sends them.
    """

    def __init__(self, *, log_export: bool = False, **options: Any) -> None:
        import wandb

        asked = options.get("mode") or wandb.setup().settings.mode  # WANDB_MODE's, or that of `wandb offline`
        if asked == "online" and not options.get("offline") and not wandb.login(prompt=False, verify=False):
            options["mode"] = "offline"
            rank_zero_warn(
                "no W&B credentials: this run stays offline, `wandb sync` sends it later (`wandb login` or "
                "WANDB_API_KEY before the start sends it at once; WANDB_MODE=offline says that it is meant)"
            )
        super().__init__(**options)
        self._wandb_init.pop("anonymous", None)  # Lightning's None makes wandb warn of it
        self.log_export = log_export

    @rank_zero_only
    def log_pipeline(self, folder: Path) -> None:
        """The exported pipeline in `folder`, where `log_export` asks for it."""
        if not self.log_export:
            return
        import wandb

        artifact = wandb.Artifact(f"cubediff-{self.experiment.id}", type="model")
        artifact.add_dir(str(folder), policy="immutable", skip_cache=True)  # gigabytes: not copied first
        self.experiment.log_artifact(artifact)
