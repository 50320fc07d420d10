"""Two ranks train what one does with the joined batch: a panorama's noise depends on its position in the stream, not on
the rank that it comes to."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.processes import PARTS, TWO, Run, saved

from cubediff import CubeDiffPipeline

JOINED = ("trainer=cpu", "data.batch_size=4")
HALVES = (*TWO, "trainer.accumulate_grad_batches=2")  # 2 ranks × 1 panorama × 2 = 4
# Else Adam makes a step of the learning rate out of the last bits of a gradient that is as good as zero.
STEADY = "+model.optimizer.eps=1e-4"
VALIDATED = ("trainer.limit_val_batches=null", "callbacks.checkpoint.every_n_steps=6")


def column(run_dir: Path, name: str) -> list[float]:
    with (run_dir / "logs" / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def furthest(a: Path, b: Path) -> float:
    """The largest difference of two runs' last weights."""
    ones, others = saved(a), saved(b)
    assert ones["global_step"] == others["global_step"]
    weights = ones["state_dict"], others["state_dict"]
    assert weights[0].keys() == weights[1].keys()
    return max((weights[0][key] - weights[1][key]).abs().max().item() for key in weights[0])


@pytest.mark.parametrize("trainable", ["attention", pytest.param("lora", marks=pytest.mark.slow)])
def test_two_ranks_end_with_the_weights_of_one_with_the_joined_batch(
    tiny_shards: Path, tmp_path: Path, trainable: str
) -> None:
    """After 20 steps, and with gradient checkpointing; float32 sums in another order differ in their last bits. Then
    each goes on as the other."""
    words = (
        f"model.trainable={trainable}",
        "model.gradient_checkpointing=true",
        "trainer.max_steps=20",
        STEADY,
        *VALIDATED,
    )
    one = Run(tiny_shards, tmp_path / "one", *JOINED, *words, "trainer.val_check_interval=10")
    assert one.ended() == 0, one.output
    two = Run(tiny_shards, tmp_path / "two", *HALVES, *words, "trainer.val_check_interval=20")
    assert two.ended() == 0, two.output
    assert furthest(tmp_path / "one", tmp_path / "two") < 2e-6
    losses = column(tmp_path / "one", "val/loss"), column(tmp_path / "two", "val/loss")
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name in ("train/loss_mean", "optim/grad_norm"):
        assert column(tmp_path / "two", name) == pytest.approx(column(tmp_path / "one", name), rel=1e-3)

    for name, kind in (("one", HALVES), ("two", JOINED)):
        run = Run(tiny_shards, tmp_path / name, *kind, *words, "trainer.max_steps=26")
        assert run.ended() == 0, run.output
        assert "it goes on from" in run.output
    assert furthest(tmp_path / "one", tmp_path / "two") < 2e-6


def test_in_parts_it_ends_with_the_same_weights_and_goes_on_whole(tiny_shards: Path, tmp_path: Path) -> None:
    """FSDP: the average, checkpoint, validation, samples and export of one process, up to rounding; and each goes on as
    the other. One of the ranks has a validation panorama more, which the other cannot let it have alone."""
    samples = (
        "callbacks.samples={_target_:cubediff.training.callbacks.SampleLogger,"
        "folder:'${run_dir}/samples',count:3,steps:2}"
    )
    words = ("trainer.max_steps=6", STEADY, *VALIDATED, samples)
    halves = (*PARTS, "trainer.accumulate_grad_batches=2")
    for name, kind, every in (("one", JOINED, 3), ("parts", halves, 6)):
        run = Run(tiny_shards, tmp_path / name, *kind, *words, f"trainer.val_check_interval={every}")
        assert run.ended() == 0, run.output
    losses = column(tmp_path / "one", "val/loss"), column(tmp_path / "parts", "val/loss")
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for of_one in (tmp_path / "one/samples").glob("*.jpg"):
        pictures = [np.asarray(Image.open(f), np.int16) for f in (of_one, tmp_path / "parts/samples" / of_one.name)]
        assert np.abs(pictures[0] - pictures[1]).mean() < 0.1
    assert len(list((tmp_path / "one/samples").glob("*.jpg"))) == 2 * 2 * 3 * 2  # steps, kinds, panoramas, with faces
    assert furthest(tmp_path / "one", tmp_path / "parts") < 2e-6
    averages = [saved(tmp_path / name)["callbacks"]["UNetEMA"]["shadow_params"] for name in ("one", "parts")]
    assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(*averages, strict=True))
    exports = [CubeDiffPipeline.from_pretrained(tmp_path / name / "export").unet for name in ("one", "parts")]
    weights = [unet.state_dict() for unet in exports]
    assert type(exports[1]).__name__ == "UNet2DConditionModel"
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=2e-6) for key in weights[0])

    for name, kind in (("one", halves), ("parts", JOINED)):
        run = Run(tiny_shards, tmp_path / name, *kind, *words, "trainer.max_steps=9")
        assert run.ended() == 0, run.output
        assert "it goes on from" in run.output
    assert furthest(tmp_path / "one", tmp_path / "parts") < 2e-6
    for name in ("one", "parts"):
        assert column(tmp_path / name, "step")[-1] == 8  # counted from 0


@pytest.mark.slow
def test_in_parts_bf16_is_as_near_as_bf16_is(tiny_shards: Path, tmp_path: Path) -> None:
    """Weights are sent as bfloat16, which autocast makes of them anyway."""
    words = ("trainer.precision=bf16-mixed", "trainer.max_steps=6", STEADY, "callbacks.checkpoint.every_n_steps=6")
    for name, kind in (("whole", TWO), ("parts", PARTS)):
        run = Run(tiny_shards, tmp_path / name, *kind, *words)
        assert run.ended() == 0, run.output
    losses = [column(tmp_path / name, "train/loss_mean") for name in ("whole", "parts")]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert furthest(tmp_path / "whole", tmp_path / "parts") < 2e-4
    assert {v.dtype for v in saved(tmp_path / "parts")["state_dict"].values()} == {torch.float32}


def test_what_parts_cannot_do_is_told(tiny_shards: Path, tmp_path: Path) -> None:
    run = Run(tiny_shards, tmp_path / "run", *PARTS, "model.trainable=lora")
    assert run.ended() != 0
    assert "error: trainer=fsdp with model.trainable=lora" in run.output
