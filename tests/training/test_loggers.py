"""Loggers of a resumed run: they append to the same file and resume the same W&B run."""

import csv
from pathlib import Path

import pytest

from cubediff.training.loggers import CSVRun, WandbRun


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_appends_on_resume_and_removes_rows_after_the_checkpoint(tmp_path: Path) -> None:
    first = CSVRun(tmp_path, name=None, version="logs")
    for step in range(6):
        first.log_metrics({"train/loss": step / 10}, step=step)
    first.save()
    second = CSVRun(tmp_path, name=None, version="logs")
    second.begin_at(4)
    second.log_metrics({"train/loss": 40.0, "val/loss": 1.0}, step=4)  # another column
    second.save()
    second.log_metrics({"train/loss": 50.0}, step=5)
    second.save()
    assert [(row["step"], row["train/loss"]) for row in rows(tmp_path)] == [
        ("0", "0.0"), ("1", "0.1"), ("2", "0.2"), ("3", "0.3"), ("4", "40.0"), ("5", "50.0"),
    ]  # fmt: skip
    assert [row["val/loss"] for row in rows(tmp_path)] == ["", "", "", "", "1.0", ""]
    CSVRun(tmp_path / "new", name=None, version="logs").begin_at(3)  # nothing is there yet
    assert not (tmp_path / "new").exists()


def test_the_wandb_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    first, again = (WandbRun(save_dir=str(tmp_path / "run"), project="cubediff") for _ in range(2))
    other = WandbRun(save_dir=str(tmp_path / "other"), project="cubediff")
    assert first._wandb_init["id"] == again._wandb_init["id"] != other._wandb_init["id"]
    assert first._wandb_init["resume"] == "allow"
    assert WandbRun(save_dir=str(tmp_path / "run"), id="mine")._wandb_init["id"] == "mine"
