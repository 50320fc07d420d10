"""Tiny panoramas in shards, and a model that records which samples it is trained on."""

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from PIL import Image

from cubediff.data import PanoramaDataModule, build_shards
from cubediff.geometry import FACES

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "yellow": (230, 220, 30),
    "white": (250, 250, 250),
    "black": (10, 10, 10),
}

# A background fetch whose server is gone shall not go on for ten minutes in later tests.
SMALL: dict[str, Any] = {"batch_size": 2, "face_size": 16, "retry_minutes": 1.0}


def room() -> Image.Image:
    """Draws a panorama of a room whose walls, ceiling and floor have the colours of COLOURS, in FACES order."""
    yaw = ((np.arange(128) + 0.5) / 128 - 0.5) * 360
    pitch = (0.5 - (np.arange(64) + 0.5) / 64) * 180
    wall = np.round(yaw / 90).astype(int) % 4
    index = np.where(pitch[:, None] > 50, 4, np.where(pitch[:, None] < -50, 5, wall))
    return Image.fromarray(np.array(list(COLOURS.values()), np.uint8)[index])


def shards(path: Path, count: int, *, val: float = 0.0, shard_size: int = 4, faces: bool = False) -> Path:
    """Builds shards of `count` panoramas; with `faces`, of the same room with captions for its faces."""
    source = path / "source"
    source.mkdir(parents=True)
    records = []
    for i in range(count):
        coarse = np.random.default_rng(i).integers(0, 256, (2, 4, 3), np.uint8)
        (room() if faces else Image.fromarray(coarse).resize((64, 32))).save(source / f"{i:03d}.png")
        record = {"file": f"{i:03d}.png", "caption": f"panorama {i:03d}"}
        records.append(record | ({"faces": dict(zip(FACES, COLOURS, strict=True))} if faces else {}))
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, records)))
    build_shards(source, path / "shards", val_fraction=val, shard_size=shard_size)
    return path / "shards"


def data(path: Any, rank: int = 0, world: int = 1, position: int = 0, **options: Any) -> PanoramaDataModule:
    """Sets up a data module as rank `rank` of `world` sees it, at a sample index of the stream."""
    module = PanoramaDataModule(path, **SMALL | options)
    module.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world,
        global_step=0,
        current_epoch=0,
        accumulate_grad_batches=1,
        overfit_batches=0.0,
    )
    module.load_state_dict({"seed": module.seed, "position": position, "jpeg_scaling": module.jpeg_scaling})
    module.setup("fit")
    return module


def keys(loader: Any) -> list[str]:
    """The keys of all samples of a loader, in order."""
    return [key for batch in loader for key in batch["key"]]


def spoil(path: Path, *names: str) -> None:
    """Damages the content of members of a shard; the tar archive itself stays valid."""
    with tarfile.open(path) as tar:
        members = [(tar.getmember(n).offset_data, tar.getmember(n).size) for n in names]
    with path.open("r+b") as file:
        for start, size in members:
            file.seek(start + size // 2)
            file.write(b"\xff\x00damage")


class Step(NamedTuple):
    """The samples of a batch, and the optimizer step that used it."""

    step: int
    keys: list[str]
    yaw: list[float]


class Recorder(L.LightningModule):
    """Records the samples of each step; raises at the step `fails_at`."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.fails_at = fails_at
        self.steps: list[Step] = []
        self.validated: list[str] = []

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        if len(self.steps) == self.fails_at:
            raise FloatingPointError("no number")
        self.steps.append(Step(self.trainer.global_step, batch["key"], batch["yaw"].tolist()))
        return self.weight * batch["faces"].mean()

    def validation_step(self, batch: dict[str, Any], _: int) -> None:
        self.validated += batch["key"]
        self.log("val/mean", batch["faces"].mean(), batch_size=len(batch["key"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(
    path: Path,
    steps: int,
    checkpoint: Path | None = None,
    *,
    model: Recorder | None = None,
    trainer: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Recorder, L.Trainer]:
    """Trains a `Recorder` to `steps` optimizer steps, resuming from the checkpoint if one is given."""
    module = PanoramaDataModule(path, **SMALL | options)
    model = model or Recorder()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    fitted = L.Trainer(max_steps=steps, accelerator="cpu", **quiet | {"enable_checkpointing": False} | (trainer or {}))
    fitted.fit(model, module, ckpt_path=checkpoint, weights_only=False if checkpoint else None)
    return model, fitted
