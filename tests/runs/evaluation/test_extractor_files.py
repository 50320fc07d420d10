"""Evaluations with the files of extractors: weights without a meaning in the published formats."""

import json
from pathlib import Path

import cv2
import pytest
import torch
from support.generating import SAMPLES
from support.runs import composed
from support.waves import scattered_weights
from torch import Tensor

from cubediff.evaluation.distances import frechet_distance, inception_score, kernel_distance
from cubediff.evaluation.faed import Faed
from cubediff.evaluation.inception import InceptionV3
from cubediff.evaluation.opened_sets import open_set
from cubediff.evaluation.views import PROTOCOLS, render_views
from cubediff.runs.evaluation.run import evaluate

HEIGHT = 96


def write_panoramas(folder: Path, sigma: float) -> Tensor:
    """Four of the samples, blurred by `sigma` pixels, if it is not 0; returns what is read from them, in [0, 1]."""
    folder.mkdir()
    for name in ("courtyard", "dancing_hall", "forest_slope", "hotel_room"):
        image = cv2.resize(cv2.imread(str(SAMPLES / f"{name}.jpg")), (2 * HEIGHT, HEIGHT), interpolation=cv2.INTER_AREA)
        image = cv2.GaussianBlur(image, None, sigma) if sigma else image
        cv2.imwrite(str(folder / f"{name}.png"), image)
    return torch.stack([open_set(folder).panorama(index) for index in range(4)])


@pytest.mark.slow
def test_values_are_those_of_the_features_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {}
    for kind, prefix in ((InceptionV3, ""), (Faed, "net.encoder.")):
        with monkeypatch.context() as patch:
            patch.setattr(kind, "_load", lambda self, file: None)
            weights = scattered_weights({f"{prefix}{name}": value for name, value in kind("").state_dict().items()})
        files[kind.name] = tmp_path / f"{kind.name}.pth"
        torch.save({"state_dict": weights} if prefix else weights, files[kind.name])
    real, blurred = (write_panoramas(tmp_path / name, sigma) for name, sigma in (("real", 0), ("blurred", 1.5)))
    overrides = [f"extractors.{name}={file}" for name, file in files.items()]
    config = composed(
        f"output={tmp_path}/output", f"samples={tmp_path}/blurred", f"reference={tmp_path}/real", *overrides,
        "metrics=[fid,kid,is,faed]", f"cache={tmp_path}/cache", "device=cpu", "intervals.halves=2", name="evaluate",
    )  # fmt: skip
    evaluate(config)
    found = json.loads((tmp_path / "output/metrics.json").read_text(encoding="utf-8"))

    inception, protocol = InceptionV3(files["inception"]), PROTOCOLS["azimuth8"]
    looks = [
        torch.cat([inception(render_views(each, protocol.views(0), protocol.size).clamp(0, 1)) for each in images])
        for images in (real, blurred)
    ]
    faed = Faed(files["faed"])
    expected = {
        "fid": frechet_distance(*looks),
        "kid": kernel_distance(*looks),
        "is": inception_score(inception.logits(looks[1])),
        "faed": frechet_distance(faed(real), faed(blurred)),
    }
    assert {name: entry["value"] for name, entry in found["metrics"].items()} == pytest.approx(expected, rel=1e-3)
    assert {*found["extractors"]["faed"]["features"]} == {"equirect"}
    warnings = "\n".join(found["warnings"])
    assert "32 azimuth8 views for the distances of inception, which has 2048 features" in warnings
    assert "4 equirect views for the distances of faed" in warnings
