"""Compares FID, KID and the Inception score with those of torchmetrics, torch-fidelity and clean-fid.

    python benchmarks/metrics_parity.py [--panoramas DIR] [--count N] [--sigma PIXELS] [--weights FILE] [--output DIR]

The images are the views of `azimuth8` of real panoramas, and the same views blurred, as PNG files. torch-fidelity reads
these files and its own network's weights; the others compare the features that this package computes. Without --weights
the network is random: seeded, with statistics of normalisation from the views, in the format of torch-fidelity's file.
KID is that of all images in one subset, and the Inception score that of the blurred images in one split, so that
no package draws at random. The covariances of fewer images than the 2048 features are singular, so the distance
of the first 64 features is compared as well. A package that is not installed is left out. A difference above 0.1 %
is an error.

torch-fidelity and clean-fid need torchvision, whose wheels on PyPI are for CUDA: install them in an environment
of their own (see docs/benchmarks.md).
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

if find_spec("torchvision") and torch.version.cuda is None:
    # torchvision for CUDA imports beside torch for the CPU, and with it torchmetrics, once two operators of detection
    # models are declared, which nothing here calls.
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from cubediff.evaluation.distances import frechet_distance, inception_score, kernel_distance
from cubediff.evaluation.inception import InceptionV3
from cubediff.evaluation.views import PROTOCOLS, render_views

ROOT = Path(__file__).parents[1]
SIZE = 256  # of the views, in pixels
FEW = 64  # features of a distance with covariances of full rank
TOLERANCE = 1e-3


class Features(NamedTuple):
    """Features of the real and of the blurred views, and the logits of the blurred ones."""

    real: Tensor
    blurred: Tensor
    logits: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panoramas", type=Path, default=ROOT / "data/samples", help="a folder with captions.jsonl")
    parser.add_argument("--count", type=int, default=25, help="number of panoramas")
    parser.add_argument("--sigma", type=float, default=2.0, help="of the blur, in pixels")
    parser.add_argument("--weights", type=Path, help="torch-fidelity's file; without it the network is random")
    parser.add_argument("--output", type=Path, help="folder for images and weights; a temporary one without it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        compare(args, args.output or Path(temporary))


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Prints the table."""
    write_views(args.panoramas, args.count, args.sigma, folder)
    weights = args.weights or write_random_weights(folder)
    network = InceptionV3(weights)
    real, blurred = (torch.cat([network(batch) for batch in read(folder / name)]) for name in ("real", "blurred"))
    features = Features(real, blurred, network.logits(blurred))
    ours = by_cubediff(features)
    print(", ".join(f"{name} {found(name)}" for name in ("cubediff", "torch", "torchmetrics", "scipy", "numpy")))
    print(f"{len(real)} views of {SIZE} pixels, blurred by {args.sigma:g} pixels")
    print(f"{'metric':28}  {'package':22}  {'theirs':>12}  {'ours':>12}  difference")
    worst = 0.0
    for package, theirs in others(features, folder, weights):
        for metric, value in theirs.items():
            difference = abs(value - ours[metric]) / abs(value)
            worst = max(worst, difference)
            print(f"{metric:28}  {package:22}  {value:12.6f}  {ours[metric]:12.6f}  {difference:.1e}", flush=True)
    if worst > TOLERANCE:
        sys.exit(f"a difference of {worst:.1e}, expected at most {TOLERANCE:g}")


def write_views(panoramas: Path, count: int, sigma: float, folder: Path) -> None:
    """Writes the views of the first panoramas to `real`, and blurred ones to `blurred`, as PNG."""
    lines = (panoramas / "captions.jsonl").read_text("utf-8").splitlines()[:count]
    for name in ("real", "blurred"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index, line in enumerate(lines):
        pixels = cv2.imread(str(panoramas / json.loads(line)["file"]))[..., ::-1].copy()
        panorama = torch.from_numpy(pixels).permute(2, 0, 1) / 255
        for number, view in enumerate(render_views(panorama, PROTOCOLS["azimuth8"].views(index), SIZE)):
            levels = (view.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1]
            cv2.imwrite(str(folder / f"real/{index:03d}_{number}.png"), levels)
            cv2.imwrite(str(folder / f"blurred/{index:03d}_{number}.png"), cv2.GaussianBlur(levels, None, sigma))


def read(folder: Path, batch: int = 25) -> Iterator[Tensor]:
    """Batches of a folder's images (N, 3, H, W) in [0, 1], in the order of their names."""
    files = sorted(folder.glob("*.png"))
    for start in range(0, len(files), batch):
        images = np.stack([cv2.imread(str(file))[..., ::-1] for file in files[start : start + batch]])
        yield torch.from_numpy(images).permute(0, 3, 1, 2) / 255


class Unloaded(InceptionV3):
    """The network without weights from a file."""

    def _load(self, file: Path) -> None:
        """Keeps the initial ones."""


def write_random_weights(folder: Path) -> Path:
    """Writes weights that give features of the usual size, as torch-fidelity's file has them."""
    torch.manual_seed(0)
    network = Unloaded("")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics are means over all batches
    network.fc.weight *= 10
    network.train()
    for batch in read(folder / "real"):
        network(batch)
    file = folder / "random.pth"
    torch.save(network.state_dict(), file)
    return file


def by_cubediff(features: Features) -> dict[str, float]:
    real, blurred, logits = features
    return {
        "FID": frechet_distance(real, blurred),
        f"FID, first {FEW} features": frechet_distance(real[:, :FEW], blurred[:, :FEW]),
        "KID × 100": kernel_distance(real, blurred, subsets=1, subset_size=len(real)),
        "Inception score": inception_score(logits, splits=1),
    }


def others(features: Features, folder: Path, weights: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Each installed package with its values."""
    yield f"torchmetrics {found('torchmetrics')}", by_torchmetrics(features)
    for module, package in (("torch_fidelity", "torch-fidelity"), ("cleanfid", "clean-fid")):
        if find_spec(module) is None:
            print(f"{package} is not installed")
        elif module == "torch_fidelity":
            yield f"{package} {found(package)}", by_torch_fidelity(features, folder, weights)
        else:
            yield f"{package} {found(package)}", by_clean_fid(features)


class Given(nn.Identity):
    """Stands for torchmetrics' network: it is given features."""

    num_features = FEW


def by_torchmetrics(features: Features) -> dict[str, float]:
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=Given())
    metric.update(features.real[:, :FEW].double(), real=True)
    metric.update(features.blurred[:, :FEW].double(), real=False)
    return {f"FID, first {FEW} features": metric.compute().item()}


def by_torch_fidelity(features: Features, folder: Path, weights: Path) -> dict[str, float]:
    from torch_fidelity import calculate_metrics
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    values = calculate_metrics(
        input1=str(folder / "blurred"),
        input2=str(folder / "real"),
        fid=True,
        kid=True,
        isc=True,
        kid_subsets=1,
        kid_subset_size=len(features.real),
        isc_splits=1,
        feature_extractor_weights_path=str(weights),
        batch_size=25,
        cuda=False,
        cache=False,
        verbose=False,
    )
    few = [fid_features_to_statistics(each[:, :FEW]) for each in (features.real, features.blurred)]
    return {
        "FID": values["frechet_inception_distance"],
        f"FID, first {FEW} features": fid_statistics_to_metric(*few, verbose=False)["frechet_inception_distance"],
        "KID × 100": 100 * values["kernel_inception_distance_mean"],
        "Inception score": values["inception_score_mean"],
    }


def by_clean_fid(features: Features) -> dict[str, float]:
    from cleanfid.fid import fid_from_feats, kernel_distance

    real, blurred = (each.double().numpy() for each in (features.real, features.blurred))
    return {
        "FID": float(fid_from_feats(real, blurred)),
        f"FID, first {FEW} features": float(fid_from_feats(real[:, :FEW], blurred[:, :FEW])),
        "KID × 100": 100 * kernel_distance(real, blurred, num_subsets=1, max_subset_size=len(real)),
    }


def found(package: str) -> str:
    """The version of an installed package, "?" for one that runs from its source."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


if __name__ == "__main__":
    main()
