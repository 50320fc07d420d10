"""experiments/metrics: the rule of the verdicts, the corruptions, and the stored files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cubediff.evaluation.measures import FACES, PANORAMAS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments/metrics"
sys.path.append(str(FOLDER))

import corruptions  # noqa: E402
import sensitivity  # noqa: E402
import sensitivity_report  # noqa: E402

STORED: dict[str, Any] = json.loads((FOLDER / "metrics.json").read_text())


# ---- the rule of the verdicts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 1.0, 1.1, 1.3, 1.3, 1.6], "rises"),
        ([1.0, 0.9, 0.7, 0.7, 0.6, 0.4], "falls"),
        ([1.0, 1.5, 0.5, 1.2, 0.7, 1.0], "stays"),  # the ends of the interval are inside
        ([1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "stays"),  # a rise within the interval is none
        ([1.0, 1.2, 1.1, 1.6, 1.8, 2.0], "neither"),  # not monotone
        ([1.0, 0.9, 1.6, 1.8, 1.9, 2.0], "neither"),  # not monotone from the clean value on
        ([1.0, 2.0, 1.8, 1.6, 1.4, 1.2], "neither"),  # leaves the interval and returns
    ],
)
def test_verdict_compares_five_strengths_with_the_interval_of_the_clean_value(
    values: list[float], expected: str
) -> None:
    assert sensitivity.verdict([[values[0], 0.5, 1.5], *([value, -9.0, 9.0] for value in values[1:])]) == expected


def test_a_corruption_is_caught_by_metrics_that_rise_or_fall_as_expected() -> None:
    pairs = {"a": ("rises", "rises"), "b": ("falls", "rises"), "c": ("stays", "stays"), "d": ("open", "falls")}
    cells = {name: {"expected": expected, "measured": measured} for name, (expected, measured) in pairs.items()}
    assert sensitivity_report.caught_by({**cells, "e": {"expected": "falls", "measured": "falls"}}) == ["a", "e"]


def test_every_corruption_has_an_expectation_of_every_metric() -> None:
    table = sensitivity.expected()
    metrics = [*FACES, *PANORAMAS, "perceptual_efficientnet_lite0", *sensitivity_report.DISTANCES]
    for kind, strengths in corruptions.STRENGTHS.items():
        assert len(strengths) == 5
        assert set(table[kind]) == set(sensitivity_report.DISTANCES if kind == "scenes" else metrics)


# ---- the corruptions ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean() -> corruptions.Corruptor:
    generator = torch.Generator().manual_seed(0)
    small = 0.3 + 0.4 * torch.rand(4, 3, 8, 16, generator=generator)
    return corruptions.Corruptor(list(torch.nn.functional.interpolate(small, (192, 384), mode="bilinear").split(1)))


@pytest.mark.parametrize("kind", ["brightness", "blur_face", "shift", "flip"])
def test_these_corruptions_change_the_front_face_alone(clean: corruptions.Corruptor, kind: str) -> None:
    faces, _ = clean(kind, corruptions.STRENGTHS[kind][-1])
    assert torch.equal(faces[:, 1:], clean.faces[:, 1:])
    assert ((faces[:, 0] - clean.faces[:, 0]).abs().amax((1, 2, 3)) > 0.02).all()


@pytest.mark.parametrize("kind", corruptions.PANORAMA_FIRST)
def test_faces_of_a_corrupted_panorama_agree_with_it(clean: corruptions.Corruptor, kind: str) -> None:
    faces, panoramas = clean(kind, corruptions.STRENGTHS[kind][-1])
    assert torch.equal(faces, corruptions.faces_of(panoramas))
    assert all((one - other).abs().max() > 0.02 for one, other in zip(panoramas, clean.panoramas, strict=True))


@pytest.mark.parametrize("kind", [*corruptions.FACES_FIRST, *corruptions.PANORAMA_FIRST])
def test_a_stronger_corruption_changes_more(clean: corruptions.Corruptor, kind: str) -> None:
    before = clean(kind, None)[1]
    changes = [
        sum(float((one - other).abs().mean()) for one, other in zip(before, clean(kind, strength)[1], strict=True))
        for strength in corruptions.STRENGTHS[kind]
    ]
    assert changes == sorted(changes)
    assert changes[0] > 0


def test_a_blurred_panorama_meets_at_its_border() -> None:
    white = torch.zeros(1, 3, 32, 64)
    white[..., -1] = 1
    blurred = corruptions.corrupted_panorama("blur", 4, white)
    torch.testing.assert_close(blurred[..., 0], blurred[..., -2])
    torch.testing.assert_close(blurred.mean(), white.mean())


def test_a_cut_panorama_ends_before_its_border() -> None:
    ramp = torch.linspace(0, 1, 360).expand(1, 3, 180, 360)
    assert corruptions.corrupted_panorama("cut", 8, ramp)[0, 0, 0, [0, -1]].tolist() == pytest.approx(
        [0, 351 / 359], abs=1e-3
    )


# ---- the stored files -----------------------------------------------------------------------------------------


def verdicts_follow(results: dict[str, Any]) -> None:
    """Whether verdicts and expectations of results are those of the numbers and of EXPECTED."""
    for kind, cells in results["cells"].items():
        assert set(cells) == set(sensitivity.expected()[kind])
        for metric, cell in cells.items():
            assert len(cell["values"]) == 6
            assert cell["measured"] == sensitivity.verdict(cell["values"]), (kind, metric)
            assert cell["expected"] == sensitivity.expected()[kind][metric], (kind, metric)


def test_stored_verdicts_follow_from_the_stored_numbers() -> None:
    assert list(STORED["cells"]) == sensitivity.EXPECTED.split()[:11]
    verdicts_follow(STORED)


def test_every_corruption_is_caught_by_two_metrics() -> None:
    for kind, cells in STORED["cells"].items():
        assert len(sensitivity_report.caught_by(cells)) >= 2, kind


def test_real_panoramas_have_the_lowest_relative_overlap() -> None:
    """But for a broken border, which both faces see alike: no interval of the difference from real ones includes 0."""
    differences = {name: row["difference"] for name, row in STORED["relative"].items() if name != "real"}
    assert {"reconstructed by the autoencoder", "generated", "uniform grey", "blur"} < set(differences)
    _, *ends = differences.pop("ramp")
    assert min(ends) > -0.002
    assert all(low > 0 for _, low, _ in differences.values())


def test_readme_has_the_tables_of_the_stored_numbers_and_the_figure() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for table in sensitivity_report.tables(STORED).split("\n\n"):
        assert table in readme
    assert "](sensitivity.png)" in readme
    assert (FOLDER / "sensitivity.png").stat().st_size < 300_000


@pytest.mark.slow
def test_two_corruptions_of_four_panoramas(tmp_path: Path) -> None:
    words = ("data/samples", tmp_path, "--first", 4, "--draws", 4, "--corruptions", "brightness", "grey")
    done = subprocess.run(
        [sys.executable, FOLDER / "sensitivity.py", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert results["settings"] == {"panoramas": 4, "draws": 4, "half": 2}
    assert list(results["cells"]) == ["brightness", "grey"]
    verdicts_follow(results)
    caught = {kind: sensitivity_report.caught_by(cells) for kind, cells in results["cells"].items()}
    assert {"overlap_rms", "overlap_relative", "edge_ratio"} <= set(caught["brightness"])
    assert {"overlap_relative", "sharpness"} <= set(caught["grey"])
    assert list(results["relative"]) == ["real", "brightness", "grey", "uniform grey"]
    assert results["relative"]["uniform grey"]["overlap_relative"] == [1, 1, 1]
    assert sensitivity_report.tables(results) in done.stdout
    assert (tmp_path / "sensitivity.png").stat().st_size > 1000
