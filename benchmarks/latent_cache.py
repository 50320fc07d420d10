"""Compares training on cached latents with training that encodes: speed and memory of `experiment=tiny_cpu`.

    python benchmarks/latent_cache.py [STEPS]

The two runs train one after the other, each in its own process, on the panoramas of data/samples.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# An allocator that returns memory at once, so that the peak is the memory in use.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def run(command: str, *arguments: str) -> None:
    """Runs `python -m cubediff.COMMAND` in the checkout; exits with its messages if it fails."""
    process = subprocess.run(
        [sys.executable, "-m", f"cubediff.{command}", *arguments],
        cwd=ROOT,
        env=os.environ | ALLOCATOR,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        sys.exit(process.stderr)


def train(run_dir: Path, steps: int, *overrides: str) -> dict[str, float]:
    """Trains and returns the median speed and the peak memory of the process, which StepMetrics logs."""
    quiet = ("trainer.limit_val_batches=0", "callbacks.samples=null", "callbacks.ema=null")
    words = (f"run_dir={run_dir}", f"trainer.max_steps={steps}", "trainer.log_every_n_steps=1", *quiet, *overrides)
    run("train", "experiment=tiny_cpu", *words)
    with (run_dir / "logs" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["perf/step_s"]]
    return {
        "steps/s": 1 / statistics.median(float(row["perf/step_s"]) for row in rows),
        "peak GiB": max(float(row["perf/peak_memory_gib"]) for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=int, nargs="?", default=20)
    steps: int = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards, latents = folder / "shards", folder / "latents"
        run("prepare", "data/samples", str(shards), "--captions", "data/samples/captions.jsonl", "--val-fraction", "0")
        run("cache", "experiment=tiny_cpu", f"data.path={shards}", f"cache.output={latents}")
        encoding = train(folder / "encoding", steps, f"data.path={shards}")
        cached = train(folder / "cached", steps, "data=latents", f"data.path={latents}", "data.num_workers=0")
        size = sum(file.stat().st_size for file in latents.iterdir())
    report = {
        "encoding": encoding,
        "cached": cached,
        "speed, cached / encoding": cached["steps/s"] / encoding["steps/s"],
        "MB of latents": size / 1e6,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
