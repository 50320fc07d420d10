"""Examples that a config selects: the callback, the loss weighting and the backbone act in training runs."""

import csv
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from diffusers import DDPMScheduler
from PIL import Image
from support.examples import run_documented

from cubediff.pipelines.loading import tiny_random

pytestmark = pytest.mark.slow

Rows = list[dict[str, str]]


def read(file: Path) -> Rows:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def rows(checkout: Path) -> Rows:
    """What the callback writes in its documented command."""
    run_documented("panorama_losses.py", checkout, "trainer.log_every_n_steps=1")
    return read(checkout / "experiments/runs/callback/losses_rank0.csv")


def test_callback_writes_the_loss_of_every_panorama(checkout: Path, rows: Rows) -> None:
    losses = defaultdict(list)
    for row in rows:
        losses[row["step"]].append(float(row["loss"]))
        assert (checkout / "data/samples" / f"{row['key']}.jpg").exists()
        assert 0 <= int(row["timestep"]) < 1000
    assert {step: len(each) for step, each in losses.items()} == {"1": 4, "2": 4, "3": 4, "4": 4}
    metrics = read(checkout / "experiments/runs/callback/logs/metrics.csv")
    logged = [float(row["train/loss"]) for row in metrics if row.get("train/loss")]
    assert [fmean(each) for each in losses.values()] == pytest.approx(logged, rel=1e-5)


def test_weighting_multiplies_the_losses_by_its_formula(checkout: Path, rows: Rows) -> None:
    """The first step of both runs has the same weights, noise and timesteps."""
    target, folder = "panorama_losses.PanoramaLosses", "experiments/runs/p2"
    callback = (f"+callbacks.losses._target_={target}", f"+callbacks.losses.folder={folder}")
    run_documented("p2_weighting.py", checkout, *callback)
    weighted = read(checkout / folder / "losses_rank0.csv")
    alpha_bar = DDPMScheduler.from_config(tiny_random().scheduler.config).alphas_cumprod.double()
    for before, after in zip(rows[:4], weighted[:4], strict=True):
        assert before["key"] == after["key"]
        weight = float(1 - alpha_bar[int(after["timestep"])]) ** 0.5  # 1 / (1 + SNR) = 1 - ᾱ
        assert weight < 0.999
        assert float(after["loss"]) == pytest.approx(weight * float(before["loss"]), rel=1e-4)


def test_backbone_trains_and_generates(checkout: Path) -> None:
    run_documented("toy_backbone.py", checkout)
    runs = checkout / "experiments/runs"
    index = json.loads((runs / "toy/export/model_index.json").read_text())
    assert index["transformer"] == ["toy_backbone", "ToyTransformer"]
    assert json.loads((runs / "toy/export/training.json").read_text())["steps"] == 20
    with Image.open(runs / "toy.jpg") as panorama:
        assert panorama.size == (256, 128)
        assert np.asarray(panorama).std() > 5
