"""Callbacks, loggers and data modules take part in a run by implementing protocols; incomplete ones are refused."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import Logger
from omegaconf import open_dict
from support.runs import QUICK, composed

from cubediff.data import PanoramaDataModule
from cubediff.runs.fit import fit
from cubediff.training.callbacks import RunCheckpoint, SampleLogger, StepMetrics, UNetEMA
from cubediff.training.loggers import CSVRun, WandbRun
from cubediff.training.protocols import (
    EncoderUser,
    ExportLogger,
    ExportWeights,
    FlopsConsumer,
    IdentityWriter,
    ResumableLogger,
    is_encoded,
    members,
)

NONE = ("callbacks=none", "trainer.max_steps=1", "trainer.limit_val_batches=0")


class Watcher(L.Callback):
    """A callback that no module of the package names."""

    weights_name = "watched"

    def __init__(self) -> None:
        self.identity: dict[str, object] = {}
        self.entered = 0

    def set_run_identity(self, identity: dict[str, object]) -> None:
        self.identity = identity

    def averaged(self, module: L.LightningModule) -> AbstractContextManager[None]:
        self.entered += 1
        return nullcontext()


class NamelessWeights(L.Callback):
    """Weights for the export without the name that training.json needs."""

    def averaged(self, module: L.LightningModule) -> AbstractContextManager[None]:
        return nullcontext()


class WrongFlops(L.Callback):
    set_flops = 3.0


class Received(Logger):
    """A logger that keeps what it receives."""

    name, version = None, None  # type: ignore[assignment]
    steps: list[int] = []  # noqa: RUF012
    folders: list[Path] = []  # noqa: RUF012

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def begin_at(self, step: int) -> None:
        self.steps.append(step)

    def log_pipeline(self, folder: Path) -> None:
        self.folders.append(folder)


class NoPanoramas(L.LightningDataModule):
    """A data module without the members of `TrainingData`."""


class Anything:
    """No callback, logger or data module."""


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [
        (RunCheckpoint, IdentityWriter),
        (SampleLogger, EncoderUser),
        (StepMetrics, FlopsConsumer),
        (UNetEMA, ExportWeights),
        (CSVRun, ResumableLogger),
        (WandbRun, ExportLogger),
    ],
)
def test_the_packages_own_classes_have_all_members_of_their_protocol(kind: type, protocol: type) -> None:
    assert members(protocol)
    assert all(hasattr(kind, name) for name in members(protocol))


def test_a_callback_and_a_logger_from_elsewhere_take_part_by_their_methods(tiny_shards: Path, tmp_path: Path) -> None:
    checkpoints = "trainer.enable_checkpointing=null"  # callbacks=none turns off callbacks that write them
    config = composed(*QUICK, *NONE, checkpoints, f"data.path={tiny_shards}", run_dir=tmp_path / "run")
    with open_dict(config):
        config.callbacks.watcher = {"_target_": f"{__name__}.Watcher"}
        config.logger = {"received": {"_target_": f"{__name__}.Received"}}
    export = fit(config, tmp_path / "run")
    assert '"weights": "watched"' in (export / "training.json").read_text()
    assert Received.folders == [export]


def test_only_data_that_names_its_encoders_is_encoded(tiny_shards: Path) -> None:
    assert not is_encoded(PanoramaDataModule(tiny_shards, batch_size=1, face_size=64))
    assert not is_encoded(NoPanoramas())
    assert is_encoded(SimpleNamespace(encoded_by="0123456789ab"))


@pytest.mark.parametrize(
    ("key", "name", "message"),
    [
        (
            "callbacks.mine",
            "NamelessWeights",
            r"callbacks\.mine: .*NamelessWeights lacks weights_name of .*ExportWeights",
        ),
        ("callbacks.mine", "WrongFlops", r"callbacks\.mine: .*WrongFlops lacks set_flops of .*FlopsConsumer"),
        ("callbacks.mine", "Anything", r"callbacks\.mine\._target_: expected a subclass of Callback, got .*Anything"),
        ("logger.mine", "Anything", r"logger\.mine\._target_: expected a subclass of Logger, got .*Anything"),
        ("data", "NoPanoramas", r"data: .*NoPanoramas lacks batch_size, paths, skipped, samples of .*TrainingData"),
        ("data", "Anything", r"data\._target_: expected a subclass of LightningDataModule, got .*Anything"),
    ],
)
def test_an_object_that_does_not_implement_its_protocol_is_refused_before_training(
    tiny_shards: Path, tmp_path: Path, key: str, name: str, message: str
) -> None:
    config = composed(*QUICK, *NONE, f"data.path={tiny_shards}", run_dir=tmp_path / "run")
    node = {"_target_": f"{__name__}.{name}"}
    with open_dict(config):
        if key == "data":
            config.data = {**node, "_convert_": "none"}
        else:
            group, _, own = key.partition(".")
            config[group][own] = node
    with pytest.raises(ValueError, match=message):
        fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
