"""Compares samplers, steps and guidance intervals with 50 guided DDIM steps, to choose the presets of `generate`.

    python experiments/presets/choose.py MODEL PANORAMAS OUTPUT [--repetitions N] [--settings NAME …]

`cubediff evaluate` generates one panorama of each caption in every repetition, with the same noise for all settings,
and measures it. The same command again resumes, also with more repetitions or settings.

Legend: P generations, V views of each, D features.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from cubediff import CubeDiffPipeline
from cubediff.diffusion.schedulers import use_sampler_
from cubediff.evaluation import measures
from cubediff.evaluation.consistency import value_of
from cubediff.evaluation.distances import kernel_distance
from cubediff.evaluation.features import read_features
from cubediff.evaluation.intervals import Estimate, paired_difference, paired_halves
from cubediff.evaluation.results import Stored
from cubediff.runs.evaluation.run import evaluated

EXTRACTOR, PROTOCOL = "efficientnet_lite0", "azimuth8"
KERNEL = f"kd_{EXTRACTOR}"
MEANS = {"overlap_rms": "lower", "retrieval_psnr": "higher", f"retrieval_{EXTRACTOR}": "higher"}
MARGIN = 0.05  # of the reference's value, that a metric may be worse by
INTERVAL = (0.2, 0.9)  # of the steps: where Stable Diffusion's noise levels are about 0.28 to 5.42 (arXiv 2404.07724)
SEEDS = 1000  # between repetitions


@dataclass(frozen=True)
class Setting:
    """Options of `generate` that a preset has."""

    sampler: str
    steps: int
    guidance_scale: float = 3.5
    guidance_start: float = 0.0
    guidance_stop: float = 1.0

    @property
    def predictions(self) -> int:
        """Branches that the network predicts for a panorama."""
        guided = range(int(self.guidance_start * self.steps), int(self.guidance_stop * self.steps))
        return self.steps + len(guided)


REFERENCE = "ddim_50"
SETTINGS = {REFERENCE: Setting("ddim", 50)} | {
    f"{sampler}_{steps}{suffix}": Setting(sampler, steps, 3.5, *interval)
    for sampler in ("dpm", "unipc", "euler")
    for steps in (8, 10, 15, 20)
    for suffix, interval in (("", (0.0, 1.0)), ("_interval", INTERVAL))
}


@dataclass(frozen=True)
class Measured:
    """What was measured of the generations of a setting, all repetitions together."""

    terms: dict[str, Tensor]  # (P, K)
    features: Tensor  # (P, V, D)
    real: Tensor  # (Q, V, D), of the panoramas


def measure(name: str, args: argparse.Namespace) -> Measured:
    """Evaluates the repetitions of a setting that have not been evaluated yet."""
    stored = [
        _evaluated(SETTINGS[name], repetition, args.output / name, args) for repetition in range(args.repetitions)
    ]
    features = [read_features(each.folder / "features", f"{EXTRACTOR}_{PROTOCOL}") for each in stored]
    key = stored[0].metrics["extractors"][EXTRACTOR]["features"][PROTOCOL]["reference"]
    real = read_features(args.output / "cache", key)
    assert real is not None
    terms = {metric: torch.cat([each.terms[metric] for each in stored]) for metric in MEANS}
    return Measured(terms, torch.cat([each for each in features if each is not None]), real)


def _evaluated(setting: Setting, repetition: int, folder: Path, args: argparse.Namespace) -> Stored:
    values = {
        "pipeline": str(args.model),
        "reference": str(args.panoramas),
        "cache": str(args.output / "cache"),
        "seed": SEEDS * repetition,
        "count": args.count,
        "protocol": PROTOCOL,
        "metrics": [*MEANS, KERNEL],
        "intervals": {"panoramas": 1, "halves": 1},
        "generate": {**asdict(setting), "batch": args.batch},
    }
    return evaluated(values, folder / f"{repetition:02d}")


def differences(reference: Measured, other: Measured) -> dict[str, dict[str, float | bool]]:
    """By how much a setting exceeds the reference in each metric, with the 95 % interval over generations."""
    rows = {}
    for name, better in MEANS.items():
        metric, terms = measures.metric(name), (reference.terms[name], other.terms[name])
        values = [value_of(metric, each) for each in terms]
        rows[name] = _row(values, paired_difference(metric, *terms), better)
    real, sets = reference.real.flatten(0, 1), (reference.features, other.features)

    def difference(_: Tensor, chosen: Tensor) -> float:
        first, second = (kernel_distance(real, each[chosen].flatten(0, 1), subsets=10) for each in sets)
        return second - first

    values = [kernel_distance(real, each.flatten(0, 1)) for each in sets]
    count = len(sets[0])
    rows[KERNEL] = _row(values, paired_halves(difference, (count, count)), "lower")
    return rows


def _row(values: list[float], estimate: Estimate, better: str) -> dict[str, float | bool]:
    first, second = values
    worst = estimate.high if better == "lower" else -estimate.low
    return {
        "reference": first,
        "value": second,
        "difference": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "holds": worst <= MARGIN * abs(first),
    }


def seconds(args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """CPU seconds of a generation with each setting in turn, as often as asked for; other processes hardly change them.

    With OMP_NUM_THREADS=1 they are seconds of one core.
    """
    pipeline = CubeDiffPipeline.from_pretrained(args.model)
    pipeline.set_progress_bar_config(disable=True)
    pipeline("a hall", num_inference_steps=1)  # creates cached tensors
    for repetition in range(args.timed):
        for name in dict.fromkeys([REFERENCE, *args.settings]):
            options = asdict(SETTINGS[name])
            use_sampler_(pipeline, options.pop("sampler"))
            generator, start = torch.Generator().manual_seed(repetition), time.process_time()
            pipeline("a hall", num_inference_steps=options.pop("steps"), generator=generator, **options)
            yield name, time.process_time() - start


def table(results: dict[str, dict[str, dict[str, float | bool]]], times: dict[str, list[float]]) -> str:
    """The results in Markdown; † marks a difference that may be worse than the margin."""
    metrics = [*MEANS, KERNEL]
    median = {name: torch.tensor(each).median().item() for name, each in times.items()}
    lines = [f"| setting | predictions | seconds | faster | {' | '.join(f'`{name}`' for name in metrics)} |"]
    lines.append("|---" * (4 + len(metrics)) + "|")
    for name, rows in results.items():
        cells = [
            f"{row['value']:.3g} ({row['low']:+.2g} to {row['high']:+.2g}){'' if row['holds'] else ' †'}"
            for row in (rows[metric] for metric in metrics)
        ]
        faster = median[REFERENCE] / median[name]
        lines.append(
            f"| `{name}` | {SETTINGS[name].predictions} | {median[name]:.2f} | {faster:.1f}× | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("panoramas", type=Path, help="folder with captions.jsonl")
    parser.add_argument("output", type=Path)
    parser.add_argument("--repetitions", type=int, default=8, help="generations of each caption")
    parser.add_argument("--count", type=int, help="captions, at least 4; all of the folder by default")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--timed", type=int, default=5, help="generations to time with each setting")
    parser.add_argument("--batch", type=int, default=1, help="panoramas that are sampled at once")
    args = parser.parse_args()

    reference, results, times = measure(REFERENCE, args), {}, dict[str, list[float]]()
    for name in args.settings:
        results[name] = differences(reference, measure(name, args))
        print(name, json.dumps(results[name]), flush=True)
    with torch.inference_mode():
        for name, each in seconds(args):
            times.setdefault(name, []).append(each)
    content = {
        "settings": {name: {**asdict(SETTINGS[name]), "predictions": SETTINGS[name].predictions} for name in results},
        "generations": len(reference.features),
        "seconds": times,
        "metrics": results,
    }
    (args.output / "presets.json").write_text(json.dumps(content, indent=2) + "\n")
    print(table(results, times))


if __name__ == "__main__":
    main()
