"""Compares ways of guidance that need no training, by how well the faces agree.

    python experiments/ablations/guidance.py MODEL PANORAMAS OUTPUT [--seeds N] [--ways NAME …] [--average]

- "scale S": classifier-free guidance.
- "interval": guidance of 3.5 from 0.2 to 0.9 of the steps (arXiv 2404.07724).
- "rescaled": guidance of 3.5, of the standard deviation of the conditioned prediction by 0.7 (arXiv 2305.08891).
- "projected": of 3.5, without the part along the conditioned clean latents (APG, arXiv 2410.02416).
- "per-face branch W": of 3.5, plus W times the difference between the conditioned prediction and one whose
  self-attention is of each face to itself (after STG, arXiv 2411.18664).

`cubediff evaluate` generates a panorama of each caption with every seed, with the same noise for all ways. The same
command again continues. Writes OUTPUT/metrics.json and prints the table.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import patch

import torch
from diffusers.guiders.adaptive_projected_guidance import normalized_guidance
from torch import Tensor

from cubediff.diffusion.schedulers import noise_level
from cubediff.evaluation import measures
from cubediff.evaluation.consistency import value_of
from cubediff.evaluation.intervals import paired_difference
from cubediff.models.backbone import Backbone
from cubediff.models.inflation import CubeAttnProcessor
from cubediff.pipelines import denoising
from cubediff.pipelines.denoising import BranchInputs, DenoisingInputs
from cubediff.runs.evaluation.run import evaluated

METRICS = ("overlap_rms", "colour_step", "step_beyond_overlap", "sharpness", "retrieval_psnr")
SCALE, STEPS, SEEDS = 3.5, 25, 1000  # SEEDS between repetitions
Predict = Callable[..., tuple[Tensor, ...]]
_predict: Predict = denoising._predict


def _per_face_attention() -> AbstractContextManager[object]:
    inflated = CubeAttnProcessor.__call__

    def attend(
        self: CubeAttnProcessor, attn: object, hidden: Tensor, text: Tensor | None = None, **more: object
    ) -> Tensor:
        return inflated(self, attn, hidden, text, **more) if text is not None else self.inner(attn, hidden)

    return patch.object(CubeAttnProcessor, "__call__", attend)


def per_face_branch(weight: float) -> Predict:
    def predict(*args: object) -> tuple[Tensor, ...]:
        *others, conditioned = _predict(*args)
        with _per_face_attention():
            *_, alone = _predict(*args)
        return (*others, conditioned + weight / SCALE * (conditioned - alone))  # `combine` multiplies it by SCALE

    return predict


def projected(
    backbone: Backbone, scaled: Tensor, t: Tensor, call: BranchInputs, inputs: DenoisingInputs
) -> tuple[Tensor]:
    """The guided noise prediction whose clean latents are guided; the scheduler predicts noise."""
    unconditioned, conditioned = _predict(backbone, scaled, t, call, inputs)
    step = int((inputs.scheduler.timesteps == t).nonzero()[0])
    alpha, sigma = noise_level(inputs.scheduler, inputs.scheduler.timesteps[step], step)
    clean = [(scaled - sigma * each) / alpha for each in (conditioned, unconditioned)]
    guided = normalized_guidance(*clean, SCALE - 1, eta=0.0, use_original_formulation=True)
    return ((scaled - alpha * guided) / sigma,)


WAYS: dict[str, tuple[dict[str, float], Predict]] = {
    f"scale {SCALE}": ({}, _predict),
    "scale 2": ({"guidance_scale": 2.0}, _predict),
    "scale 1": ({"guidance_scale": 1.0}, _predict),
    "interval": ({"guidance_start": 0.2, "guidance_stop": 0.9}, _predict),
    "rescaled": ({"guidance_rescale": 0.7}, _predict),
    "projected": ({}, projected),
    **{f"per-face branch {weight}": ({}, per_face_branch(weight)) for weight in (0.5, 1.0, 2.0)},
}


def measure(way: str, args: argparse.Namespace) -> dict[str, Tensor]:
    """Evaluates the seeds of a way that have not been evaluated yet; returns the terms of each metric."""
    options, predict = WAYS[way]
    sampling = {"guidance_scale": SCALE, "steps": STEPS, "batch": 5, "average_overlap": args.average}
    stored = []
    for seed in range(args.seeds):
        name = "".join(letter if letter.isalnum() else "_" for letter in way)
        output = args.output / ("averaged" if args.average else "as_sampled") / f"{name}_{seed}"
        values = {
            "pipeline": str(args.model),
            "reference": str(args.panoramas),
            "cache": str(args.output / "cache"),
            "seed": SEEDS * seed,
            "metrics": list(METRICS),
            "generate": {**sampling, **options},
        }
        with patch.object(denoising, "_predict", predict):
            stored.append(evaluated(values, output))
    return {metric: torch.cat([each.terms[metric] for each in stored]) for metric in METRICS}


def cell(metric: str, reference: Tensor, terms: Tensor) -> dict[str, float]:
    """A metric's value, and its difference from the reference with the 95 % interval over panoramas."""
    kind = measures.metric(metric)
    difference = paired_difference(kind, reference, terms)
    value = value_of(kind, terms)
    return {"value": value, "difference": difference.value, "low": difference.low, "high": difference.high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("panoramas", type=Path, metavar="PANORAMAS", help="folder with captions.jsonl")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--seeds", type=int, default=2, help="panoramas of each caption")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME")
    parser.add_argument("--average", action="store_true", help="average overlaps while sampling")
    args = parser.parse_args()
    measured = {way: measure(way, args) for way in args.ways}
    reference = measured[args.ways[0]]
    rows = {
        way: {metric: cell(metric, reference[metric], terms[metric]) for metric in METRICS}
        for way, terms in measured.items()
    }
    name = "averaged.json" if args.average else "as_sampled.json"
    (args.output / name).write_text(json.dumps({"seeds": args.seeds, "ways": rows}, indent=1) + "\n")
    print(f"| guidance | {' | '.join(f'`{metric}`' for metric in METRICS)} |\n" + "|---" * (1 + len(METRICS)) + "|")
    for way, row in rows.items():
        cells = (f"{each['value']:.3f} ({each['low']:+.3f} to {each['high']:+.3f})" for each in row.values())
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
