"""Writes a trained module as a pipeline folder that CubeDiffPipeline.from_pretrained loads."""

import json
from contextlib import nullcontext
from pathlib import Path

from cubediff.callbacks import UNetEMA
from cubediff.module import CubeDiffModule


def export_pipeline(module: CubeDiffModule, folder: Path, average: UNetEMA | None, steps: int) -> None:
    """The pipeline with the averaged weights where there is an average, and training.json saying which they are."""
    with average.averaged(module) if average else nullcontext():
        module.pipeline.save_pretrained(folder)
    record = {"weights": "ema" if average else "raw", "steps": steps, "seed": module.seed}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
