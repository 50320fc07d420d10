"""Loggers of a resumed run: they append to the same file and resume the same W&B run."""

import csv
import os
import re
from pathlib import Path
from unittest.mock import Mock

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


WHOLE = "step,train/loss\r\n0,0.25\r\n1,0.5\r\n2,0.125\r\n"


def resumed(folder: Path, content: bytes, step: int | None) -> list[dict[str, str]]:
    """The rows after a run with this metrics.csv resumes at a step, or starts for None, and logs step 3."""
    (folder / "logs").mkdir(parents=True)
    (folder / "logs/metrics.csv").write_bytes(content)
    logger = CSVRun(folder, name=None, version="logs")
    if step is not None:
        logger.begin_at(step)
    logger.log_metrics({"train/loss": 3.0, "val/loss": 0.75}, step=3)
    logger.save()
    return rows(folder)


@pytest.mark.parametrize("step", [None, 3])
def test_an_incomplete_last_line_is_skipped_and_no_complete_one_is_lost(tmp_path: Path, step: int | None) -> None:
    """As after a full disk; cut anywhere, in the header or in a number too."""
    for length in range(len(WHOLE) + 1):
        cut = WHOLE[:length]
        complete = [line.split(",") for line in cut.split("\n")[1:-1]] if "\n" in cut else []
        found = resumed(tmp_path / str(length), cut.encode(), step)
        assert [[row["step"], row["train/loss"]] for row in found] == [
            *([number, loss.strip()] for number, loss in complete), ["3", "3.0"],
        ]  # fmt: skip
        assert not list((tmp_path / str(length) / "logs").glob("*.damaged"))


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"\0" * 100, []),  # no line is complete
        (b"\0" * 100 + b"\n", []),
        (b"step,train/loss\r\n0,0.25\r\n\0\0\0\0\r\n2,0.125\r\n", ["0", "2"]),
        (b"step,train/loss\r\n0,0.25\r\none,1\r\n1,2,3\r\n\xff,1\r\n", ["0"]),
        (b"loss\r\n1\r\n", []),
        (b'step,train/loss\r\n"' + b"9" * 200_000 + b"\r\n1,0.5\r\n", ["1"]),
    ],
)
def test_damaged_lines_are_removed_and_kept_in_a_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, kept: list[str]
) -> None:
    assert [row["step"] for row in resumed(tmp_path, content, 3)] == [*kept, "3"]
    if b"\n" in content:
        assert (tmp_path / "logs/metrics.csv.damaged").read_bytes() == content
        assert "damaged lines: a copy with them is kept as metrics.csv.damaged" in capsys.readouterr().out


def test_a_new_column_keeps_the_old_file_until_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = CSVRun(tmp_path, name=None, version="logs")
    logger.log_metrics({"train/loss": 0.5}, step=0)
    logger.save()
    before = (tmp_path / "logs/metrics.csv").read_bytes()
    logger.log_metrics({"val/loss": 0.5}, step=1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            logger.save()
    assert (tmp_path / "logs/metrics.csv").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"\xff\xfe", b"two ids"])
def test_a_damaged_wandb_id_starts_another_wandb_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "wandb_id.txt").write_bytes(content)
    run = WandbRun(save_dir=str(tmp_path), project="cubediff")
    assert re.fullmatch("[0-9a-f]{8}", run._wandb_init["id"])
    assert (tmp_path / "wandb_id.txt").read_text() == run._wandb_init["id"] + "\n"


def test_the_wandb_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    first, again = (WandbRun(save_dir=str(tmp_path / "run"), project="cubediff") for _ in range(2))
    other = WandbRun(save_dir=str(tmp_path / "other"), project="cubediff")
    assert first._wandb_init["id"] == again._wandb_init["id"] != other._wandb_init["id"]
    assert first._wandb_init["resume"] == "allow"
    assert WandbRun(save_dir=str(tmp_path / "run"), id="mine")._wandb_init["id"] == "mine"
