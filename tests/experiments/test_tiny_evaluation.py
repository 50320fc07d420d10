"""The numbers that the pages give for cubediff_tiny are those of its evaluations, and how these are made."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments/cubediff_tiny"
COLUMNS = ("text", "photo", "six_texts")
NUMBER = r"[\d.]+"
CELL = re.compile(rf"({NUMBER})(?: dB)? \(({NUMBER}) to ({NUMBER})\)")


def stated(page: Path) -> dict[str, list[list[float] | None]]:
    """Value and interval of each cell, by the metric that the row begins with."""
    rows = re.findall(r"^\| `(\w+)`[^|]*\|(.*)\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: [_cell(cell) for cell in cells.split("|")] for name, cells in rows}


def _cell(text: str) -> list[float] | None:
    found = CELL.search(text)
    return None if found is None else [float(each) for each in found.groups()]


def measured(condition: str, name: str) -> list[float]:
    content = json.loads((FOLDER / f"evaluation/{condition}.json").read_text(encoding="utf-8"))["metrics"][name]
    return [content[key] for key in ("value", "low", "high")]


@pytest.mark.parametrize(("page", "columns"), [("README.md", COLUMNS), ("model/README.md", COLUMNS[:1])])
def test_tables_hold_the_values_of_the_evaluations(page: str, columns: tuple[str, ...]) -> None:
    rows = stated(FOLDER / page)
    compared = 0
    for name, cells in rows.items():
        for condition, cell in zip(columns, cells, strict=False):
            if cell is not None:
                assert cell == pytest.approx(measured(condition, name), rel=0.025), (page, name, condition)
                compared += 1
    assert compared >= 5


def test_the_first_page_has_them_too() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (percent,) = re.findall(r"cubediff_tiny`: nearest to its own[^|]*\| (\d+) %", text)
    assert int(percent) == round(100 * measured("text", "retrieval_psnr")[0])
    (cell,) = re.findall(r"cubediff_tiny`: RMS difference[^|]*\| ([^;]*)", text)
    found = CELL.search(f"{cell})")
    assert found is not None
    assert [float(each) for each in found.groups()] == pytest.approx(measured("text", "overlap_rms"), abs=6e-4)


@pytest.mark.slow
def test_all_conditions_are_measured_on_training_scenes_and_on_unseen_ones_in_all_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A held-out panorama is turned by eighths, and the pooled value of two seeds is that of all their generations."""
    for folder, names in (("seen", ("courtyard", "hotel_room")), ("corpus", ("autoshop_01", "courtyard"))):
        (tmp_path / folder).mkdir()
        for name in names:
            sample = name if (ROOT / f"data/samples/{name}.jpg").exists() else "dancing_hall"
            shutil.copy(ROOT / f"data/samples/{sample}.jpg", tmp_path / folder / f"{name}.jpg")
        faces = dict.fromkeys(("front", "right", "back", "left", "up", "down"), "a wall")
        lines = [json.dumps({"file": f"{name}.jpg", "caption": f"a {name}", "faces": faces}) + "\n" for name in names]
        (tmp_path / folder / "captions.jsonl").write_text("".join(lines))
    words = [str(ROOT / "experiments/cubediff_tiny/model"), "seen", "out", "--unseen", "corpus", "--steps", "1"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["measure.py", *words, "--seeds", "2", "--guidance", "2"])
    runpy.run_path(str(ROOT / "experiments/cubediff_tiny/measure.py"), run_name="__main__")
    rows = json.loads((tmp_path / "out/measured.json").read_text())["rows"]
    assert [(row["scenes"], row["condition"], row["generations"]) for row in rows] == [
        ("training", "autoencoder", 2),
        ("training", "text", 4),
        ("training", "photo", 4),
        ("training", "six_texts", 4),
        ("unseen", "autoencoder", 8),
        ("unseen", "text", 16),
        ("unseen", "photo", 16),
    ]
    turned = [np.asarray(PIL.Image.open(tmp_path / f"out/unseen/autoshop_01_{turn}.png")) for turn in (0, 3)]
    assert np.array_equal(turned[1], np.roll(turned[0], -3 * 64, axis=1))
    each = [json.loads((tmp_path / f"out/training_text_2_{seed}/metrics.json").read_text()) for seed in (0, 1)]
    squares = [values["metrics"]["overlap_rms"]["value"] ** 2 for values in each]
    assert rows[1]["overlap_rms"]["value"] == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-4)
    assert all(row["overlap_rms"]["low"] < row["overlap_rms"]["high"] for row in rows)
    assert capsys.readouterr().out.splitlines()[-7].startswith("| training | autoencoder |  | ")
