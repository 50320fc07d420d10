"""Measures what callbacks, logger and EMA add to a training step of `experiment=tiny_cpu`, within one run.

    python benchmarks/callbacks.py [BLOCKS [LOGGER [OVERRIDE …]]]

Blocks of ten steps (one of which is logged) alternate: all callbacks and the logger, then none. Validation, samples and
checkpoints are not part of a step and are disabled. Prints the CPU seconds of a step both ways, which other programs on
the machine disturb least, the ratio of their means, and the quartiles of the ratio of neighbouring blocks.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L

from cubediff.data import build_shards
from cubediff.runs.fit import fit

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from support.runs import composed  # type: ignore[import-not-found]  # noqa: E402

SAMPLES = ROOT / "data/samples"
BLOCK = 10  # steps, as many as trainer.log_every_n_steps
SECONDS: list[float] = []  # CPU seconds of a step, for each block


class AlternatingCallbacks(L.Callback):
    """Disables all other callbacks and the loggers in every second block, and times the blocks."""

    def __init__(self) -> None:
        self.started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.callbacks, self.loggers = list(trainer.callbacks), list(trainer.loggers)  # type: ignore[attr-defined]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        now = time.process_time()
        if trainer.global_step % BLOCK == 0:
            if trainer.global_step > BLOCK:  # the first block includes one-time costs
                SECONDS.append((now - self.started) / BLOCK)
            enabled = trainer.global_step // BLOCK % 2 == 1
            trainer.callbacks = self.callbacks if enabled else [self]  # type: ignore[attr-defined]
            trainer.loggers = self.loggers if enabled else []
            self.started = time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("blocks", type=int, nargs="?", default=20, help="blocks with callbacks; as many run without")
    parser.add_argument("logger", nargs="?", default="csv", help="csv, tensorboard or wandb")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    args = parser.parse_args()
    os.environ.setdefault("WANDB_MODE", "offline")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run.mkdir()
        build_shards(SAMPLES, Path(folder) / "shards", SAMPLES / "captions.jsonl", val_fraction=0.0)
        overrides = [
            "experiment=tiny_cpu",
            f"logger={args.logger}",
            f"data.path={folder}/shards",
            f"trainer.max_steps={BLOCK * (2 * args.blocks + 1) + 1}",
            "trainer.limit_val_batches=0",
            "~callbacks.checkpoint",
            "+trainer.enable_checkpointing=false",
            f"+callbacks.alternating._target_={AlternatingCallbacks.__module__}.AlternatingCallbacks",
            *args.overrides,
        ]
        fit(composed(*overrides, run_dir=run), run)
    enabled, disabled = SECONDS[::2], SECONDS[1::2]
    ratios = [a / b for a, b in zip(enabled, disabled, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios
    report = {
        "logger": args.logger,
        "blocks": args.blocks,
        "step_s": round(statistics.mean(enabled), 4),
        "bare_step_s": round(statistics.mean(disabled), 4),
        "ratio": round(statistics.mean(enabled) / statistics.mean(disabled), 4),
        "ratio_of_neighbours": [round(value, 4) for value in quartiles],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
