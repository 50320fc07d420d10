"""Comparisons of two evaluations: paired differences, what is refused, and the command."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from cubediff.evaluate import compare_app
from cubediff.evaluation import measures
from cubediff.evaluation.comparison import Comparison, Difference, compare, comparison_record, comparison_text
from cubediff.evaluation.distances import frechet_distance
from cubediff.evaluation.features import write_features
from cubediff.evaluation.intervals import Estimate
from cubediff.evaluation.results import Results, Value, read_results, write_results
from cubediff.utils.errors import DataError

COUNT = 40
SIZE = {"size": 512, "seed": 0, "same_for_all": True, "yaw_pitch_fov": [[[0.0, 0.0, 90.0]]]}
RECORD: dict[str, Any] = {
    "samples": {"path": "samples", "height": 128},
    "reference": {"path": "real", "sha256": "00"},
    "faces": {"saved": True, "size": 64},
    "views": {"azimuth8": SIZE, "faces": {**SIZE, "size": 256}},
    "extractors": {
        "tiny": {"sha256": "11", "features": {"azimuth8": {"reference": "key8"}, "faces": {"reference": "key6"}}}
    },
    "settings": {"protocol": "azimuth8", "condition": "text", "seed": 0},
}
TERMS = ("overlap_rms", "sharpness", "erp_wrap", "rest_psnr", "retrieval_tiny")
DISTANCES = ("fd_tiny", "omnifd_tiny", "precision_tiny")


def scenes(seed: int = 0, count: int = COUNT) -> Tensor:
    """Squares of numbers that are uniform in [0, 1], (P, 1): their mean is ⅓."""
    return torch.rand(count, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).square()


def features(seed: int, shift: float = 0.0, views: int = 2) -> Tensor:
    return torch.randn(COUNT, views, 3, generator=torch.Generator().manual_seed(seed)) + shift


def changed(record: Mapping[str, Any], path: str, value: object) -> dict[str, Any]:
    """The record with another value at a dotted key."""
    key, _, rest = path.partition(".")
    return {**record, key: changed(record[key], rest, value) if rest else value}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Features of the reference, of views and of faces."""
    write_features(tmp_path / "cache/key8.safetensors", features(0))
    write_features(tmp_path / "cache/key6.safetensors", features(1, views=6))
    return tmp_path / "cache"


def evaluated(folder: Path, scale: float = 1.0, shift: float = 0.5, record: Mapping[str, Any] = RECORD,
              metrics: Iterable[str] = (*TERMS, *DISTANCES)) -> Path:  # fmt: skip
    """The files of an evaluation: terms that grow with a scale, and features at a distance that grows with a shift."""
    folder.mkdir()
    estimate = Estimate(1.0, 1.0, 1.0, COUNT)
    known = {**measures.distances("tiny"), **measures.omni_distances("tiny")}
    values = {}
    for name in metrics:
        described = known[name].description if name in known else measures.describe(name, "tiny")
        values[name] = Value(estimate, "panoramas", described)
    terms = {name: scenes() * scale for name in TERMS if name in values}
    if "erp_wrap" in terms:
        terms["erp_wrap"] = torch.cat([scenes() * scale, scenes(1)], 1)
    names = [f"scene {i}" for i in range(COUNT)]
    write_results(folder, Results(values, names, [""] * COUNT, terms, record=dict(record)))
    write_features(folder / "features/tiny_azimuth8.safetensors", features(2, shift))
    write_features(folder / "features/tiny_faces.safetensors", features(3, shift, views=6))
    return folder


def compared(a: Path, b: Path, cache: Path) -> Comparison:
    return compare(read_results(a), read_results(b), cache, lambda items, total, title: items)


def by_name(comparison: Comparison) -> dict[str, Difference]:
    return {each.metric: each for each in comparison.differences}


def test_an_evaluation_does_not_differ_from_itself(tmp_path: Path, cache: Path) -> None:
    found = compared(evaluated(tmp_path / "a"), tmp_path / "a", cache)
    assert {each.metric for each in found.differences} == {*TERMS, *DISTANCES}
    for each in found.differences:
        assert (each.estimate.value, each.estimate.low, each.estimate.high) == (0, 0, 0), each.metric
        assert each.first == each.second
        assert each.verdict == "no difference shown"
    assert found.left_out == found.settings == {}


def test_a_known_difference_lies_in_an_interval_that_excludes_zero(tmp_path: Path, cache: Path) -> None:
    """Squares that are 1.21 times as large have a root mean square that is 1.1 times as large."""
    a, b = evaluated(tmp_path / "a"), evaluated(tmp_path / "b", scale=1.21, shift=1.0)
    found = by_name(compared(a, b, cache))
    overlap = found["overlap_rms"]
    assert 0 < overlap.estimate.low <= 0.1 * (1 / 3) ** 0.5 <= overlap.estimate.high
    assert overlap.estimate.value == pytest.approx(0.1 * scenes().mean().sqrt().item())
    assert overlap.second == pytest.approx(1.1 * overlap.first)
    assert overlap.verdict == "A better"
    assert found["rest_psnr"].verdict == "B better"
    assert found["sharpness"].verdict == "B larger"
    real, ours, theirs = (features(*each).flatten(0, 1) for each in ((0,), (2, 0.5), (2, 1.0)))
    distance = found["fd_tiny"]
    assert distance.first == pytest.approx(frechet_distance(real, ours))
    assert distance.second == pytest.approx(frechet_distance(real, theirs))
    # The distance of means 0 and s in three dimensions is 3 s².
    assert 0 < distance.estimate.low <= 3 * (1.0**2 - 0.5**2) <= distance.estimate.high
    assert distance.verdict == found["omnifd_tiny"].verdict == "A better"
    assert distance.estimate.n == COUNT


def test_exchanged_evaluations_have_the_opposite_difference(tmp_path: Path, cache: Path) -> None:
    a, b = evaluated(tmp_path / "a"), evaluated(tmp_path / "b", scale=1.3, shift=0.9)
    one, other = by_name(compared(a, b, cache)), by_name(compared(b, a, cache))
    for name in (*TERMS, *DISTANCES):
        low, high = other[name].estimate.low, other[name].estimate.high
        assert (one[name].estimate.high, one[name].estimate.low) == pytest.approx((-low, -high))


@pytest.mark.parametrize(
    ("interval", "better", "verdict"),
    [
        ((0.1, 0.3), "lower", "A better"),
        ((0.1, 0.3), "higher", "B better"),
        ((0.1, 0.3), "neither", "B larger"),
        ((-0.3, -0.1), "lower", "B better"),
        ((-0.3, -0.1), "higher", "A better"),
        ((-0.3, -0.1), "neither", "A larger"),
        ((-0.1, 0.3), "lower", "no difference shown"),
        ((0.0, 0.3), "lower", "no difference shown"),
        ((float("nan"), float("nan")), "lower", "no difference shown"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(interval: tuple[float, float], better: Any, verdict: str) -> None:
    assert Difference("m", 1.0, 2.0, Estimate(0.2, *interval, 9), better).verdict == verdict


PANORAMA, FACES, FIDELITY, VIEWS = {"erp_wrap"}, {"overlap_rms", "sharpness"}, {"rest_psnr"}, {"retrieval_tiny"}
ALL_DISTANCES = {*DISTANCES}


@pytest.mark.parametrize(
    ("path", "value", "affected"),
    [
        ("samples.height", 256, PANORAMA | FIDELITY | VIEWS | ALL_DISTANCES),
        ("faces.size", 128, FACES | FIDELITY),
        ("faces.saved", False, FACES | FIDELITY),
        ("reference.sha256", "ff", FIDELITY | VIEWS | ALL_DISTANCES),
        ("settings.condition", "photo", FIDELITY | VIEWS),
        ("extractors.tiny.sha256", "ff", VIEWS | ALL_DISTANCES),
        ("views.azimuth8.size", 299, ALL_DISTANCES - {"omnifd_tiny"}),
        ("views.azimuth8.yaw_pitch_fov", [[[45.0, 0.0, 90.0]]], ALL_DISTANCES - {"omnifd_tiny"}),
        ("views.faces.size", 299, {"omnifd_tiny"}),
        ("settings.protocol", "panfusion", VIEWS),
        ("settings.seed", 7, set()),  # of the noise; the views are the same
    ],
)
def test_numbers_that_were_measured_differently_are_not_compared(
    path: str, value: object, affected: set[str], tmp_path: Path, cache: Path
) -> None:
    a, b = evaluated(tmp_path / "a"), evaluated(tmp_path / "b", record=changed(RECORD, path, value))
    found = compared(a, b, cache)
    assert found.left_out.keys() == affected
    assert {each.metric for each in found.differences} == {*TERMS, *DISTANCES} - affected
    assert all(reason.startswith(f"{path} is ") for reason in found.left_out.values())
    if path.startswith(("settings", "views", "faces", "samples")):
        first: Any = RECORD
        for key in path.split("."):
            first = first[key]
        assert found.settings == {path: (first, value)}
        assert f"  {path}: " in comparison_text(found)


def test_faces_that_were_cut_depend_on_the_height(tmp_path: Path, cache: Path) -> None:
    cut = changed(RECORD, "faces.saved", False)
    a, b = evaluated(tmp_path / "a", record=cut), evaluated(tmp_path / "b", record=changed(cut, "samples.height", 256))
    assert compared(a, b, cache).left_out["overlap_rms"] == "samples.height is 128 in A and 256 in B"


def test_random_views_of_retrieval_depend_on_the_seed(tmp_path: Path, cache: Path) -> None:
    drawn = changed(RECORD, "settings.protocol", "cubediff_paper")
    a, b = evaluated(tmp_path / "a", record=drawn), evaluated(tmp_path / "b", record=changed(drawn, "settings.seed", 7))
    assert compared(a, b, cache).left_out == {"retrieval_tiny": "settings.seed is 0 in A and 7 in B"}


def test_metrics_of_one_evaluation_alone_are_listed(tmp_path: Path, cache: Path) -> None:
    a, b = evaluated(tmp_path / "a", metrics=TERMS), evaluated(tmp_path / "b", metrics=("overlap_rms", "fd_tiny"))
    found = compared(a, b, cache)
    assert [each.metric for each in found.differences] == ["overlap_rms"]
    assert found.left_out == {name: "only A has it" for name in TERMS[1:]} | {"fd_tiny": "only B has it"}
    assert "  sharpness, erp_wrap, rest_psnr, retrieval_tiny: only A has it" in comparison_text(found)


def renamed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    file = folder / "panoramas.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return folder


def test_other_panoramas_are_refused_and_the_first_that_differs_is_named(tmp_path: Path, cache: Path) -> None:
    a = evaluated(tmp_path / "a")
    b = renamed(evaluated(tmp_path / "b"), lambda content: content["names"].__setitem__(3, "a hall"))
    with pytest.raises(DataError, match=re.escape(f"panorama 4 is scene 3 in {a}, and a hall in {b}: compare")):
        compared(a, b, cache)

    def cut(content: dict[str, Any]) -> None:
        content["names"] = content["names"][:38]
        content["terms"] = {name: rows[:38] for name, rows in content["terms"].items()}

    c = renamed(evaluated(tmp_path / "c"), cut)
    for one, other in ((a, c), (c, a)):
        with pytest.raises(DataError, match=re.escape(f"scene 38 of {a}: evaluate both with count=38")):
            compared(one, other, cache)


def test_distances_without_features_are_left_out_with_the_reason(tmp_path: Path, cache: Path) -> None:
    a, b = evaluated(tmp_path / "a"), evaluated(tmp_path / "b")
    (b / "features/tiny_faces.safetensors").unlink()
    (cache / "key8.safetensors").unlink()
    found = compared(a, b, cache)
    assert found.left_out["omnifd_tiny"] == f"{b}/features/tiny_faces.safetensors is missing: evaluate again"
    assert found.left_out["fd_tiny"] == (
        f"the reference's features of tiny are not in {cache}: evaluate again, or pass --cache DIR"
    )
    assert {each.metric for each in found.differences} == {*TERMS}


def test_features_of_other_panoramas_are_refused(tmp_path: Path, cache: Path) -> None:
    a, b = evaluated(tmp_path / "a"), evaluated(tmp_path / "b")
    write_features(b / "features/tiny_azimuth8.safetensors", features(2)[:30])
    with pytest.raises(DataError, match=re.escape("has features of shape (30, 2, 3), expected (40, 2, 3): evaluate")):
        compared(a, b, cache)
    (b / "features/tiny_azimuth8.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError, match=re.escape("tiny_azimuth8.safetensors is damaged")):
        compared(a, b, cache)


def test_a_metric_whose_outputs_are_not_stored_is_left_out(tmp_path: Path, cache: Path) -> None:
    a, b = evaluated(tmp_path / "a", metrics=("is",)), evaluated(tmp_path / "b", metrics=("is",))
    assert compared(a, b, cache).left_out == {
        "is": "neither its values for each panorama nor features for it are stored"
    }


def test_one_panorama_shows_no_difference(tmp_path: Path, cache: Path) -> None:
    stored = read_results(evaluated(tmp_path / "a", metrics=TERMS))
    one = replace(stored, names=stored.names[:1], terms={name: each[:1] for name, each in stored.terms.items()})
    other = replace(one, terms={name: 2 * each for name, each in one.terms.items()})
    found = compare(one, other, cache, lambda items, total, title: items)
    overlap = by_name(found)["overlap_rms"]
    assert overlap.estimate.value > 0
    assert overlap.verdict == "no difference shown"
    assert "1 panorama: bootstrap intervals of fewer than 10 are too narrow" in comparison_text(found)
    record: Any = comparison_record(found)
    assert record["differences"]["overlap_rms"]["low"] is None


def ran(*words: object) -> Result:
    return CliRunner().invoke(compare_app, [*map(str, words)])


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, cache: Path) -> None:
    a = evaluated(tmp_path / "a", metrics=("overlap_rms", "rest_psnr", "sharpness", "fd_tiny"))
    b = evaluated(tmp_path / "b", scale=1.21, shift=1.0, record=changed(RECORD, "settings.seed", 7))
    result = ran(a, b, "--cache", cache, "--json", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == [f"A: {a}", f"B: {b}"]
    rows = [re.split(r"  +", line) for line in lines[3:8]]
    assert rows[0] == ["metric", "A", "B", "B - A", "95 % interval", "verdict"]
    assert [row[0] for row in rows[1:]] == ["overlap_rms", "sharpness", "rest_psnr", "fd_tiny"]  # the first together
    assert "  settings.seed: 0 in A, 7 in B" in lines
    assert "bootstrap" not in result.stdout
    content = json.loads((tmp_path / "c.json").read_text())
    overlap = content["differences"]["overlap_rms"]
    assert overlap["difference"] == pytest.approx(overlap["second"] - overlap["first"])
    assert rows[1][1:] == [
        *(f"{overlap[key]:.3g}" for key in ("first", "second")),
        f"{overlap['difference']:.4f}",
        f"{overlap['low']:.4f} to {overlap['high']:.4f}",
        "A better",
    ]
    assert (overlap["verdict"], overlap["better"], overlap["n"]) == ("A better", "lower", COUNT)
    assert content["left_out"]["erp_wrap"] == "only B has it"
    assert content["settings"] == {"settings.seed": {"first": 0, "second": 7}}


def test_the_command_names_what_it_cannot_compare(tmp_path: Path, cache: Path) -> None:
    a = evaluated(tmp_path / "a", metrics=("overlap_rms",))
    b = evaluated(tmp_path / "b", metrics=("sharpness",))
    result = ran(a, b)
    assert result.exit_code == 1
    assert "overlap_rms: only A has it" in result.stdout
    assert ran(a, tmp_path).exit_code == 1
    message = f"error: {tmp_path} holds no metrics.json: pass the output of `cubediff evaluate`"
    assert message in ran(a, tmp_path).output
    renamed(b, lambda content: content["names"].__setitem__(0, "\x1b[2Jhall"))
    result = ran(a, b)
    assert result.exit_code == 1
    assert "panorama 1 is scene 0" in result.output
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["terms"].update(overlap_rms=[0.5] * COUNT), "is damaged"),
        (lambda content: content["terms"].update(overlap_rms=[[0.5]] * 39), "is damaged"),
        (lambda content: content["terms"].update(overlap_rms=[[0.5], [0.5, 1.0]] * 20), "is damaged"),
        (
            lambda content: content["terms"].update(overlap_rms=[[0.5, 1.0]] * COUNT),
            "have 1 and 2 terms of overlap_rms",
        ),
        (lambda content: content.pop("names"), "is damaged"),
        (lambda content: content.update(version=99), "was written by a newer version of cubediff"),
    ],
)
def test_damaged_terms_are_refused(change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    a = evaluated(tmp_path / "a", metrics=("overlap_rms",))
    b = renamed(evaluated(tmp_path / "b", metrics=("overlap_rms",)), change)
    result = ran(a, b)
    assert result.exit_code == 1
    assert "error: " in result.output
    assert str(b / "panoramas.json") in result.output
    assert message in result.output


def test_folders_may_have_names_of_any_bytes(tmp_path: Path) -> None:
    a = evaluated(tmp_path / os.fsdecode(b"caf\xe9"), metrics=("overlap_rms",))
    assert ran(a, a, "--json", tmp_path / "c.json").exit_code == 0
    assert json.loads((tmp_path / "c.json").read_text())["first"].endswith("caf\\xe9")


def test_a_damaged_description_is_refused(tmp_path: Path) -> None:
    a = evaluated(tmp_path / "a", metrics=("overlap_rms",))
    content = json.loads((a / "metrics.json").read_text())
    content["metrics"]["overlap_rms"]["better"] = "best"
    (a / "metrics.json").write_text(json.dumps(content))
    assert "metrics.overlap_rms.better is 'best': evaluate again" in ran(a, a).output
