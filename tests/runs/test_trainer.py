"""Every argument of Lightning's Trainer does what Lightning documents, or is refused in one sentence that names it."""

import copy
import csv
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning
import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from support.runs import QUICK, composed

from cubediff.configs import build, check, check_devices
from cubediff.configs.trainer import check_trainer
from cubediff.pipelines.loading import tiny_random
from cubediff.planning.report import limit_steps
from cubediff.runs.dry_run import describe
from cubediff.runs.fit import fit
from cubediff.runs.trainer import build_trainer
from cubediff.training.checkpoint_io import AtomicCheckpointIO
from cubediff.training.logged_metrics import Curves

ARGUMENTS = inspect.signature(lightning.Trainer).parameters
NO_SAMPLES = ("callbacks.samples.count=0", "callbacks.samples.steps=1")


class Spy(L.Callback):
    """What the hooks of a run saw."""

    def __init__(self) -> None:
        self.keys: list[list[str]] = []  # of every training batch
        self.positions: list[list[int]] = []
        self.validated: list[int] = []  # steps at the end of a validation
        self.validation_batches = 0
        self.sanity_batches = 0
        self.states: set[tuple[bool, bool]] = set()  # (anomaly detection, deterministic algorithms) in training
        self.trainer: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.trainer = trainer

    def on_before_backward(self, *_: Any) -> None:
        self.states.add((torch.is_anomaly_enabled(), torch.are_deterministic_algorithms_enabled()))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.keys.append(batch["key"])
        self.positions.append(batch["position"])

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            self.sanity_batches += 1
        else:
            self.validation_batches += 1

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.validated.append(trainer.global_step)


LAST_SPY: list[Spy] = []


def spy() -> Spy:
    """The target of a config's callback; the test reads the instance from `LAST_SPY`."""
    LAST_SPY.append(Spy())
    return LAST_SPY[-1]


class Done:
    """A finished run: its folder, what a spy saw, and its printed lines."""

    def __init__(self, folder: Path, spy: Spy, output: str, curves: Curves) -> None:
        self.folder, self.spy, self.output, self.curves = folder, spy, output, curves

    @property
    def steps(self) -> int:
        return int(self.spy.trainer.global_step)

    @property
    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "logs/metrics.csv").open() as file:
            return list(csv.DictReader(file))

    @property
    def checkpoints(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*.ckpt"))


Run = Callable[..., Done]


@pytest.fixture
def run(tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Trains on five panoramas, two per batch and so two batches per epoch, without samples."""

    def start(*overrides: str, folder: str = "run") -> Done:
        target = f"+callbacks.spy._target_={__name__}.spy"
        words = (*QUICK, *NO_SAMPLES, f"data.path={tiny_shards}", target, *overrides)
        curves: Curves = {}
        fit(composed(*words, run_dir=tmp_path / folder), tmp_path / folder, curves)
        printed = capsys.readouterr()
        return Done(tmp_path / folder, LAST_SPY[-1], printed.out + printed.err, curves)

    return start


@cache
def cpu_config() -> DictConfig:
    return composed("trainer=cpu", "data.path=SHARDS")


def settings(*overrides: str) -> DictConfig:
    """The node `trainer` of the config with values of its keys; composing takes longer than all of these tests."""
    config = copy.deepcopy(cpu_config())
    config.merge_with(OmegaConf.from_dotlist([f"trainer.{override}" for override in overrides]))
    return config.trainer


# ---- the schema ----------------------------------------------------------------------------------------------


def test_every_argument_is_a_key_of_the_config() -> None:
    trainer = composed("data.path=SHARDS").trainer
    assert set(trainer) == {"_target_", *ARGUMENTS}


def test_a_null_is_lightnings_default() -> None:
    trainer = build(composed("data.path=SHARDS").trainer, logger=False)
    default = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    for name in ("limit_train_batches", "overfit_batches", "fast_dev_run", "reload_dataloaders_every_n_epochs"):
        assert getattr(trainer, name) == getattr(default, name), name
    assert (trainer.num_nodes, trainer.world_size) == (1, 1)


def test_a_key_may_still_be_added_with_a_plus() -> None:
    """As it had to be when the schema did not have all of them."""
    config = composed(
        "data.path=SHARDS", "+trainer.max_epochs=3", "+trainer.fast_dev_run=true", "+trainer.profiler=simple"
    )
    assert (config.trainer.max_epochs, config.trainer.fast_dev_run, config.trainer.profiler) == (3, True, "simple")


# ---- arguments that are refused ------------------------------------------------------------------------------

REFUSED = {
    "barebones=true": r"barebones=True is not supported: set callbacks=none logger=none",
    "callbacks={_target_: builtins.object}": r"callbacks=.* is not supported: .*callbacks\.NAME\._target_",
    "default_root_dir=elsewhere": r"default_root_dir=elsewhere is not supported: set run_dir=DIR",
    "limit_predict_batches=2": r"limit_predict_batches=2 is not supported: .*remove it",
    "limit_test_batches=0.5": r"limit_test_batches=0\.5 is not supported: .*remove it",
    "model_registry=me/model": r"model_registry=me/model is not supported: .*log_export=true",
    "reload_dataloaders_every_n_epochs=1": r"reload_dataloaders_every_n_epochs=1 is not supported: .*remove",
    "logger=true": r"logger=True is not supported: choose loggers with logger=csv",
    "gradient_clip_algorithm=value": r"gradient_clip_algorithm=value is not supported: set norm",
    "gradient_clip_val=-1": r"gradient_clip_val=-1: expected at least 0",
    "gradient_clip_val=.nan": r"gradient_clip_val=nan: expected a number",
    "accumulate_grad_batches=0": r"accumulate_grad_batches=0: expected at least 1",
    "log_every_n_steps=-1": r"log_every_n_steps=-1: expected at least 0",
    "num_nodes=0": r"num_nodes=0: expected at least 1",
    "devices=abc": r"devices=abc: expected a number, a list of indices such as \[0,1\], or auto",
    "strategy=deepspeed": r"strategy=deepspeed is not supported: set trainer=ddp or trainer=fsdp",
    "strategy=fsdp": r"strategy=fsdp is not supported: set trainer=ddp or trainer=fsdp",
    "strategy=ddp_spawn": r"strategy=ddp_spawn is not supported: set trainer=ddp",
    "precision=64-true": r"precision=64-true is not supported: set 32-true",
    "precision=64": r"precision=64 is not supported: set 32-true",
    "precision=16-true": r"precision=16-true is not supported: set 32-true",
    "precision=transformer-engine": r"precision=transformer-engine is not supported: set 32-true",
    "precision=16-mixed": r"precision=16-mixed needs a GPU, but trainer\.accelerator=cpu: set .*bf16-mixed",
    "precision=16": r"precision=16 needs a GPU, but trainer\.accelerator=cpu: set .*bf16-mixed",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_a_run_does_not_support_is_refused_in_one_sentence(override: str) -> None:
    config = settings(override)._get_parent()
    assert isinstance(config, DictConfig)
    with pytest.raises(ValueError, match=rf"^trainer\.{REFUSED[override]}") as error:
        check(config)
    assert "\n" not in str(error.value)


def test_float16_is_refused_where_lightning_would_train_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^trainer\.precision=16-mixed needs a GPU, but this machine has none: set"):
        check_devices(composed("trainer=auto", "data.path=SHARDS", "trainer.precision=16-mixed"))
    with pytest.raises(ValueError, match=r"^trainer\.precision=16-mixed is not supported with trainer=fsdp: set"):
        check(composed("trainer=fsdp", "data.path=SHARDS", "trainer.precision=16-mixed"))
    for trainer in ("gpu", "ddp"):
        check(composed(f"trainer={trainer}", "data.path=SHARDS", "trainer.precision=16-mixed"))


LIGHTNINGS = {
    "max_steps=-2": "max_steps",
    "max_epochs=-2": "max_epochs",
    "max_time=soon": r"max_time|Timer.*DD:HH:MM:SS",
    "fast_dev_run=-1": "fast_dev_run",
    "limit_train_batches=1.5": "limit_train_batches",
    "limit_val_batches=-1": "limit_val_batches",
    "overfit_batches=2.5": "overfit_batches",
    "val_check_interval=0.5": "val_check_interval.*check_val_every_n_epoch",
    "devices=0": "devices",
    "accelerator=hpu": "accelerator|hpu",
    "profiler=quick": "profiler",
    "strategy={_target_: lightning.pytorch.strategies.FSDPStrategy}": "strategy|FSDP",
    "strategy={_target_: lightning.pytorch.strategies.DDPStrategy, start_method: spawn}": "DDPStrategy with start",
    "max_steps=few": "expected an integer",
    "inference_mode=maybe": "expected true or false",
}


@pytest.mark.parametrize("override", LIGHTNINGS)
def test_values_that_lightning_refuses_are_errors_that_name_the_key(override: str) -> None:
    check_trainer(settings(override))
    with pytest.raises(ValueError, match=LIGHTNINGS[override]) as error:
        build_trainer(settings(override), [], False)
    assert str(error.value).startswith("trainer")
    assert "\n" not in str(error.value).strip()


# ---- arguments that a trainer holds --------------------------------------------------------------------------


def held(*overrides: str) -> L.Trainer:
    """The Trainer of a config, which trains nothing."""
    return build_trainer(settings(*overrides), [], False)


def accelerator() -> None:
    assert isinstance(held("accelerator=cpu").accelerator, CPUAccelerator)


def devices() -> None:
    assert held("devices=3").world_size == 3


def num_nodes() -> None:
    assert held("num_nodes=2", "devices=2").world_size == 4


def strategy() -> None:
    for name in ("ddp", "ddp_find_unused_parameters_true"):
        trainer = held(f"strategy={name}")
        assert isinstance(trainer.strategy, DDPStrategy)
        assert trainer.strategy._ddp_kwargs.get("find_unused_parameters", False) == name.endswith("true")


def precision() -> None:
    for name, expected in {
        "bf16": "bf16-mixed",
        "32": "32-true",
        "bf16-mixed": "bf16-mixed",
        "null": "32-true",
    }.items():
        assert held(f"precision={name}").precision == expected


def plugins() -> None:
    environment = "{_target_: lightning.pytorch.plugins.environments.LightningEnvironment}"
    trainer = held(f"plugins=[{environment}]")
    assert type(trainer._accelerator_connector.cluster_environment).__name__ == "LightningEnvironment"
    for choice in (trainer, held("plugins=null"), held()):
        assert isinstance(choice.strategy.checkpoint_io, AtomicCheckpointIO)


def sync_batchnorm() -> None:
    assert held("sync_batchnorm=true", "strategy=ddp")._accelerator_connector._layer_sync is not None


def benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    held("benchmark=true")
    assert torch.backends.cudnn.benchmark


# ---- arguments with an effect on a run -----------------------------------------------------------------------


def max_steps(run: Run) -> None:
    assert run("trainer.max_steps=3").steps == 3
    assert run("trainer.max_steps=0", folder="none").steps == 0


def max_epochs(run: Run) -> None:
    done = run("trainer.max_steps=-1", "trainer.max_epochs=2")
    assert (done.steps, len(done.spy.keys)) == (4, 4)
    assert " 4/4 " in done.output
    assert run("trainer.max_steps=3", "trainer.max_epochs=-1", folder="without").steps == 3


def min_epochs(run: Run) -> None:
    done = run("trainer.max_steps=-1", "trainer.max_time={seconds: 0}", "trainer.min_epochs=2")
    assert done.steps == 4


def min_steps(run: Run) -> None:
    done = run("trainer.max_steps=-1", "trainer.max_time=00:00:00:00", "trainer.min_steps=3")
    assert done.steps == 3


def max_time(run: Run) -> None:
    """A second passes before thousands of steps."""
    done = run("trainer.max_steps=-1", "trainer.max_time=00:00:00:01")
    assert 0 < done.steps < 1000
    assert done.checkpoints[-1] == f"checkpoints/step{done.steps:08d}.ckpt"


def fast_dev_run(run: Run, tiny_shards: Path, tmp_path: Path) -> None:
    """One batch of each loop; no checkpoint, log, sample or export; the next run starts at step 0."""
    trial = run("trainer.fast_dev_run=true", "trainer.max_steps=4", "callbacks.samples.count=1", "logger=tensorboard")
    assert (trial.steps, trial.spy.validation_batches) == (1, 1)
    assert list(trial.folder.rglob("*")) == []
    two = run("trainer.fast_dev_run=2")
    assert (two.steps, list(two.folder.rglob("*"))) == (2, [])
    real = run("trainer.max_steps=2")
    assert "resuming" not in real.output
    assert real.spy.positions[0] == [0, 1]
    again = run("trainer.fast_dev_run=true", "trainer.max_steps=4")
    assert (again.steps, again.spy.positions[0]) == (1, [0, 1])
    assert again.checkpoints == real.checkpoints


def limit_train_batches(run: Run) -> None:
    done = run("trainer.max_epochs=2", "trainer.max_steps=9", "trainer.limit_train_batches=1")
    assert done.spy.positions == [[0, 1], [2, 3]]
    assert (
        len(
            run(
                "trainer.max_steps=9", "trainer.max_epochs=1", "trainer.limit_train_batches=0.5", folder="half"
            ).spy.keys
        )
        == 1
    )


def limit_val_batches(run: Run) -> None:
    """Three validation panoramas are two batches."""
    for limit, expected in (("1", 1), ("0", 0), ("0.5", 1), ("null", 2)):
        done = run(f"trainer.limit_val_batches={limit}", "trainer.val_check_interval=2", folder=limit)
        assert done.spy.validation_batches == expected


def overfit_batches(run: Run) -> None:
    """The same panoramas in the same rotation, each time with other noise."""
    done = run("trainer.overfit_batches=1", "trainer.max_steps=4")
    assert len({tuple(keys) for keys in done.spy.keys}) == 1
    assert done.spy.positions == [[0, 1], [2, 3], [4, 5], [6, 7]]
    whole = run("trainer.overfit_batches=1.0", "trainer.max_steps=4", folder="whole")
    assert whole.spy.keys[:2] == whole.spy.keys[2:]
    assert whole.spy.keys[0] != whole.spy.keys[1]


def val_check_interval(run: Run) -> None:
    assert run("trainer.val_check_interval=2", "trainer.max_steps=5").spy.validated == [2, 4]
    assert run("trainer.val_check_interval=00:00:00:00", folder="time").spy.validated == [1, 2]
    assert run("trainer.val_check_interval=null", "trainer.max_steps=4", folder="epochs").spy.validated == [2, 4]


def check_val_every_n_epoch(run: Run) -> None:
    done = run("trainer.check_val_every_n_epoch=2", "trainer.val_check_interval=null", "trainer.max_steps=6")
    assert done.spy.validated == [4]


def num_sanity_val_steps(run: Run) -> None:
    done = run("trainer.num_sanity_val_steps=1", "callbacks.samples.count=1")
    assert (done.spy.sanity_batches, done.steps) == (1, 2)
    assert not (done.folder / "samples").exists()
    assert run("trainer.num_sanity_val_steps=-1", folder="all").spy.sanity_batches == 2


def log_every_n_steps(run: Run) -> None:
    done = run("trainer.log_every_n_steps=2", "trainer.max_steps=5")
    assert [int(row["step"]) for row in done.rows if row["train/loss"]] == [1, 3]
    never = run("trainer.log_every_n_steps=0", "trainer.limit_val_batches=0", folder="never")
    assert not (never.folder / "logs/metrics.csv").exists()


def enable_checkpointing(run: Run) -> None:
    assert run("trainer.enable_checkpointing=false").checkpoints == []
    assert run("callbacks.checkpoint=null", folder="null").checkpoints == []
    own = ("callbacks.checkpoint=null", "trainer.val_check_interval=2")
    lightnings = run("trainer.enable_checkpointing=true", *own, folder="lightnings")
    assert any(isinstance(callback, ModelCheckpoint) for callback in lightnings.spy.trainer.callbacks)
    assert len(lightnings.checkpoints) == 1


def enable_progress_bar(run: Run) -> None:
    done = run("trainer.enable_progress_bar=false")
    assert "training:" not in done.output
    assert "training: 100%" in run("trainer.enable_progress_bar=true", folder="shown").output


def enable_model_summary(run: Run) -> None:
    assert "Non-trainable params" in run("trainer.enable_model_summary=true").output
    assert "Non-trainable params" not in run(folder="without").output


def accumulate_grad_batches(run: Run) -> None:
    done = run("trainer.accumulate_grad_batches=2", "trainer.max_steps=3")
    assert (done.steps, len(done.spy.keys)) == (3, 6)


@pytest.mark.parametrize("off", ["0", "0.0"])
def test_a_clipping_value_of_zero_does_not_clip(run: Run, off: str) -> None:
    steps = ("trainer.max_steps=2", "model.optimizer._target_=torch.optim.SGD", "callbacks.ema=null")
    plain = (
        "~model.optimizer.fused",
        "~model.optimizer.betas",
        "model.optimizer.weight_decay=0",
        "model.optimizer.lr=0.1",
    )
    moved = [
        moved_by(run(*steps, *plain, f"trainer.gradient_clip_val={value}", folder=value))
        for value in (off, "1e9", "1e-6")
    ]
    assert moved[0] == moved[1] > 100 * moved[2] > 0


def moved_by(done: Done) -> float:
    """How far the exported weights are from the initial ones."""
    from safetensors.torch import load_file

    weights, start = (
        load_file(done.folder / "export/unet/diffusion_pytorch_model.safetensors"),
        tiny_random().unet.state_dict(),
    )
    return max((weights[name] - start[name]).abs().max().item() for name in start)


def gradient_clip_val(run: Run) -> None:
    """SGD moves by the learning rate times the clipped norm at most."""
    plain = ("~model.optimizer.fused", "~model.optimizer.betas", "model.optimizer.weight_decay=0", "callbacks.ema=null")
    sgd = ("model.optimizer._target_=torch.optim.SGD", "model.optimizer.lr=1", *plain, "trainer.max_steps=1")
    assert 0 < moved_by(run(*sgd, "trainer.gradient_clip_val=0.01")) < 0.01


def gradient_clip_algorithm(run: Run) -> None:
    assert run("trainer.gradient_clip_algorithm=norm").steps == 2


def deterministic(run: Run) -> None:
    try:
        assert run("trainer.deterministic=true").spy.states == {(False, True)}
    finally:
        torch.use_deterministic_algorithms(False)
    assert run(folder="without").spy.states == {(False, False)}


def detect_anomaly(run: Run) -> None:
    assert run("trainer.detect_anomaly=true").spy.states == {(True, False)}


class Predictor(L.LightningModule):
    """Notes whether it predicts in inference mode."""

    mode: bool

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.mode = torch.is_inference_mode_enabled()
        return batch


def inference_mode() -> None:
    """Of `cubediff cache`, which predicts; Lightning validates without it in training."""
    for value in (True, False):
        predictor = Predictor()
        trainer = held(f"inference_mode={str(value).lower()}", "enable_progress_bar=false")
        trainer.predict(predictor, [torch.zeros(1)], return_predictions=False)
        assert predictor.mode == value


def use_distributed_sampler(run: Run) -> None:
    """The data module divides the stream over the ranks itself; Lightning has no sampler to replace."""
    runs = [run(f"trainer.use_distributed_sampler={value}", folder=value) for value in ("true", "false")]
    assert runs[0].spy.keys == runs[1].spy.keys


def profiler(run: Run) -> None:
    done = run("trainer.profiler=simple")
    assert "run_training_batch" in done.spy.trainer.profiler.summary()
    assert (
        run("trainer.profiler={_target_:lightning.pytorch.profilers.SimpleProfiler,dirpath:null}", folder="own").steps
        == 2
    )
    assert isinstance(held("profiler=simple").profiler, SimpleProfiler)


def enable_autolog_hparams(run: Run) -> None:
    assert not (run("trainer.enable_autolog_hparams=false").folder / "logs/hparams.yaml").exists()
    assert "run_dir" in (run(folder="with").folder / "logs/hparams.yaml").read_text()


def logger(run: Run) -> None:
    for number, words in enumerate((["trainer.logger=false"], ["logger=none"], ["~logger"])):
        done = run(*words, folder=str(number))
        assert {path.name for path in done.folder.iterdir()} == {"checkpoints", "export", "run.json"}
        assert len(done.curves["train/loss"]) == 2  # for result.json


REFUSED_ALWAYS = {
    *("barebones", "callbacks", "default_root_dir", "limit_predict_batches", "limit_test_batches", "model_registry"),
    "reload_dataloaders_every_n_epochs",
}


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_every_argument_has_its_effect_or_is_refused(argument: str, request: pytest.FixtureRequest) -> None:
    if argument in REFUSED_ALWAYS:
        assert any(override.partition("=")[0] == argument for override in REFUSED)
        assert argument not in globals()
    else:
        test = globals()[argument]
        test(**{name: request.getfixturevalue(name) for name in inspect.signature(test).parameters})


# ---- callbacks -----------------------------------------------------------------------------------------------


def test_a_run_without_the_group_callbacks_trains(tiny_shards: Path, tmp_path: Path) -> None:
    for number, words in enumerate((["callbacks=none"], ["~callbacks"], ["experiment=tiny_cpu", "~callbacks"])):
        folder = tmp_path / str(number)
        fit(composed(*words, *QUICK, f"data.path={tiny_shards}", run_dir=folder), folder)
        assert {path.name for path in folder.iterdir()} == {"export", "logs", "run.json"}


def test_a_count_of_zero_generates_no_samples(run: Run) -> None:
    done = run("callbacks.samples.count=0", "trainer.val_check_interval=1")
    assert done.spy.validated == [1, 2]
    assert not (done.folder / "samples").exists()


@pytest.mark.parametrize("override", ["count=-1", "steps=0"])
def test_invalid_samples_are_refused_before_training(override: str, tiny_shards: Path, tmp_path: Path) -> None:
    config = composed(*QUICK, f"data.path={tiny_shards}", f"callbacks.samples.{override}", run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"^callbacks\.samples: count must be at least 0 and steps at least 1, got"):
        fit(config, tmp_path)


DIVERGING = (
    "model.optimizer.lr=1e30",
    "trainer.limit_val_batches=0",
    "callbacks.ema=null",
    "callbacks.checkpoint=null",
)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize(
    "limit",
    [
        ("trainer.max_steps=4",),
        ("trainer.max_steps=-1", "trainer.max_epochs=2"),
        ("trainer.max_steps=-1", "trainer.max_time={seconds: 0}", "trainer.min_steps=4"),
    ],
)
def test_non_finite_losses_are_announced_at_the_end_of_any_run(
    run: Run, limit: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    run(*DIVERGING, *limit)
    assert "steps up to step 4, whose gradients are not finite; the loss is not finite in a batch of" in caplog.text
    with pytest.raises(FloatingPointError, match=r"lower model\.optimizer\.lr"):
        run(*DIVERGING, *limit, "callbacks.finite.limit=1", folder="limited")


# ---- runs without a number of steps --------------------------------------------------------------------------


def test_a_schedule_that_needs_the_number_of_steps_is_refused_without_one(run: Run) -> None:
    unlimited = ("trainer.max_steps=-1", "trainer.max_time=00:00:00:01")
    with pytest.raises(ValueError, match=r"^model\.lr_schedule=cosine needs the number of steps.*trainer\.max_steps"):
        run(*unlimited, "model.lr_schedule=cosine")
    assert run("model.lr_schedule=cosine", "trainer.max_steps=-1", "trainer.max_epochs=1", folder="epochs").steps == 2


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["trainer.max_steps=7"], 7),
        (["trainer.max_steps=-1", "trainer.max_epochs=3"], 6),
        (["trainer.max_steps=4", "trainer.max_epochs=3"], 4),
        (["trainer.max_steps=-1", "trainer.max_epochs=3", "trainer.limit_train_batches=1"], 3),
        (["trainer.max_steps=-1", "trainer.max_epochs=3", "trainer.overfit_batches=1"], 3),
        (["trainer.max_steps=-1", "trainer.max_epochs=3", "trainer.accumulate_grad_batches=2"], 3),
        (["trainer.max_steps=-1"], 2000),  # Lightning's 1000 epochs
        (["trainer.max_steps=-1", "trainer.max_epochs=-1"], None),
        (["trainer.max_steps=-1", "trainer.max_time=00:01:00:00"], None),
        (["trainer.fast_dev_run=2"], 2),
    ],
)
def test_the_plan_knows_the_number_of_steps(overrides: list[str], steps: int | None, tiny_shards: Path) -> None:
    config = composed(*QUICK, f"data.path={tiny_shards}", *overrides)
    assert limit_steps(config, samples=5) == steps


def test_a_dry_run_describes_a_run_without_a_number_of_steps(tiny_shards: Path, tmp_path: Path) -> None:
    words = (
        *QUICK,
        f"data.path={tiny_shards}",
        "plan.memory_gb=0.5",
        "trainer.max_steps=-1",
        "trainer.max_time=00:01:00:00",
    )
    text = describe(composed(*words, run_dir=tmp_path), tmp_path)
    assert "00:01:00:00 of time, 32-true" in text
    assert "steps per epoch, no limit of steps" in text
