"""Several ranks train to the weights that one process reaches with the joined batch.

A panorama's noise depends on its sample index, not on its rank.
"""

import csv
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from support.processes import PARTS, TINY, TWO, Run, saved
from support.runs import composed

from cubediff import CubeDiffPipeline
from cubediff.configs import build
from cubediff.runs.fit import fit
from cubediff.training.module import CubeDiffModule

pytestmark = pytest.mark.ddp

RESUMES = "resuming from"

JOINED = ("trainer=cpu", "data.batch_size=4")
DDP = (*TWO, "trainer.accumulate_grad_batches=2")  # 2 ranks × 1 panorama × 2 = 4
FSDP = (*PARTS, "trainer.accumulate_grad_batches=2")
# With its usual epsilon, Adam turns the rounding errors of a gradient that is almost zero into full steps.
STEADY = "+model.optimizer.eps=1e-4"
VALIDATED = ("trainer.limit_val_batches=null", "callbacks.checkpoint.every_n_steps=6")
SIX_STEPS = (
    "trainer.max_steps=6",
    STEADY,
    *VALIDATED,
    "callbacks.samples={_target_:cubediff.training.callbacks.SampleLogger,folder:'${run_dir}/samples',count:3,steps:2}",
)
# Validation counts micro-batches: one process has one a step, a rank has two.
EVERY_THREE_STEPS = {"one": "trainer.val_check_interval=3", "two": "trainer.val_check_interval=6"}


def column(run_dir: Path, name: str) -> list[float]:
    """The logged values of a metric."""
    with (run_dir / "logs" / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def largest_difference(a: Path, b: Path) -> float:
    """The largest difference between the last weights of two runs."""
    ones, others = saved(a), saved(b)
    assert ones["global_step"] == others["global_step"]
    weights = ones["state_dict"], others["state_dict"]
    assert weights[0].keys() == weights[1].keys()
    return max((weights[0][key] - weights[1][key]).abs().max().item() for key in weights[0])


def train(shards: Path, run_dir: Path, *words: str) -> Path:
    """Runs training to its end."""
    run = Run(shards, run_dir, *words)
    assert run.ended() == 0, run.output
    return run_dir


def resume(shards: Path, run_dir: Path, *words: str) -> Path:
    """Runs training from the last checkpoint of `run_dir` to its end."""
    run = Run(shards, run_dir, *words)
    assert run.ended() == 0, run.output
    assert RESUMES in run.output
    return run_dir


def same_losses(one: Path, other: Path) -> None:
    """Two runs logged the same validation losses, and the same training losses and gradient norms up to rounding."""
    assert len(column(one, "val/loss")) == 2
    assert column(other, "val/loss") == pytest.approx(column(one, "val/loss"), rel=1e-5)
    for name in ("train/loss_mean", "optim/grad_norm"):
        assert column(other, name) == pytest.approx(column(one, name), rel=1e-3)


@pytest.fixture(scope="module")
def joined(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of one process, this one, with the joined batch."""
    run_dir = tmp_path_factory.mktemp("joined") / "run"
    words = (*TINY, f"data.path={tiny_shards}", *JOINED, *SIX_STEPS, EVERY_THREE_STEPS["one"])
    fit(composed(*words, run_dir=run_dir), run_dir)
    return run_dir


@pytest.fixture(scope="module")
def joined_to_nine(tiny_shards: Path, joined: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, resumed to nine steps."""
    run_dir = tmp_path_factory.mktemp("joined_to_nine") / "run"
    shutil.copytree(joined, run_dir, symlinks=True)
    return resume(tiny_shards, run_dir, *JOINED, *SIX_STEPS, "trainer.max_steps=9")


WORDS = {"DDP with gradient checkpointing": (*DDP, "model.gradient_checkpointing=true"), "FSDP": FSDP}


@pytest.fixture(scope="module")
def two_ranks(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Six steps of two ranks."""

    @cache
    def run(kind: str) -> Path:
        run_dir = tmp_path_factory.mktemp("two") / "run"
        return train(tiny_shards, run_dir, *WORDS[kind], *SIX_STEPS, EVERY_THREE_STEPS["two"])

    return run


@pytest.mark.parametrize("kind", ["DDP with gradient checkpointing", pytest.param("FSDP", marks=pytest.mark.slow)])
def test_two_ranks_reach_the_results_of_one_process(joined: Path, two_ranks: Callable[[str], Path], kind: str) -> None:
    """Weights, EMA, validation, samples and export are equal up to rounding: sums in another order.

    One of the ranks has one validation panorama more than the other, which must take part in its forward pass.
    """
    two = two_ranks(kind)
    assert largest_difference(joined, two) < 2e-6
    same_losses(joined, two)
    pictures = sorted((joined / "samples").glob("*.jpg"))
    assert len(pictures) == 2 * 2 * 3 * 2  # validations, kinds, panoramas, with faces
    for picture in pictures:
        levels = [np.asarray(Image.open(file), np.int16) for file in (picture, two / "samples" / picture.name)]
        assert np.abs(levels[0] - levels[1]).mean() < 0.1
    averages = [saved(run_dir)["callbacks"]["UNetEMA"]["shadow_params"] for run_dir in (joined, two)]
    assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(*averages, strict=True))
    exports = [CubeDiffPipeline.from_pretrained(run_dir / "export").unet for run_dir in (joined, two)]
    weights = [unet.state_dict() for unet in exports]
    assert type(exports[1]).__name__ == "UNet2DConditionModel"
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=2e-6) for key in weights[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORDS)
def test_two_ranks_and_one_process_resume_each_other(
    tiny_shards: Path,
    tmp_path: Path,
    joined: Path,
    joined_to_nine: Path,
    two_ranks: Callable[[str], Path],
    kind: str,
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(joined, one, symlinks=True)
    shutil.copytree(two_ranks(kind), two, symlinks=True)
    resumed = (
        resume(tiny_shards, one, *WORDS[kind], *SIX_STEPS, "trainer.max_steps=9"),
        resume(tiny_shards, two, *JOINED, *SIX_STEPS, "trainer.max_steps=9"),
    )
    for run_dir in resumed:
        assert largest_difference(joined_to_nine, run_dir) < 2e-6
        assert column(run_dir, "step")[-1] == 8  # counted from 0


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["attention", "lora"])
def test_after_twenty_steps_two_ranks_have_the_weights_of_one_process(
    tiny_shards: Path, tmp_path: Path, trainable: str
) -> None:
    """With gradient checkpointing; then each resumes the other."""
    common = (f"model.trainable={trainable}", "model.gradient_checkpointing=true", STEADY, *VALIDATED)
    words = (*common, "trainer.max_steps=20")
    one = train(tiny_shards, tmp_path / "one", *JOINED, *words, "trainer.val_check_interval=10")
    two = train(tiny_shards, tmp_path / "two", *DDP, *words, "trainer.val_check_interval=20")
    assert largest_difference(one, two) < 2e-6
    same_losses(one, two)
    resume(tiny_shards, one, *DDP, *common, "trainer.max_steps=26")
    resume(tiny_shards, two, *JOINED, *common, "trainer.max_steps=26")
    assert largest_difference(one, two) < 2e-6


@pytest.mark.slow
def test_fsdp_in_bf16_differs_from_ddp_in_bf16_by_rounding(tiny_shards: Path, tmp_path: Path) -> None:
    """FSDP gathers weights in bfloat16, to which autocast converts them anyway."""
    words = ("trainer.precision=bf16-mixed", "trainer.max_steps=6", STEADY, "callbacks.checkpoint.every_n_steps=6")
    full = train(tiny_shards, tmp_path / "full", *TWO, *words)
    sharded = train(tiny_shards, tmp_path / "sharded", *PARTS, *words)
    losses = [column(run_dir, "train/loss_mean") for run_dir in (full, sharded)]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert largest_difference(full, sharded) < 2e-4
    assert {v.dtype for v in saved(sharded)["state_dict"].values()} == {torch.float32}


def test_fsdp_refuses_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CubeDiffModule, "device_mesh", Mock())  # as Lightning sets it up for trainer=fsdp
    module = build(composed("model=tiny_random", "model.trainable=lora", "data.path=SHARDS").model)
    with pytest.raises(ValueError, match=r"trainer=fsdp .*model\.trainable=lora"):
        module.configure_model()
