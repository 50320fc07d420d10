"""Measures which metric sees which corruption of real panoramas, against a table that was written before.

    python experiments/metrics/sensitivity.py data/samples OUTPUT [--model MODEL]

Legend: N panoramas, 6 faces, S face size, H and W height and width of a panorama.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from corruptions import FACES_FIRST, FOV, OF_THE_SET, STRENGTHS, Corruptor
from sensitivity_report import figure, tables
from torch import Tensor
from tqdm import tqdm

from cubediff import CubeDiffPipeline
from cubediff.evaluation.consistency import METRICS, value_of
from cubediff.evaluation.distances import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    omnifid,
    precision_recall,
)
from cubediff.evaluation.extractors import EfficientNetLite0
from cubediff.evaluation.intervals import bootstrap, paired_difference
from cubediff.evaluation.measures import FACES, PANORAMAS
from cubediff.evaluation.measures import metric as metric_of
from cubediff.evaluation.perceptual import perceptual_distance
from cubediff.evaluation.views import PROTOCOLS, render_views

# Written before anything was measured, and not changed since: + rises, - falls, = stays, ? open, . not measured.
EXPECTED = """
                                brightness blur_face shift flip noise grey jpeg blur ramp cut scenes
overlap_rms                     +          +         +     +    +     -    ?    -    =    =   .
overlap_psnr                    -          -         -     -    -     +    ?    +    =    =   .
overlap_ssim                    -          -         -     -    -     +    ?    +    =    =   .
overlap_relative                +          +         +     +    +     +    =    +    =    =   .
colour_step                     +          +         +     +    +     -    =    -    =    =   .
edge_step                       +          +         +     +    +     -    ?    -    =    =   .
edge_ratio                      +          +         +     +    +     =    =    =    -    -   .
corner_rms                      +          +         +     +    +     -    ?    -    =    =   .
step_beyond_overlap             +          =         ?     +    =     =    =    =    -    =   .
sharpness                       =          -         =     =    +     -    ?    -    =    =   .
erp_wrap                        =          =         =     =    +     =    +    =    +    +   .
discontinuity_border            =          =         =     =    +     -    +    -    +    +   .
discontinuity_public_code       =          =         =     =    +     -    ?    -    =    =   .
discontinuity_edges             +          +         +     +    +     -    ?    -    =    =   .
perceptual_efficientnet_lite0   +          +         +     +    +     +    +    +    +    +   .
fd                              +          +         =     =    +     +    +    +    =    =   +
kd                              +          +         =     =    +     +    +    +    =    =   +
precision                       -          -         =     =    -     -    -    -    =    =   =
recall                          ?          ?         =     =    -     -    -    -    =    =   -
density                         -          -         =     =    -     -    -    -    =    =   =
coverage                        -          -         =     =    -     -    -    -    =    =   -
omnifd                          +          +         =     =    +     +    +    +    =    =   +
omnifd_pooled_sides             +          +         =     =    +     +    +    +    =    =   +
omnifd_pooled                   +          +         =     =    +     +    +    +    =    =   +
"""

CODES = {"+": "rises", "-": "falls", "=": "stays", "?": "open"}
VIEWS = [*PROTOCOLS["azimuth8"].views(0), *PROTOCOLS["faces"].views(0)[4:]]  # the four side faces are views of azimuth8
PERCEPTUAL = "perceptual_efficientnet_lite0"
AZIMUTH8, SIX = list(range(8)), [0, 2, 4, 6, 8, 9]
Cell = list[list[float]]  # value, low and high of the clean set and of the five strengths


def judged(cells: dict[str, dict[str, Cell]]) -> dict[str, dict[str, Any]]:
    """The values with what was expected and what was measured."""
    return {
        kind: {
            metric: {"expected": expected()[kind][metric], "measured": verdict(cell), "values": cell}
            for metric, cell in of.items()
        }
        for kind, of in cells.items()
    }


def expected() -> dict[str, dict[str, str]]:
    """EXPECTED as corruption → metric → word, without what is not measured."""
    header, *rows = (line.split() for line in EXPECTED.strip().splitlines())
    return {
        corruption: {metric: CODES[codes[i]] for metric, *codes in rows if codes[i] in CODES}
        for i, corruption in enumerate(header)
    }


def verdict(cell: Cell) -> str:
    """How the values of five strengths relate to the clean one: rises, falls, stays or neither (see the README)."""
    values = [value for value, _, _ in cell]
    low, high = cell[0][1:]
    steps = list(itertools.pairwise(values))
    if all(low <= value <= high for value in values[1:]):
        return "stays"
    if values[-1] > high and all(a <= b for a, b in steps):
        return "rises"
    if values[-1] < low and all(a >= b for a, b in steps):
        return "falls"
    return "neither"


def features_of(extractor: EfficientNetLite0, panoramas: list[Tensor]) -> Tensor:
    """(N, views, D)."""
    views = (render_views(panorama[0], VIEWS, 224) for panorama in panoramas)
    return torch.stack([extractor(each.to(memory_format=torch.channels_last)).contiguous() for each in views])


def distances(real: Tensor, other: Tensor) -> dict[str, float]:
    """Distances of features (N, views, D) of two sets."""
    images = [each[:, AZIMUTH8].flatten(0, 1) for each in (real, other)]
    precision, recall = precision_recall(images[0], images[1])
    density, coverage = density_coverage(images[0], images[1])
    readings = omnifid(real[:, SIX], other[:, SIX])
    return {
        "fd": frechet_distance(images[0], images[1]),
        "kd": kernel_distance(images[0], images[1], subsets=1),
        **{"precision": precision, "recall": recall, "density": density, "coverage": coverage},
        **{name.replace("omnifid", "omnifd"): value for name, value in readings.items()},
    }


def drawn_distances(real: Tensor, other: Tensor, draws: int, share: float = 1) -> dict[str, list[float]]:
    """Mean, low and high over draws of halves; the second half repeats a share of its scenes."""
    generator, half = torch.Generator().manual_seed(0), len(real) // 2
    scenes = max(1, round(share * half))
    drawn = []
    for _ in range(draws):
        first, second = (torch.randperm(len(each), generator=generator)[:half] for each in (real, other))
        drawn.append(distances(real[first], other[second[:scenes].repeat(half)[:half]]))
    values = {name: torch.tensor([each[name] for each in drawn], dtype=torch.float64) for name in drawn[0]}
    levels = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return {name: [value.mean().item(), *value.quantile(levels).tolist()] for name, value in values.items()}


def generated(model: Path, captions: list[str], average: bool) -> Tensor:
    """Faces of one panorama of each caption, in [0, 1]."""
    pipeline = CubeDiffPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(
        [[caption] * 6 for caption in captions],
        num_inference_steps=10,
        generator=[torch.Generator().manual_seed(i) for i in range(len(captions))],
        output_type="pt",
        average_overlap=average,
    )
    return output.faces.clamp(-1, 1) / 2 + 0.5


def reconstructed(model: Path, faces: Tensor) -> Tensor:
    backbone = CubeDiffPipeline.from_pretrained(model).backbone
    parts = [backbone.decode(backbone.encode(part * 2 - 1)) for part in faces.split(5)]
    return torch.cat(parts).clamp(-1, 1) / 2 + 0.5


def compared(sets: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The relative overlap of sets of faces of the same scenes, and its difference from the first set, of real ones."""
    metric, real = METRICS["overlap_relative"], next(iter(sets.values()))
    rows = {}
    for name, faces in sets.items():
        own, other = (metric.terms(each, FOV) for each in (real[: len(faces)], faces))
        beside = ("overlap_rms", "sharpness")
        rows[name] = {
            "panoramas": len(faces),
            "overlap_relative": list(bootstrap(metric, other)[:3]),
            "difference": list(paired_difference(metric, own, other)[:3]),
            **{each: value_of(METRICS[each], METRICS[each].terms(faces, FOV)) for each in beside},
        }
    return rows


def rounded(tree: Any) -> Any:
    """Numbers with five digits."""
    if isinstance(tree, dict):
        return {name: rounded(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [rounded(value) for value in tree]
    return float(f"{tree:.5g}") if isinstance(tree, float) else tree


def lines(tree: dict[str, Any], depth: int = 2) -> str:
    """JSON with a line for each entry of the inner dicts."""
    if depth == 0 or not all(isinstance(value, dict) for value in tree.values()):
        return json.dumps(tree)
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {lines(value, depth - 1)}" for name, value in tree.items()) + "\n}"


class Experiment:
    """Measures corruptions of panoramas (1, 3, H, W).

    Attributes:
        sets: Faces by name: the real ones, and the strongest of each corruption that was measured.
    """

    def __init__(self, panoramas: list[Tensor], draws: int) -> None:
        self.corrupt, self.draws = Corruptor(panoramas), draws
        self.extractor = EfficientNetLite0().to(memory_format=torch.channels_last)
        self.sets = {"real": self.corrupt.faces}
        self._clean: dict[bool, tuple[Tensor, dict[str, list[float]]]] = {}

    def clean(self, kind: str) -> tuple[Tensor, dict[str, list[float]]]:
        """Features and values of the clean set of a corruption."""
        if (kind in FACES_FIRST) not in self._clean:
            faces, panoramas = self.corrupt(kind, None)
            features = features_of(self.extractor, panoramas)
            values = self.values(faces, panoramas) | drawn_distances(features, features, self.draws)
            self._clean[kind in FACES_FIRST] = features, values
        return self._clean[kind in FACES_FIRST]

    def values(self, faces: Tensor, panoramas: list[Tensor]) -> dict[str, list[float]]:
        """Value, low and high of the metrics of single panoramas."""
        terms = {name: metric.terms(faces, FOV) for name, metric in FACES.items()}
        for name, metric in PANORAMAS.items():
            terms[name] = torch.cat([metric.terms(panorama, FOV) for panorama in panoramas])
        fronts = zip(faces[:, 0].split(5), self.corrupt.faces[:, 0].split(5), strict=True)
        terms[PERCEPTUAL] = torch.cat([perceptual_distance(self.extractor, *pair) for pair in fronts])[:, None]
        return {name: list(bootstrap(metric_of(name), each)[:3]) for name, each in terms.items()}

    def cells(self, kind: str) -> dict[str, Cell]:
        """The values of all metrics for a corruption."""
        features, values = self.clean(kind)
        rows = [values]
        for strength in tqdm(STRENGTHS[kind], desc=kind):
            if kind in OF_THE_SET:
                rows.append(drawn_distances(features, features, self.draws, strength))
                continue
            faces, panoramas = self.corrupt(kind, strength)
            other = features_of(self.extractor, panoramas)
            rows.append(self.values(faces, panoramas) | drawn_distances(features, other, self.draws))
            self.sets[kind] = faces
        return {metric: [row[metric] for row in rows] for metric in rows[-1]}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("panoramas", type=Path, help="folder with captions.jsonl")
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", type=Path, help="adds reconstructions and generated panoramas to the second table")
    parser.add_argument("--first", type=int, default=25, help="panoramas")
    parser.add_argument("--draws", type=int, default=20, help="halves of the scenes for distances")
    parser.add_argument("--corruptions", nargs="*", choices=STRENGTHS, default=list(STRENGTHS))
    args = parser.parse_args()

    records = [json.loads(x) for x in (args.panoramas / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    panoramas = []
    for record in records[: args.first]:
        with PIL.Image.open(args.panoramas / record["file"]) as image:
            panoramas.append(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255)
    experiment = Experiment(panoramas, args.draws)
    cells = {kind: experiment.cells(kind) for kind in args.corruptions}
    sets = experiment.sets | {"uniform grey": torch.full_like(experiment.sets["real"], 0.5)}
    if args.model:
        captions = [record["caption"] for record in records[: args.first]][:8]
        sets["reconstructed by the autoencoder"] = reconstructed(args.model, sets["real"])
        sets["generated"] = generated(args.model, captions, average=False)
        sets["generated, average_overlap"] = generated(args.model, captions, average=True)
    results = {
        "settings": {"panoramas": len(panoramas), "draws": args.draws, "half": len(panoramas) // 2},
        "strengths": {kind: list(STRENGTHS[kind]) for kind in args.corruptions},
        "cells": judged(rounded(cells)),
        "relative": rounded(compared(sets)),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "metrics.json").write_text(lines(results, 3) + "\n")
    figure(results).save(args.output / "sensitivity.png", optimize=True)
    print(tables(results))


if __name__ == "__main__":
    main()
