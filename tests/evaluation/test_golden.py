"""Values of every metric on panoramas of data/samples: a change that is not meant to change numbers keeps them.

After a change that is meant to, `python tests/evaluation/test_golden.py` writes golden.json anew; its diff shows what
has changed.
"""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from cubediff.evaluation import measures
from cubediff.evaluation.captions import clip_scores
from cubediff.evaluation.distances import cmmd, inception_score
from cubediff.evaluation.extractors import EfficientNetLite0
from cubediff.evaluation.fidelity import nearest_originals, psnr, ssim
from cubediff.evaluation.intervals import bootstrap, paired_difference
from cubediff.evaluation.measuring import measure_distance
from cubediff.evaluation.perceptual import perceptual_distance
from cubediff.evaluation.views import PROTOCOLS, render_views
from cubediff.geometry import cube_to_equirect, equirect_to_cube

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("golden.json")
COUNT, SIZE, HEIGHT = 12, 64, 128  # panoramas, pixels of faces, rows of panoramas

Values = dict[str, float]


def panoramas() -> Tensor:
    """The first panoramas, reduced to HEIGHT rows: (COUNT, 3, HEIGHT, 2 · HEIGHT) in [0, 1]."""
    lines = (ROOT / "data/samples/captions.jsonl").read_text(encoding="utf-8").splitlines()[:COUNT]
    images = [cv2.imread(str(ROOT / "data/samples" / json.loads(line)["file"]))[..., ::-1] for line in lines]
    reduced = [cv2.resize(image, (2 * HEIGHT, HEIGHT), interpolation=cv2.INTER_AREA) for image in images]
    return torch.from_numpy(np.stack(reduced)).permute(0, 3, 1, 2).float() / 255


def disturbed(faces: Tensor) -> Tensor:
    """Faces with noise, a brighter front and the left one moved by two pixels."""
    waves = torch.sin(torch.arange(faces.numel(), dtype=torch.float64) * 1.7).view(faces.shape).float()
    changed = faces + 0.02 * waves
    changed[:, 0] += 0.05
    changed[:, 3] = changed[:, 3].roll(2, -1)
    return changed.clamp(0, 1)


def consistency(faces: Tensor, other: Tensor) -> Values:
    """Of the disturbed faces, and of the panoramas made of them, with intervals; and how much they differ."""
    found = {}
    sets = [(faces, measures.FACES), (cube_to_equirect(faces, HEIGHT), measures.PANORAMAS)]
    others = [other, cube_to_equirect(other, HEIGHT)]
    for (images, metrics), changed in zip(sets, others, strict=True):
        for name, metric in metrics.items():
            terms, worse = metric.terms(images, 95.0), metric.terms(changed, 95.0)
            estimate = bootstrap(metric, worse, draws=100, seed=1)
            difference = paired_difference(metric, terms, worse, draws=100, seed=1)
            found |= {
                name: estimate.value,
                f"{name}.low": estimate.low,
                f"{name}.high": estimate.high,
                f"{name}.paired": difference.value,
                f"{name}.paired.high": difference.high,
            }
    return found


def distances(network: EfficientNetLite0, images: Tensor) -> Values:
    """Between the first and the second half of the panoramas, by features of six views each."""
    views = PROTOCOLS["faces"].views(0)
    features = torch.stack([network(render_views(each, views, SIZE).clamp(0, 1)) for each in images])  # (P, 6, D)
    real, samples = features.chunk(2)
    found = {}
    for name, distance in (measures.distances(network.name) | measures.omni_distances(network.name)).items():
        estimate = measure_distance(distance, real, samples, draws=3, seed=1)
        found[name] = estimate.value
        if not math.isnan(estimate.high):  # of a distance that needs more views than halves have
            found[f"{name}.high"] = estimate.high
    pooled = [each.flatten(0, 1) for each in (real, samples)]
    logits = network.network._fc(features.flatten(0, 1))
    return found | {
        "cmmd": cmmd(*pooled),
        "is": inception_score(logits, splits=2),
        "clip_score": clip_scores(*pooled).mean().item(),
    }


def fidelity(network: EfficientNetLite0, faces: Tensor, other: Tensor) -> Values:
    """Of disturbed faces, where the upper half counts and everywhere; and of panoramas that look elsewhere."""
    images, originals = other[0], faces[0]
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., : SIZE // 2, :] = 1
    found = {}
    for name, where in (("everywhere", None), ("above", mask)):
        found |= {
            f"psnr.{name}": psnr(images, originals, where).mean().item(),
            f"ssim.{name}": ssim(images, originals, where).mean().item(),
            f"perceptual_{network.name}.{name}": perceptual_distance(network, images, originals, where).mean().item(),
        }
    small, changed = (cube_to_equirect(each, 32) for each in (faces, other))
    nearest = nearest_originals(changed.roll(16, -1), small, turns=8)
    return found | {"retrieval": (nearest == torch.arange(len(small))).float().mean().item()}


@torch.inference_mode()
def measure() -> Values:
    images, network = panoramas(), EfficientNetLite0()
    faces = equirect_to_cube(images, SIZE)
    other = disturbed(faces)
    return consistency(faces, other) | distances(network, images) | fidelity(network, faces, other)


def test_values_of_every_metric_are_those_on_file() -> None:
    golden, values = json.loads(GOLDEN.read_text(encoding="utf-8")), measure()
    assert list(values) == list(golden)
    wrong = {
        name: (value, golden[name])
        for name, value in values.items()
        if value != pytest.approx(golden[name], rel=1e-3, abs=1e-7)
    }
    assert wrong == {}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
