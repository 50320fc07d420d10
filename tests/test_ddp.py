"""Two ranks train what one does with the joined batch: a panorama's noise depends on its position in the stream, not on
the rank that it comes to."""

import csv
from pathlib import Path

import pytest
from runs_in_processes import TWO, Run, saved

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
