"""The metric of another package: its value in an evaluation, and in a comparison."""

import json
import os
from pathlib import Path

import numpy as np
import py360convert
import pytest
from PIL import Image
from support.examples import EXAMPLES, as_python, documented, entry_points_of
from support.processes import python


@pytest.mark.slow
def test_the_installed_metric_is_measured_and_compared(checkout: Path, tmp_path: Path) -> None:
    info = tmp_path / "cubediff_examples-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cubediff-examples\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points_of(EXAMPLES))
    path = os.pathsep.join([str(tmp_path), str(checkout / "examples"), os.environ.get("PYTHONPATH", "")])
    install, evaluate = documented("pole_detail.py")
    assert install == ["pip", "install", "-e", "examples"]
    _, words = as_python(evaluate)
    python(*words, "count=2", cwd=checkout, PYTHONPATH=path)
    output = checkout / "experiments/runs/pole_detail"
    estimate = json.loads((output / "metrics.json").read_text())["metrics"]["pole_detail"]
    assert estimate["value"] == pytest.approx(expected(sorted((checkout / "data/samples").glob("*.jpg"))[:2]), rel=0.05)
    compare = ("-m", "cubediff", "evaluate", "compare", output, output)
    assert "pole_detail" in python(*compare, cwd=checkout, PYTHONPATH=path).stdout
    # without the package, its terms cannot be turned into a value
    printed = python(*compare, cwd=checkout, code=1).stdout
    assert "  pole_detail: it is a metric of a package that is not installed\n" in printed


def expected(files: list[Path]) -> float:
    """Of faces of 90° by another library."""
    terms = []
    for file in files:
        image = np.asarray(Image.open(file).resize((512, 256), Image.Resampling.BOX), np.float64) / 255
        cube = py360convert.e2c(image, image.shape[0] // 2, cube_format="dict")
        detail = {name: (np.abs(np.diff(each, axis=0)).mean() + np.abs(np.diff(each, axis=1)).mean()) / 2
                  for name, each in cube.items()}  # fmt: skip
        terms.append([(detail["U"] + detail["D"]) / 2, np.mean([detail[name] for name in "FRBL"])])
    poles, sides = np.mean(terms, 0)
    return float(poles / sides)
