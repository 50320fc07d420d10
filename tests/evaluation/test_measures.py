"""The table of metrics: names, descriptions, and the page that documents them."""

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from cubediff.evaluation import measures
from cubediff.evaluation.distances import frechet_distance, omnifid
from cubediff.evaluation.intervals import bootstrap
from cubediff.evaluation.measuring import measure_consistency
from cubediff.evaluation.opened_sets import open_set
from cubediff.runs.evaluation.settings import EXTRACTORS
from cubediff.utils import plugins

DOCS = Path(__file__).parents[2] / "docs/evaluation.md"


def features(count: int, views: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, views, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_metric_is_described_and_has_a_name_of_its_own() -> None:
    names = [*measures.DESCRIPTIONS]
    for extractor in EXTRACTORS:
        names += measures.names(extractor)
        assert all(measures.describe(name, extractor).text for name in measures.names(extractor) if "retrieval" in name)
    assert len(names) == len({*names})
    assert {*measures.FACES, *measures.PANORAMAS} <= {*measures.DESCRIPTIONS}


def test_every_metric_is_documented() -> None:
    words = {*re.findall(r"[a-z0-9_]+", DOCS.read_text(encoding="utf-8"))}
    undocumented = {*measures.DESCRIPTIONS, *measures.CAPTIONS, *measures.PERCEPTUAL, "faed"} - words
    assert not undocumented
    for extractor in EXTRACTORS:
        assert extractor in words


def test_metrics_of_inception_have_the_names_of_the_field() -> None:
    assert {"fid", "kid", "fid_infinite", "omnifid"} <= {*measures.names("inception")}
    assert {"clip_fid", "cmmd"} <= {*measures.names("clip")}
    assert not any(re.fullmatch("fid|kid|omnifid", name) for name in measures.names("efficientnet_lite0"))
    assert measures.names("faed") == ["faed"]


def test_distances_are_of_all_views_and_readings_of_omnifid_of_each_face() -> None:
    real, other = features(5, 6, 4, 0), features(7, 6, 4, 1) + 1
    distance = measures.distances("clip")["clip_fid"]
    assert distance.compute(real, other) == frechet_distance(real.flatten(0, 1), other.flatten(0, 1))
    for name, reading in measures.omni_distances("inception").items():
        assert reading.compute(real, other) == omnifid(real, other)[name]


def test_a_metric_with_terms_of_its_own_is_their_mean() -> None:
    terms = torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    assert bootstrap(measures.metric("retrieval_psnr"), terms).value == 0.75
    with pytest.raises(TypeError):
        measures.metric("retrieval_psnr").terms(torch.zeros(1, 6, 3, 4, 4), 95.0)


OWN = measures.OwnMetric(measures.Metric(lambda faces, fov: faces, lambda terms: terms[0]), measures.Description(
    "consistency", "lower", "a test"
))  # fmt: skip
OF_PANORAMAS = measures.OwnMetric(OWN.metric, measures.Description("consistency", "lower", "another"), "panoramas")


def register(monkeypatch: pytest.MonkeyPatch, **entries: str) -> None:
    """Has entry points as an installed package has, and tables that the test may add to."""
    for table in ("FACES", "PANORAMAS", "DESCRIPTIONS"):
        monkeypatch.setattr(measures, table, {**getattr(measures, table)})
    points = [EntryPoint(name, value, measures.METRICS) for name, value in entries.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: [each for each in points if each.group == group])


def test_metrics_of_other_packages_are_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, own=f"{__name__}:OWN", whole=f"{__name__}:OF_PANORAMAS")
    for _ in range(2):
        measures.add_installed_metrics()
    assert measures.metric("own") is measures.FACES["own"] is OWN.metric
    assert measures.PANORAMAS["whole"] is OF_PANORAMAS.metric
    assert measures.describe("whole").text == "another"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("own", "no_such_module:OWN", r"the metric own = no_such_module:OWN cannot be imported \(No module named"),
        ("own", f"{__name__}:NONE", r"cannot be imported \(.*NONE"),
        ("own", f"{__name__}:DOCS", "expected an OwnMetric of cubediff.evaluation.measures, got "),
        ("sharpness", f"{__name__}:OWN", "sharpness is the name of another metric: choose another one"),
    ],
)
def test_invalid_metrics_of_other_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    register(monkeypatch, **{name: value})
    with pytest.raises(ValueError, match=message):
        measures.add_installed_metrics()


def test_terms_of_another_shape_name_the_metric_and_the_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, own=f"{__name__}:OWN")
    measures.add_installed_metrics()
    samples = open_set(Path(__file__).parents[2] / "data/samples")
    with pytest.raises(
        ValueError, match=r"the metric own: expected .* a tensor \(1, K\), got a tensor \(1, 6, 3, 8, 8\)"
    ):
        measure_consistency(samples, 8, {"own"}, lambda items, count, title: items)


def test_a_metric_that_is_not_installed_has_no_value() -> None:
    with pytest.raises(ValueError, match="it is a metric of a package that is not installed"):
        measures.metric("flicker")
