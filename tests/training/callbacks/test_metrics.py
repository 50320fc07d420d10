"""The numbers a run is watched by, against their definitions in plain Python: over groups, ranks and a clock."""

from typing import Any
from unittest.mock import Mock

import lightning as L
import numpy as np
import pytest
import torch

from cubediff.diffusion.objective import CONDITIONS, Drops
from cubediff.training.callbacks import StepMetrics, metrics
from cubediff.training.module import CubeDiffModule

STEPS = 1000


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(metrics, "time", made)
    return made


class Run:
    """What a callback sees of a training on `ranks` devices that all do what this one does."""

    def __init__(self, ranks: int = 1, log_every_n_steps: int = 1, accumulate: int = 1) -> None:
        self.rows: list[dict[str, float]] = []
        self.steps: list[int] = []
        logger = Mock(log_metrics=self._logged)
        self.trainer: Any = Mock(
            spec=L.Trainer, world_size=ranks, global_step=0, log_every_n_steps=log_every_n_steps, loggers=[logger],
            accumulate_grad_batches=accumulate, datamodule=Mock(skipped=0), sanity_checking=False, profiler=Mock(),
            fit_loop=Mock(),
        )  # fmt: skip
        self.gather = Mock(side_effect=lambda row: torch.stack([row] * ranks) if ranks > 1 else row)
        self.trainer.strategy.all_gather = self.gather
        scheduler = Mock(config=Mock(num_train_timesteps=STEPS))
        self.module: Any = Mock(spec=CubeDiffModule, device=torch.device("cpu"), noise_scheduler=scheduler)
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
        "timesteps": torch.tensor(timesteps),
        "conditions": torch.tensor(conditions),
    }


def by_hand(seen: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    losses, timesteps, conditions = (
        np.concatenate([each[name].numpy().astype(float) for each in seen])
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


def test_losses_are_the_means_of_their_groups_since_they_were_logged_last() -> None:
    generator = np.random.default_rng(0)
    run = Run(log_every_n_steps=5)
    windows = []
    for _ in range(3):
        seen = [
            of(
                generator.random(3).tolist(),
                generator.integers(0, STEPS, 3).tolist(),
                generator.integers(0, 4, 3).tolist(),
            )
            for _ in range(5)
        ]
        for outputs in seen:
            run.batch(outputs)
        windows.append(by_hand(seen))
    assert len(run.rows) == 3
    for row, expected in zip(run.rows, windows, strict=True):
        assert losses_of(row) == pytest.approx(expected, rel=1e-5)
    assert run.gather.call_count == 3  # nothing is reduced between the steps that are logged


@pytest.mark.parametrize("timestep", [0, 249, 250, 499, 500, 749, 750, 999])
def test_a_quarter_has_its_bounds_and_groups_without_a_panorama_are_not_logged(timestep: int) -> None:
    run = Run()
    run.batch(of([0.5], [timestep], [2]))
    assert losses_of(run.rows[0]) == {
        "train/loss_mean": 0.5,
        f"train/loss_q{timestep // 250 + 1}": 0.5,
        "train/loss_photo": 0.5,
    }


def test_conditions_are_named_by_what_is_kept() -> None:
    text = torch.tensor([False, False, True, True])
    image = torch.tensor([False, True, False, True])
    kept = [CONDITIONS[i] for i in Drops(text=text, image=image).conditions]
    assert kept == ["text_photo", "text", "photo", "none"]


def test_a_loss_that_is_no_number_spoils_its_own_groups_alone() -> None:
    run = Run()
    run.batch(of([float("nan"), 2.0], [0, 999], [0, 3]))
    told = losses_of(run.rows[0])
    assert np.isnan([told["train/loss_q1"], told["train/loss_text_photo"]]).all()
    assert (told["train/loss_q4"], told["train/loss_none"]) == (2.0, 2.0)


def test_ranks_count_by_their_panoramas_and_the_slowest_and_the_fullest_tell(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other rank has a panorama of loss 4 in the group where this one has three of loss 1."""
    monkeypatch.setattr(metrics, "_peak_memory", lambda _: 2.0 * 2**30)
    run = Run(ranks=2, log_every_n_steps=2)

    def gather(row: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros(2, 8)
        sums[:, 0] = torch.tensor([4.0, 1.0])
        return torch.stack([row, torch.cat([sums.flatten(), torch.tensor([1.0, 0.75, 3.0 * 2**30, 2.0])])])

    run.trainer.strategy.all_gather = gather
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


def test_speed_goes_by_the_clock_without_the_first_batch_and_without_validation(clock: Clock) -> None:
    """Two devices with 4 panoramas each in each of two micro-batches of a step, half a second each, of which 0.1 are
    waiting; a validation of an hour."""
    run = Run(ranks=2, log_every_n_steps=2, accumulate=2)
    run.callback.flops = (10.0, 100.0)
    for number in range(8):
        run.wait(clock, 0.1)
        clock.now += 100.0 if number == 0 else 0.4
        run.batch(stepped=number % 2 == 1)
        if number == 5:
            run.callback.on_validation_start(run.trainer, run.module)
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


def test_without_a_logger_nothing_is_gathered() -> None:
    run = Run()
    run.trainer.loggers = []
    run.batch()
    assert not run.gather.called
