"""The numbers that the pages give for cubediff_tiny are those of its evaluations."""

import json
import re
from pathlib import Path

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
