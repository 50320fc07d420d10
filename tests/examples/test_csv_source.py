"""examples/csv_source.py: the rows of a table become shards, or are rejected with a reason."""

import csv
import json
import sys
import tarfile
from importlib import import_module
from pathlib import Path

import pytest
from support.examples import EXAMPLES, run_documented

from cubediff.data import DataError, build_shards


def captions(shards: Path) -> dict[str, str]:
    """The caption of each file in a folder of shards."""
    found = {}
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    sample = json.load(file)
                    found[sample["file"]] = sample["caption"]
    return found


@pytest.mark.slow
def test_shards_hold_the_panoramas_of_the_table(checkout: Path) -> None:
    run_documented("csv_source.py", checkout)
    with (EXAMPLES / "panoramas.csv").open(newline="") as file:
        rows = {row["file"]: row["caption"] for row in csv.DictReader(file)}
    assert len(rows) == 6
    assert captions(checkout / "experiments/runs/csv_shards") == rows


def test_rows_that_cannot_be_used_are_rejected(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    source = import_module("csv_source").CsvTable
    table = tmp_path / "table.csv"
    table.write_text("file,caption\ncourtyard.jpg,a yard\nmissing.jpg,a hall\ncourtyard.jpg,again\nlebombo.jpg,\n")
    build_shards(source(checkout / "data/samples", table), tmp_path / "shards")
    assert captions(tmp_path / "shards") == {"courtyard.jpg": "a yard"}
    rejected = [json.loads(line) for line in (tmp_path / "shards/rejected.jsonl").read_text().splitlines()]
    reasons = {each["file"]: each["reason"].split(" ")[:2] for each in rejected}
    assert reasons == {"missing.jpg": ["listed", "in"], "courtyard.jpg": ["listed", "twice"],
                       "lebombo.jpg": ["no", "caption"]}  # fmt: skip
    table.write_text("file;caption\n")
    with pytest.raises(DataError, match="no column caption and no column file"):
        source(checkout, table).entries()
