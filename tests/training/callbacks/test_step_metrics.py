"""StepMetrics against definitions in plain Python: over loss groups, ranks and a clock."""

from typing import Any
from unittest.mock import Mock

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.profilers import Profiler

from cubediff.diffusion.objective import CONDITIONS, ConditionDropout
from cubediff.training import logged_metrics
from cubediff.training import metric_reduction as training_metrics
from cubediff.training.callbacks import StepMetrics
from cubediff.training.callbacks import step_metrics as metrics
from cubediff.training.logged_metrics import GradientNorm, LossGroup
from cubediff.training.module import CubeDiffModule

STEPS = 1000


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(metrics, "time", fake)
    return fake


class Run:
    """A training on `ranks` devices that all do the same, as a callback sees it."""

    def __init__(self, ranks: int = 1, log_every_n_steps: int = 1, accumulate: int = 1) -> None:
        self.rows: list[dict[str, float]] = []
        self.steps: list[int] = []
        logger = Mock(log_metrics=self._logged)
        self.trainer: Any = Mock(
            spec=L.Trainer, world_size=ranks, global_step=0, log_every_n_steps=log_every_n_steps, loggers=[logger],
            accumulate_grad_batches=accumulate, datamodule=Mock(skipped=0), sanity_checking=False,
            profiler=Mock(spec=Profiler), fit_loop=Mock(),
        )  # fmt: skip
        self.gather = Mock(side_effect=lambda row: torch.stack([row] * ranks) if ranks > 1 else row)
        self.trainer.strategy.all_gather = self.gather
        self.module: Any = Mock(spec=CubeDiffModule, device=torch.device("cpu"), process=Mock(num_timesteps=STEPS))
        self.callback = StepMetrics()
        self.callback.on_train_start(self.trainer, self.module)

    def _logged(self, row: dict[str, float], step: int) -> None:
        self.rows.append(row)

    def batch(self, outputs: dict[str, torch.Tensor] | None = None, *, stepped: bool = True) -> None:
        outputs = outputs or of([1.0] * 4, [0] * 4, [0] * 4)
        self.trainer.global_step += stepped
        keys = {"key": ["a"] * len(outputs["losses"])}
        self.callback.on_train_batch_end(self.trainer, self.module, outputs, keys, 0)

    def wait(self, clock: Clock, seconds: float) -> None:
        """The loop waits for its next batch."""
        self.trainer.profiler.start("[_TrainingEpochLoop].train_dataloader_next")
        clock.now += seconds
        self.trainer.profiler.stop("[_TrainingEpochLoop].train_dataloader_next")


def of(losses: list[float], timesteps: list[int], conditions: list[int]) -> dict[str, torch.Tensor]:
    return {
        "losses": torch.tensor(losses),
        "timesteps": torch.tensor(timesteps, dtype=torch.long),
        "conditions": torch.tensor(conditions, dtype=torch.long),
    }


def by_hand(outputs_of_window: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    losses, timesteps, conditions = (
        np.concatenate([each[name].numpy().astype(float) for each in outputs_of_window])
        for name in ("losses", "timesteps", "conditions")
    )
    means = {"train/loss_mean": losses.mean()}
    for quarter in range(4):
        mine = losses[(timesteps >= quarter * STEPS / 4) & (timesteps < (quarter + 1) * STEPS / 4)]
        if len(mine):
            means[f"train/loss_q{quarter + 1}"] = mine.mean()
    for number, condition in enumerate(CONDITIONS):
        mine = losses[conditions == number]
        if len(mine):
            means[f"train/loss_{condition}"] = mine.mean()
    return means


def losses_of(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith("train/")}


def test_losses_are_means_of_their_groups_since_the_last_logging_step() -> None:
    generator = np.random.default_rng(0)
    run = Run(log_every_n_steps=5)
    windows = []
    for _ in range(3):
        outputs_of_window = [
            of(
                generator.random(3).tolist(),
                generator.integers(0, STEPS, 3).tolist(),
                generator.integers(0, 4, 3).tolist(),
            )
            for _ in range(5)
        ]
        for outputs in outputs_of_window:
            run.batch(outputs)
        windows.append(by_hand(outputs_of_window))
    assert len(run.rows) == 3
    for row, expected in zip(run.rows, windows, strict=True):
        assert losses_of(row) == pytest.approx(expected, rel=1e-5)
    assert run.gather.call_count == 3  # nothing is reduced between the steps that are logged


@pytest.mark.parametrize("timestep", [0, 249, 250, 499, 500, 749, 750, 999])
def test_quarters_have_exact_bounds_and_empty_groups_are_not_logged(timestep: int) -> None:
    run = Run()
    run.batch(of([0.5], [timestep], [2]))
    assert losses_of(run.rows[0]) == {
        "train/loss_mean": 0.5,
        f"train/loss_q{timestep // 250 + 1}": 0.5,
        "train/loss_photo": 0.5,
    }


def test_conditions_are_named_by_the_inputs_that_are_kept() -> None:
    text = torch.tensor([False, False, True, True])
    image = torch.tensor([False, True, False, True])
    kept = [CONDITIONS[i] for i in ConditionDropout(text=text, image=image).conditions]
    assert kept == ["text_photo", "text", "photo", "none"]


def test_a_nan_loss_affects_only_its_own_groups() -> None:
    run = Run()
    run.batch(of([float("nan"), 2.0], [0, 999], [0, 3]))
    logged = losses_of(run.rows[0])
    assert np.isnan([logged["train/loss_q1"], logged["train/loss_text_photo"]]).all()
    assert (logged["train/loss_q4"], logged["train/loss_none"]) == (2.0, 2.0)


def test_values_of_two_ranks_are_summed_or_their_maximum_is_logged(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other rank has a panorama of loss 4 in the group where this one has three of loss 1."""
    memory = 3.0 * 2**30
    monkeypatch.setattr(metrics, "_peak_memory", lambda _: memory)
    other = Run(ranks=2, log_every_n_steps=2)
    other.trainer.datamodule.skipped = 2
    other.batch(of([], [], []))
    other.wait(clock, 0.75)
    other.batch(of([4.0], [0], [1]))
    (row_of_other,) = [call.args[0] for call in other.gather.call_args_list]

    memory = 2.0 * 2**30
    run = Run(ranks=2, log_every_n_steps=2)
    run.trainer.strategy.all_gather = lambda row: torch.stack([row, row_of_other])
    run.trainer.datamodule.skipped = 5
    run.batch(of([1.0], [0], [1]))
    run.wait(clock, 0.25)
    clock.now += 1.75
    run.batch(of([1.0, 1.0], [0, 0], [1, 1]))
    (row,) = run.rows
    assert row["train/loss_q1"] == row["train/loss_mean"] == 7 / 4
    assert row["data/skipped"] == 7
    assert row["perf/peak_memory_gib"] == 3
    assert row["perf/data_wait_s"] == 0.75
    assert row["perf/step_s"] == 2.0
    assert row["perf/panoramas_per_s"] == 1.5


def test_speed_excludes_the_first_batch_and_validation(clock: Clock) -> None:
    """Two devices with 4 panoramas each in each of two micro-batches of a step, half a second each, of which 0.1 is
    waiting; a validation of an hour."""
    run = Run(ranks=2, log_every_n_steps=2, accumulate=2)
    run.callback.set_flops(10.0, 100.0)
    for number in range(8):
        run.wait(clock, 0.1)
        clock.now += 100.0 if number == 0 else 0.4
        run.batch(stepped=number % 2 == 1)
        if number == 5:
            run.callback.on_validation_start(run.trainer, run.module)
            run.callback.on_validation_batch_end(run.trainer, run.module, of([1.0], [0], [0]), None, 0)
            clock.now += 3600
            run.callback.on_validation_epoch_end(run.trainer, run.module)
            run.callback.on_validation_end(run.trainer, run.module)
    rows = [row for row in run.rows if "perf/step_s" in row]
    assert len(rows) == 2
    for row in rows:
        assert row["perf/step_s"] == pytest.approx(1.0)
        assert row["perf/data_wait_s"] == pytest.approx(0.2)
        assert row["perf/panoramas_per_s"] == pytest.approx(16.0)
        assert row["perf/panoramas_per_s_per_device"] == pytest.approx(8.0)
        assert row["perf/utilisation"] == pytest.approx(0.8)


def test_a_loss_group_is_added_by_one_entry_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is computed, logged, and shown in the dashboard."""
    early = LossGroup("early", "first steps", "timesteps below 10", lambda timesteps, *_: timesteps < 10)
    for module in (logged_metrics, training_metrics):
        monkeypatch.setattr(module, "LOSS_GROUPS", (*logged_metrics.LOSS_GROUPS, early))
    run = Run()
    run.batch(of([1.0, 3.0, 8.0], [0, 9, 10], [0, 0, 0]))
    assert run.rows[0]["train/loss_early"] == 2.0
    assert logged_metrics.sections()["train"]["first steps"] == ["train/loss_early"]
    assert logged_metrics.sections()["val"]["first steps"] == ["val/loss_early"]


def test_a_gradient_norm_is_added_by_one_entry_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    added = GradientNorm("optim/grad_norm_bias", r"\.bias$", "of all biases")
    for module in (logged_metrics, training_metrics):
        monkeypatch.setattr(module, "GRADIENT_NORMS", (*logged_metrics.GRADIENT_NORMS, added))
    network = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Linear(1, 1))
    network(torch.ones(1, 2)).square().sum().backward()
    biases = torch.cat(
        [p.grad.flatten() for name, p in network.named_parameters() if "bias" in name and p.grad is not None]
    )
    norms = training_metrics.gradient_norms(dict(network.named_parameters()))
    assert norms.keys() == {"optim/grad_norm_bias"}
    torch.testing.assert_close(norms["optim/grad_norm_bias"], biases.norm())
    assert "optim/grad_norm_bias" in logged_metrics.sections()["optim"]["gradient norm before clipping"]


def test_without_a_logger_nothing_is_gathered() -> None:
    run = Run()
    run.trainer.loggers = []
    run.batch()
    assert not run.gather.called
