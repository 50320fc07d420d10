"""What a user gives wrongly on a Hydra command line is answered with what was meant."""

import sys
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException, MissingConfigException
from support.runs import composed

from cubediff import cache, plan, train
from cubediff.configs import build
from cubediff.configs.arguments import check_types
from cubediff.configs.overrides import error_hint

DATA = "data.path=SHARDS"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("data.bath_size=4", "data.batch_size"),
        ("modle.optimizer.lr=1", "model.optimizer.lr"),
        ("trainer.lr=1", "model.optimizer.lr"),
        ("batch_size=3", "data.batch_size"),
        ("trainer.warmup_steps=1", "model.warmup_steps"),
        ("max_step=3", "trainer.max_steps"),
        ("callbacks.ema.decy=1", "callbacks.ema.decay"),
        ("optimiser=adamw", "optimizer"),
        ("sweeps=optuna", "sweep"),
        ("run_dri=here", "run_dir"),
    ],
)
def test_a_key_that_does_not_exist_is_answered_with_the_nearest_that_does(given: str, meant: str) -> None:
    with pytest.raises(ConfigCompositionException) as error:
        composed(DATA, given)
    assert error_hint(error.value) == f"did you mean {meant}?"


def test_a_key_like_none_gets_no_advice() -> None:
    with pytest.raises(ConfigCompositionException) as error:
        composed(DATA, "zzz.qqq=1")
    assert error_hint(error.value) is None


@pytest.mark.parametrize("entry", [train, cache, plan])
def test_every_command_says_it_after_hydras_own_error(
    entry: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", DATA, "data.bath_size=4"])
    with pytest.raises(SystemExit) as end:
        entry.main()  # type: ignore[attr-defined]
    assert end.value.code == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "Could not override 'data.bath_size'."
    assert told[-1] == "did you mean data.batch_size?"


def test_a_plugin_that_is_not_installed_is_answered_with_the_command() -> None:
    missing = MissingConfigException("Could not find it", missing_cfg_file="hydra/sweeper/optuna", options=["basic"])
    assert error_hint(missing) == "hydra/sweeper/optuna is not installed: pip install 'cubediff[sweep]'"
    with pytest.raises(MissingConfigException) as error:
        composed(DATA, "model=sd16")
    assert error_hint(error.value) is None  # Hydra lists what there is


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.batch_size=four", "data.batch_size=four: expected an integer"),
        ("data.batch_size=2.5", "data.batch_size=2.5: expected an integer"),
        ("data.batch_size=true", "data.batch_size=True: expected an integer"),
        ("data.batch_size=null", "data.batch_size=null: expected an integer"),
        ("data.num_workers=some", "data.num_workers=some: expected an integer"),  # of the class's base
        ("data.yaw=any", "data.yaw=any: expected uniform or none"),
        ("model.objective.drop_text=none", "model.objective.drop_text=none: expected a number"),
        ("model.gradient_checkpointing=1", "model.gradient_checkpointing=1: expected true or false"),
        ("model.compile=max", "model.compile=max: expected regional or null"),
        ("model.optimizer.lr=fast", "model.optimizer.lr=fast: expected a number or Tensor"),
        ("trainer.max_steps=many", "trainer.max_steps=many: expected an integer"),
        ("trainer.limit_val_batches=none", "trainer.limit_val_batches=none: expected an integer or a number or null"),
        ("callbacks.ema.decay=high", "callbacks.ema.decay=high: expected a number"),
    ],
)
def test_a_value_of_another_type_is_told_with_its_key_and_the_type(override: str, told: str) -> None:
    config = composed("model=tiny_random", DATA, override)
    part = config[override.split(".")[0]]
    with pytest.raises(ValueError, match=r"^") as error:
        build(part.ema if "ema" in override else part)
    assert str(error.value) == told


def test_what_every_experiment_gives_passes() -> None:
    for experiment in ("sd15_l4x4", "tiny_cpu", "cubediff_tiny"):
        check_types(composed(f"experiment={experiment}", DATA, "optimizer=adamw"))


@pytest.mark.parametrize(
    "override",
    ["trainer.precision=16", "trainer.devices=[0,1]", "trainer.val_check_interval=0.5", "model.optimizer.lr=1",
     "data.path=2024", "trainer.max_time=null", "model.objective.min_snr_gamma=5"],
)  # fmt: skip
def test_values_that_an_annotation_allows_pass(override: str) -> None:
    plus = "+" if "max_time" in override else ""
    check_types(composed("model=tiny_random", DATA, plus + override))
