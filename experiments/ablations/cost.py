"""Compares the time of a training step of each variant of screen.py with that of "velocity, zero SNR".

    OMP_NUM_THREADS=1 python experiments/ablations/cost.py [--rounds N] [--batch B] [--variants NAME …]

In each round every variant takes one step from random latents, in random order: the loss, its gradients and the
optimizer. Times are CPU seconds; a ratio is a variant's time divided by the baseline's in the same round.
"""

import argparse
import random
import runpy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from tqdm import tqdm

from cubediff.configs import CONFIG_DIR, build

SCREEN = runpy.run_path(str(Path(__file__).with_name("screen.py")))
VARIANTS = SCREEN["VARIANTS"]
BASELINE = "velocity, zero SNR"
WARM_UP = 2  # rounds that are not counted
LATENT, CHANNELS, WIDTH = 16, 4, 128  # of the small Stable Diffusion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=2, help="panoramas of a step")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    args = parser.parse_args()
    names = [BASELINE, *(name for name in args.variants if name != BASELINE)]
    steps = {name: training_step(SCREEN["overrides"](name), args.batch) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in tqdm(range(-WARM_UP, args.rounds), unit="round"):
        for name in random.Random(number).sample(names, len(names)):  # what ran before has an effect
            begin = time.process_time()
            steps[name]()
            if number >= 0:
                seconds[name].append(time.process_time() - begin)
    print("| variant | seconds | / baseline (quartiles) |\n|---|---|---|")
    for name, each in seconds.items():
        low, median, high = statistics.quantiles([a / b for a, b in zip(each, seconds[BASELINE], strict=True)], n=4)
        print(f"| {name} | {statistics.median(each):.3f} | {median:.3f} ({low:.3f} to {high:.3f}) |")


def training_step(overrides: list[str], batch_size: int) -> Callable[[], None]:
    """A function that takes one step of a new model with these overrides."""
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        config = compose("train", ["experiment=cubediff_tiny", "data.path=SHARDS", *overrides])
    module = build(config.model)
    module.encode_null_text()
    parameters = list(module.trained_parameters.values())
    optimizer = module.optimizer(parameters)
    batch: dict[str, Any] = {
        "latents": torch.randn(batch_size, 6, CHANNELS, LATENT, LATENT),
        "text": {"text": torch.randn(batch_size, 6, 77, WIDTH)},
    }

    def step() -> None:
        module.compute_losses(batch, [(0, index) for index in range(batch_size)])["losses"].mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
