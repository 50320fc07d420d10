"""The walkthrough notebook: it runs from top to bottom, what is stored of it is complete, and it says what it needs."""

import json
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from support.examples import ROOT

NOTEBOOK = ROOT / "experiments/walkthrough.ipynb"
STORED = 500_000  # bytes

Cell = dict[str, Any]


def code_cells() -> list[Cell]:
    cells: list[Cell] = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def outputs(cells: list[Cell], kind: str) -> list[Any]:
    """The contents of a MIME type, or the streams of a name, among the outputs."""
    found = [output for cell in cells for output in cell["outputs"]]
    return [output["data"][kind] for output in found if kind in output.get("data", {})] + [
        output["text"] for output in found if output.get("name") == kind
    ]


def test_stored_outputs_are_those_of_one_run_from_top_to_bottom() -> None:
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert len(outputs(cells, "image/jpeg")) >= 9
    assert len(outputs(cells, "text/html")) == 2  # the curve and the viewer
    assert not outputs(cells, "stderr")
    assert NOTEBOOK.stat().st_size < STORED
    assert "run_dir=experiments/runs" in NOTEBOOK.read_text()
    assert "output folder: experiments/runs" in NOTEBOOK.read_text()  # not the absolute path


def test_first_cell_says_which_python_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    old = namedtuple("old", "major minor")(3, 10)
    monkeypatch.setattr(sys, "version_info", old)
    with pytest.raises(AssertionError, match=r"cubediff needs Python 3\.11 or newer, this kernel runs"):
        exec("".join(code_cells()[0]["source"]), {})


def test_first_cell_says_that_it_runs_in_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match=f"{tmp_path} is not inside a checkout of cubediff: start Jupyter in one"):
        exec("".join(code_cells()[0]["source"]), {})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries of Jupyter
def test_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    (tmp_path / "experiments").mkdir()
    for name in ("conf", "data", "docs", "experiments/cubediff_tiny", "experiments/tiny_sd"):
        (tmp_path / name).symlink_to(ROOT / name)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path / "experiments")}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    run = tmp_path / "experiments/runs/walkthrough"
    assert {"shards", "run", "text", "photo", "evaluation"} <= {folder.name for folder in run.iterdir()}
    assert len(outputs([dict(cell) for cell in notebook.cells if cell.cell_type == "code"], "image/jpeg")) >= 9
