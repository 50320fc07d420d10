"""Measures what `average_overlap` adds to a sampling step on the CPU.

    python benchmarks/average_overlap.py [THREADS] [--rounds N] [--steps N] [--model FOLDER]

Calls of the pipeline with and without it take turns; both evaluate the network equally often, and end in latents. Times
are CPU milliseconds, which other programs on the machine disturb least. A ratio is the time with it divided by that
without it in the same round: its median and quartiles over the rounds are printed. Then the average alone is timed, on
the 64 × 64 latents of Stable Diffusion.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler

from cubediff import CubeDiffPipeline
from cubediff.diffusion.overlap_average import OverlapAverage

MODEL = Path(__file__).parents[1] / "experiments" / "cubediff_tiny" / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("threads", type=int, nargs="?", default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--model", type=Path, default=MODEL)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipeline = CubeDiffPipeline.from_pretrained(args.model)
    pipeline.set_progress_bar_config(disable=True)
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(args.rounds + 1):  # the first round fills caches
        for average, laps in times.items():
            start = time.process_time()
            pipeline("a hall", num_inference_steps=args.steps, output_type="latent", average_overlap=average)
            laps.append((time.process_time() - start) / args.steps * 1e3)
    without, averaged = (times[average][1:] for average in (False, True))
    ratios = [b / a for a, b in zip(without, averaged, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    print(f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds of {args.steps} steps")
    print(f"a step, CPU time: {statistics.median(without):.1f} ms without, {statistics.median(averaged):.1f} ms with")
    print(f"ratio: median {median:.3f}, quartiles {low:.3f} to {high:.3f}")
    print(f"the average alone, latents of 64 × 64: {average_alone():.1f} ms")


def average_alone(rounds: int = 30) -> float:
    """The median time of the average on one panorama, in ms."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(50)
    latents = torch.randn(1, 6, 4, 64, 64)
    average = OverlapAverage(scheduler, 95.0, latents, torch.zeros(1, 6, 1, 64, 64, dtype=torch.bool))
    laps = []
    for _ in range(rounds + 1):
        start = time.process_time()
        average(latents, latents, scheduler.timesteps[0], 0)
        laps.append((time.process_time() - start) * 1e3)
    return statistics.median(laps[1:])


if __name__ == "__main__":
    main()
