"""Errors of Hydra command lines suggest a correction."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hydra.errors import ConfigCompositionException, MissingConfigException
from support.promises import promised
from support.runs import composed
from torch import Tensor

from cubediff import cache, evaluate, plan, train
from cubediff.configs import CONFIG_DIR, build, check
from cubediff.configs.arguments import check_types
from cubediff.configs.overrides import argument_message, error_hint, messages_of_errors, options_first

DATA = "data.path=SHARDS"


def refusal(entry: ModuleType, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The message that a command ends with."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as end:
        entry.main()
    return str(end.value)


@pytest.mark.parametrize(
    ("override", "suggestion"),
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
def test_error_of_an_unknown_key_suggests_the_nearest_one(override: str, suggestion: str) -> None:
    with pytest.raises(ConfigCompositionException) as error:
        composed(DATA, override)
    assert error_hint(error.value) == f"did you mean {suggestion}?"


def test_a_key_similar_to_none_gets_no_suggestion() -> None:
    with pytest.raises(ConfigCompositionException) as error:
        composed(DATA, "zzz.qqq=1")
    assert error_hint(error.value) is None


@pytest.mark.parametrize("entry", [train, cache, plan])
def test_every_command_prints_the_suggestion_after_hydras_error(
    entry: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", DATA, "data.bath_size=4"])
    with pytest.raises(SystemExit) as end:
        entry.main()  # type: ignore[attr-defined]
    assert end.value.code == 1
    message = capsys.readouterr().err.splitlines()
    assert message[0] == "Could not override 'data.bath_size'."
    assert message[-1] == "did you mean data.batch_size?"


@pytest.mark.parametrize("entry", [train, cache, plan, evaluate])
@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("/tmp/données", "\"data.path='/tmp/données'\""),
        ("/tmp/a (1)", "\"data.path='/tmp/a (1)'\""),
        ("/tmp/a=b", "\"data.path='/tmp/a=b'\""),
        ("/tmp/l'été $1", "\"data.path='/tmp/l\\\\'été \\$1'\""),
        ("/tmp/a,b", "\"data.path='/tmp/a,b'\"; or add --multirun for one run per value, or write [A,B] for a list"),
    ],
)
def test_error_of_a_path_with_special_characters_quotes_it(
    entry: ModuleType, value: str, quoted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    remedy = f"quote a value with special characters for Hydra and for the shell: {quoted}"
    assert refusal(entry, [f"data.path={value}"], monkeypatch) == f"error: data.path={value}: {remedy}"
    shell = subprocess.run(["sh", "-c", f"printf %s {quoted.partition(';')[0]}"], capture_output=True, check=True)
    assert composed(shell.stdout.decode()).data.path == value


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("tiny_cpu", "expected key=value"),
        (
            "metrics=[a(b]",
            "quote the texts inside the brackets for Hydra and all for the shell: \"metrics=['A', 'B']\"",
        ),
    ],
)
def test_error_of_an_argument_that_quotes_do_not_repair(
    argument: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(train, [argument], monkeypatch) == f"error: {argument}: {remedy}"


@pytest.mark.parametrize("entry", [train, cache, plan, evaluate])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiment", "tiny_cpu"], "--experiment is no option of this command: write experiment=tiny_cpu"),
        (["--experiment=tiny_cpu"], "--experiment is no option of this command: write experiment=tiny_cpu"),
        (["--data.path", "A", "seed=1"], "--data.path is no option of this command: write data.path=A"),
        (["--dry_run", "data.path=A"], "--dry_run is no option of this command: write dry_run=VALUE"),
    ],
)
def test_a_key_that_is_written_as_an_option_is_named(
    entry: ModuleType, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(entry, arguments, monkeypatch) == f"error: {message} without dashes; --help lists the keys"


@pytest.mark.parametrize("empty", ["", "''", '""', "null"])
def test_an_empty_run_dir_is_refused(empty: str) -> None:
    message = argument_message([DATA, f"run_dir={empty}"])
    assert message == f"run_dir={empty}: name the folder of the run, or omit run_dir for a new one"


def test_options_may_stand_between_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert options_first(["a=1", "-m", "b=1,2", "--config-dir", "D", "c=3", "--cfg=job"]) == [
        *("-m", "--config-dir", "D", "--cfg=job"), *("a=1", "b=1,2", "c=3"),
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", DATA, "--cfg", "job", "seed=7"])
        train.main()
    assert "\nseed: 7\n" in capsys.readouterr().out


def test_the_config_of_a_group_at_the_root_is_refused() -> None:
    """As that of an own objective whose file does not begin with the package."""
    config = composed(DATA, "+objective={weighting: {_target_: module.Ramp}}")
    with pytest.raises(ValueError, match=r"^objective: nothing reads this key .* begin .* `# @package model`, as "):
        check(config)


def constant(losses: Tensor, timesteps: Tensor, process: object) -> Tensor:
    return losses


def test_a_function_that_lacks_arguments_is_told_to_be_partial() -> None:
    weighting = f"model.objective.weighting={{_target_: {__name__}.{constant.__name__}}}"
    config = composed("model=tiny_random", DATA, weighting)
    with pytest.raises(ValueError, match=r"a function that is called later needs model\.objective\.\S*_partial_=true"):
        build(config.model)


def test_options_of_hydra_pass() -> None:
    accepted = ["--cfg", "job", "--multirun", "--multi", "--config-dir=D", "-m", "--info", "--", "data.path=--a"]
    assert argument_message(accepted) is None
    assert argument_message([]) is None


@pytest.mark.parametrize("entry", [train, cache, plan])
def test_the_help_lists_every_choice_that_can_be_used_and_no_other(
    entry: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        entry.main()  # type: ignore[attr-defined]
    section = capsys.readouterr().out.partition("Groups:\n")[2].partition("\n\n")[0]
    listed = {group: choices.split(", ") for group, choices in (line.split(": ") for line in section.splitlines())}
    groups = {path.name: path for path in Path(CONFIG_DIR).iterdir() if path.is_dir()}
    assert set(listed) == set(groups) - {"hydra", "evaluation"}
    for group, choices in listed.items():
        assert choices == sorted({path.stem for path in groups[group].glob("*.yaml")} - {"base"})


def test_error_of_a_missing_plugin_names_the_pip_command() -> None:
    missing = MissingConfigException("Could not find it", missing_cfg_file="hydra/sweeper/optuna", options=["basic"])
    assert error_hint(missing) == "hydra/sweeper/optuna is not installed: pip install 'cubediff[sweep]'"
    with pytest.raises(MissingConfigException) as error:
        composed(DATA, "model=sd16")
    assert error_hint(error.value) is None  # Hydra lists what there is


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=four", "data.batch_size=four: expected an integer"),
        ("data.batch_size=2.5", "data.batch_size=2.5: expected an integer"),
        ("data.batch_size=true", "data.batch_size=True: expected an integer"),
        ("data.batch_size=null", "data.batch_size=null: expected an integer"),
        ("data.batch_size=[1,2]", "data.batch_size=[1, 2]: expected an integer"),
        ("data.fov=[95]", "data.fov=[95]: expected a number"),
        ("data.yaw=[none]", "data.yaw=['none']: expected uniform or quarters or none"),
        ("data.num_workers=some", "data.num_workers=some: expected an integer"),  # of the class's base
        ("data.yaw=any", "data.yaw=any: expected uniform or quarters or none"),
        ("data.stages=foo", "data.stages=foo: expected a list or null"),
        ("data.weights=1", "data.weights=1: expected a list or null"),
        ("data.weights=[a]", "data.weights[0]=a: expected a number or an integer"),
        ("trainer.devices=[a]", "trainer.devices[0]=a: expected an integer"),
        ("data.weights=[inf]", "data: weights must be positive, one for each of the 1 datasets of path, got [inf]"),
        ("data.path=[]", "data: path must name a dataset or a list of datasets, got []"),
        ("data.path=''", "data: path must name a dataset or a list of datasets, got ''"),
        ("data.seed=-1", "data: seed must be at least 0, got -1"),
        ("data.fov=200.0", "data: fov is 200.0°: a field of view lies between 0° and 180°, both excluded"),
        ("model.objective.drop_text=none", "model.objective.drop_text=none: expected a number"),
        ("model.gradient_checkpointing=1", "model.gradient_checkpointing=1: expected true or false or selective"),
        ("model.gradient_checkpointing=some", "model.gradient_checkpointing=some: expected true or false or selective"),
        ("model.compile=max", "model.compile=max: expected regional or null"),
        ("model.optimizer.lr=fast", "model.optimizer.lr=fast: expected a number"),
        ("model.optimizer.lr=[1e-3]", "model.optimizer.lr=[0.001]: expected a number"),
        ("trainer.max_steps=many", "trainer.max_steps=many: expected an integer"),
        ("trainer.limit_val_batches=none", "trainer.limit_val_batches=none: expected an integer or a number or null"),
        ("callbacks.ema.decay=high", "callbacks.ema.decay=high: expected a number"),
    ],
)
def test_error_of_a_wrong_type_names_key_and_expected_type(override: str, message: str) -> None:
    config = composed("model=tiny_random", DATA, override)
    part = config[override.split(".")[0]]
    with pytest.raises(ValueError, match=r"^") as error:
        build(part.ema if "ema" in override else part)
    assert str(error.value) == message


def test_values_of_every_experiment_have_the_right_types() -> None:
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


@pytest.mark.parametrize("error", [ValueError("no"), OSError("no"), FloatingPointError("no")])
def test_an_error_is_one_line_or_with_the_variable_a_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    promised("docs/files.md", "adds the traceback to the errors of `train`, `cache`, `evaluate` and `plan`")
    with pytest.raises(SystemExit, match=r"^error: no$"), messages_of_errors("nothing was written"):
        raise error
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(type(error), match=r"^no$"), messages_of_errors("nothing was written"):
        raise error


@pytest.mark.parametrize(
    ("entry", "words", "message"),
    [
        (train, [], "error: data.path is missing"),
        (cache, ["model=tiny_random", DATA], "error: cache.output missing: set cache.output=VALUE"),
        (evaluate, ["reference=PANORAMAS"], "error: output is missing"),
    ],
)
def test_a_missing_value_is_named_also_without_arguments(
    entry: ModuleType, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(entry, words, monkeypatch).startswith(message)
