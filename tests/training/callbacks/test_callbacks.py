"""Callbacks: the EMA, the samples, and the guards."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import Precision
from PIL import Image
from torch import Tensor, nn

from cubediff.data import PanoramaDataModule
from cubediff.evaluation.consistency import METRICS, gradients, value_of
from cubediff.geometry.overlap import sample_overlaps
from cubediff.pipelines.loading import tiny_random
from cubediff.training.callbacks import NonFiniteGuard, SampleLogger, StepProgress, UNetEMA
from cubediff.training.logged_metrics import CONSISTENCY
from cubediff.training.module import CubeDiffModule

RATE = 0.9
StoodFor = TypeVar("StoodFor")


def stand_in(kind: type[StoodFor], **attributes: Any) -> StoodFor:
    """An instance of a subclass of `kind` with these attributes."""
    mock: Any = Mock(spec=kind, **attributes)
    return mock


class Line(CubeDiffModule):
    """Stands for a CubeDiffModule: trains two of its three weights on one number per batch."""

    def __init__(self, fail_in_validation: bool = False) -> None:
        L.LightningModule.__init__(self)
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.bias = nn.Parameter(torch.tensor([0.5]))
        self.frozen = nn.Parameter(torch.tensor([3.0]), requires_grad=False)
        self.fail_in_validation = fail_in_validation
        self.cast_weights = {}
        self.validated: list[Tensor] = []

    @property
    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def checkpointed(self) -> dict[str, Tensor]:
        return dict(self.named_parameters())

    def setup(self, stage: str) -> None:
        """No encoders to move."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return ((self.weight * batch).sum() + self.bias - self.frozen).square().sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(flat(self))
        if self.fail_in_validation:
            raise RuntimeError("validation broke")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.trained_parameters.values(), lr=0.1)


class Trajectory(L.Callback):
    """The trained weights before training and after every optimizer step, in float64."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.step = trainer.global_step
        self.weights.append(flat(pl_module))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self.weights.append(flat(pl_module))


def flat(module: Any) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in module.trained_parameters.values()])


def shadow(ema: UNetEMA) -> Tensor:
    assert ema.average is not None
    return torch.cat([p.double().flatten() for p in ema.average.shadow_params])


def reference(weights: list[Tensor], decay: float) -> Tensor:
    """The EMA after the steps that led to weights[1:], by its formula in float64."""
    average = weights[0]
    for step, new in enumerate(weights[1:]):
        share = min(decay, (1 + step) / (10 + step)) if step else 0.0  # the initial weights have no share
        average = share * average + (1 - share) * new
    return average


def batches(count: int) -> torch.utils.data.DataLoader[Tensor]:
    return torch.utils.data.DataLoader(torch.linspace(-1, 1, count), batch_size=1)  # type: ignore[arg-type]


def trainer_of(*parts: L.Callback, steps: int, **options: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "logger": False,
        "limit_val_batches": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": any(isinstance(c, StepProgress) for c in parts),
    }
    return L.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=[*parts], enable_model_summary=False, **settings | options
    )


# ---- EMA -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_ema_follows_its_formula_over_optimizer_steps(accumulate: int) -> None:
    ema, trajectory = UNetEMA(RATE), Trajectory()
    options = {"accumulate_grad_batches": accumulate}
    trainer_of(ema, trajectory, steps=120, **options).fit(Line(), batches(6), batches(1))
    assert len(trajectory.weights) == 121
    assert RATE < (1 + 119) / (10 + 119)  # so the steps include both the warm-up and the final rate
    torch.testing.assert_close(shadow(ema), reference(trajectory.weights, RATE), rtol=1e-4, atol=1e-5)
    assert (shadow(ema) - trajectory.weights[-1]).abs().max() > 1e-4


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_ema_resumes_from_a_checkpoint(tmp_path: Path, accumulate: int) -> None:
    """Five steps and seven more from their checkpoint have the EMA of twelve."""
    weights: list[Tensor] = []
    options = {"accumulate_grad_batches": accumulate}
    for steps in (5, 12):
        ema, trajectory = UNetEMA(RATE), Trajectory()
        resume = {"ckpt_path": tmp_path / "5.ckpt", "weights_only": True} if weights else {}
        trainer = trainer_of(ema, trajectory, steps=steps, **options)
        trainer.fit(Line(), batches(24), batches(1), **resume)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        if weights:
            assert torch.equal(trajectory.weights[0], weights[-1])
            weights += trajectory.weights[1:]
        else:
            weights = trajectory.weights
        assert ema.average is not None
        assert ema.average.optimization_step == trainer.global_step == steps
        torch.testing.assert_close(shadow(ema), reference(weights, RATE), rtol=1e-5, atol=1e-6)


def test_validation_uses_the_ema_and_training_continues_with_the_trained_weights() -> None:
    ema, trajectory, module = UNetEMA(RATE), Trajectory(), Line()
    alone, plain = Trajectory(), Line()
    options = {"val_check_interval": 4, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    trainer_of(ema, trajectory, steps=12, limit_val_batches=1, **options).fit(module, batches(6), batches(1))
    trainer_of(alone, steps=12).fit(plain, batches(6), batches(1))
    assert all(torch.equal(a, b) for a, b in zip(trajectory.weights, alone.weights, strict=True))
    assert len(module.validated) == 3
    for i, values in enumerate(module.validated, 1):
        torch.testing.assert_close(values, reference(trajectory.weights[: 4 * i + 1], RATE), rtol=1e-5, atol=1e-6)


def test_the_ema_distance_is_logged_at_logging_steps(tmp_path: Path) -> None:
    ema, trajectory, logger = UNetEMA(RATE), Trajectory(), CSVLogger(tmp_path, name=None, version="logs")
    trainer_of(ema, trajectory, steps=6, logger=logger, log_every_n_steps=3).fit(Line(), batches(6), batches(1))
    with (tmp_path / "logs/metrics.csv").open() as file:
        logged = {int(row["step"]): float(row["optim/ema_distance"]) for row in csv.DictReader(file)}
    assert logged.keys() == {2, 5}
    for step, distance in logged.items():
        weights = trajectory.weights[: step + 2]
        apart = (reference(weights, RATE) - weights[-1]).norm() / weights[-1].norm()
        assert distance == pytest.approx(apart.item(), rel=1e-4)


def test_a_failure_in_validation_restores_the_trained_weights() -> None:
    ema, trajectory, module = UNetEMA(RATE), Trajectory(), Line(fail_in_validation=True)
    options = {"val_check_interval": 4, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    trainer = trainer_of(ema, trajectory, steps=12, limit_val_batches=1, **options)
    with pytest.raises(RuntimeError, match="validation broke"):
        trainer.fit(module, batches(6), batches(1))
    assert not torch.equal(module.validated[0], trajectory.weights[-1])
    assert torch.equal(flat(module), trajectory.weights[-1])


def test_weights_of_low_precision_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"torch\.bfloat16.*does not change.*trainer\.precision=bf16-mixed"):
        UNetEMA().on_fit_start(stand_in(L.Trainer), Line().bfloat16())


def test_the_ema_is_float32_under_mixed_precision_and_moves_at_a_decay_beyond_bf16() -> None:
    ema, trajectory = UNetEMA(0.9999), Trajectory()
    trainer_of(ema, trajectory, steps=30, precision="bf16-mixed").fit(Line(), batches(6), batches(1))
    assert ema.average is not None
    assert {p.dtype for p in ema.average.shadow_params} == {torch.float32}
    torch.testing.assert_close(shadow(ema), reference(trajectory.weights, 0.9999), rtol=1e-5, atol=1e-6)


def test_there_is_no_ema_before_training() -> None:
    with pytest.raises(RuntimeError, match="before training"), UNetEMA().averaged(Line()):
        pass
    assert UNetEMA().state_dict() == {}


# ---- samples -------------------------------------------------------------------------------------------------


@pytest.fixture
def sampled(tiny_shards: Path) -> Callable[..., Mock]:
    """Generates samples at a step on a rank, with a replacement of the gathering between ranks; returns the module."""
    module = stand_in(CubeDiffModule, pipeline=tiny_random(), device=torch.device("cpu"), seed=5)

    def run(samples: SampleLogger, step: int, gather: Any = lambda share: share, rank: int = 0, world: int = 1) -> Mock:
        data = PanoramaDataModule(tiny_shards, batch_size=1, face_size=64)
        trainer = stand_in(
            L.Trainer, sanity_checking=False, global_rank=rank, world_size=world, global_step=step, loggers=[],
            datamodule=data, strategy=SimpleNamespace(all_gather=gather), precision_plugin=Precision(),
        )  # fmt: skip
        data.trainer = trainer
        samples.on_validation_epoch_end(trainer, module)
        return cast(Mock, module)

    return run


def test_samples_use_the_first_captions_and_photos_and_are_reproducible(
    tmp_path: Path, tiny_shards: Path, sampled: Callable[..., Mock]
) -> None:
    written = []
    examples = PanoramaDataModule(tiny_shards, batch_size=1, face_size=64).examples(2)
    for step in (10, 20):
        sampled(SampleLogger(str(tmp_path), count=2, steps=2), step)
        names = [f"step{step:07d}_{kind}_{i}" for kind in ("text", "text_photo") for i in (0, 1)]
        written.append([(tmp_path / f"{n}{end}.jpg").read_bytes() for n in names for end in ("", "_faces")])
        with Image.open(tmp_path / f"{names[0]}_faces.jpg") as strip:
            assert strip.size == (6 * 64, 64)
        for i in (0, 1):
            page = (tmp_path / f"{names[i]}.html").read_text()
            assert 'alt="down face"' in page
            assert examples["prompts"][i][0] in page
    assert written[0] == written[1]
    assert len(set(written[0])) == 8
    assert len(list(tmp_path.iterdir())) == 2 * 4 * 3


@pytest.mark.parametrize("world", [2, 5])
def test_samples_divided_over_ranks_equal_those_of_one_rank(
    world: int, tmp_path: Path, sampled: Callable[..., Mock]
) -> None:
    alone: list[torch.Tensor] = []
    sampled(SampleLogger(str(tmp_path / "one"), count=3, steps=2), 10, lambda share: alone.append(share) or share)
    shares: list[list[torch.Tensor]] = []
    for rank in range(world):
        own: list[torch.Tensor] = []

        def gather(share: torch.Tensor, own: list[torch.Tensor] = own) -> torch.Tensor:
            own.append(share)
            return share.expand(world, *share.shape)

        sampled(SampleLogger(str(tmp_path / f"rank{rank}"), count=3, steps=2), 10, gather, rank, world)
        shares.append(own)
    for number, whole in enumerate(alone):  # faces and panoramas of texts, and of texts and photos
        assert len({len(own[number]) for own in shares}) == 1
        for i, expected in enumerate(whole):
            torch.testing.assert_close(shares[i % world][number][i // world], expected, rtol=0, atol=1e-4)


def test_the_faces_of_all_samples_are_measured(tmp_path: Path, sampled: Callable[..., Mock]) -> None:
    faces: list[torch.Tensor] = []
    module = sampled(SampleLogger(str(tmp_path), count=2, steps=2), 10, lambda share: faces.append(share) or share)
    logged = dict(call.args for call in module.log.call_args_list)
    pixels = torch.cat([faces[0], faces[2]]) / 2 + 0.5  # of texts, and of texts and photos
    assert pixels.shape == (4, 6, 3, 64, 64)
    assert logged.keys() == {f"val/{name}" for name in CONSISTENCY}
    samples = sample_overlaps(pixels)
    squares = (samples.own - samples.other)[..., samples.inside].square()
    assert logged["val/overlap_rms"] == pytest.approx(squares.mean().sqrt().item(), rel=1e-5)
    assert logged["val/sharpness"] == pytest.approx(value_of(METRICS["sharpness"], gradients(pixels)), rel=1e-5)


def test_lightnings_sanity_check_generates_no_samples(tmp_path: Path) -> None:
    samples = SampleLogger(str(tmp_path / "samples"))
    trainer, module = stand_in(L.Trainer, sanity_checking=True), stand_in(CubeDiffModule)
    samples.on_validation_epoch_end(trainer, module)
    assert not (tmp_path / "samples").exists()


# ---- guards and progress --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_non_finite_loss_stops_the_run_and_names_samples_and_remedy(
    loss: float, caplog: pytest.LogCaptureFixture
) -> None:
    guard, module = NonFiniteGuard(limit=3, every_n_steps=2), stand_in(CubeDiffModule)
    trainer = stand_in(L.Trainer, global_step=0, max_steps=100, world_size=2, global_rank=1, loggers=[])
    guard.on_train_start(trainer, module)
    good = {"losses": torch.tensor([0.5, 0.4])}

    def step(outputs: dict[str, torch.Tensor], *keys: str) -> None:
        guard.on_train_batch_end(trainer, module, good, {"key": ["first_of_two"]}, 0)
        trainer.global_step += 1
        module.found_inf = torch.tensor(float(outputs is not good))
        guard.on_train_batch_end(trainer, module, outputs, {"key": list(keys)}, 0)

    bad = {"losses": torch.tensor([0.5, loss])}
    step(good, "a")
    step(bad, "sunny_room", "dark_room")
    assert guard.skipped == 1
    assert caplog.messages == ["rank 1: skipped 1 steps up to step 2, whose gradients are not finite; "
                               "the loss is not finite in a batch of sunny_room, dark_room"]  # fmt: skip
    resumed = NonFiniteGuard(limit=3)
    resumed.load_state_dict(guard.state_dict())
    assert resumed.skipped == 1
    step(bad, "sunny_room", "dark_room")
    assert guard.skipped == 1  # not checked yet
    with pytest.raises(FloatingPointError, match=r"3 steps were skipped.*step 4; .*dark_room, b.*model\.optimizer\.lr"):
        step(bad, "b")


def test_one_bar_counts_optimizer_steps_over_all_epochs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bar = StepProgress()
    options = {"accumulate_grad_batches": 2, "val_check_interval": 4, "limit_val_batches": 1, "log_every_n_steps": 1}
    trainer = trainer_of(bar, steps=9, check_val_every_n_epoch=None, logger=CSVLogger(tmp_path), **options)
    trainer.fit(Line(), batches(4), batches(1))
    last = capsys.readouterr().err.strip().splitlines()[-1].split("\r")[-1]
    assert "training: 100%" in last
    assert " 9/9 " in last


def test_a_failure_before_training_is_not_hidden_by_the_bar() -> None:
    broken = Line()
    broken.configure_optimizers = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        trainer_of(StepProgress(), UNetEMA(), steps=1).fit(broken, batches(2), batches(1))
