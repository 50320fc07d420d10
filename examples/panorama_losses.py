r"""A callback: writes the loss of each panorama to a CSV file, to find the panoramas that a model does not learn.

A panorama whose loss is higher than that of others at similar timesteps may have a wrong caption or a damaged image.
The configuration adds the callback to those of `conf/callbacks/default.yaml`. From the repository's folder:

    cubediff prepare data/samples experiments/runs/shards --captions data/samples/captions.jsonl
    PYTHONPATH=examples cubediff train experiment=tiny_cpu model=tiny_random trainer.max_steps=4 \
        data.path=experiments/runs/shards run_dir=experiments/runs/callback \
        +callbacks.losses._target_=panorama_losses.PanoramaLosses +callbacks.losses.folder=experiments/runs/callback
"""

import csv
from pathlib import Path
from typing import Any

import lightning as L


class PanoramaLosses(L.Callback):
    """Writes step, key, timestep and loss of every training panorama to `losses_rank0.csv`, one file for each rank.

    Args:
        folder: The folder of the files.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / f"losses_rank{trainer.global_rank}.csv"
        if not self.file.exists():  # a resumed run appends
            self.file.write_text("step,key,timestep,loss\n")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        timesteps, losses = outputs["timesteps"].tolist(), outputs["losses"].tolist()  # waits for the GPU
        with self.file.open("a", newline="") as file:
            rows = zip(batch["key"], timesteps, losses, strict=True)
            csv.writer(file, lineterminator="\n").writerows([trainer.global_step, *row] for row in rows)
