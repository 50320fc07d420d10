"""Loggers that go on where a run goes on; Weights & Biases keeps a run on this machine where it has no account, and
never asks for one."""

import csv
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

LOSSES = ("train/loss", "val/loss")
Curves = dict[str, list[tuple[int, float]]]  # of each loss: steps and values


def log_config(loggers: Sequence[Logger], config: dict[str, Any], record: dict[str, Any]) -> None:
    """The run's config, and under "run" its record; for TensorBoard, whose page has no place for a config, as text."""
    settings = {**config, "run": record}
    for logger in loggers:
        logger.log_hyperparams(settings)
        if isinstance(logger, TensorBoardLogger):
            text = "".join(f"    {line}\n" for line in json.dumps(settings, indent=2).splitlines())  # as code
            logger.experiment.add_text("config", text)


class CSVRun(CSVLogger):
    """Lightning's logger, which would begin a run's file anew."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Appending(self.log_dir)
        return self._experiment

    @rank_zero_only
    def begin_at(self, step: int) -> None:
        """Forgets what was logged of `step` and later ones by a process that came further than its checkpoint."""
        file = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
        if not file.is_file():
            return
        with file.open(newline="") as opened:
            reader = csv.DictReader(opened)
            rows, keys = [row for row in reader if int(row["step"]) < step], reader.fieldnames or []
        part = file.with_suffix(".part")
        with part.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, keys)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(part, file)


class _Appending(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        if Path(self.metrics_file_path).is_file():
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])


class CurveLogger(Logger):
    """Keeps the losses in memory: appends to `curves`, which outlives a run that fails, for its result.json."""

    def __init__(self, curves: Curves) -> None:
        super().__init__()
        self.curves = curves

    @property
    def name(self) -> str | None:
        return None

    @property
    def version(self) -> int | str | None:
        return None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for loss in LOSSES:
            if loss in metrics:
                curve = self.curves.setdefault(loss, [])
                while curve and curve[-1][0] >= (step or 0):  # of a process that came further than its checkpoint
                    curve.pop()
                curve.append((step or 0, float(metrics[loss])))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class WandbRun(WandbLogger):
    """Lightning's logger with `options`; offline, with a warning, where no credentials are found. Its run's id is kept
    in `save_dir`, so that the same command again goes on with the same W&B run.

    `log_export`: also keep the exported pipeline as an artifact of type "model", named after the run's id. Offline its
    files stay where they are, and must be there when `wandb sync` sends them.
    """

    def __init__(self, *, log_export: bool = False, **options: Any) -> None:
        import wandb

        # The settings have what `wandb offline` keeps, but of the environment only what it was at first.
        asked = options.get("mode") or os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        if asked == "online" and not options.get("offline") and not wandb.login(prompt=False, verify=False):
            options["mode"] = "offline"
            rank_zero_warn(
                "no W&B credentials: this run stays offline, `wandb sync` sends it later (`wandb login` or "
                "WANDB_API_KEY before the start sends it at once; WANDB_MODE=offline says that it is meant)"
            )
        id_file = Path(options["save_dir"]) / "wandb_id.txt"
        if not options.get("id"):
            options["id"] = id_file.read_text().strip() if id_file.is_file() else secrets.token_hex(4)
        super().__init__(**{"resume": "allow", **options})
        _keep(id_file, options["id"])
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


@rank_zero_only
def _keep(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")
