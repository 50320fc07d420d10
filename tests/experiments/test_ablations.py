"""The variants of the ablations are valid configs, the baseline is the paper's method, and results become a figure."""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hydra import compose, initialize_config_dir

from cubediff.configs import CONFIG_DIR

ABLATIONS = Path(__file__).parents[2] / "experiments/ablations"
SCREEN: dict[str, Any] = runpy.run_path(str(ABLATIONS / "screen.py"))


def composed(variant: str) -> Any:
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return compose("train", ["experiment=cubediff_tiny", "data.path=SHARDS", *SCREEN["overrides"](variant)])


def test_baseline_is_the_papers_method() -> None:
    config = composed("epsilon, the paper's objective")
    assert config.fov == 95
    assert (config.model.pipeline.inflate, config.model.pipeline.conv_padding) == ("all", "zeros")
    assert config.model.pipeline.get("scheduler") is None


def test_results_are_a_table_and_a_figure_with_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value in the middle of its interval is drawn there, and the ends of the widest one span the column."""

    def estimates(value: float) -> dict[str, dict[str, float]]:
        return {name: {"value": value, "low": value - 0.1, "high": value + 0.1} for name in SCREEN["METRICS"]}

    runs = [
        {"variant": name, "seed": 0, **{condition: estimates(value) for condition in SCREEN["CONDITIONS"]}}
        for name, value in (("plain", 0.2), ("a < b", 0.5))
    ]
    rows = SCREEN["table"](runs).splitlines()
    assert len(rows) == 6
    assert rows[4].startswith("| a < b, from a text | 0.500 (0.400 to 0.600) |")
    (tmp_path / "metrics.json").write_text(json.dumps({"runs": runs}))
    monkeypatch.setattr(sys, "argv", ["figure.py", str(tmp_path / "metrics.json"), str(tmp_path / "figure.svg")])
    runpy.run_path(str(ABLATIONS / "figure.py"), run_name="__main__")
    svg = (tmp_path / "figure.svg").read_text()
    assert "a < b" in [element.text for element in ElementTree.fromstring(svg).iter()]
    ends = [tuple(map(float, ends)) for ends in re.findall(r'd="M([\d.]+) [\d.]+H([\d.]+)" stroke="#2b6cb0"', svg)]
    dots = [float(x) for x in re.findall(r'cx="([\d.]+)" cy="[\d.]+" r="3.5" fill="#2b6cb0"', svg)]
    assert len(ends) == len(dots) == 8
    assert dots == pytest.approx([(low + high) / 2 for low, high in ends], abs=0.1)
    assert ends[1][1] - ends[0][0] == pytest.approx(170 - 24, abs=0.1)


def test_results_of_several_calls_are_kept_in_the_order_of_the_variants(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    for name, value in (("velocity", 1), ("epsilon, Min-SNR", 2), ("velocity", 3)):
        SCREEN["Results"](file, 400).add({"variant": name, "seed": 0, "value": value})
    assert [(run["variant"], run["value"]) for run in json.loads(file.read_text())["runs"]] == [
        ("epsilon, Min-SNR", 2),
        ("velocity", 3),
    ]
    with pytest.raises(SystemExit, match=r"metrics\.json holds runs of 400 steps, not 1500: choose another OUTPUT"):
        SCREEN["Results"](file, 1500)


def test_the_page_has_the_table_of_the_screening() -> None:
    runs = json.loads((ABLATIONS / "screening.json").read_text())["runs"]
    assert len(runs) >= 2
    assert SCREEN["table"](runs) in (ABLATIONS / "README.md").read_text(encoding="utf-8")


def test_the_figure_of_the_docs_shows_the_screening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["figure.py", str(ABLATIONS / "screening.json"), str(tmp_path / "figure.svg")])
    runpy.run_path(str(ABLATIONS / "figure.py"), run_name="__main__")
    assert (tmp_path / "figure.svg").read_bytes() == (ABLATIONS.parents[1] / "docs/images/ablations.svg").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(SCREEN["VARIANTS"])[1:])
def test_variants_differ_from_the_baseline(variant: str) -> None:
    assert composed(variant) != composed("epsilon, the paper's objective")


@pytest.mark.slow
def test_attention_below_the_top_costs_less_than_over_all_faces(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rounds", "3", "--variants", "attention below the top"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cost.py", *words])
        runpy.run_path(str(ABLATIONS / "cost.py"), run_name="__main__")
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| velocity, zero SNR", "| attention below the top"]
    assert float(rows[0].split(" | ")[2].split()[0]) == 1
    assert float(rows[1].split(" | ")[2].split()[0]) < 0.9
