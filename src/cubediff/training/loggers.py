"""Loggers that resume with their run: CSV, Weights & Biases, and the loss curves for a sweep's results."""

import csv
import io
import json
import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from cubediff.training.logged_metrics import Curves
from cubediff.utils.files import set_aside, write_atomic
from cubediff.utils.text import redact, redact_values

LOSSES = ("train/loss", "val/loss")


def log_config(loggers: Sequence[Logger], config: Mapping[str, object], record: Mapping[str, object]) -> None:
    """Logs the run's config to every logger, without secrets, with its record under the key "run".

    Args:
        loggers: The run's loggers.
        config: The resolved config as a plain container.
        record: The content of run.json.
    """
    settings = cast(dict[str, object], redact_values({**config, "run": record}))
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
        if file.is_file() and (table := _repair(file)):
            _write_rows(file, table.keys, [row for row in table.rows if int(row["step"]) < step])


class _AppendingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Lightning's hook, which removes an existing file."""
        file = Path(self.metrics_file_path)
        if file.is_file() and (table := _repair(file)):
            self.metrics_keys = table.keys

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """As Lightning's, which loses all rows if the process is killed meanwhile."""
        file = Path(self.metrics_file_path)
        _write_rows(file, fieldnames, _read_rows(file).rows)


class _Table(NamedTuple):
    """The complete rows of a metrics.csv, and how many lines before the last one are damaged."""

    keys: list[str]
    rows: list[dict[str, str]]
    damaged: int


def _read_rows(file: Path) -> _Table:
    """Skips the last line if its end is missing, as after a full disk."""
    text = file.read_bytes().decode(errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    keys, *rows = map(_parse_line, lines) if lines else ([],)
    if "step" not in keys:
        return _Table([], [], len(lines))
    found = [dict(zip(keys, row, strict=True)) for row in rows if len(row) == len(keys)]
    intact = [row for row in found if row["step"].isdecimal() and "\ufffd" not in "".join(row.values())]
    return _Table(keys, intact, len(rows) - len(intact))


def _parse_line(line: str) -> list[str]:
    try:
        return next(csv.reader([line.replace("\0", "\ufffd")]))
    except (csv.Error, StopIteration):  # a cell longer than csv takes, or an empty line
        return []


def _repair(file: Path) -> _Table | None:
    """Removes an incomplete last line, and damaged lines, which a copy keeps; None, and no file, without a header."""
    table = _read_rows(file)
    if table.damaged:
        copy = set_aside(file)
        print(f"WARNING: {file} has {table.damaged} damaged lines: a copy with them is kept as {copy.name}")
    if table.keys:
        _write_rows(file, table.keys, table.rows)
        return table
    file.unlink(missing_ok=True)
    return None


def _write_rows(file: Path, keys: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, keys)
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(file, text.getvalue(), sync=True)


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
            options["id"] = _stored_id(id_file) or secrets.token_hex(4)
        super().__init__(**{"resume": "allow", **options})
        _store_id(id_file, options["id"])
        self._wandb_init.pop("anonymous", None)  # Lightning passes None, which wandb warns about
        self.log_export = log_export

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which records the command line without secrets when it starts."""
        words = sys.argv[1:]
        sys.argv[1:] = map(redact, words)
        try:
            return super().experiment
        finally:
            sys.argv[1:] = words  # Lightning starts the other ranks with them

    @rank_zero_only
    def log_pipeline(self, folder: Path) -> None:
        """Logs the exported pipeline in `folder` as an artifact if `log_export` is true."""
        if not self.log_export:
            return
        import wandb  # start-up time

        artifact = wandb.Artifact(f"cubediff-{self.experiment.id}", type="model")
        artifact.add_dir(str(folder), policy="immutable", skip_cache=True)  # gigabytes, which are not copied to a cache
        self.experiment.log_artifact(artifact)


def _stored_id(file: Path) -> str | None:
    """The id of an earlier process; None without one, or if the file is damaged."""
    text = file.read_bytes().decode(errors="replace").strip() if file.is_file() else ""
    return text if re.fullmatch(r"[\w-]+", text) else None


@rank_zero_only
def _store_id(file: Path, run_id: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, run_id + "\n", sync=True)
