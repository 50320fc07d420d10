"""Trains and evaluates variants of cubediff_tiny at a small budget, one after the other or several at once.

    python experiments/ablations/screen.py SHARDS PANORAMAS OUTPUT [--steps N] [--seeds N …] [--jobs N]
        [--variants NAME …]

Every variant starts from the same 2D weights and trains with one thread on latents that `cubediff cache` encoded. The
same command again continues; a finished part is not repeated. Adds every finished run to OUTPUT/metrics.json, beside
those of other calls, and prints the table of all.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# What every variant replaces parts of: the paper's method, on which experiment=cubediff_tiny improves.
PLAIN = ("objective=paper", "fov=95.0", "model.pipeline.inflate=all", "model.pipeline.conv_padding=zeros")
ZERO_SNR = "objective=zero_snr"
PLAIN_VAE = "model.pipeline.sync_vae_group_norm=false"
# Overrides of `cubediff train experiment=cubediff_tiny`. All but the first three have zero terminal SNR.
VARIANTS: dict[str, tuple[str, ...]] = {
    "epsilon, the paper's objective": (),
    "epsilon, Min-SNR": ("objective=min_snr",),
    "velocity": ("objective=v_prediction",),
    "velocity, zero SNR": (ZERO_SNR,),
    "4 × SNR": (ZERO_SNR, "variant=less_noise"),
    "1/4 × SNR": (ZERO_SNR, "variant=more_noise"),
    "neighbours as padding": (ZERO_SNR, "model.pipeline.conv_padding=faces"),
    "overlap term 0.1": (ZERO_SNR, "model.objective.overlap_weight=0.1"),
    "overlap term 1": (ZERO_SNR, "model.objective.overlap_weight=1.0"),
    "xyz positions": (ZERO_SNR, "variant=xyz"),
    "norms per face": (ZERO_SNR, "variant=plain_unet_norm"),
    "autoencoder's norms per face": (ZERO_SNR, PLAIN_VAE),
    "all norms per face": (ZERO_SNR, "variant=plain_unet_norm", PLAIN_VAE),
    "joint cross-attention": (ZERO_SNR, "variant=joint_cross_attention"),
    "attention below the top": (ZERO_SNR, "model.pipeline.inflate=below_top"),
    "attention pooled at the top": (ZERO_SNR, "model.pipeline.inflate=pooled_top"),
    "attention layers trained": (ZERO_SNR, "model.trainable=attention"),
    "faces of 90°": (ZERO_SNR, "fov=90.0"),
    "faces of 100°": (ZERO_SNR, "fov=100.0"),
    "faces of 110°": (ZERO_SNR, "fov=110.0"),
    "faces of 118°": (ZERO_SNR, "fov=118.0"),
}
METRICS = ("overlap_rms", "step_beyond_overlap", "sharpness", "retrieval_psnr")
FIELDS = ("value", "low", "high", "n")  # of a metric, the interval and the number of panoramas
CONDITIONS = ("text", "photo")
Measured = dict[str, dict[str, dict[str, float]]]  # by condition, metric and field of metrics.json
Run = dict[str, Any]  # "variant", "seed", and the values of each condition


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, metavar="SHARDS")
    parser.add_argument("panoramas", type=Path, metavar="PANORAMAS")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1, help="variants that train at the same time")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for name in args.variants:
        cached(args, name)
    runs = [(name, seed) for name in args.variants for seed in args.seeds]
    results = Results(args.output / "metrics.json", args.steps)
    with ThreadPoolExecutor(args.jobs) as pool:
        for (name, seed), found in zip(runs, pool.map(lambda run: measure(args, *run), runs), strict=True):
            results.add({"variant": name, "seed": seed, **found})
    print(table(results.runs))


class Results:
    """The runs that metrics.json holds, in the order of the variants and seeds."""

    def __init__(self, file: Path, steps: int) -> None:
        self.file, self.steps = file, steps
        content = json.loads(file.read_text()) if file.is_file() else {"steps": steps, "runs": []}
        if content["steps"] != steps:
            raise SystemExit(f"{file} holds runs of {content['steps']} steps, not {steps}: choose another OUTPUT")
        self.runs: list[Run] = content["runs"]

    def add(self, run: Run) -> None:
        """Adds a run, or replaces the same one, and writes the file."""
        kept = [each for each in self.runs if (each["variant"], each["seed"]) != (run["variant"], run["seed"])]
        names = list(VARIANTS)
        self.runs = sorted([*kept, run], key=lambda each: (names.index(each["variant"]), each["seed"]))
        self.file.write_text(json.dumps({"steps": self.steps, "runs": self.runs}, indent=1) + "\n")


def cached(args: argparse.Namespace, variant: str) -> Path:
    """The latents that a variant trains on: 12 random rotations of every panorama."""
    words = [word for word in overrides(variant) if word.startswith("fov=") or word == PLAIN_VAE]
    latents: Path = args.output / "_".join(["latents", *(word.rpartition("=")[2] for word in words)])
    if not (latents / "manifest.json").is_file():
        shards = (f"data.path={args.shards}", f"cache.output={latents}", "cache.turns=12")
        run("cache", "experiment=cubediff_tiny", *shards, *words)
    return latents


def measure(args: argparse.Namespace, variant: str, seed: int) -> Measured:
    """Trains and evaluates one variant with one seed; returns the metrics by condition."""
    name = "".join(letter if letter.isalnum() else "_" for letter in variant)
    folder: Path = args.output / f"{args.steps}_steps" / f"{name}_{seed}"
    latents = cached(args, variant)
    if not (folder / "export" / "model_index.json").is_file():
        run(
            "train",
            "experiment=cubediff_tiny",
            *("data=latents", f"data.path={latents}", "data.num_workers=0"),
            *(f"trainer.max_steps={args.steps}", f"seed={seed}", f"run_dir={folder}", "callbacks.samples=null"),
            *overrides(variant),
        )
    found: Measured = {}
    for condition in CONDITIONS:
        output = folder / condition
        if not (output / "metrics.json").is_file():
            run(
                "evaluate",
                *(f"pipeline={folder}/export", f"reference={args.panoramas}", f"output={output}"),
                *(f"condition={condition}", f"metrics=[{','.join(METRICS)}]", f"cache={args.output}/cache"),
                *("generate.steps=25", "generate.batch=5", "generate.average_overlap=false"),
            )
        measured = json.loads((output / "metrics.json").read_text())["metrics"]
        found[condition] = {name: {field: measured[name][field] for field in FIELDS} for name in METRICS}
    return found


def overrides(variant: str) -> list[str]:
    """The overrides of a variant, each key once."""
    words = {word.partition("=")[0]: word for word in (*PLAIN, *VARIANTS[variant])}
    return list(words.values())


def run(command: str, *words: str) -> None:
    """Runs `python -m cubediff.COMMAND` with one thread; exits with its messages if it fails."""
    process = subprocess.run(
        [sys.executable, "-m", f"cubediff.{command}", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise SystemExit(f"{command} {' '.join(words)}\n{process.stderr[-4000:]}")
    print(f"{command} {' '.join(words)}", file=sys.stderr, flush=True)


def table(runs: Sequence[Run]) -> str:
    """A row for every run and condition."""
    lines = [f"| variant | {' | '.join(METRICS)} |", "|---" * (1 + len(METRICS)) + "|"]
    several = len({run["seed"] for run in runs}) > 1
    for run in runs:
        seed = f", seed {run['seed']}" if several else ""
        for condition in CONDITIONS:
            values = " | ".join(cell(run[condition][metric]) for metric in METRICS)
            lines.append(f"| {run['variant']}{seed}, from a {condition} | {values} |")
    return "\n".join(lines)


def cell(estimate: dict[str, float]) -> str:
    """A value with its interval."""
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


if __name__ == "__main__":
    main()
