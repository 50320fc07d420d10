"""Loggers that resume with their run: CSV, Weights & Biases, and the loss curves for a sweep's results."""

import csv
import io
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from cubediff.training.logged_metrics import Curves
from cubediff.utils.files import write_atomic

LOSSES = ("train/loss", "val/loss")


def log_config(loggers: Sequence[Logger], config: Mapping[str, object], record: Mapping[str, object]) -> None:
    """Logs the run's config to every logger, with its record under the key "run".

    Args:
        loggers: The run's loggers.
        config: The resolved config as a plain container.
        record: The content of run.json.
    """
    settings = {**config, "run": record}
    for logger in loggers:
        logger.log_hyperparams(settings)
        if isinstance(logger, TensorBoardLogger):  # its hyper-parameters show no nested values
            text = "".join(f"    {line}\n" for line in json.dumps(settings, indent=2).splitlines())  # a code block
            logger.experiment.add_text("config", text)


class CSVRun(CSVLogger):
    """Lightning's CSV logger, which also resumes: it appends to the file that an interrupted run left."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of metrics.csv."""
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _AppendingWriter(self.log_dir)
        return cast(ExperimentWriter, self._experiment)

    @rank_zero_only
    def begin_at(self, step: int) -> None:
        """Removes the rows from `step` on, which an interrupted process logged after its last checkpoint."""
        file = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
        if not file.is_file():
            return
        with file.open(newline="") as opened:
            reader = csv.DictReader(opened)
            rows, keys = [row for row in reader if int(row["step"]) < step], reader.fieldnames or []
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, keys)
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(file, text.getvalue())


class _AppendingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Lightning's hook, which removes an existing file."""
        if Path(self.metrics_file_path).is_file():
            with open(self.metrics_file_path, encoding="utf-8", newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])


class CurveLogger(Logger):
    """Appends the losses to `curves` in memory, so that they reach result.json even if the run fails."""

    def __init__(self, curves: Curves) -> None:
        super().__init__()
        self.curves = curves

    @property
    def name(self) -> str | None:
        """Lightning's name of the experiment; always None."""
        return None

    @property
    def version(self) -> int | str | None:
        """Lightning's version of the experiment; always None."""
        return None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends the losses; removes points from `step` on, which a process logged after its last checkpoint."""
        for loss in LOSSES:
            if loss in metrics:
                curve = self.curves.setdefault(loss, [])
                while curve and curve[-1][0] >= (step or 0):
                    curve.pop()
                curve.append((step or 0, float(metrics[loss])))

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """Ignores them: result.json has the overrides."""


class WandbRun(WandbLogger):
    """Lightning's W&B logger, which never asks for credentials and resumes its W&B run.

    Without credentials the run is offline, with a warning. The id of the W&B run is stored in `save_dir`, so that the
    same command resumes it.

    Args:
        log_export: Also log the exported pipeline as an artifact of type "model", named after the run's id. An offline
            run refers to the files in place: keep them until `wandb sync` has uploaded them.
        options: Arguments of `WandbLogger`, among them `save_dir`.
    """

    def __init__(self, *, log_export: bool = False, **options: Any) -> None:
        import wandb  # start-up time

        # `wandb offline` is in the settings, which read the environment only once: at the first import.
        mode = options.get("mode") or os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        if mode == "online" and not options.get("offline") and not wandb.login(prompt=False, verify=False):
            options["mode"] = "offline"
            rank_zero_warn(
                "no W&B credentials: this run stays offline, upload it later with `wandb sync`. Log in first (`wandb "
                "login`, or WANDB_API_KEY) to upload while training, or set WANDB_MODE=offline to silence this warning"
            )
        id_file = Path(options["save_dir"]) / "wandb_id.txt"
        if not options.get("id"):
            options["id"] = id_file.read_text().strip() if id_file.is_file() else secrets.token_hex(4)
        super().__init__(**{"resume": "allow", **options})
        _store_id(id_file, options["id"])
        self._wandb_init.pop("anonymous", None)  # Lightning passes None, which wandb warns about
        self.log_export = log_export

    @rank_zero_only
    def log_pipeline(self, folder: Path) -> None:
        """Logs the exported pipeline in `folder` as an artifact if `log_export` is true."""
        if not self.log_export:
            return
        import wandb  # start-up time

        artifact = wandb.Artifact(f"cubediff-{self.experiment.id}", type="model")
        artifact.add_dir(str(folder), policy="immutable", skip_cache=True)  # gigabytes, which are not copied to a cache
        self.experiment.log_artifact(artifact)


@rank_zero_only
def _store_id(file: Path, run_id: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, run_id + "\n")
