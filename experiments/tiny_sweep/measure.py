"""Measures whether the runs of a sweep learned: the loss before and after, at the same noise and condition dropout.

    python experiments/tiny_sweep/measure.py SHARDS OUTPUT RUN [RUN …]

Writes metrics.json and prints the table.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from cubediff.configs import build
from cubediff.data import PanoramaDataModule
from cubediff.training.module import CubeDiffModule

DRAWS = 4  # of noise, timestep and condition dropout for each panorama


@torch.no_grad()
def loss(module: CubeDiffModule, batches: list[dict[str, Any]]) -> float:
    """The mean loss over all panoramas and draws."""
    module.encode_null_text()
    losses = []
    for draw in range(DRAWS):
        for i, batch in enumerate(batches):
            seeds = [(0, draw, i, panorama) for panorama in range(len(batch["faces"]))]
            losses.append(module.compute_losses(batch, seeds)["losses"])
    return torch.cat(losses).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", help="folders with .hydra/ and export/")
    args = parser.parse_args()

    data = PanoramaDataModule(args.shards, batch_size=5, face_size=128, yaw="none", face_caption_probability=0)
    batches = [dict(data.on_after_batch_transfer(batch, 0)) for batch in data.train_dataloader()]
    rows = []
    for run in tqdm(args.runs):
        config = OmegaConf.load(run / ".hydra" / "config.yaml")
        chosen = OmegaConf.load(run / ".hydra" / "hydra.yaml").hydra.runtime.choices
        before = loss(build(config.model), batches)
        config.model.trainable, config.model.pipeline.path = "full", str(run / "export")
        rows.append({
            "objective": chosen.objective,
            "trainable": OmegaConf.load(run / ".hydra" / "config.yaml").model.trainable,
            "steps": json.loads((run / "export" / "training.json").read_text())["steps"],
            "before": before,
            "after": loss(build(config.model), batches),
        })  # fmt: skip
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "metrics.json").write_text(json.dumps(rows, indent=2) + "\n")
    for row in rows:
        print("| `{objective}` | `{trainable}` | {steps} | {before:.3f} | {after:.3f} |".format(**row))


if __name__ == "__main__":
    main()
