"""What callbacks, logger and the average of the weights add to a step of `experiment=tiny_cpu`, in one run.

    python benchmarks/callbacks.py [BLOCKS [LOGGER [OVERRIDE …]]]

Blocks of ten steps (one of which is logged) take turns: all callbacks and the logger, then none. Validation, samples
and checkpoints are no part of a step and are left out. Prints the processor seconds of a step each way, which other
programs of the machine disturb least, the ratio of their means, and the quartiles of the ratio of neighbouring blocks.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
from support.runs import composed

from cubediff.data import build_shards

SAMPLES = Path(__file__).parents[1] / "data/samples"
BLOCK = 10  # steps, as many as trainer.log_every_n_steps


class Turns(L.Callback):
    """Takes all other callbacks and the loggers away in every second block, and the time of all blocks."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.callbacks, self.loggers = list(trainer.callbacks), list(trainer.loggers)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        now = time.process_time()
        if trainer.global_step % BLOCK == 0:
            if trainer.global_step > BLOCK:  # the first block also pays for what is made once
                self.seconds.append((now - self._began) / BLOCK)
            watched = trainer.global_step // BLOCK % 2 == 1
            trainer.callbacks = self.callbacks if watched else [self]
            trainer.loggers = self.loggers if watched else []
            self._began = time.process_time()


def main() -> None:
    blocks = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    logger = sys.argv[2] if len(sys.argv) > 2 else "csv"
    os.environ.setdefault("WANDB_MODE", "offline")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run.mkdir()
        build_shards(SAMPLES, Path(folder) / "shards", SAMPLES / "captions.jsonl", val_fraction=0.0)
        words = [
            "experiment=tiny_cpu",
            f"logger={logger}",
            f"data.path={folder}/shards",
            f"trainer.max_steps={BLOCK * (2 * blocks + 1) + 1}",
            "trainer.limit_val_batches=0",
            "~callbacks.checkpoint",
            "+trainer.enable_checkpointing=false",
            *sys.argv[3:],
        ]
        from cubediff.runs import fit as train

        turns = Turns()
        made = train.build
        train.build = lambda config, **options: made(  # type: ignore[assignment]
            config,
            **options | ({"callbacks": [turns, *options["callbacks"]]} if "callbacks" in options else {}),
        )
        train.fit(composed(*words, run_dir=run), run)
    on, off = turns.seconds[::2], turns.seconds[1::2]
    ratios = [a / b for a, b in zip(on, off, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(json.dumps({
        "logger": logger, "blocks": blocks, "step_s": round(statistics.mean(on), 4),
        "bare_step_s": round(statistics.mean(off), 4),
        "ratio": round(statistics.mean(on) / statistics.mean(off), 4),
        "ratio_of_neighbours": [round(value, 4) for value in (low, middle, high)],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
