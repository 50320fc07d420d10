"""experiments/scaling: the formulas agree with counted bytes, and the stored files with what the code computes."""

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from support.runs import QUICK, composed

from cubediff.configs import build
from cubediff.planning.cost import cost

ROOT = Path(__file__).resolve().parents[2]
SCALING = ROOT / "experiments/scaling"
sys.path.append(str(SCALING))

import measure  # noqa: E402
import scale  # noqa: E402

METRICS: dict[str, Any] = json.loads((SCALING / "metrics.json").read_text())
MEASURED: dict[str, Any] = json.loads((SCALING / "measured.json").read_text())


# ---- formulas ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_write_the_bytes_of_the_formulas() -> None:
    """Linux counts the bytes that each process writes.

    gloo implements reduce-scatter as a full all-reduce, of which FSDP keeps its shard: half a ring more.
    """
    reduced, sharded = measure.ranks(2, (measure.all_reduced, measure.sharded))
    size = measure.SHARDED
    assert reduced == pytest.approx([scale.ddp(2, measure.REDUCED)] * 2, rel=2e-3)
    assert sharded == pytest.approx([scale.fsdp(2, size, size) + scale.ring(2, size) / 2] * 2, rel=1e-2)


@pytest.mark.parametrize("row", MEASURED["written"], ids=lambda row: f"{row['of']} of {row['ranks']}")
def test_measured_ranks_wrote_the_bytes_of_the_formulas(row: dict[str, Any]) -> None:
    world, size = row["ranks"], row["bytes"]
    expected = scale.ddp(world, size) if row["of"] == "all-reduce" else scale.fsdp(world, size, 2 * size)
    assert row["written"] == pytest.approx([expected] * world, rel=1e-2)


class CountsBytes(L.Callback):
    """Counts the bytes of the gradient buckets that DDP reduces."""

    def __init__(self) -> None:
        self.bytes: list[int] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def hook(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            self.bytes.append(bucket.buffer().nbytes)
            future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        model: Any = trainer.strategy.model
        model.register_comm_hook(None, hook)


@pytest.fixture
def process_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Destroys the process group that Lightning creates in this process, and removes its environment variables."""
    before = dict(os.environ)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.mark.usefixtures("process_group")
def test_trained_gradients_are_reduced_once_a_step_and_not_once_a_micro_batch(
    tiny_shards: Path, tmp_path: Path
) -> None:
    words = (*QUICK, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32-true")
    more = ("trainer.accumulate_grad_batches=3", "trainer.limit_val_batches=0", "callbacks=none")
    config = composed(*words, *more, f"data.path={tiny_shards}", run_dir=tmp_path)
    counter = CountsBytes()
    options = {"callbacks": [counter], "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer: L.Trainer = build(config.trainer, **options)
    module = build(config.model)
    trainer.fit(module, datamodule=build(config.data))
    assert trainer.global_step == 2
    assert trainer.fit_loop.total_batch_idx + 1 == 6
    assert list(module.buffers()) == []  # DDP would broadcast them before every forward pass
    assert sum(counter.bytes) == 2 * cost(config, 2).gradients


def test_a_step_agrees_with_a_calculation_by_hand() -> None:
    """Attention training on 16 L4: 64 panoramas are four micro-batches on each GPU, as long as the plan has it.

    The ring passes between nodes at 50 Gb/s, of which 70 % is reached.
    """
    (row,) = [
        r
        for r in METRICS["steps"]
        if (r["machine"], r["trainable"], r["devices"], r["strategy"]) == ("L4", "attention", 16, "ddp")
    ]
    of = METRICS["counts"]["attention"]
    assert (row["panoramas"], row["micro_batches"]) == (64, 4)
    assert row["sent"] == 2 * 15 * of["gradients"] / 16
    assert row["compute_s"] == pytest.approx(4 * of["seconds"]["L4"])
    assert 0.2 < of["flops"] / of["seconds"]["L4"] / 121e12 < 0.4  # of the peak rate
    assert row["communication_s"] == pytest.approx(row["sent"] / (0.7 * 6.25e9), rel=0.01)


def test_a_ring_over_more_gpus_sends_at_most_twice_the_bytes() -> None:
    assert scale.ring(1, 100.0) == 0
    assert scale.ring(2, 100.0) == 100
    assert 199 < scale.ring(1024, 100.0) < 200


# ---- files ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_counted_parameters_and_gradients_are_those_of_the_networks() -> None:
    planned = cost(composed("experiment=sd15_l4x4"), 1)
    of = METRICS["counts"]["attention"]
    assert (planned.parameters, planned.trained, planned.gradients) == (
        of["parameters"],
        of["trained"],
        of["gradients"],
    )
    assert planned.checkpoint == of["checkpoint"]


@pytest.mark.slow
def test_stored_counts_are_those_of_the_networks() -> None:
    assert scale.counts() == METRICS["counts"]


@pytest.mark.parametrize("trainable", scale.TRAINABLE)
def test_buckets_that_ddp_made_hold_the_counted_gradients(trainable: str) -> None:
    buckets = MEASURED["buckets"][trainable]
    assert sum(buckets) == METRICS["counts"][trainable]["gradients"]
    assert len(buckets) <= math.ceil(sum(buckets) / scale.BUCKET) + 1


def test_stored_metrics_are_those_of_the_formulas() -> None:
    rows = scale.steps(METRICS["counts"])
    assert rows == METRICS["steps"]
    assert scale.reading(rows) == METRICS["reading"]


def test_readme_has_the_tables_of_the_metrics() -> None:
    readme = (SCALING / "README.md").read_text()
    for table in scale.tables(METRICS).split("\n\n"):
        assert table in readme


def test_each_of_up_to_16_nodes_reads_every_shard_and_a_single_node_reads_each_once() -> None:
    for row in METRICS["reading"]:
        if row["nodes"] <= 16:
            assert row["share_needed_by_a_node"] == pytest.approx(1, abs=0.01)
        assert row["fetched_bytes"] <= row["nodes"] * scale.PANORAMAS * scale.PANORAMA
    (alone,) = [row for row in METRICS["reading"] if (row["machine"], row["devices"]) == ("L4", 4)]
    assert alone["fetched_bytes"] == scale.PANORAMAS * scale.PANORAMA
